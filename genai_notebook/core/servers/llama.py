"""The LLM: llama-server, or anything that takes its flags."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.load_report import Footprint, LoadReport
from genai_notebook.core.engines.session import EngineSession, stop_quietly
from genai_notebook.core.engines.trial import READY, Trial
from genai_notebook.core.processes.ports import LOOPBACK, free_port, require_free
from genai_notebook.core.schema import LlamaServerConfig, ModelInfo, ServerInfo
from genai_notebook.core.servers.llama_flags import (
    arguments,
    asks_for_debug,
    can_write,
    check,
    environment_of,
    trial_arguments,
)
from genai_notebook.core.servers.manager import Parts, ServerManager, insufficient
from genai_notebook.core.servers.resolved import Resolved, as_loaded, in_words, made_smaller, resolved_by
from genai_notebook.core.system.plan import Wishes
from genai_notebook.core.validation import from_call
from genai_notebook.errors import InsufficientResourcesError, ServerError

HEALTH = READY["llama"]
#: Seconds that an LLM gets for finishing its answers before it steps aside, and between looks at its slots.
DRAIN_LIMIT, DRAIN_POLL = 60.0, 0.25


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
        self._report = LoadReport()
        #: Frees memory that somebody else holds; True if it did. Set by the Runtime.
        self.make_room: Callable[[], Awaitable[bool]] | None = None
        #: Whether it has stepped aside and is to be brought back. Set by the Runtime.
        self.comes_back: Callable[[], bool] = lambda: False

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
            gpu_layers: layers in VRAM, 0 for none; None: as many as fit (with one layer more for the output).
            parallel_requests: slots; each has the whole context (one unified KV cache).
            flash_attention: None of our business unless asked: "auto" leaves it to the engine.
            force_validation: test the engine again although it passed before.
            api_key: None draws a random one, False serves without a key.
            options: cache_type_k, cache_type_v (types of the KV cache; None: f16, or q8_0 where only that fits),
                extra_args (a list of further flags).

        When memory turns out to be too short while the model loads, what was left open is made smaller once.

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
        checked = check(from_call(LlamaServerConfig, config, keywords))
        if self.comes_back():
            raise ServerError(
                "The LLM server has stepped aside for an image and comes back behind it.",
                {"status": self._status, "model_id": self._asked.model_id if self._asked else None},
                code="ALREADY_RUNNING",
                hint="Stop it first, or wait for the image.",
            )
        # That an engine is to be tested again holds for this start, not for every restart.
        kept = msgspec.structs.replace(checked, force_validation=False)
        return await self._run_start(
            lambda: self._start(kept, None, force=checked.force_validation), lambda: self._wish(kept)
        )

    async def restart(self) -> ServerInfo:
        """Stop, and start again with the same configuration, port and API key.

        Raises:
            ServerError: it was never started.
            GenaiNotebookError: as `start`.
        """
        self.wishes += 1
        return await self._again()

    async def stop(self) -> None:
        self.wishes += 1
        await super().stop()

    async def step_aside(self, ram: int | None = None, vram: int | None = None) -> bool:
        """As `stop`, but for a while: it is the orchestrator that wishes it, not a person.

        Answers under way are finished first, and its memory is really free afterwards. False: it stays, because
        somebody has stopped, started or restarted it meanwhile, or it has crashed.

        Args:
            ram, vram: bytes that are needed next: when so much is free, nothing more is waited for.
        """
        session, wishes, held = self._session, self.wishes, self.footprint

        def stays() -> bool:
            return self._session is not session or self._status != "running" or self.wishes != wishes

        if session is None or stays():
            return False
        await self._finish_answers(session, stays)
        watch = await asyncio.to_thread(self._parts.system.watch, session.pid, vram=held.vram if held else 0)
        if stays():
            return False
        await super().stop()
        if not await watch.wait(ram, vram):
            self._log.append("warn", "the memory of the model that stepped aside is not free yet")
        return True

    @staticmethod
    async def _finish_answers(session: EngineSession, stays: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_LIMIT
        while not stays() and loop.time() < end and await session.is_answering():  # noqa: ASYNC110 - it must be asked
            await asyncio.sleep(DRAIN_POLL)

    async def resume(self) -> ServerInfo:
        """The other half of `step_aside`. If it is running all the same, nothing happens."""
        if self._status == "running" and self._stopping is None:
            return self.get_info()
        return await self._again()

    async def _again(self) -> ServerInfo:
        asked, last = self._asked, self._resolved
        if asked is None:
            raise ServerError("The LLM server was never started.", code="SERVER_NOT_RUNNING", hint="%genai start")
        again = last if last is not None and last.asked is asked else None
        await super().stop()
        return await self._run_start(lambda: self._start(asked, again), lambda: self._ask(asked))

    def _ask(self, config: LlamaServerConfig) -> None:
        self._asked = config

    def _wish(self, config: LlamaServerConfig) -> None:
        self.wishes += 1
        self._ask(config)

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

    @property
    def footprint(self) -> Footprint | None:
        """Bytes that the running engine says its model takes, or None where nothing runs or it does not tell."""
        return self._report.footprint if self._session is not None else None

    # ---- one start ----

    async def _start(self, config: LlamaServerConfig, last: Resolved | None, *, force: bool = False) -> ServerInfo:
        model = await self._find_model(config.model_id, "llm")
        # A restart, and the way back after an image, stay with the engine there was.
        stay = last is not None
        engine = await self._find_engine("llama", None, force=force, stay=stay)
        resolved = last or await self._resolve(config, model, engine)
        require_free(resolved.port)
        # Only now is there room for the model that the engine is tried with.
        proved = await self._find_engine("llama", self.trial(resolved, model), force=force, stay=stay)
        if (proved.gpu is False) != (engine.gpu is False) and last is None:
            resolved = await self._resolve(config, model, proved)
        engine = proved
        try:
            return await self._load(resolved, model, engine)
        except InsufficientResourcesError:
            freed = self.make_room is not None and await self.make_room()
            smaller = made_smaller(resolved)
            if smaller is None and not freed:
                raise
        again = smaller or resolved
        self._log.append("warn", f"out of memory ({self._report.out_of_memory}); trying once more, {in_words(again)}")
        return await self._load(again, model, engine)

    def trial(self, resolved: Resolved, model: ModelInfo) -> Trial:
        """What an engine has to show with `model`, before it is used with these settings."""

        def session(engine: Engine, port: int, on_line: Callable[[str, bool], None]) -> EngineSession:
            return self._open_session(engine, port, on_line, model=model, api_key=resolved.api_key)

        return Trial(
            kind="llama",
            model_id=model.id,
            size=model.size,
            session=session,
            flags=lambda port: trial_arguments(resolved, model, port),
            env=environment_of(resolved),
            writes=can_write(model),
            further_flags=resolved.config.extra_args,
        )

    def trial_of(self, model: ModelInfo) -> Trial:
        """As `trial`, with the settings that are the default."""
        config = LlamaServerConfig(model_id=model.id)
        return self.trial(Resolved(config, config, 0, secrets.token_urlsafe(24)), model)

    async def _load(self, resolved: Resolved, model: ModelInfo, engine: Engine) -> ServerInfo:
        """One process, until it serves the model.

        Raises:
            InsufficientResourcesError: it ran out of memory.
            ServerError: it ended for another reason.
        """
        self._resolved = resolved
        self._report = report = LoadReport()
        if resolved.api_key:
            self._log.hide(resolved.api_key)
        session = self._open_session(
            engine,
            resolved.port,
            report.feed,
            model=model,
            api_key=resolved.api_key,
            keep_debug=asks_for_debug(resolved.config),
        )
        try:
            await session.launch(arguments(resolved, model), environment_of(resolved))
            self._session = session
            self._announce()
            await session.wait_until_ready(HEALTH)
            self._context_size = await _served_context(session) or resolved.config.context_size
        except BaseException as error:
            self._session = None
            await stop_quietly(session)
            if isinstance(error, ServerError) and report.out_of_memory is not None:
                raise _out_of_memory(model, resolved, report.out_of_memory, error) from error
            raise
        self._resolved = as_loaded(resolved, report)
        self._change("running", "ok")
        self._watch(session, HEALTH)
        return self.get_info()

    async def _resolve(self, config: LlamaServerConfig, model: ModelInfo, engine: Engine) -> Resolved:
        """Work out what was left open, and check that the result fits."""
        wishes = Wishes(
            context_size=config.context_size,
            gpu_layers=config.gpu_layers,
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            parallel_requests=config.parallel_requests,
            flash_attention=config.flash_attention not in (False, "off"),
            use_gpu=engine.gpu is not False,
        )
        system = self._parts.system
        plan = await system.plan(model, wishes)
        if not (plan.fits and plan.first_choice) and self.make_room is not None and await self.make_room():
            plan = await system.plan(model, wishes)
        if plan.lacks:
            what, needed, there = plan.lacks
            raise insufficient(model, what, needed, there, _way_out(config))
        threads = config.threads or system.threads()
        key = None if config.api_key is False else config.api_key or secrets.token_urlsafe(24)
        port = free_port() if config.port == "auto" else config.port
        return Resolved(config, resolved_by(plan, config, threads), port, key, plan.visible)


def _way_out(config: LlamaServerConfig) -> str:
    ways = ["a smaller model or quantization"]
    if config.context_size is not None:
        ways.append("a smaller context size")
    if config.gpu_layers:
        ways.append("fewer GPU layers")
    return f"Use {' or '.join(ways)}, or close what else holds memory (%genai system shows it)."


def _out_of_memory(model: ModelInfo, resolved: Resolved, reason: str, error: ServerError) -> InsufficientResourcesError:
    """The error for a model that did not fit although it should have."""
    return InsufficientResourcesError(
        f"{model.name} ran out of memory while it was loaded, {in_words(resolved)}: {reason}",
        {**(error.details or {}), "suggestion": _way_out(resolved.asked)},
    )


async def _served_context(session: EngineSession) -> int | None:
    """The context size the engine really allocated, as /props tells."""
    props = await session.get_json("/props")
    try:
        return int(props["default_generation_settings"]["n_ctx"])
    except (KeyError, TypeError, ValueError):
        return None
