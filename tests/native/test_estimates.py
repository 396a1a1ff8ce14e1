"""Our estimates against llama.cpp's own layout: over models, contexts, options, and placements on GPUs."""

from __future__ import annotations

import msgspec
import pytest

from genai_notebook.core.system.estimate import MIB, Load, estimate
from tests.native.referee import CONTEXTS, OPTIONS, Case, Referee, Verdict, table_of
from tests.native.shapes import MODELS

#: The most an estimate may be off, and the most it may be off on average, as shares of the total. Over all models the
#: average is far lower; small models on several GPUs are the hardest.
WORST, MEAN, MEAN_ON_GPUS = 0.03, 0.005, 0.0075


def hold(verdicts: list[Verdict], mean: float = MEAN) -> None:
    """All errors are inside of the limits; of the total, and of what lies in RAM and on each GPU."""
    print("\n" + table_of(verdicts))
    errors = [abs(verdict.error) for verdict in verdicts]
    assert max(errors) <= WORST, table_of([verdict for verdict in verdicts if abs(verdict.error) > WORST])
    assert sum(errors) / len(errors) <= mean, table_of(verdicts)
    for verdict in verdicts:
        assert max(abs(error) for error in verdict.share_errors) <= WORST, verdict


@pytest.mark.parametrize("name", MODELS)
def test_in_ram(referee: Referee, name: str) -> None:
    loads = [
        msgspec.structs.replace(load, context_size=context)
        for context in CONTEXTS
        for option, load in OPTIONS.items()
        if option != "full windows" or "gemma" in name or name in ("gpt-oss-20b", "llama-4-scout")
    ]
    hold(referee.judge_all([Case(name, load) for load in loads]))


@pytest.mark.parametrize("name", MODELS)
def test_on_gpus(referee: Referee, name: str) -> None:
    """One GPU, two alike, and two that differ; all layers, all but the first, half of them, the last one alone."""
    layers = referee.model(name).gguf_metadata.block_count  # type: ignore[union-attr]
    assert layers
    cases = [
        Case(name, Load(context_size=context, gpu_layers=gpu_layers), shares)
        for context in (4096, 32_768)
        for shares in ((1,), (1, 1), (3, 1))
        for gpu_layers in (999, layers, layers // 2, 1)
    ]
    cases.append(Case(name, Load(context_size=32_768, gpu_layers=999), (1, 2, 1)))
    hold(referee.judge_all(cases), MEAN_ON_GPUS)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b", "llama-4-scout", "deepseek-v2-lite"])
def test_experts_in_ram(referee: Referee, name: str) -> None:
    layers = referee.model(name).gguf_metadata.block_count  # type: ignore[union-attr]
    assert layers
    loads = [
        Load(gpu_layers=999, cpu_moe=True),
        Load(gpu_layers=999, n_cpu_moe=layers // 2),
        Load(gpu_layers=layers // 2, n_cpu_moe=layers * 3 // 4),
    ]
    hold(referee.judge_all([Case(name, load, shares) for load in loads for shares in ((1,), (1, 1))]))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-12b", "qwen3-30b-a3b", "deepseek-v2-lite", "falcon-h1-7b"])
def test_options_on_gpus(referee: Referee, name: str) -> None:
    layers = referee.model(name).gguf_metadata.block_count  # type: ignore[union-attr]
    assert layers
    cases = [
        Case(name, msgspec.structs.replace(load, gpu_layers=gpu_layers), shares)
        for load in OPTIONS.values()
        for gpu_layers in (999, layers // 2)
        for shares in ((1,), (1, 1))
    ]
    hold(referee.judge_all(cases), MEAN_ON_GPUS)


@pytest.mark.parametrize("name", ["llama-2-7b", "qwen3-30b-a3b", "deepseek-v2-lite"])
def test_slots_that_share_a_cache_need_no_more_than_one(referee: Referee, name: str) -> None:
    """`llama-fit-params` knows no shared cache, but where nothing slides or recurs, a single slot's is the same."""
    (measured,) = referee.measure(Case(name, Load(context_size=8192)))
    shared = estimate(referee.model(name), Load(context_size=8192, parallel_requests=4, kv_unified=True))
    assert shared.ram / MIB == pytest.approx(measured, rel=0.005)
