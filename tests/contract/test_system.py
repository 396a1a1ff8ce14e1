"""What the machine can hold, and the orchestrator's view of it: one behaviour, local and remote."""

from __future__ import annotations

import os

import pytest

from genai_notebook.core.schema import MemoryEstimate, MemoryInfo, MemoryUse, RunCheck, SystemCapabilities
from genai_notebook.core.utilities import get_platform
from genai_notebook.errors import InvalidRequestError, ModelNotFoundError
from tests.contract.conftest import Subject


def test_detect(subject: Subject) -> None:
    async def scenario() -> None:
        system = await subject.runtime.system_info.detect()
        assert isinstance(system, SystemCapabilities)
        assert system.cpu.cores >= 1
        assert 0 < system.memory.available <= system.memory.total
        assert system.platform == get_platform()
        assert 1 <= system.recommendations.threads <= system.cpu.cores
        assert system.gpu.available == bool(system.gpus)
        again = await subject.runtime.system_info.detect(force=True)
        assert again.detected_at >= system.detected_at
        assert again.cpu == system.cpu
        subject.runtime.system_info.clear_cache()

    subject.run(scenario())


def test_memory_is_live(subject: Subject) -> None:
    memory = subject.runtime.system_info.get_memory_info()
    assert isinstance(memory, MemoryInfo)
    assert 0 < memory.available <= memory.total


def test_memory_is_held_by_engines_owner_and_others(subject: Subject) -> None:
    async def scenario() -> None:
        info = await subject.start_llm()
        await subject.start_images()
        await subject.paint()  # only now is the engine there
        use = await subject.runtime.system_info.memory_use()
        assert isinstance(use, MemoryUse)
        kinds = [holder.kind for holder in use.holders]
        assert kinds == ["llm", "images", *(["kernel"] if subject.kind == "remote" else []), "owner", "others"]
        llm, images, *_, owner, others = use.holders
        assert (llm.pid, llm.name) == (info.pid, subject.llm_id)
        assert (images.pid, images.name) == (subject.fake_sd.pid, subject.image_id)
        assert llm.ram > 0 < images.ram
        assert (owner.pid == os.getpid()) == (subject.kind == "local")
        assert (others.pid, others.ram >= 0) == (None, True)
        if subject.kind == "remote":
            kernel = use.holders[2]
            assert (kernel.pid, kernel.name) == (os.getpid(), "this kernel")
            assert owner.name == "Jupyter server"
        else:
            assert owner.name == "this kernel"
        assert 0 < use.memory.used < use.memory.total
        await subject.llama.stop()
        later = await subject.runtime.system_info.memory_use()
        assert "llm" not in [holder.kind for holder in later.holders]
        assert later.measured_at >= use.measured_at

    subject.run(scenario())


@pytest.mark.parametrize("kernel", [0, 999_999_999])
def test_a_kernel_that_is_unknown_is_passed_over(subject: Subject, kernel: int) -> None:
    use = subject.run(subject.runtime.system_info.memory_use(kernel))
    assert [holder.kind for holder in use.holders] == ["owner", "others"]


def test_a_kernel_is_a_process_id(subject: Subject) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        subject.run(subject.runtime.system_info.memory_use(-1))
    assert (caught.value.details or {})["field"] == "kernel"


def test_a_small_model_fits_by_id_and_by_info(subject: Subject) -> None:
    async def scenario() -> None:
        info = await subject.models.get_model_info(subject.llm_id)
        for model in (subject.llm_id, info):
            check = await subject.runtime.system_info.can_run_model(model)
            assert isinstance(check, RunCheck)
            assert (check.possible, check.reason) == (True, None)

    subject.run(scenario())


def test_the_optimal_configuration_starts(subject: Subject) -> None:
    async def scenario() -> None:
        config = await subject.runtime.system_info.get_optimal_config(subject.llm_id)
        info = await subject.start_llm(**config)
        assert info.context_size == config["context_size"] == 2048

    subject.run(scenario())


def test_estimates_follow_the_context(subject: Subject) -> None:
    async def scenario() -> None:
        small = await subject.runtime.system_info.estimate_memory(subject.llm_id, context_size=512)
        large = await subject.runtime.system_info.estimate_memory(subject.llm_id, context_size=2048)
        assert isinstance(small, MemoryEstimate)
        assert small.exact
        # 4 layers, 2 heads for keys and values, (8 + 8) wide, two bytes each
        assert small.kv_cache == 4 * 2 * 16 * 2 * 512
        assert large.kv_cache == 4 * small.kv_cache
        with pytest.raises(InvalidRequestError) as caught:
            await subject.runtime.system_info.estimate_memory(subject.llm_id, context_size=-1)
        assert (caught.value.details or {})["field"] == "context_size"

    subject.run(scenario())


@pytest.mark.parametrize("method", ["can_run_model", "get_optimal_config", "estimate_memory"])
def test_an_unknown_model(subject: Subject, method: str) -> None:
    with pytest.raises(ModelNotFoundError):
        subject.run(getattr(subject.runtime.system_info, method)("no-such-model"))


def test_the_orchestrator_has_nothing_to_do(subject: Subject) -> None:
    async def scenario() -> None:
        orchestrator = subject.runtime.orchestrator
        assert await orchestrator.would_need_offload() is False
        assert orchestrator.get_saved_state() is None
        orchestrator.clear_saved_state()
        await orchestrator.wait_for_reload()
        await subject.start_images()
        image = await orchestrator.orchestrate_image_generation(prompt="x", width=64, height=64, steps=2, seed=4)
        assert image.seed == 4

    subject.run(scenario())
