"""SystemInfo: what this machine is, what it can hold, and how a model is best run on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from genai_notebook.core.schema import (
    MemoryEstimate,
    MemoryInfo,
    MemoryUse,
    ModelInfo,
    Placement,
    RunCheck,
    SystemCapabilities,
)
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import use
from genai_notebook.core.system.estimate import (
    CACHE_BYTES,
    DEFAULT_CONTEXT,
    SIZE_FACTOR,
    Load,
    estimate,
)
from genai_notebook.core.system.freed import MemoryWatch
from genai_notebook.core.system.plan import DEFAULT_SLOTS, VRAM_RESERVE, Plan, Room, Wishes, plan, room_of
from genai_notebook.core.system.probe import MachineProbe, Probe
from genai_notebook.core.system.recommend import ALL_LAYERS, best_gpu, recommend, recommended_threads
from genai_notebook.core.utilities import format_bytes, get_platform, now_ms
from genai_notebook.errors import InvalidRequestError

CACHE_SECONDS = 60.0

FindModel = Callable[[str], Awaitable[ModelInfo]]


class SystemInfo:
    """This machine.

    Args:
        settings: limits and folders; default: the environment's.
        probe: the machine to ask; default: this one.
        find_model: how a model's id becomes a ModelInfo; without it the methods take ModelInfo objects only. It may
            be set later.
    """

    _instance: ClassVar[SystemInfo | None] = None
    _instance_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, settings: Settings | None = None, *, probe: Probe | None = None, find_model: FindModel | None = None
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self._probe = probe or MachineProbe(self.settings)
        self.find_model = find_model
        self._cached: tuple[float, SystemCapabilities] | None = None

    @classmethod
    def get_instance(cls) -> SystemInfo:
        """This process's own, for the environment's settings. `ModelManager.get_instance()` lends it its models."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

    # ---- the machine

    async def detect(self, force: bool = False) -> SystemCapabilities:
        """Everything about this machine. Kept for 60 seconds; `force` asks again."""
        cached = self._cached
        if not force and cached is not None and time.monotonic() - cached[0] < CACHE_SECONDS:
            return cached[1]
        capabilities = await asyncio.to_thread(self._detect)
        self._cached = (time.monotonic(), capabilities)
        return capabilities

    def get_memory_info(self) -> MemoryInfo:
        """RAM as it is right now."""
        return self._probe.memory()

    async def memory_use(self, kernel: int | None = None) -> MemoryUse:
        """The machine's memory right now, and who holds it: engines, kernel, owner, everything else.

        Args:
            kernel: pid of the process that asks, where that is another one than this; one that is unknown here is
                passed over.

        Raises:
            InvalidRequestError: `kernel` is no process id.
        """
        return await asyncio.to_thread(use.measure, self._probe, self.settings.run, kernel)

    def placing(self) -> Callable[[int], Placement]:
        """Look at the machine (blocks). What is returned tells where a model of so many bytes would go when
        nothing else is loaded: whole into VRAM ('vram'), into RAM ('ram'), or nowhere ('no'). By rule of thumb
        (size × 1.2), as for every model without a header.
        """
        gpu, memory = best_gpu(self._probe.gpus()), self._probe.memory()
        vram = (gpu.vram or 0) - VRAM_RESERVE if gpu.available else 0

        def place(size: int) -> Placement:
            needed = int(size * SIZE_FACTOR)
            return "vram" if needed <= vram else "ram" if needed <= memory.total else "no"

        return place

    def clear_cache(self) -> None:
        """Forget what `detect` found; servers call it when they start and stop."""
        self._cached = None

    def _detect(self) -> SystemCapabilities:
        cpu, memory, gpus = self._probe.cpu(), self._probe.memory(), self._probe.gpus()
        gpu = best_gpu(gpus)
        return SystemCapabilities(
            cpu=cpu,
            memory=memory,
            gpu=gpu,
            gpus=gpus,
            platform=get_platform(),
            recommendations=recommend(cpu, memory, gpu),
            detected_at=now_ms(),
        )

    # ---- models on it

    async def can_run_model(self, model: ModelInfo | str, check_total_memory: bool = False) -> RunCheck:
        """Whether a model fits.

        Args:
            model: a ModelInfo, or the id of one.
            check_total_memory: hold it against all the memory there is, not against what is free right now.

        Raises:
            ModelNotFoundError: there is no model of that id.
        """
        info = await self._model(model)
        return await asyncio.to_thread(self._check, info, check_total_memory)

    async def get_optimal_config(self, model: ModelInfo | str) -> dict[str, Any]:
        """Keywords for `llama_server.start` (for an image model: for `diffusion_server.start`); no id, no port.

        Threads come from the processor; GPU layers, context (4096 at most, less where the model was trained for less)
        and the type of the KV cache from what is free in VRAM and RAM right now: see `plan`. Errors as `can_run_model`.
        """
        info = await self._model(model)
        return await asyncio.to_thread(self._optimal, info)

    async def estimate_memory(
        self,
        model: ModelInfo | str,
        *,
        context_size: int = DEFAULT_CONTEXT,
        parallel_requests: int = 1,
        gpu_layers: int | None = None,
        kv_unified: bool = False,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        batch_size: int = 512,
        flash_attention: bool = True,
    ) -> MemoryEstimate:
        """Bytes a model will take.

        Args:
            gpu_layers: layers on the GPU; None: all of them where there is a GPU, else none.
            cache_type_k, cache_type_v: types of the KV cache, e.g. 'f16', 'q8_0'.

        Raises:
            InvalidRequestError: a number is not positive, or a cache type is unknown.
            ModelNotFoundError: there is no model of that id.
        """
        for field, value in (
            ("context_size", context_size),
            ("parallel_requests", parallel_requests),
            ("batch_size", batch_size),
        ):
            _check_number(field, value, 1)
        for field, kind in (("cache_type_k", cache_type_k), ("cache_type_v", cache_type_v)):
            if kind not in CACHE_BYTES:
                raise InvalidRequestError(
                    f"{field}: {kind!r} is not one of {', '.join(CACHE_BYTES)}.", {"field": field}
                )
        if gpu_layers is not None:
            _check_number("gpu_layers", gpu_layers, 0)
        info = await self._model(model)
        if gpu_layers is None:
            gpu_layers = ALL_LAYERS if (await self.detect()).gpu.available else 0
        load = Load(
            context_size=context_size,
            parallel_requests=parallel_requests,
            gpu_layers=gpu_layers,
            kv_unified=kv_unified,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            batch_size=batch_size,
            flash_attention=flash_attention,
        )
        return estimate(info, load)

    async def _model(self, model: ModelInfo | str) -> ModelInfo:
        if isinstance(model, ModelInfo):
            return model
        if not isinstance(model, str):
            raise InvalidRequestError("model: must be a ModelInfo or a model's id.", {"field": "model"})
        if self.find_model is None:
            raise InvalidRequestError(
                f"model: {model!r} cannot be looked up here.",
                {"field": "model"},
                hint="Pass the ModelInfo: await model_manager.get_model_info(id).",
            )
        return await self.find_model(model)

    def threads(self) -> int:
        """Threads for an engine on this machine's cores: some are left for everything else."""
        return recommended_threads(self._probe.cpu().cores)

    def watch(self, pid: int | None, *, vram: int = 0) -> MemoryWatch:
        """Note, before a process ends, what it holds (blocks). `vram`: bytes it should hold on GPUs, where only the
        driver of another machine could tell.
        """
        return MemoryWatch(self._probe, pid, vram)

    async def plan(self, model: ModelInfo, wishes: Wishes) -> Plan:
        """How `llama_server.start` would run a model in what is free right now; for what `wishes` leave open."""
        return await asyncio.to_thread(lambda: plan(model, self._room(), wishes))

    def _room(self, total: bool = False) -> Room:
        return room_of(self._probe.memory(), self._probe.gpus(), total=total)

    def _check(self, model: ModelInfo, check_total: bool) -> RunCheck:
        lacks = self._lacks(model, self._room(check_total))
        if lacks is None:
            return RunCheck(possible=True)
        what, needed, there = lacks
        if not check_total and self._lacks(model, self._room(total=True)) is None:
            suggestion = "Close other programs, or stop a running model, and try again."
        else:
            suggestion = "Use a smaller model, or a smaller quantization of this one (such as Q4_K_M)."
        which = "total" if check_total else "available"
        return RunCheck(
            possible=False,
            reason=f"Insufficient {what}: the model needs {format_bytes(needed)}, {format_bytes(there)} {which}.",
            suggestion=suggestion,
        )

    @staticmethod
    def _lacks(model: ModelInfo, room: Room) -> tuple[str, int, int] | None:
        if model.type == "llm":
            return plan(model, room, Wishes()).lacks
        needed = estimate(model, Load()).ram
        if needed <= max(room.ram, *room.gpus, 0):  # one GPU holds it, or RAM does
            return None
        return "RAM", needed, room.ram

    def _optimal(self, model: ModelInfo) -> dict[str, Any]:
        threads = self.threads()
        if model.type == "diffusion":
            return {"threads": threads}
        best = plan(model, self._room(), Wishes())
        return {
            "threads": threads,
            "gpu_layers": best.gpu_layers,
            "context_size": best.context_size,
            "parallel_requests": DEFAULT_SLOTS,
            "flash_attention": "auto",
            "cache_type_k": best.cache_type_k,
            "cache_type_v": best.cache_type_v,
        }


def _check_number(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidRequestError(f"{field}: must be a whole number, {least} or more.", {"field": field})
