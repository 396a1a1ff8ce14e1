"""Estimates of whole headers: rows that llama.cpp gave (see tests/native/golden.py), and where weights go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.core.schema import GGUFMetadata, ModelInfo
from genai_notebook.core.system.estimate import DRIVER_CONTEXT, GIB, MIB, Load, estimate, estimate_on
from tests.native.referee import model_at
from tests.native.shapes import MODELS, write_model

ROWS: list[Any] = json.loads((Path(__file__).parent / "golden_estimates.json").read_text())
Models = dict[str, ModelInfo]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("shapes")
    return {name: model_at(write_model(folder / f"{name}.gguf", name)) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_as_llama_cpp_says(models: Models, name: str) -> None:
    errors = []
    for _, options, shares, measured in (row for row in ROWS if row[0] == name):
        load = Load(**options)
        if shares:
            placed = estimate_on(models[name], load, [share * GIB for share in shares])
            ours = [placed.ram, *(each - DRIVER_CONTEXT for each in placed.vram)]
        else:
            found = estimate(models[name], load)
            assert found.exact
            assert found.ram == found.weights + found.kv_cache + found.compute
            ours = [found.ram]
        assert [each / MIB for each in ours] == pytest.approx(measured, abs=0.03 * sum(measured)), (options, shares)
        errors.append(abs(sum(ours) / MIB / sum(measured) - 1))
        assert errors[-1] <= 0.03, (options, shares)
    assert len(errors) >= 10
    assert sum(errors) / len(errors) <= 0.005


def test_all_rows_together() -> None:
    assert {row[0] for row in ROWS} == set(MODELS)


def test_one_gpu_is_one_of_several(models: Models) -> None:
    load = Load(gpu_layers=20)
    for model in models.values():
        found, placed = estimate(model, load), estimate_on(model, load, [GIB])
        assert (found.ram, [found.vram]) == (placed.ram, placed.vram)
        assert found.ram + found.vram == found.weights + found.kv_cache + found.compute + DRIVER_CONTEXT


def test_a_tied_output_is_in_both(models: Models) -> None:
    small = models["smollm2-135m"]
    assert small.gguf_metadata is not None
    assert small.gguf_metadata.weights is not None
    tied = small.gguf_metadata.weights.token_embedding
    here, there = estimate(small, Load()), estimate(small, Load(gpu_layers=999))
    assert there.weights - here.weights == tied
    untied = models["llama-3.1-8b"]
    assert estimate(untied, Load()).weights == estimate(untied, Load(gpu_layers=999)).weights


def test_experts_stay_in_ram(models: Models) -> None:
    experts = models["qwen3-30b-a3b"]
    assert experts.gguf_metadata is not None
    assert experts.gguf_metadata.weights is not None
    table = experts.gguf_metadata.weights
    whole, none, some = (
        estimate(experts, Load(gpu_layers=999, **more)) for more in ({}, {"cpu_moe": True}, {"n_cpu_moe": 8})
    )
    assert whole.vram - none.vram == pytest.approx(sum(table.experts), rel=0.001)
    assert whole.vram - some.vram == pytest.approx(sum(table.experts[:8]), rel=0.001)


def test_layers_go_by_what_is_free(models: Models) -> None:
    load = Load(gpu_layers=999)
    dense = models["llama-3.1-8b"]
    large, small = (each - DRIVER_CONTEXT for each in estimate_on(dense, load, [24 * GIB, 8 * GIB]).vram)
    assert 2 < large / small < 3  # the last GPU has the output layer, too
    assert estimate_on(dense, load, [0, 0]).vram == estimate_on(dense, load, [GIB, GIB]).vram
    assert estimate_on(dense, load, []).vram == []
    only, nothing = estimate_on(dense, load, [8 * GIB, 0]).vram
    assert (only > 0, nothing) == (True, 0)


def test_without_a_table_layers_count_the_same(models: Models) -> None:
    dense = models["llama-3.1-8b"]
    bare = without_table(dense)
    assert estimate(bare, Load()) == estimate(dense, Load())
    assert estimate(bare, Load(gpu_layers=16)).vram == pytest.approx(estimate(dense, Load(gpu_layers=16)).vram, rel=0.1)


def test_a_table_of_one_file_of_several_is_not_used(models: Models) -> None:
    dense = msgspec.structs.replace(models["llama-3.1-8b"], size=3 * models["llama-3.1-8b"].size)
    assert estimate(dense, Load(gpu_layers=16)) == estimate(without_table(dense), Load(gpu_layers=16))


def test_logits_of_one_token_a_slot(models: Models) -> None:
    all_of_them, few = (estimate(models["smollm2-135m"], Load(outputs=outputs)) for outputs in (None, 4))
    assert all_of_them.compute - few.compute > 80 * MIB


def test_what_is_not_worked_out_says_so(models: Models) -> None:
    metadata = models["llama-3.1-8b"].gguf_metadata
    assert metadata is not None
    for architecture in ("kimi-linear", "deepseek4", "t5"):
        other: GGUFMetadata = msgspec.structs.replace(metadata, architecture=architecture)
        assert not estimate(msgspec.structs.replace(models["llama-3.1-8b"], gguf_metadata=other), Load()).exact


def without_table(model: ModelInfo) -> ModelInfo:
    assert model.gguf_metadata is not None
    bare = msgspec.structs.replace(model.gguf_metadata, weights=None)
    return msgspec.structs.replace(model, gguf_metadata=bare)
