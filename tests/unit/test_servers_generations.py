from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from genai_notebook.core.schema import GeneratedImage, GenerationOutput, ImageGenerationConfig
from genai_notebook.core.servers.generations import GenerationRegistry
from genai_notebook.errors import InvalidRequestError


def test_a_generation_from_beginning_to_end() -> None:
    registry = GenerationRegistry()
    id = registry.create(prompt="a cat", steps=3)
    state = registry.get(id)
    assert state is not None
    assert (state.status, state.created_at, state.config and state.config.steps) == ("pending", state.updated_at, 3)
    registry.update(id, {"status": "in_progress"}, progress={"currentStep": 1, "totalSteps": 3, "stage": "diffusion"})
    state = registry.get(id)
    assert state is not None
    assert state.progress is not None
    assert (state.status, state.progress.current_step) == ("in_progress", 1)
    output = GenerationOutput(
        images=[GeneratedImage(image=b"x", seed=1, width=64, height=64)], format="png", time_taken=5
    )
    registry.update(id, status="complete", result=output)
    state = registry.get(id)
    assert state is not None
    assert state.result == output
    assert registry.get_all_ids() == [id]
    registry.delete(id)
    assert registry.get(id) is None
    assert registry.size() == 0
    registry.destroy()


def test_a_configuration_object_is_accepted() -> None:
    registry = GenerationRegistry()
    id = registry.create(ImageGenerationConfig(prompt="p", width=128))
    state = registry.get(id)
    assert state is not None
    assert state.config is not None
    assert state.config.width == 128
    registry.destroy()


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "p", "count": 6}, {"prompt": "p", "colour": 1}, {"prompt": "p", "steps": 2.5}]
)
def test_wrong_configurations_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        GenerationRegistry().create(**fields)


def test_wrong_updates_are_refused() -> None:
    registry = GenerationRegistry()
    id = registry.create(prompt="p")
    with pytest.raises(InvalidRequestError, match="id"):
        registry.update(id, {"id": "other"})
    with pytest.raises(InvalidRequestError, match="no status"):
        registry.update(id, status="finished")
    registry.update("unknown", status="complete")
    registry.destroy()


def test_only_finished_ones_are_cleaned() -> None:
    registry = GenerationRegistry()
    pending, running, done, failed = (registry.create(prompt="p") for _ in range(4))
    registry.update(running, status="in_progress")
    registry.update(done, status="complete")
    registry.update(failed, status="error", error={"message": "m", "code": "BACKEND_ERROR"})
    assert registry.cleanup(60_000) == 0
    assert registry.cleanup(0) == 2
    assert set(registry.get_all_ids()) == {pending, running}
    registry.clear()
    assert registry.size() == 0
    registry.destroy()


def test_cleaning_happens_by_itself() -> None:
    registry = GenerationRegistry(max_result_age_ms=0, cleanup_interval_ms=20)
    id = registry.create(prompt="p")
    registry.update(id, status="complete")
    deadline = time.monotonic() + 10
    while registry.size() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert registry.size() == 0
    registry.destroy()


def test_a_forgotten_registry_is_freed() -> None:
    registry = GenerationRegistry(cleanup_interval_ms=3_600_000)
    registry.create(prompt="p")
    reference = weakref.ref(registry)
    timer = registry._timer
    del registry
    gc.collect()
    assert reference() is None
    assert timer is not None
    timer.cancel()


def test_many_threads_may_use_it() -> None:
    registry = GenerationRegistry()

    def work() -> None:
        for _ in range(50):
            id = registry.create(prompt="p")
            registry.update(id, status="in_progress")
            registry.delete(id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.size() == 0
    registry.destroy()
