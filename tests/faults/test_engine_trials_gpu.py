"""A build for the GPU and one for the processor, tried with a model: which one is used, and what is remembered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_notebook.core.engines import places
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import BinaryError
from tests.fakes import FakeEngine
from tests.fakes.machine import Machine, card
from tests.fakes.releases import GIB, Shelf
from tests.faults.trying import House, start
from tests.processes import assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")

GPU = card(8 * GIB, vulkan=True, driver="1")
VULKAN, CPU = "llama.cpp b2 (vulkan)", "llama.cpp b2 (cpu)"
OUT_OF_MEMORY = "0.00.020.000 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592"
ON_A_GPU = [
    "0.00.020.000 I load_tensors: offloaded 1/31 layers to GPU",
    "0.00.020.001 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
    "0.00.020.002 I load_tensors:        Vulkan0 model buffer size =    12.00 MiB",
]
ON_THE_CPU = [
    "0.00.020.000 I load_tensors: offloaded 1/31 layers to GPU",
    "0.00.020.001 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
]


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        yield shelf


Variants = tuple[House, FakeEngine, FakeEngine]


@pytest.fixture
def variants(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Variants]:
    """A machine with a GPU, and two builds: for the GPU and for the processor."""
    monkeypatch.setattr(places, "is_there", lambda module: False)
    house = House(tmp_path, machine=Machine(ram=16 * GIB, gpus=[GPU]), shelf=shelf)
    vulkan = FakeEngine(tmp_path / "vulkan", "llama", proved=False)
    cpu = FakeEngine(tmp_path / "cpu", "llama", proved=False, start_log=ON_THE_CPU)
    shelf.add("llama", "vulkan", vulkan)
    shelf.add("llama", "cpu", cpu)
    yield house, vulkan, cpu
    assert_none_left(tmp_path)


def test_a_gpu_that_computes_is_used(variants: Variants) -> None:
    house, vulkan, cpu = variants
    vulkan.set(start_log=ON_A_GPU)
    for _ in range(2):
        assert house.works("llm") == VULKAN
    assert (len(vulkan.starts), len(cpu.starts)) == (3, 0)


def test_a_gpu_build_that_computes_on_the_processor_is_refused(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(start_log=ON_THE_CPU)
    heard: list[str] = []

    async def scenario(runtime: Runtime) -> str:
        runtime.subscribe(lambda name, data: heard.append(data["message"]) if name == "binary-log" else None)
        return str((await start(runtime, "llm")).engine)

    assert house.run(scenario) == CPU
    assert any("it ran, but on the CPU: it found no GPU that it can use" in message for message in heard)
    assert house.works("llm") == CPU
    assert len(vulkan.starts) == 1


def test_why_it_found_none_is_told(variants: Variants) -> None:
    house, vulkan, cpu = variants
    why = "failed to initialize CUDA: no CUDA-capable device is detected"
    vulkan.set(start_log=[f"0.00.010.000 W ggml_cuda_init: {why}", *ON_THE_CPU])
    cpu.set(start_log=[], exit_at_start=1)
    error = house.refused("llm")
    assert f"it ran, but on the CPU: {why}" in error.message


def test_a_gpu_that_is_too_full_is_left_for_this_time(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(start_log=[OUT_OF_MEMORY], exit_at_start=1)
    assert house.works("llm") == CPU
    vulkan.set(start_log=ON_A_GPU, exit_at_start=None)
    assert house.works("llm") == VULKAN


def test_memory_comes_before_what_follows_from_its_want(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(
        start_log=[
            "0.00.020.000 E CUDA error: out of memory",
            "ggml-cuda.cu:97: CUDA error",
            "0.00.013.203 E llama_model_load_from_file_impl: failed to load model",
        ],
        die={"signal": "SIGABRT"},
        load_seconds=60,
    )
    assert house.works("llm") == CPU
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)
    assert house.works("llm") == VULKAN


def test_a_model_that_the_gpu_build_fails_with_is_no_reason_for_others(variants: Variants) -> None:
    house, vulkan, _ = variants

    async def scenario(runtime: Runtime) -> list[str]:
        used = []
        for model, behaviour in (("tiny-llm", {"exit_at_start": 3}), ("other-llm", {"start_log": ON_A_GPU})):
            vulkan.reset()
            vulkan.set(**behaviour)
            used.append(str((await start(runtime, "llm", model)).engine))
            await runtime.llama_server.stop()
        used.append(str((await start(runtime, "llm", "other-llm")).engine))
        return used

    assert house.run(scenario) == [CPU, VULKAN, VULKAN]


def test_when_every_variant_fails_all_are_told_with_their_words(variants: Variants) -> None:
    house, vulkan, cpu = variants
    vulkan.set(start_log=["vulkan's last words"], exit_at_start=3)
    cpu.set(start_log=["cpu's last words"], exit_at_start=4)
    error = house.refused("llm")
    assert isinstance(error, BinaryError)
    found = {each["name"]: each for each in (error.details or {})["candidates"]}
    for name, code in ((VULKAN, 3), (CPU, 4)):
        assert f"exited with code {code}" in found[name]["reason"]
        assert f"exited with code {code}" in error.message
        assert any("last words" in line for line in found[name]["log"])
    assert {each["state"] for each in found.values()} == {"failed", "missing"}
