"""Writes `tests/unit/golden_estimates.json`: what llama.cpp says of each model, so that level 1 can hold us to it.

    .venv-test/bin/python -m tests.native.golden

One row a case: the model, what differs from the default load, the GPUs' shares, and MiB in RAM and on each GPU.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec

from genai_notebook.core.system.estimate import Load
from tests.native.referee import Case, Referee, changes, native_folder, stand_in_gpus
from tests.native.shapes import MODELS

TARGET = Path(__file__).parents[1] / "unit" / "golden_estimates.json"
LOADS = (
    (Load(), ()),
    (Load(context_size=32_768), ()),
    (Load(context_size=131_072), ()),
    (Load(context_size=8192, parallel_requests=4), ()),
    (Load(context_size=8192, cache_type_k="q8_0", cache_type_v="q8_0"), ()),
    (Load(context_size=8192, flash_attention=False), ()),
    (Load(context_size=8192, batch_size=128), ()),
    (Load(context_size=8192, gpu_layers=999), (1,)),
    (Load(context_size=8192, gpu_layers=10), (1,)),
    (Load(context_size=8192, gpu_layers=999), (3, 1)),
)
EXPERTS = ((Load(gpu_layers=999, cpu_moe=True), (1,)), (Load(gpu_layers=999, n_cpu_moe=10), (1,)))


def main() -> None:
    programs = native_folder()
    with tempfile.TemporaryDirectory() as name, stand_in_gpus(programs, 2, Path(name)) as servers:
        folder = Path(name)
        referee = Referee(programs, folder, servers)
        cases = [Case(model, load, shares) for model in MODELS for load, shares in _loads(referee, model)]
        rows = [
            [verdict.case.model, changes(verdict.case.load), verdict.case.shares, verdict.measured]
            for verdict in referee.judge_all(cases)
        ]
    TARGET.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} rows: {TARGET}")


def _loads(referee: Referee, model: str) -> list[tuple[Load, tuple[int, ...]]]:
    metadata = referee.model(model).gguf_metadata
    assert metadata is not None
    loads = [*LOADS, *(EXPERTS if metadata.expert_count else ())]
    if metadata.attention_sliding_window or metadata.architecture == "llama4":
        loads.append((msgspec.structs.replace(Load(), context_size=32_768, swa_full=True), ()))
    return loads


if __name__ == "__main__":
    main()
