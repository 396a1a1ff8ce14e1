"""One Runtime: the managers wired together, on one event loop, with one owner."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import msgspec

from genai_notebook.core.engines.engine import Kind
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.trial import Trial
from genai_notebook.core.models.manager import ModelManager
from genai_notebook.core.processes.launcher import GuardLauncher, Launcher
from genai_notebook.core.processes.registry import EngineRegistry
from genai_notebook.core.schema import DiffusionServerConfig, DownloadJob
from genai_notebook.core.servers.diffusion import DiffusionServerManager, Listen
from genai_notebook.core.servers.llama import LlamaServerManager
from genai_notebook.core.servers.manager import Parts, ServerManager
from genai_notebook.core.servers.orchestrator import ResourceOrchestrator
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.system.probe import Probe
from genai_notebook.errors import InvalidRequestError

log = logging.getLogger("genai_notebook")

#: Seconds that engines have for ending when the runtime closes, and after SIGKILL; their guards end what is left.
CLOSE_LIMIT, KILL_LIMIT = 3.0, 1.0

Listener = Callable[[str, dict[str, Any]], None]


class Runtime:
    """Everything that one owner (a notebook server or a kernel) manages.

    Args:
        settings: None: from the environment.
        owner: 'jupyter-server' or 'kernel'.
        listen: opens the stand-alone image port; None: there is none.
        launcher: starts engine processes; None: behind guards.
        probe: looks at the machine; None: the real one.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        owner: str = "kernel",
        listen: Listen | None = None,
        launcher: Launcher | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.owner = owner
        self._listeners: list[Listener] = []
        self._launcher = launcher or GuardLauncher()
        self._closed = False
        self.system_info = SystemInfo(self.settings, probe=probe)
        self.model_manager = ModelManager(self.settings, system=self.system_info, on_job=self._download_changed)
        self.system_info.find_model = self.model_manager.get_model_info
        self.engine_manager = BinaryManager(self.settings, system=self.system_info, notify=self._notify)
        self.engine_manager.find_trial = self._find_trial
        self.diffusion_server = DiffusionServerManager(self._parts(), listen=listen)
        self._llamas: dict[str, LlamaServerManager] = {}
        self.llama_server = self.get_llama_server("llama")
        self.orchestrator = ResourceOrchestrator(
            self.system_info, self.llama_server, self.diffusion_server, self.model_manager
        )
        self.diffusion_server.gate = self.orchestrator

    def get_llama_server(self, name: str) -> LlamaServerManager:
        """The LLM manager of that name; 'llama' is the default one. Made at the first call.

        Raises:
            InvalidRequestError: the name is not 1 to 40 letters, digits, '-' or '_'.
        """
        _check_name(name)
        if name not in self._llamas:
            manager = LlamaServerManager(name, self._parts())
            manager.make_room = self._make_room
            if name == "llama":
                manager.comes_back = lambda: self.orchestrator.comes_back()
            if self._closed:
                manager.retire()
            self._llamas[name] = manager
        return self._llamas[name]

    def servers(self) -> list[ServerManager[Any]]:
        """All managers of servers made so far."""
        return [*self._llamas.values(), self.diffusion_server]

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(name, data)` on the loop at every change; returns how to end that.

        Names: status, started, stopped, crashed, download, generation, binary-log, binary-progress. Data is ready for
        JSON and holds ids and states, never prompts or keys.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def open(self) -> None:
        """Tidy up after owners that died together with their guards."""
        await asyncio.to_thread(EngineRegistry(self.settings.run).reap)

    async def close(self) -> None:
        """Stop every engine and job. Idempotent; takes at most about five seconds."""
        if self._closed:
            return
        self._closed = True
        for server in self.servers():
            server.retire()
        await self.orchestrator.close()
        await self.model_manager.shutdown()
        ends = {asyncio.ensure_future(server.stop()) for server in self.servers()}
        _, late = await asyncio.wait(ends, timeout=CLOSE_LIMIT)
        if late:
            for server in self.servers():
                server.kill()
            await asyncio.wait(late, timeout=KILL_LIMIT)
        for task in ends:
            if task.done() and (error := task.exception()):
                log.warning("a server did not stop cleanly: %s", error)
        self.diffusion_server.generations.destroy()

    def _parts(self) -> Parts:
        return Parts(
            settings=self.settings,
            system=self.system_info,
            models=self.model_manager,
            engines=self.engine_manager,
            launcher=self._launcher,
            notify=self._notify,
            owner=self.owner,
        )

    async def _find_trial(self, kind: Kind) -> Trial | str:
        """What engines can be tried with: the smallest model of their kind, if it fits into what is free."""
        models = await self.model_manager.list_models("llm" if kind == "llama" else "diffusion")
        if not models:
            return f"no {'language' if kind == 'llama' else 'image'} model is installed"
        model = min(models, key=lambda model: model.size)
        check = await self.system_info.can_run_model(model)
        if not check.possible:
            return check.reason or f"{model.id} does not fit"
        if kind == "llama":
            return self.llama_server.trial_of(model)
        return self.diffusion_server.trial(DiffusionServerConfig(model_id=model.id), model)

    async def _make_room(self) -> bool:
        return await self.orchestrator.before_llm()

    def _notify(self, name: str, data: dict[str, Any]) -> None:
        for listener in list(self._listeners):
            try:
                listener(name, data)
            except Exception:
                log.exception("a listener of the runtime failed")

    def _download_changed(self, job: DownloadJob) -> None:
        self._notify("download", msgspec.to_builtins(job))


_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "diffusion":
        raise InvalidRequestError(
            f"{name!r} cannot be the name of an LLM server.",
            {"field": "name"},
            hint="Use 1 to 40 letters, digits, '-' or '_'.",
        )
