"""RemoteRuntime: the Runtime of a Jupyter server, seen from one of its kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from genai_notebook.client.live import LiveState
from genai_notebook.client.models import RemoteModelManager
from genai_notebook.client.servers import (
    RemoteDiffusionServerManager,
    RemoteLlamaServerManager,
    RemoteResourceOrchestrator,
)
from genai_notebook.client.system import RemoteBinaryManager, RemoteSystemInfo
from genai_notebook.client.transport import Connection
from genai_notebook.errors import InvalidRequestError, ServerError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class RemoteRuntime:
    """The same managers as a local `Runtime`, over HTTP. All asynchronous methods belong to the loop that opens it.

    Args:
        url: the Jupyter server's base URL (http, https or http+unix).
        token: its token, or None.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self._connection = Connection(url, token)
        self._live = LiveState(self._connection)
        self.url = self._connection.url
        self.owner = "jupyter-server"
        self.version: str | None = None
        self.system_info = RemoteSystemInfo(self._connection)
        self.model_manager = RemoteModelManager(self._connection, self._live)
        self.engine_manager = RemoteBinaryManager(self._connection, self._live)
        self._llamas: dict[str, RemoteLlamaServerManager] = {}
        self.llama_server = self.get_llama_server("llama")
        self.diffusion_server = RemoteDiffusionServerManager("diffusion", self._connection, self._live)
        self.orchestrator = RemoteResourceOrchestrator(self._connection, self.diffusion_server)

    def get_llama_server(self, name: str) -> RemoteLlamaServerManager:
        """The LLM manager of that name; 'llama' is the default one.

        Raises:
            InvalidRequestError: the name is not 1 to 40 letters, digits, '-' or '_'.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "diffusion":
            raise InvalidRequestError(
                f"{name!r} cannot be the name of an LLM server.",
                {"field": "name"},
                hint="Use 1 to 40 letters, digits, '-' or '_'.",
            )
        if name not in self._llamas:
            self._llamas[name] = RemoteLlamaServerManager(name, self._connection, self._live)
        return self._llamas[name]

    def servers(self) -> list[Any]:
        """All managers of servers made so far in this process."""
        return [*self._llamas.values(), self.diffusion_server]

    def subscribe(self, listener: Callable[[str, dict[str, Any]], None]) -> Callable[[], None]:
        """Call `listener(name, data)` on the loop at every event of the server; returns how to end that."""
        return self._live.subscribe(listener)

    async def open(self) -> None:
        """Make sure that the server is there, and start following its events.

        Raises:
            ServerError: it is not, or has no genai_notebook.
        """
        about = (await self._connection.request("GET", "")).json()
        if not isinstance(about, dict) or about.get("name") != "genai-notebook":
            raise ServerError(f"The server at {self.url} has no genai_notebook.", {"url": self.url})
        self.owner = str(about.get("owner", self.owner))
        self.version = about.get("version")
        await self._live.open()

    async def close(self) -> None:
        """Let go of the server; what runs there goes on. Idempotent."""
        await self._live.close()
        await self._connection.close()
