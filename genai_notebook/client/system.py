"""The machine and its engine programs, as the server sees them."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from genai_notebook.client.live import LiveState
from genai_notebook.client.transport import Connection
from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.schema import (
    EngineCandidate,
    EngineProgress,
    LlamaServerConfig,
    MemoryEstimate,
    MemoryInfo,
    MemoryUse,
    ModelInfo,
    RunCheck,
    SystemCapabilities,
)

Kind = Literal["llama", "diffusion"]


class RemoteSystemInfo:
    """What the server's machine can hold, which is this one's, but inside the server's limits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._forget = False

    async def detect(self, force: bool = False) -> SystemCapabilities:
        """As the local one's."""
        force, self._forget = force or self._forget, False
        query = {"force": "true"} if force else None
        reply = await self._connection.request("GET", "system", query=query)
        return reply.as_a(SystemCapabilities)

    def get_memory_info(self) -> MemoryInfo:
        """Live figures, so each call asks the server."""
        reply = self._connection.request_now("GET", "system/memory")
        return reply.as_a(MemoryInfo)

    async def memory_use(self, kernel: int | None = None) -> MemoryUse:
        """As the local one's; who asks is this process, unless another one is named."""
        query = {"kernel": str(os.getpid() if kernel is None else kernel)}
        reply = await self._connection.request("GET", "system/use", query=query)
        return reply.as_a(MemoryUse)

    async def can_run_model(self, model: ModelInfo | str, check_total_memory: bool = False) -> RunCheck:
        """As the local one's."""
        body = {"model": model, "checkTotalMemory": check_total_memory}
        reply = await self._connection.request("POST", "system/check", body=body)
        return reply.as_a(RunCheck)

    async def get_optimal_config(self, model: ModelInfo | str) -> dict[str, Any]:
        """As the local one's."""
        reply = await self._connection.request("POST", "system/config", body={"model": model})
        names = {field.encode_name: field.name for field in msgspec.structs.fields(LlamaServerConfig)}
        return {names.get(name, name): value for name, value in reply.as_a(dict[str, Any]).items()}

    async def estimate_memory(
        self,
        model: ModelInfo | str,
        *,
        context_size: int = 4096,
        parallel_requests: int = 1,
        gpu_layers: int | None = None,
        kv_unified: bool = False,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        batch_size: int = 512,
        flash_attention: bool = True,
    ) -> MemoryEstimate:
        """As the local one's."""
        body = {
            "model": model,
            "contextSize": context_size,
            "parallelRequests": parallel_requests,
            "gpuLayers": gpu_layers,
            "kvUnified": kv_unified,
            "cacheTypeK": cache_type_k,
            "cacheTypeV": cache_type_v,
            "batchSize": batch_size,
            "flashAttention": flash_attention,
        }
        reply = await self._connection.request("POST", "system/estimate", body=body)
        return reply.as_a(MemoryEstimate)

    def clear_cache(self) -> None:
        """The next `detect` looks anew."""
        self._forget = True


class RemoteBinaryManager:
    """The engine programs on the server's side."""

    def __init__(self, connection: Connection, live: LiveState) -> None:
        self._connection = connection
        self._live = live

    async def list(self) -> list[EngineCandidate]:
        """As the local one's."""
        reply = await self._connection.request("GET", "engines", timeout=120.0)
        return reply.part("engines", builtins.list[EngineCandidate])

    async def use(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """As the local one's."""
        return await self._act("use", kind, name)

    async def test(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """As the local one's."""
        return await self._act("test", kind, name)

    async def install(
        self, kind: Kind, name: str | None = None, *, on_progress: Callable[[EngineProgress], Any] | None = None
    ) -> EngineCandidate:
        """As the local one's; who stops waiting ends the installation on the server."""
        if on_progress is None:
            return await self._act("install", kind, name)
        deliver = deliver_here(on_progress)
        events = self._live.events("engines")

        def report(news: dict[str, Any]) -> None:
            progress = msgspec.convert(news, EngineProgress)
            if progress.kind == kind:
                deliver(progress)

        events.on("binary-progress", report)
        try:
            return await self._act("install", kind, name)
        finally:
            events.off("binary-progress", report)

    async def remove(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """As the local one's."""
        return await self._act("remove", kind, name)

    async def _act(self, action: str, kind: str, name: str | None) -> EngineCandidate:
        body = {"kind": kind} if name is None else {"kind": kind, "name": name}
        reply = await self._connection.request("POST", f"engines/{action}", body=body, timeout=None)
        return reply.as_a(EngineCandidate)
