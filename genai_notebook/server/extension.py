"""The Jupyter server extension: one Runtime on the notebook server's own event loop, for all its kernels.

Its engines stay up over kernel restarts and end with Jupyter. Ending them has three lines of defence: `stop_extension`
(SIGTERM, Ctrl-C, shutdown), `atexit` (where Jupyter exits without asking its extensions), and the guard beside each
engine (SIGKILL, a closed terminal), which needs no help from here.
"""

from __future__ import annotations

import asyncio
import atexit
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp

from genai_notebook._version import __version__

if TYPE_CHECKING:
    import httpx
    from jupyter_server.serverapp import ServerApp

    from genai_notebook.core.runtime import Runtime
    from genai_notebook.server.events import EventHub
    from genai_notebook.server.models import Waiters

#: The most that ending everything may take, in seconds. Jupyter waits for us, and users wait for Jupyter.
STOP_LIMIT = 5.0
_ACTIVE = frozenset({"queued", "running", "verifying"})


class GenaiNotebookApp(ExtensionApp):
    """Serves `genai/`."""

    name = "genai_notebook"
    version = __version__
    load_other_extensions = True

    runtime: Runtime
    events: EventHub
    waiters: Waiters
    _loop: asyncio.AbstractEventLoop | None = None
    _http: httpx.AsyncClient | None = None
    _opening: asyncio.Task[None] | None = None
    _stopping: asyncio.Task[None] | None = None

    # Jupyter calls the next two before an event loop exists.

    def initialize_settings(self) -> None:
        from genai_notebook.core.runtime import Runtime
        from genai_notebook.core.settings import Settings
        from genai_notebook.server import standalone
        from genai_notebook.server.events import EventHub
        from genai_notebook.server.models import Waiters

        self.runtime = Runtime(Settings.from_environment(), owner="jupyter-server", listen=standalone.listen)
        self.events = EventHub(self.runtime)
        self.waiters = Waiters()
        atexit.register(self._at_exit)

    def initialize_handlers(self) -> None:
        from genai_notebook.server.routes import ROUTES, UNKNOWN

        self.handlers.extend((route.pattern, route.handler) for route in (*ROUTES, UNKNOWN))

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        self._loop = asyncio.get_running_loop()
        self._open()

    async def opened(self) -> None:
        """Wait until the Runtime is open, or until the log says why it could not be opened."""
        await asyncio.shield(self._open())

    def _open(self) -> asyncio.Task[None]:
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open_runtime())
        return self._opening

    async def _open_runtime(self) -> None:
        # Not earlier: the port may have been taken, and another one found.
        self.runtime.diffusion_server.mounted_url = f"{self.serverapp.connection_url}genai" if self.serverapp else None
        try:
            await self.runtime.open()
        except Exception:
            self.log.exception("genai_notebook: the runtime could not be opened")

    def http_client(self) -> httpx.AsyncClient:
        """The client that the proxy uses: no proxies from the environment, no limit on how long a model may think."""
        if self._http is None:
            import httpx

            self._http = httpx.AsyncClient(
                trust_env=False,
                verify=False,  # engines speak plain HTTP on the loopback interface
                timeout=httpx.Timeout(None, connect=10.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=30.0),
            )
        return self._http

    def current_activity(self) -> dict[str, Any] | None:
        """Downloads and generations that run, so that a server that is culled when idle stays up for them."""
        try:
            downloads = sum(job.status in _ACTIVE for job in self.runtime.model_manager.list_downloads())
            generations = int(self.runtime.diffusion_server.get_info().busy)
        except Exception:
            self.log.debug("genai_notebook: activity unknown", exc_info=True)
            return None
        if not (downloads or generations):
            return None
        return {"downloads": downloads, "generations": generations}

    async def stop_extension(self) -> None:
        """End everything within `STOP_LIMIT` seconds. May be called twice; never raises, or Jupyter would hang."""
        try:
            if self._stopping is None:
                self._stopping = asyncio.get_running_loop().create_task(self._stop())
            await asyncio.shield(self._stopping)
        except BaseException:
            self.log.debug("genai_notebook: stop interrupted", exc_info=True)

    async def _stop(self) -> None:
        try:
            self.events.close()
            await asyncio.wait_for(self._close(), STOP_LIMIT)
        except BaseException:
            # The guards end what is left when this process ends.
            self.log.warning("genai_notebook: not everything could be stopped in time", exc_info=True)
        finally:
            atexit.unregister(self._at_exit)

    async def _close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        await self.runtime.close()
        if self._http is not None:
            await self._http.aclose()

    def _at_exit(self) -> None:
        """Jupyter ends without having asked us to stop: do it now, if its event loop can still be used."""
        loop = self._loop
        if loop is not None and not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(self.stop_extension())
