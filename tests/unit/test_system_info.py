"""SystemInfo on machines of our choice."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from genai_notebook.core.schema import GPUInfo, ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo
from genai_notebook.core.system import info as info_module
from genai_notebook.errors import InvalidRequestError, ModelNotFoundError
from tests.fakes.machine import Machine, card
from tests.unit.test_system_estimate import LLAMA_2_7B, MIB, model

GIB = 1 << 30
LLAMA = model(3891 * MIB, msgspec.structs.replace(LLAMA_2_7B, context_length=4096))
NO_GPU = GPUInfo(available=False)


def system(machine: Machine, **more: Any) -> SystemInfo:
    return SystemInfo(Settings.from_environment(), probe=machine, **more)


def test_detect_is_kept_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(ram=16 * GIB, gpus=[card(8 * GIB), card(24 * GIB)])
    now = [1000.0]
    monkeypatch.setattr(info_module.time, "monotonic", lambda: now[0])
    info = system(machine)

    async def main() -> None:
        first = await info.detect()
        assert first.gpu == machine.cards[1]
        assert first.gpus == machine.cards
        assert first.recommendations.max_model_size == "70B"
        machine.ram = 8 * GIB
        now[0] += 59
        assert await info.detect() is first
        assert (await info.detect(force=True)).memory.total == 8 * GIB
        machine.ram = 4 * GIB
        now[0] += 61
        assert (await info.detect()).memory.total == 4 * GIB
        info.clear_cache()
        await info.detect()
        assert machine.asked == 4

    asyncio.run(main())


def test_memory_is_always_fresh() -> None:
    machine = Machine(ram=8 * GIB, free=4 * GIB)
    info = system(machine)
    assert info.get_memory_info().available == 4 * GIB
    machine.free = GIB
    assert info.get_memory_info().available == GIB


@pytest.mark.parametrize(
    ("machine", "total", "possible", "says"),
    [
        (Machine(ram=16 * GIB), False, True, ""),
        (Machine(ram=16 * GIB, free=2 * GIB), False, False, "Close other programs"),
        (Machine(ram=16 * GIB, free=2 * GIB), True, True, ""),
        (Machine(ram=4 * GIB), True, False, "smaller"),
        (Machine(ram=4 * GIB), False, False, "smaller"),
        (Machine(ram=4 * GIB, gpus=[card(16 * GIB)]), False, True, ""),
        # A third of it in VRAM, the rest in RAM.
        (Machine(ram=4 * GIB, gpus=[card(16 * GIB, free=3 * GIB)]), False, True, ""),
        (Machine(ram=3 * GIB, gpus=[card(16 * GIB, free=2 * GIB)]), False, False, "Close other programs"),
        (Machine(ram=4 * GIB, gpus=[card(16 * GIB, free=2 * GIB)]), True, True, ""),
    ],
)
def test_can_run_model(machine: Machine, total: bool, possible: bool, says: str) -> None:
    check = asyncio.run(system(machine).can_run_model(LLAMA, check_total_memory=total))
    assert check.possible is possible
    if not possible:
        assert check.reason is not None
        assert "Insufficient RAM" in check.reason
        assert ("total" if total else "available") in check.reason
        assert says in (check.suggestion or "")


def test_optimal_config_without_a_gpu() -> None:
    config = asyncio.run(system(Machine(ram=16 * GIB)).get_optimal_config(LLAMA))
    assert config == {
        "threads": 7,
        "gpu_layers": 0,
        "context_size": 4096,
        "parallel_requests": 4,
        "flash_attention": "auto",
        "cache_type_k": "f16",
        "cache_type_v": "f16",
    }


def test_optimal_context_follows_the_memory_and_the_model() -> None:
    config = asyncio.run(system(Machine(ram=16 * GIB, free=5000 * MIB)).get_optimal_config(LLAMA))
    assert (config["context_size"], config["cache_type_k"]) == (2048, "q8_0")
    short = msgspec.structs.replace(LLAMA, gguf_metadata=msgspec.structs.replace(LLAMA_2_7B, context_length=2048))
    assert asyncio.run(system(Machine(ram=64 * GIB)).get_optimal_config(short))["context_size"] == 2048


@pytest.mark.parametrize(("vram", "layers"), [(24 * GIB, 33), (1 * GIB, 0), (0, 0)])
def test_optimal_layers(vram: int, layers: int) -> None:
    machine = Machine(ram=16 * GIB, gpus=[card(24 * GIB, free=vram)])
    assert asyncio.run(system(machine).get_optimal_config(LLAMA))["gpu_layers"] == layers


def test_optimal_layers_are_the_most_that_fit() -> None:
    info = system(Machine(ram=16 * GIB, gpus=[card(24 * GIB, free=5 * GIB)]))

    async def main() -> None:
        layers = (await info.get_optimal_config(LLAMA))["gpu_layers"]
        assert 0 < layers < 33
        options = {"parallel_requests": 4, "kv_unified": True}
        assert (await info.estimate_memory(LLAMA, gpu_layers=layers, **options)).vram + GIB <= 5 * GIB
        assert (await info.estimate_memory(LLAMA, gpu_layers=layers + 1, **options)).vram + GIB > 5 * GIB

    asyncio.run(main())


def test_estimate_uses_a_gpu_where_there_is_one() -> None:
    with_gpu = asyncio.run(system(Machine(ram=GIB, gpus=[card(GIB)])).estimate_memory(LLAMA))
    assert with_gpu.vram > with_gpu.ram
    assert asyncio.run(system(Machine(ram=GIB)).estimate_memory(LLAMA)).vram == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_size", 0),
        ("context_size", 1.5),
        ("parallel_requests", -1),
        ("gpu_layers", -1),
        ("batch_size", True),
        ("cache_type_k", "q9"),
    ],
)
def test_estimate_refuses_nonsense(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(system(Machine(ram=GIB)).estimate_memory(LLAMA, **{field: value}))
    assert caught.value.details == {"field": field}


def test_models_by_id() -> None:
    async def find(id: str) -> ModelInfo:
        if id != "m":
            raise ModelNotFoundError(id)
        return LLAMA

    info = system(Machine(ram=16 * GIB), find_model=find)
    assert asyncio.run(info.can_run_model("m")).possible
    with pytest.raises(ModelNotFoundError):
        asyncio.run(info.can_run_model("other"))
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(system(Machine(ram=GIB)).can_run_model("m"))
    assert "get_model_info" in (caught.value.hint or "")


def test_an_image_model_gets_threads_only() -> None:
    picture = model(GIB, type="diffusion")
    assert asyncio.run(system(Machine(ram=GIB, cores=4)).get_optimal_config(picture)) == {"threads": 3}


def test_one_instance_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemInfo, "_instance", None)
    assert SystemInfo.get_instance() is SystemInfo.get_instance()
