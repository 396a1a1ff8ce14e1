"""Who gives way when memory is short: the LLM steps aside for an image and comes back behind it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from genai_notebook.core.engines.load_report import Footprint
from genai_notebook.core.schema import (
    ImageBatchResult,
    ImageGenerationResult,
    SavedLLMState,
    ServerInfo,
)
from genai_notebook.core.servers.manager import insufficient
from genai_notebook.core.system.estimate import DRIVER_CONTEXT, SIZE_FACTOR
from genai_notebook.core.utilities import now_ms

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
        try:
            await self.before_image()
            return await self._diffusion.generate_image(config, **fields)
        finally:
            self.after_image()

    async def would_need_offload(self) -> bool:
        """Whether an image now would make the LLM step aside."""
        if self._llama.get_status() != "running":
            return False
        image = self._diffusion.get_info()
        if image.model_id is None:
            return False
        room = await self._room()
        llm = room.counted(await self._llm_holds(room.cards))
        needs = room.counted(await self._image_needs(image.model_id))
        # What a resident image model holds is not free, and need not be.
        free_ram, free_vram = (None, None) if image.pid else (room.free.ram, room.free.vram)
        return _too_much(llm.ram, needs.ram, room.total.ram, free_ram) or _too_much(
            llm.vram, needs.vram, room.total.vram, free_vram
        )

    def get_saved_state(self) -> SavedLLMState | None:
        """The LLM that stepped aside and is not back yet, or None; `error` says why a reload failed."""
        if self._saved is not None and self._wishes() != self._wishes_then:
            self._saved = None  # somebody has started or stopped an LLM since: that holds
        return self._saved

    def comes_back(self) -> bool:
        """Whether an LLM is away for an image and will be loaded again."""
        saved = self.get_saved_state()
        return saved is not None and saved.error is None and self._llama.get_status() in ("stopping", "stopped")

    def clear_saved_state(self) -> None:
        """Forget the LLM that stepped aside: it will not be loaded again."""
        self._saved = None

    async def wait_for_reload(self) -> None:
        """Wait until an LLM that stepped aside is back, or its reload has failed; for the image it left for, too."""
        await self._reload_under_way()
        # The image is handed over a moment before the reload begins.
        while (saved := self.get_saved_state()) is not None and saved.error is None:
            await asyncio.sleep(SETTLE)
            await self._reload_under_way()

    async def _reload_under_way(self) -> None:
        if self._reload is not None:
            await asyncio.wait({self._reload})

    # ---- the gate that every image passes ----

    async def before_image(self) -> None:
        """Make room. The previous image's reload is waited for first.

        Raises:
            InsufficientResourcesError: not even the image model's parameters fit into the RAM that is free then.
        """
        await self._reload_under_way()
        # What an LLM will hold is not known before it runs. A handle has nothing better to wait for than time.
        while self._llama.get_status() == "starting" and not self._llama.is_fetching:  # noqa: ASYNC110
            await asyncio.sleep(SETTLE)
        if await self.would_need_offload():
            await self.evict_llm()
        await self._refuse_what_cannot_fit()

    async def evict_llm(self) -> bool:
        """Make the LLM step aside until `after_image`. False: there is none that could."""
        if self._llama.get_status() != "running":
            return False
        info, image = self._llama.get_info(), self._diffusion.get_info()
        # From here on requests to the LLM wait for its return instead of reaching it in its last moment.
        self._saved = SavedLLMState(config=self._config_of(info), was_running=True, saved_at=now_ms())
        self._wishes_then = self._wishes()
        log.info("the LLM %s steps aside for an image", info.model_id)
        if self._is_gate() and image.model_id is not None:
            needs = await self._image_needs(image.model_id)
            left = await self._llama.step_aside(ram=needs.ram, vram=needs.vram)
        else:
            left = await self._llama.step_aside()
        if not left:
            self._saved = None
        return left

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
            await self._reload_under_way()

    async def _bring_back(self) -> None:
        if self._is_gate() and self._llama.get_status() != "running":
            try:
                await self.before_llm()
            except Exception as error:  # the reload will tell whether it mattered
                log.warning("the image model did not give way: %s", error)
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

    async def _refuse_what_cannot_fit(self) -> None:
        """Loading it would make the machine swap, and take everything else down with it."""
        image = self._diffusion.get_info()
        if image.pid is not None or image.model_id is None:
            return
        room = await self._room()
        least = int(room.counted(await self._image_needs(image.model_id)).ram / SIZE_FACTOR)
        free = room.free.ram
        if least > free:
            model = await self._models.get_model_info(image.model_id)
            way_out = "Close what else holds memory (%genai system shows it), or use a smaller image model."
            raise insufficient(model, "RAM", least, free, way_out)

    # ---- figures ----

    async def _llm_holds(self, cards: int) -> Footprint:
        """What the engine says it took; else an estimate, from what was resolved, not from what the caller passed."""
        said: Footprint | None = getattr(self._llama, "footprint", None)
        if said is not None:
            on_gpus = said.vram + DRIVER_CONTEXT * cards if said.vram else 0
            return Footprint(ram=said.ram, vram=on_gpus // cards)
        info = self._llama.get_info()
        config = self._config_of(info)
        found = await self._system.estimate_memory(
            str(info.model_id),
            context_size=config.get("contextSize") or 4096,
            parallel_requests=config.get("parallelRequests") or 4,
            gpu_layers=config.get("gpuLayers"),
            kv_unified=True,
            cache_type_k=config.get("cacheTypeK") or "f16",
            cache_type_v=config.get("cacheTypeV") or "f16",
        )
        return Footprint(ram=found.ram, vram=found.vram // cards)

    async def _image_needs(self, model_id: str) -> Footprint:
        """What it took the last time, else the file's size; a fifth more for what it computes with."""
        said: Footprint | None = getattr(self._diffusion, "footprint", None)
        if said is not None:
            return Footprint(ram=int(said.ram * SIZE_FACTOR), vram=int(said.vram * SIZE_FACTOR))
        needed = int((await self._models.get_model_info(model_id)).size * SIZE_FACTOR)
        gpu = (await self._system.detect()).gpu  # whether there is one does not change from one moment to the next
        on_gpu = getattr(self._diffusion, "may_use_gpu", True) and gpu.available and gpu.vram
        return Footprint(ram=0, vram=needed) if on_gpu else Footprint(ram=needed, vram=0)

    async def _room(self) -> _Room:
        """All there is and what is free right now. VRAM is that of one GPU: an image model is not split."""
        found = await self._system.detect(force=True)
        gpu, memory = found.gpu, found.memory
        total = (gpu.vram or 0) if gpu.available else 0
        free = total if gpu.vram_available is None else gpu.vram_available
        cards = sum(1 for card in found.gpus if card.available and bool(card.unified) == bool(gpu.unified))
        return _Room(
            total=Footprint(ram=memory.total, vram=total),
            free=Footprint(ram=memory.available, vram=free),
            unified=bool(gpu.unified),
            cards=max(1, cards),
        )

    def _config_of(self, info: ServerInfo) -> dict[str, Any]:
        resolved = getattr(self._llama, "resolved_config", None)
        config = msgspec.to_builtins(resolved) if resolved is not None else {}
        return {**config, "modelId": info.model_id, "port": info.port, "contextSize": info.context_size}

    def _wishes(self) -> int:
        return self._llama.wishes

    def _is_gate(self) -> bool:
        return getattr(self._diffusion, "gate", None) is self


class _Room(msgspec.Struct, frozen=True, kw_only=True):
    """All there is and what is free, on the GPU that takes images; `cards` like it share an LLM's layers."""

    total: Footprint
    free: Footprint
    unified: bool
    cards: int

    def counted(self, held: Footprint) -> Footprint:
        """`held`, all of it in RAM where the GPU has none of its own."""
        return Footprint(ram=held.ram + held.vram, vram=0) if self.unified else held


def _too_much(llm: int, image: int, total: int, free: int | None) -> bool:
    """The rules for one kind of memory: together more than 75 % of all there is, or the image model more than is free.

    `free` is None when the image model is loaded already. Where the LLM holds nothing of it, its leaving is no help.
    """
    if not llm or not image:
        return False
    return llm + image > THRESHOLD * total or (free is not None and image > free)


def _own_system() -> SystemInfo:
    from genai_notebook.core.system.info import SystemInfo

    return SystemInfo.get_instance()


def _own_models() -> ModelManager:
    from genai_notebook.core.models.manager import ModelManager

    return ModelManager.get_instance()
