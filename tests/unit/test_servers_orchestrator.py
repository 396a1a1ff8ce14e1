"""The decision and the order of events; the managers here are stand-ins that only keep a diary."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from genai_notebook.core.schema import (
    CPUInfo,
    DiffusionServerInfo,
    GPUInfo,
    ImageGenerationResult,
    MemoryEstimate,
    MemoryInfo,
    ModelInfo,
    ModelSource,
    ServerInfo,
    SystemCapabilities,
    SystemRecommendations,
)
from genai_notebook.core.servers.orchestrator import ResourceOrchestrator
from genai_notebook.errors import ServerError

GB = 1024**3


class Machine:
    """RAM and VRAM as the scenario says; the LLM needs what it is told."""

    def __init__(self, *, total: float, free: float, vram: float | None, llm: float) -> None:
        self.total, self.free, self.vram, self.llm = total, free, vram, llm

    async def detect(self, force: bool = False) -> SystemCapabilities:
        gpu = GPUInfo(available=self.vram is not None, vram=_bytes(self.vram), vram_available=_bytes(self.free))
        return SystemCapabilities(
            cpu=CPUInfo(cores=8, physical_cores=4, model="m", architecture="x64"),
            memory=self.get_memory_info(),
            gpu=gpu,
            gpus=[gpu] if gpu.available else [],
            platform="linux",
            recommendations=SystemRecommendations(max_model_size="7B", recommended_quantization=[], threads=7),
            detected_at=0,
        )

    def get_memory_info(self) -> MemoryInfo:
        return MemoryInfo(total=int(self.total * GB), available=int(self.free * GB), used=0)

    async def estimate_memory(self, model: str, **options: Any) -> MemoryEstimate:
        share = int(self.llm * GB)
        gpu = self.vram is not None
        return MemoryEstimate(
            weights=share, kv_cache=0, compute=0, ram=0 if gpu else share, vram=share if gpu else 0, exact=True
        )


def _bytes(value: float | None) -> int | None:
    return None if value is None else int(value * GB)


class Models:
    def __init__(self, image_size: float) -> None:
        self.image_size = image_size

    async def get_model_info(self, id: str) -> ModelInfo:
        # The scenarios give what the image model needs; the estimate is size × 1.2.
        size = int(self.image_size / 1.2 * GB)
        source = ModelSource(type="local")
        return ModelInfo(id=id, name=id, type="diffusion", size=size, path="/m", downloaded_at="", source=source)


class Llama:
    is_fetching = False

    def __init__(self, diary: list[str], reload_errors: int = 0) -> None:
        self.diary, self.status, self.reload_errors = diary, "running", reload_errors
        self.wishes = 1

    def get_status(self) -> str:
        return self.status

    def get_info(self) -> ServerInfo:
        return ServerInfo(status="running", health="ok", owner="kernel", port=8080, model_id="llm", context_size=4096)

    async def step_aside(self) -> bool:
        self.diary.append("llm stops")
        self.status = "stopped"
        return True

    async def resume(self) -> ServerInfo:
        if self.reload_errors:
            self.reload_errors -= 1
            self.diary.append("reload fails")
            raise ServerError("no room")
        await asyncio.sleep(0.01)
        self.diary.append("llm is back")
        self.status = "running"
        return self.get_info()


class Diffusion:
    def __init__(self, diary: list[str], error: Exception | None = None) -> None:
        self.diary, self.error = diary, error

    def get_info(self) -> DiffusionServerInfo:
        return DiffusionServerInfo(status="running", health="ok", owner="kernel", busy=False, model_id="image")

    async def generate_image(self, config: Any = None, **fields: Any) -> ImageGenerationResult:
        if self.error:
            raise self.error
        self.diary.append("image")
        return ImageGenerationResult(image=b"", format="png", time_taken=1, seed=1, width=64, height=64, id="i")


def make(machine: Machine, image_size: float, **options: Any) -> tuple[ResourceOrchestrator, list[str], Llama]:
    diary: list[str] = []
    llama = Llama(diary, options.pop("reload_errors", 0))
    diffusion = Diffusion(diary, options.pop("error", None))
    return ResourceOrchestrator(machine, llama, diffusion, Models(image_size)), diary, llama  # type: ignore[arg-type]


GPU_8 = Machine(total=64, free=5.5, vram=8, llm=6)
GPU_24 = Machine(total=64, free=18, vram=24, llm=6)
CPU_16 = Machine(total=16, free=8, vram=None, llm=8)


@pytest.mark.parametrize(
    ("machine", "image", "expected"),
    [
        pytest.param(GPU_8, 5, True, id="8 GB of VRAM: 11 > 6"),
        pytest.param(GPU_24, 5, False, id="24 GB of VRAM: 11 < 18"),
        pytest.param(CPU_16, 6, True, id="16 GB of RAM: 14 > 12"),
        pytest.param(Machine(total=64, free=3, vram=24, llm=6), 5, True, id="VRAM that others hold counts"),
        pytest.param(Machine(total=64, free=3, vram=None, llm=8), 6, True, id="RAM that others hold counts"),
        pytest.param(Machine(total=64, free=30, vram=None, llm=8), 6, False, id="plenty of RAM"),
    ],
)
def test_the_decision(machine: Machine, image: float, expected: bool) -> None:
    orchestrator, _, llama = make(machine, image)
    assert asyncio.run(orchestrator.would_need_offload()) is expected
    llama.status = "stopped"
    assert asyncio.run(orchestrator.would_need_offload()) is False


def test_the_image_comes_before_the_reload() -> None:
    orchestrator, diary, _ = make(GPU_8, 5)

    async def main() -> None:
        await orchestrator.orchestrate_image_generation(prompt="p")
        assert diary == ["llm stops", "image"]
        saved = orchestrator.get_saved_state()
        assert saved is not None
        assert (saved.was_running, saved.config["modelId"], saved.config["port"]) == (True, "llm", 8080)
        await orchestrator.wait_for_reload()
        assert diary == ["llm stops", "image", "llm is back"]
        assert orchestrator.get_saved_state() is None

    asyncio.run(main())


def test_with_room_for_both_nothing_moves() -> None:
    orchestrator, diary, _ = make(GPU_24, 5)
    asyncio.run(orchestrator.orchestrate_image_generation(prompt="p"))
    assert diary == ["image"]


def test_a_failed_image_brings_the_llm_back_too() -> None:
    orchestrator, diary, _ = make(GPU_8, 5, error=ServerError("no picture"))

    async def main() -> None:
        with pytest.raises(ServerError, match="no picture"):
            await orchestrator.orchestrate_image_generation(prompt="p")
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    assert diary == ["llm stops", "llm is back"]


def test_a_reload_is_tried_twice() -> None:
    orchestrator, diary, _ = make(GPU_8, 5, reload_errors=1)

    async def main() -> None:
        await orchestrator.orchestrate_image_generation(prompt="p")
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    assert diary == ["llm stops", "image", "reload fails", "llm is back"]


def test_a_failed_reload_says_why() -> None:
    orchestrator, diary, _ = make(GPU_8, 5, reload_errors=9)

    async def main() -> None:
        await orchestrator.orchestrate_image_generation(prompt="p")
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    saved = orchestrator.get_saved_state()
    assert saved is not None
    assert saved.error == "no room"
    assert diary.count("reload fails") == 2


def test_the_next_image_waits_for_the_reload() -> None:
    orchestrator, diary, _ = make(GPU_8, 5)

    async def main() -> None:
        await orchestrator.orchestrate_image_generation(prompt="p")
        await orchestrator.orchestrate_image_generation(prompt="p")
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    assert diary == ["llm stops", "image", "llm is back"] * 2


def test_a_cleared_state_is_not_restored() -> None:
    orchestrator, diary, _ = make(GPU_8, 5)

    async def main() -> None:
        await orchestrator.before_image()
        orchestrator.clear_saved_state()
        orchestrator.after_image()
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    assert diary == ["llm stops"]


def test_what_a_person_wishes_meanwhile_holds() -> None:
    orchestrator, diary, llama = make(GPU_8, 5)

    async def main() -> None:
        await orchestrator.before_image()
        assert orchestrator.get_saved_state() is not None
        llama.wishes += 1  # stopped, or something else started
        assert orchestrator.get_saved_state() is None
        orchestrator.after_image()
        await orchestrator.wait_for_reload()

    asyncio.run(main())
    assert diary == ["llm stops"]


def test_an_llm_that_is_starting_is_waited_for() -> None:
    orchestrator, diary, llama = make(GPU_8, 5)
    llama.status = "starting"

    async def main() -> None:
        image = asyncio.ensure_future(orchestrator.orchestrate_image_generation(prompt="p"))
        await asyncio.sleep(0.3)
        assert diary == []
        llama.status = "running"
        await image

    asyncio.run(main())
    assert diary == ["llm stops", "image"]
