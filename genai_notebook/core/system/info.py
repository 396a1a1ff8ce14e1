"""SystemInfo: what this machine is, what it can hold, and how a model is best run on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from genai_notebook.core.schema import (
    GPUInfo,
    MemoryEstimate,
    MemoryInfo,
    ModelInfo,
    Placement,
    RunCheck,
    SystemCapabilities,
)
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.estimate import (
    CACHE_BYTES,
    DEFAULT_CONTEXT,
    GIB,
    SIZE_FACTOR,
    Load,
    context_length_of,
    estimate,
    layer_count_of,
)
from genai_notebook.core.system.probe import MachineProbe, Probe
from genai_notebook.core.system.recommend import ALL_LAYERS, best_gpu, recommend, recommended_threads
from genai_notebook.core.utilities import format_bytes, get_platform, now_ms
from genai_notebook.errors import InvalidRequestError

CACHE_SECONDS = 60.0
#: VRAM that stays free for the desktop and for what cannot be foreseen.
VRAM_RESERVE = GIB
SMALLEST_CONTEXT = 1024
DEFAULT_SLOTS = 4

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

        Threads come from the processor, GPU layers from the VRAM that is free now, the context from the model (4096 at
        most) and, where memory is short, from what is free. Errors as `can_run_model`.
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

    def _check(self, model: ModelInfo, check_total: bool) -> RunCheck:
        memory = self._probe.memory()
        ram = memory.total if check_total else memory.available
        gpu = best_gpu(self._probe.gpus())
        what = "total" if check_total else "available"
        if gpu.available and gpu.vram:
            vram = gpu.vram if check_total or gpu.vram_available is None else gpu.vram_available
            on_gpu = estimate(model, _default_load(model, ALL_LAYERS))
            if on_gpu.vram <= vram and on_gpu.ram <= ram:
                return RunCheck(possible=True)
        needed = estimate(model, _default_load(model, 0)).ram
        if needed <= ram:
            return RunCheck(possible=True)
        if not check_total and needed <= memory.total:
            suggestion = "Close other programs, or stop a running model, and try again."
        else:
            suggestion = "Use a smaller model, or a smaller quantization of this one (such as Q4_K_M)."
        return RunCheck(
            possible=False,
            reason=f"Insufficient RAM: the model needs {format_bytes(needed)}, {format_bytes(ram)} {what}.",
            suggestion=suggestion,
        )

    def _optimal(self, model: ModelInfo) -> dict[str, Any]:
        threads = recommended_threads(self._probe.cpu().cores)
        if model.type == "diffusion":
            return {"threads": threads}
        memory = self._probe.memory()
        layers = self._layers_that_fit(model, best_gpu(self._probe.gpus()))
        context = min(DEFAULT_CONTEXT, context_length_of(model))
        while context // 2 >= SMALLEST_CONTEXT and estimate(model, _load(layers, context)).ram > memory.available:
            context //= 2
        return {
            "threads": threads,
            "gpu_layers": layers,
            "context_size": context,
            "parallel_requests": DEFAULT_SLOTS,
            "flash_attention": "auto",
        }

    def _layers_that_fit(self, model: ModelInfo, gpu: GPUInfo) -> int:
        """How many layers go into the VRAM that is free now; the output layer counts as one."""
        if not gpu.available:
            return 0
        free = gpu.vram_available if gpu.vram_available is not None else gpu.vram or 0
        context = min(DEFAULT_CONTEXT, context_length_of(model))
        low, high = 0, layer_count_of(model) + 1
        while low < high:  # the share grows with the layers, so halving finds the last that fits
            middle = (low + high + 1) // 2
            if estimate(model, _load(middle, context)).vram + VRAM_RESERVE <= free:
                low = middle
            else:
                high = middle - 1
        return low


def _default_load(model: ModelInfo, gpu_layers: int) -> Load:
    return _load(gpu_layers, min(DEFAULT_CONTEXT, context_length_of(model)))


def _load(gpu_layers: int, context: int) -> Load:
    """A server as `start` makes it: slots that share one cache."""
    return Load(context_size=context, parallel_requests=DEFAULT_SLOTS, gpu_layers=gpu_layers, kv_unified=True)


def _check_number(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidRequestError(f"{field}: must be a whole number, {least} or more.", {"field": field})
