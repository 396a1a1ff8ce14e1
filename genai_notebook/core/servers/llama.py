"""The LLM: llama-server, or anything that takes its flags."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from genai_notebook.core.processes.ports import LOOPBACK, free_port, require_free
from genai_notebook.core.schema import LlamaServerConfig, ModelInfo, ServerInfo
from genai_notebook.core.servers.manager import Parts, ServerManager, insufficient, refuse_flags
from genai_notebook.core.servers.session import EngineSession, stop_quietly
from genai_notebook.core.validation import from_call
from genai_notebook.errors import InsufficientResourcesError, ServerError

HEALTH = "/health"
#: Flags whose values are the manager's business: a second one would open another door.
_OURS = frozenset(
    """-m --model --host --port --api-key --api-key-file -a --alias --ssl-key-file --ssl-cert-file --path --api-prefix
    -mu --model-url -hf --hf-repo --models-dir --log-file --reuse-port""".split()  # noqa: SIM905
)


class Resolved(msgspec.Struct, frozen=True):
    """A configuration with nothing left open: what a restart repeats, and what an offload saves."""

    asked: LlamaServerConfig
    config: LlamaServerConfig
    port: int
    api_key: str | None


class LlamaServerManager(ServerManager[ServerInfo]):
    """Starts, supervises and stops one llama-server.

    Args:
        name: 'llama' is the default LLM; others are made by `get_llama_server(name)`.
        parts: what it works with; by default the process's own.
    """

    _title = "The LLM server"

    def __init__(self, name: str = "llama", parts: Parts | None = None) -> None:
        super().__init__(name, parts)
        self._asked: LlamaServerConfig | None = None
        self._resolved: Resolved | None = None
        #: How often somebody wished it started, stopped or restarted: what the orchestrator must not overrule.
        self.wishes = 0
        self._context_size: int | None = None
        #: Frees memory that somebody else holds; True if it did. Set by the Runtime.
        self.make_room: Callable[[], Awaitable[bool]] | None = None

    async def start(
        self,
        config: Any = None,
        *,
        model_id: str = ...,  # type: ignore[assignment]
        port: int | Literal["auto"] = 8080,
        threads: int | None = None,
        context_size: int | None = None,
        gpu_layers: int | None = None,
        parallel_requests: int = 4,
        flash_attention: bool | Literal["on", "off", "auto"] = "auto",
        force_validation: bool = False,
        api_key: str | Literal[False] | None = None,
        **options: Any,
    ) -> ServerInfo:
        """Load a model and serve it on the loopback interface.

        Args:
            config: a LlamaServerConfig or dict instead of keywords; keywords on top of it win.
            model_id: a model of type 'llm' in the store.
            port: TCP port, or "auto" for any free one.
            threads: CPU threads; None: worked out from the cores.
            context_size: tokens; None: 4096, but never more than the model was trained for.
            gpu_layers: layers in VRAM, 0 for none; None: as many as fit.
            parallel_requests: slots; each has the whole context (one unified KV cache).
            flash_attention: None of our business unless asked: "auto" leaves it to the engine.
            force_validation: test the engine again although it passed before.
            api_key: None draws a random one, False serves without a key.
            options: cache_type_k, cache_type_v, extra_args (a list of further flags).

        Raises:
            InvalidRequestError: an unknown or wrong option; the field is named.
            ModelNotFoundError: no such LLM.
            PortInUseError: the port is taken; the holder is named.
            InsufficientResourcesError: the model does not fit.
            BinaryError: no engine.
            ServerError: it is running already (ALREADY_RUNNING), or the engine died while loading.
        """
        keywords = {
            "model_id": model_id,
            "port": port,
            "threads": threads,
            "context_size": context_size,
            "gpu_layers": gpu_layers,
            "parallel_requests": parallel_requests,
            "flash_attention": flash_attention,
            "force_validation": force_validation,
            "api_key": api_key,
            **options,
        }
        checked = from_call(LlamaServerConfig, config, keywords)
        refuse_flags(checked.extra_args, _OURS)
        self.wishes += 1
        return await self._run_start(lambda: self._start(checked, None), lambda: self._ask(checked))

    async def restart(self) -> ServerInfo:
        """Stop, and start again with the same configuration, port and API key.

        Raises:
            ServerError: it was never started.
            GenaiNotebookError: as `start`.
        """
        self.wishes += 1
        return await self.resume()

    async def stop(self) -> None:
        self.wishes += 1
        await super().stop()

    async def step_aside(self) -> None:
        """As `stop`, but for a while: it is the orchestrator that wishes it, not a person."""
        await super().stop()

    async def resume(self) -> ServerInfo:
        """As `restart`; the other half of `step_aside`."""
        asked, last = self._asked, self._resolved
        if asked is None:
            raise ServerError("The LLM server was never started.", code="SERVER_NOT_RUNNING", hint="%genai start")
        again = last if last is not None and last.asked is asked else None
        await super().stop()
        return await self._run_start(lambda: self._start(asked, again), lambda: self._ask(asked))

    def _ask(self, config: LlamaServerConfig) -> None:
        self._asked = config

    async def is_healthy(self) -> bool:
        session = self._session
        return session is not None and await session.healthy(HEALTH)

    def get_info(self) -> ServerInfo:
        session = self._session
        up = self._status in ("starting", "running", "stopping")
        # While the next one is being worked out, the last one's port and key are not its own.
        resolved = self._resolved if session is not None or self._status == "stopping" else None
        return ServerInfo(
            status=self._status,
            health=self._health,
            owner=self._parts.owner,
            pid=session.pid if session else None,
            port=resolved.port if resolved else None,
            model_id=self._asked.model_id if up and self._asked else None,
            started_at=session.started_at if session else None,
            url=f"http://{LOOPBACK}:{resolved.port}" if resolved else None,
            api_key=resolved.api_key if resolved else None,
            context_size=self._context_size if resolved else None,
            engine=session.engine.name if session else None,
            error=self._error,
        )

    @property
    def resolved_config(self) -> LlamaServerConfig | None:
        """The last start's configuration with every number worked out, or None."""
        return self._resolved.config if self._resolved else None

    # ---- one start ----

    async def _start(self, config: LlamaServerConfig, again: Resolved | None) -> ServerInfo:
        model = await self._find_model(config.model_id, "llm")
        resolved = again or await self._resolve(config, model)
        engine = await self._parts.engines.resolve(
            "llama", force_validation=config.force_validation, on_log=self._binary_log
        )
        require_free(resolved.port)
        self._resolved = resolved
        if resolved.api_key:
            self._log.hide(resolved.api_key)
        session = EngineSession(
            self._name,
            engine,
            port=resolved.port,
            api_key=resolved.api_key,
            model_id=model.id,
            owner=self._parts.owner,
            settings=self._parts.settings,
            launcher=self._parts.launcher,
            log=self._log,
        )
        try:
            await session.launch(arguments(resolved, model), _secrets(resolved))
            self._session = session
            self._announce()
            await session.wait_until_ready(HEALTH)
            self._context_size = await _served_context(session) or resolved.config.context_size
        except BaseException:
            self._session = None
            await stop_quietly(session)
            raise
        self._change("running", "ok")
        self._watch(session, HEALTH)
        return self.get_info()

    async def _resolve(self, config: LlamaServerConfig, model: ModelInfo) -> Resolved:
        """Work out what was left open, and check that the result fits."""
        optimal = await self._parts.system.get_optimal_config(model)
        trained = model.gguf_metadata.context_length if model.gguf_metadata else None
        wanted = config.context_size or 4096
        full = msgspec.structs.replace(
            config,
            threads=config.threads or optimal.get("threads"),
            gpu_layers=config.gpu_layers if config.gpu_layers is not None else optimal.get("gpu_layers", 0),
            context_size=min(wanted, trained) if trained and trained > 0 and not config.context_size else wanted,
        )
        if (lack := await self._lack(model, full)) and self.make_room is not None and await self.make_room():
            lack = await self._lack(model, full)
        if lack:
            raise lack
        key = None if config.api_key is False else config.api_key or secrets.token_urlsafe(24)
        port = free_port() if config.port == "auto" else config.port
        return Resolved(config, full, port, key)

    async def _lack(self, model: ModelInfo, config: LlamaServerConfig) -> InsufficientResourcesError | None:
        """Why a resolved configuration does not fit into what is free right now, or None if it does."""
        system = self._parts.system
        needs = await system.estimate_memory(
            model,
            context_size=config.context_size or 4096,
            parallel_requests=config.parallel_requests,
            gpu_layers=config.gpu_layers or 0,
            kv_unified=True,
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
        )
        free = system.get_memory_info().available
        if needs.ram > free:
            return insufficient(model, "RAM", needs.ram, free, "Use a smaller model or a smaller context size.")
        gpu = (await system.detect(force=needs.vram > 0)).gpu
        if gpu.vram_available is not None and needs.vram > gpu.vram_available:
            return insufficient(
                model, "VRAM", needs.vram, gpu.vram_available, "Use fewer GPU layers or a smaller context size."
            )
        return None


def arguments(resolved: Resolved, model: ModelInfo) -> list[str]:
    """llama-server's flags for a resolved configuration."""
    config = resolved.config
    flags = ["--model", model.path, "--alias", model.id, "--host", LOOPBACK, "--port", str(resolved.port)]
    flags += ["--ctx-size", str(config.context_size), "--parallel", str(config.parallel_requests), "--kv-unified"]
    # Always said, 0 included: newer builds default to "auto".
    flags += ["--n-gpu-layers", str(config.gpu_layers or 0), "--flash-attn", _on_off(config.flash_attention)]
    if config.threads:
        flags += ["--threads", str(config.threads)]
    if config.cache_type_k != "f16":
        flags += ["--cache-type-k", config.cache_type_k]
    if config.cache_type_v != "f16":
        flags += ["--cache-type-v", config.cache_type_v]
    # The numbers are ours: the engine's own fitting would load everything twice, and its prompt cache would take up to
    # 8 GiB of RAM that no estimate counts.
    flags += ["--fit", "off", "--cache-ram", "0"]
    if model.supports_reasoning:
        flags += ["--jinja", "--reasoning-format", "deepseek"]
    return flags + config.extra_args


def _on_off(flash_attention: bool | str) -> str:
    return flash_attention if isinstance(flash_attention, str) else "on" if flash_attention else "off"


def _secrets(resolved: Resolved) -> dict[str, str]:
    # In the environment, because a process list is readable by everybody.
    return {"LLAMA_API_KEY": resolved.api_key} if resolved.api_key else {}


async def _served_context(session: EngineSession) -> int | None:
    """The context size the engine really allocated, as /props tells."""
    props = await session.get_json("/props")
    try:
        return int(props["default_generation_settings"]["n_ctx"])
    except (KeyError, TypeError, ValueError):
        return None
