"""The composition root: which Runtime is in force, and the handles that stand for its managers.

Under Jupyter the Runtime lives in the notebook server and this process is its client; elsewhere it lives here, on the
background loop. Which one it is gets decided at the first use of a handle and stays so.

A handle has the methods of its manager. The async ones can be awaited on any event loop; the sync ones, and the
callbacks, work from any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Literal, cast

from msgspec import Struct

from genai_notebook.client.bridge import background_loop, call_in_background, on_background_loop, run
from genai_notebook.core.callbacks import deliver_on_loop, deliver_on_thread
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.models.manager import ModelManager
from genai_notebook.core.servers.diffusion import DiffusionServerManager
from genai_notebook.core.servers.llama import LlamaServerManager
from genai_notebook.core.servers.orchestrator import ResourceOrchestrator
from genai_notebook.core.system.info import SystemInfo

log = logging.getLogger("genai_notebook")

#: Seconds the end of the process waits for engines to stop; their guards end what is left.
EXIT_LIMIT = 6.0
_CALLBACKS = ("on_progress", "on_start")


class Current(Struct, frozen=True):
    """The Runtime in force.

    Attributes:
        kind: 'local' (this process owns the engines) or 'remote' (a notebook server does).
        reason: why, in one sentence for people.
        runtime: a `Runtime`, or a `RemoteRuntime` with the same managers.
        url: the notebook server's, when remote.
    """

    kind: Literal["local", "remote"]
    reason: str
    runtime: Any
    url: str | None = None


_current: Current | None = None
_lock = threading.Lock()


def current() -> Current:
    """The Runtime in force; found or made at the first call. Blocks for a moment then; not on the background loop.

    Raises:
        ServerError: GENAI_NOTEBOOK_RUNTIME demands a notebook server that does not answer.
    """
    global _current
    if _current is None and on_background_loop():
        raise RuntimeError("The runtime is found by waiting for this loop; call a handle from elsewhere first.")
    with _lock:
        if _current is None:
            _current = _find()
        return _current


def reset() -> None:
    """Close the Runtime in force; the next use of a handle finds or makes one anew. For tests and reconnecting."""
    global _current
    with _lock:
        old, _current = _current, None
    if old is not None:
        run(old.runtime.close(), EXIT_LIMIT)


def _find() -> Current:
    from genai_notebook.client.discovery import find_owner

    found = find_owner()
    if found.url is not None:
        from genai_notebook.client.remote import RemoteRuntime

        remote = RemoteRuntime(found.url, found.token)
        run(remote.open())
        return Current("remote", found.reason, remote, found.url)
    from genai_notebook.core.runtime import Runtime

    local = Runtime(owner="kernel", listen=_listen)
    run(local.open())
    return Current("local", found.reason, local)


async def _listen(manager: DiffusionServerManager, port: int, api_key: str | None) -> Any:
    from genai_notebook.server.standalone import listen

    return await listen(manager, port, api_key)


def _after_fork() -> None:
    """A forked child is no owner: the engines, and the pipes to their guards, are its parent's."""
    global _current, _lock
    _current, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_at_exit() -> None:
    old = _current
    if old is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(old.runtime.close(), background_loop()).result(EXIT_LIMIT)
    except Exception as error:  # the guards end what is left
        log.debug("closing at exit: %r", error)


class Handle:
    """Stands for one manager of the Runtime in force.

    Args:
        contract: the manager's class: what the handle offers, with its signatures and docstrings.
        pick: takes the manager out of a Runtime.
    """

    def __init__(self, contract: type, pick: Callable[[Any], Any]) -> None:
        self._contract = contract
        self._pick = pick

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        member = getattr(self._contract, name)
        if inspect.iscoroutinefunction(member):
            return self._async_method(name, member)
        if callable(member):
            return self._sync_method(name, member)
        return getattr(self._pick(current().runtime), name)

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._contract) if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"<handle on the {self._contract.__name__} in force>"

    def _async_method(self, name: str, member: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(member)
        async def call(*args: Any, **keywords: Any) -> Any:
            here = asyncio.get_running_loop()
            for key in _CALLBACKS:
                if callable(keywords.get(key)):
                    # `run` waits on the background loop for a caller without one: that caller gets the thread.
                    keywords[key] = (
                        deliver_on_thread(keywords[key])
                        if on_background_loop()
                        else deliver_on_loop(keywords[key], here)
                    )
            in_force = _current if _current is not None else await asyncio.to_thread(current)
            method = getattr(self._pick(in_force.runtime), name)
            return await call_in_background(lambda: method(*args, **keywords))

        return _without_self(call, member)

    def _sync_method(self, name: str, member: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(member)
        def call(*args: Any, **keywords: Any) -> Any:
            return getattr(self._pick(current().runtime), name)(*args, **keywords)

        return _without_self(call, member)


def _without_self(call: Any, member: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(member)
    call.__doc__ = inspect.getdoc(member)  # where a subclass has none of its own, the base's
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return cast("Callable[..., Any]", call)


def get_llama_server(name: str) -> LlamaServerManager:
    """A handle on the LLM server of that name ('llama' is the default one); several can run side by side.

    Raises:
        InvalidRequestError: at the first use, when the name is not 1 to 40 letters, digits, '-' or '_'.
    """
    return cast("LlamaServerManager", Handle(LlamaServerManager, lambda runtime: runtime.get_llama_server(name)))


# To type checkers and readers a handle is what it stands for.
system_info = cast("SystemInfo", Handle(SystemInfo, lambda runtime: runtime.system_info))
model_manager = cast("ModelManager", Handle(ModelManager, lambda runtime: runtime.model_manager))
engine_manager = cast("BinaryManager", Handle(BinaryManager, lambda runtime: runtime.engine_manager))
llama_server = cast("LlamaServerManager", Handle(LlamaServerManager, lambda runtime: runtime.llama_server))
diffusion_server = cast(
    "DiffusionServerManager", Handle(DiffusionServerManager, lambda runtime: runtime.diffusion_server)
)
orchestrator = cast("ResourceOrchestrator", Handle(ResourceOrchestrator, lambda runtime: runtime.orchestrator))
