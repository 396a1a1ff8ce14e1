"""Who gives way when memory is short: the LLM steps aside for an image and comes back behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from genai_notebook.core.schema import (
    ImageBatchResult,
    ImageGenerationResult,
    MemoryEstimate,
    SavedLLMState,
    ServerInfo,
)
from genai_notebook.core.utilities import now_ms
from genai_notebook.errors import GenaiNotebookError

if TYPE_CHECKING:
    from genai_notebook.core.models.manager import ModelManager
    from genai_notebook.core.servers.diffusion import DiffusionServerManager
    from genai_notebook.core.servers.llama import LlamaServerManager
    from genai_notebook.core.system.info import SystemInfo

log = logging.getLogger("genai_notebook")

#: Share of the bottleneck (VRAM with a GPU, else RAM) that LLM and image model may hold together.
THRESHOLD = 0.75
#: Tries to bring the LLM back.
RELOADS = 2
#: Seconds between looks at an LLM that is starting.
SETTLE = 0.1


class ResourceOrchestrator:
    """Decides before each image whether the LLM must step aside, and brings it back afterwards.

    Works with managers and with handles alike: it uses their public methods only.

    Args:
        system_info: None: the process's own.
        llama_server: the LLM that may have to give way.
        diffusion_server: the image generator.
        model_manager: None: the process's own.
    """

    def __init__(
        self,
        system_info: SystemInfo | None,
        llama_server: LlamaServerManager,
        diffusion_server: DiffusionServerManager,
        model_manager: ModelManager | None = None,
    ) -> None:
        self._system = system_info or _own_system()
        self._llama = llama_server
        self._diffusion = diffusion_server
        self._models = model_manager or _own_models()
        self._saved: SavedLLMState | None = None
        self._reload: asyncio.Task[None] | None = None
        self._wishes_then = 0

    async def orchestrate_image_generation(
        self, config: Any = None, **fields: Any
    ) -> ImageGenerationResult | ImageBatchResult:
        """Generate with room made first; arguments, results and errors as `generate_image`."""
        if self._is_gate():
            return await self._diffusion.generate_image(config, **fields)
        await self.before_image()
        try:
            return await self._diffusion.generate_image(config, **fields)
        finally:
            self.after_image()

    async def would_need_offload(self) -> bool:
        """Whether an image now would make the LLM step aside."""
        if self._llama.get_status() != "running":
            return False
        llm, image = self._llama.get_info(), self._diffusion.get_info()
        if llm.model_id is None or image.model_id is None:
            return False
        needs_llm = await self._estimate_llm(llm)
        model = await self._models.get_model_info(image.model_id)
        machine = await self._system.detect()
        # sd-server keeps all of an image model in memory, so its size × 1.2 is the reference's and our estimate.
        needs_image = int(model.size * 1.2)
        if machine.gpu.available and machine.gpu.vram:
            free = machine.gpu.vram_available
            return _too_much(needs_llm.vram, needs_image, machine.gpu.vram, None if image.pid else free)
        memory = self._system.get_memory_info()
        return _too_much(needs_llm.ram, needs_image, memory.total, None if image.pid else memory.available)

    def get_saved_state(self) -> SavedLLMState | None:
        """The LLM that stepped aside and is not back yet, or None; `error` says why a reload failed."""
        if self._saved is not None and self._wishes() != self._wishes_then:
            self._saved = None  # somebody has started or stopped an LLM since: that holds
        return self._saved

    def clear_saved_state(self) -> None:
        """Forget the LLM that stepped aside: it will not be loaded again."""
        self._saved = None

    async def wait_for_reload(self) -> None:
        """Wait until a reload that is under way has ended, well or badly."""
        if self._reload is not None:
            await asyncio.wait({self._reload})

    # ---- the gate that every image passes ----

    async def before_image(self) -> None:
        """Make room. The previous image's reload is waited for first."""
        await self.wait_for_reload()
        # What an LLM will hold is not known before it runs. A handle has nothing better to wait for than time.
        while self._llama.get_status() == "starting":  # noqa: ASYNC110
            await asyncio.sleep(SETTLE)
        if not await self.would_need_offload():
            return
        info = self._llama.get_info()
        self._saved = SavedLLMState(config=self._config_of(info), was_running=True, saved_at=now_ms())
        self._wishes_then = self._wishes()
        log.info("the LLM %s steps aside for an image", info.model_id)
        await self._llama.step_aside()

    def after_image(self) -> None:
        """Bring the LLM back behind the finished (or failed) image, without making anyone wait."""
        if self.get_saved_state() is not None and (self._reload is None or self._reload.done()):
            self._reload = asyncio.ensure_future(self._bring_back())

    async def before_llm(self) -> bool:
        """The LLM needs room: an idle resident image model gives way. True if that freed anything."""
        info = self._diffusion.get_info()
        if info.pid is None or info.busy:
            return False
        return await self._diffusion.release()

    async def close(self) -> None:
        """Everything ends: nothing is brought back any more."""
        self._saved = None
        if self._reload is not None:
            self._reload.cancel()
            await self.wait_for_reload()

    async def _bring_back(self) -> None:
        if self._is_gate():
            with contextlib.suppress(GenaiNotebookError):
                await self.before_llm()
        for attempt in range(1, RELOADS + 1):
            if self.get_saved_state() is None:
                return
            try:
                await self._llama.resume()
                self._saved = None
                return
            except Exception as error:
                log.warning("the LLM did not come back (try %d of %d): %s", attempt, RELOADS, error)
                if (saved := self.get_saved_state()) is not None:
                    self._saved = msgspec.structs.replace(saved, error=str(error))

    # ---- figures ----

    async def _estimate_llm(self, info: ServerInfo) -> MemoryEstimate:
        """From what was resolved, not from what the caller passed."""
        config = self._config_of(info)
        return await self._system.estimate_memory(
            str(info.model_id),
            context_size=config.get("contextSize") or 4096,
            parallel_requests=config.get("parallelRequests") or 4,
            gpu_layers=config.get("gpuLayers"),
            kv_unified=True,
            cache_type_k=config.get("cacheTypeK") or "f16",
            cache_type_v=config.get("cacheTypeV") or "f16",
        )

    def _config_of(self, info: ServerInfo) -> dict[str, Any]:
        resolved = getattr(self._llama, "resolved_config", None)
        config = msgspec.to_builtins(resolved) if resolved is not None else {}
        return {**config, "modelId": info.model_id, "port": info.port, "contextSize": info.context_size}

    def _wishes(self) -> int:
        return self._llama.wishes

    def _is_gate(self) -> bool:
        return getattr(self._diffusion, "gate", None) is self


def _too_much(llm: int, image: int, total: int, free: int | None) -> bool:
    """The rules: together more than 75 % of all there is, or the image model more than what is free right now.

    `free` is None when the image model is loaded already: what it holds is not free, and need not be.
    """
    return llm + image > THRESHOLD * total or (free is not None and image > free)


def _own_system() -> SystemInfo:
    from genai_notebook.core.system.info import SystemInfo

    return SystemInfo.get_instance()


def _own_models() -> ModelManager:
    from genai_notebook.core.models.manager import ModelManager

    return ModelManager.get_instance()
