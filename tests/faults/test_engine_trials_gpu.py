"""A build for the GPU and one for the processor, tried with a model: which one is used, and what is remembered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_notebook.core.engines import memory, places, verdicts
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import BinaryError, InvalidRequestError, ServerError
from tests.fakes import FakeEngine
from tests.fakes.machine import Machine, card
from tests.fakes.releases import GIB, Shelf
from tests.faults.trying import House, grow_old, start, trial_flag
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


def test_a_restart_keeps_to_the_engine_there_was(variants: Variants) -> None:
    house, vulkan, cpu = variants
    vulkan.set(start_log=[OUT_OF_MEMORY], exit_at_start=1)

    async def scenario(runtime: Runtime) -> str:
        llm = runtime.llama_server
        assert (await start(runtime, "llm")).engine == CPU
        vulkan.reset()
        vulkan.set(start_log=ON_A_GPU)
        assert (await llm.restart()).engine == CPU
        assert await llm.step_aside()
        assert (await llm.resume()).engine == CPU
        assert vulkan.starts == []
        await llm.stop()
        return str((await start(runtime, "llm")).engine)

    assert house.run(scenario) == VULKAN
    assert len(cpu.starts) == 4


def test_a_restart_fetches_no_better_engine(variants: Variants, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    house, vulkan, _ = variants
    vulkan.set(start_log=ON_A_GPU)
    build = shelf.catalog[0]
    archive = shelf.file(build).body
    shelf.again(build, archive, status=404)
    # As if an hour had passed at once.
    monkeypatch.setattr(memory, "UNREACHED", 0.0)
    monkeypatch.setattr(verdicts, "UNREACHED", 0.0)

    async def scenario(runtime: Runtime) -> str:
        llm = runtime.llama_server
        assert (await start(runtime, "llm")).engine == CPU
        shelf.again(build, archive)
        asked = shelf.gets(build.archive)
        assert (await llm.restart()).engine == CPU
        assert await llm.step_aside()
        assert (await llm.resume()).engine == CPU
        assert shelf.gets(build.archive) == asked
        await llm.stop()
        return str((await start(runtime, "llm")).engine)

    assert house.run(scenario) == VULKAN


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


def test_success_with_one_model_leaves_the_failure_with_another(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(exit_at_start=3)
    assert house.works("llm", "tiny-llm") == CPU
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)

    async def scenario(runtime: Runtime) -> list[str]:
        used = []
        for model in ("other-llm", "tiny-llm", "other-llm"):
            used.append(str((await start(runtime, "llm", model)).engine))
            await runtime.llama_server.stop()
        # Another LLM, which is restarted now, does not stay with what fails with its model.
        model = await runtime.model_manager.get_model_info("tiny-llm")
        trial = runtime.llama_server.trial_of(model)
        used.append((await runtime.engine_manager.resolve("llama", trial=trial, stay=True)).name)
        return used

    assert house.run(scenario) == [VULKAN, CPU, VULKAN, CPU]
    assert house.works("llm", "tiny-llm") == CPU
    assert house.works("llm", "other-llm") == VULKAN
    models = [trial_flag(each, "--alias") for each in vulkan.starts]
    assert models == ["other-llm"] * 4  # the trial, and three real ones


def test_a_failure_with_a_model_counts_for_a_day(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(exit_at_start=3)
    assert house.works("llm") == CPU
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)
    grow_old(house.settings.home, 23 * 3600)
    assert house.works("llm") == CPU
    assert vulkan.starts == []
    grow_old(house.settings.home, 1.1 * 3600)
    assert house.works("llm") == VULKAN


def test_a_gpu_s_error_counts_for_all_models(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(start_log=["CUDA error: device kernel image is invalid"])
    assert house.works("llm", "tiny-llm") == CPU
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)
    assert house.works("llm", "other-llm") == CPU
    assert vulkan.starts == []
    assert house.works("llm", "other-llm", force_validation=True) == VULKAN


# ---- the caller's flags, and models that an engine does not know


def test_what_fails_with_further_flags_is_not_remembered(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(exit_at_start=3)
    assert house.works("llm", extra_args=["--mlock"]) == CPU
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)
    assert house.works("llm") == VULKAN


def test_another_engine_may_know_a_flag(variants: Variants) -> None:
    house, vulkan, _ = variants
    vulkan.set(start_log=ON_A_GPU, unknown_flags=["--mlock"])

    async def scenario(runtime: Runtime) -> list[str]:
        used = []
        for flags in (["--mlock"], []):
            used.append(str((await start(runtime, "llm", extra_args=flags)).engine))
            await runtime.llama_server.stop()
        return used

    assert house.run(scenario) == [CPU, VULKAN]


def test_a_flag_that_no_engine_knows_is_the_caller_s(variants: Variants) -> None:
    house, vulkan, cpu = variants
    error = house.refused("llm", extra_args=["--no-such-flag"])
    assert isinstance(error, InvalidRequestError)
    assert (error.details or {})["flag"] == "--no-such-flag"
    assert "extra_args" in error.message
    assert (len(vulkan.starts), len(cpu.starts)) == (1, 1)


def test_another_engine_may_know_a_model(variants: Variants) -> None:
    house, vulkan, cpu = variants
    vulkan.set(model_error="unknown model architecture: 'xxxxx'")
    assert house.works("llm") == CPU
    cpu.set(model_error="unknown model architecture: 'xxxxx'")
    error = house.refused("llm", force_validation=True)
    assert isinstance(error, ServerError)
    assert error.code == "MODEL_UNUSABLE"
    assert "unknown model architecture: 'xxxxx'" in error.message
    vulkan.reset()
    vulkan.set(start_log=ON_A_GPU)
    assert house.works("llm") == VULKAN


def test_a_broken_model_ends_the_search_at_once(variants: Variants) -> None:
    house, vulkan, cpu = variants
    vulkan.set(model_error="tensor 'x' data is not within the file bounds, model is corrupted or incomplete")
    error = house.refused("llm")
    assert isinstance(error, ServerError)
    assert error.code == "MODEL_UNUSABLE"
    assert (len(vulkan.starts), len(cpu.starts)) == (1, 0)


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
