"""`genai/llama/v1/…`: the running LLM's OpenAI-compatible API, streamed through.

The caller shows Jupyter's token and never sees the engine's key. Answers pass through as they come, no faster than the
caller reads them; a caller that leaves ends the engine's work.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode

from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.iostream import StreamClosedError

from genai_notebook.core.schema import ServerInfo
from genai_notebook.errors import InvalidRequestError, ServerError
from genai_notebook.server.servers import ServerHandler

if TYPE_CHECKING:
    import httpx

#: Bodies may carry images for models that see.
MAX_PROXY_BODY = 64 * 1024 * 1024
#: How long a request waits for an LLM that is starting or that has stepped aside for an image, in seconds.
RELOAD_WAIT = 120.0
_POLL = 0.1

_ROUTE = re.compile(r"genai/llama(?:s/[^/]+)?(/v1/.*)")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Whose they are: ours or Jupyter's, and no business of the engine's.
_NOT_FORWARDED = _HOP_BY_HOP | {
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "referer",
    "x-api-key",
    "x-xsrftoken",
}
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "date", "server", "set-cookie", "x-powered-by"}


def request_headers(headers: Any, api_key: str | None) -> dict[str, str]:
    """What the engine gets to see of a request's headers."""
    dropped = _NOT_FORWARDED | _named_by_connection(headers)
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() not in dropped and not name.lower().startswith(("sec-", "x-forwarded-"))
    }
    if api_key:
        kept["Authorization"] = f"Bearer {api_key}"
    return kept


def response_headers(headers: Any) -> list[tuple[str, str]]:
    """What the caller gets to see of an answer's headers. No CORS: that is Jupyter's to decide."""
    dropped = _NOT_RETURNED | _named_by_connection(headers)
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and not name.lower().startswith("access-control-")
    ]


def upstream_path(raw_path: str, base_url: str) -> str:
    """The engine's part of a raw URL path, as it was written: what follows `genai/llama` or `genai/llamas/NAME`.

    Raises:
        InvalidRequestError: it climbs out of `/v1/`, openly or in disguise.
    """
    match = _ROUTE.match(raw_path[len(base_url) :])
    if match is None:
        raise InvalidRequestError("The path must be that of an LLM.", {"field": "path"})
    path = match[1]
    plain = unquote(unquote(path))
    if any(part in (".", "..") for part in plain.replace("\\", "/").split("/")) or "\0" in plain or "//" in plain:
        raise InvalidRequestError("The path must stay below v1/.", {"field": "path"})
    if "%2f" in path.lower() or "%5c" in path.lower() or "\\" in path:
        raise InvalidRequestError("The path must not contain encoded slashes.", {"field": "path"})
    return path


def _named_by_connection(headers: Any) -> set[str]:
    return {name.strip().lower() for name in (headers.get("Connection") or "").split(",") if name.strip()}


class ProxyHandler(ServerHandler):
    """Passes one request to the running LLM."""

    max_body = MAX_PROXY_BODY

    @web.authenticated
    @authorized
    async def get(self, kind: str, name: str | None = None, rest: str = "") -> None:
        await self.forward(kind, name)

    @web.authenticated
    @authorized
    async def post(self, kind: str, name: str | None = None, rest: str = "") -> None:
        await self.forward(kind, name)

    @web.authenticated
    @authorized
    async def delete(self, kind: str, name: str | None = None, rest: str = "") -> None:
        await self.forward(kind, name)

    async def forward(self, kind: str, name: str | None) -> None:
        path = upstream_path(self.request.path, self.base_url)
        body = self.whole_body()
        await self.while_connected(self._forward(kind, name, path, body))

    async def _forward(self, kind: str, name: str | None, path: str, body: bytes) -> None:
        response = await self._answer_of(await self.running(kind, name), path, body)
        if response is None:
            # It was about to step aside when the request came: the request waits for its return like any other.
            response = await self._answer_of(await self.running(kind, name), path, body)
        if response is None:
            raise ServerError(
                "The LLM did not answer.",
                code="BACKEND_ERROR",
                hint="%genai logs shows what the engine said last.",
            )
        try:
            await self._pass_on(response)
        finally:
            await response.aclose()

    async def running(self, kind: str, name: str | None) -> ServerInfo:
        """Where the LLM is, once it is there.

        Raises:
            ServerError: SERVER_NOT_RUNNING, at once or (where it was on its way) after `RELOAD_WAIT` seconds.
        """
        manager = self.manager(kind, name)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RELOAD_WAIT
        info: ServerInfo = manager.get_info()
        while (aside := kind == "llama" and self._stepped_aside()) or info.status != "running":
            if not aside and info.status != "starting":
                raise ServerError(
                    "No LLM is running.",
                    {"status": info.status},
                    code="SERVER_NOT_RUNNING",
                    hint="Start one: %genai start MODEL, or POST genai/llama/start.",
                )
            if loop.time() >= deadline:
                self._retry_after = True
                raise ServerError(
                    "The LLM is not back yet.",
                    {"status": info.status},
                    code="SERVER_NOT_RUNNING",
                    hint="It steps aside while an image is made. Try again in a moment.",
                )
            await asyncio.sleep(_POLL)
            info = manager.get_info()
        return info

    async def _answer_of(self, info: ServerInfo, path: str, body: bytes) -> httpx.Response | None:
        """The beginning of the engine's answer, or None where it went away without one."""
        import httpx

        client = self.house.http_client()
        url = f"{(info.url or '').rstrip('/')}{path}{self._query()}"
        request = client.build_request(
            self.request.method or "GET",
            url,
            headers=request_headers(self.request.headers, info.api_key),
            content=body or None,
        )
        try:
            return await client.send(request, stream=True)
        except httpx.TransportError as error:
            self.log.debug("genai_notebook: the LLM did not answer: %r", error)
            return None

    async def _pass_on(self, response: httpx.Response) -> None:
        import httpx

        self.set_status(response.status_code, response.reason_phrase or None)
        for name, value in response_headers(response.headers):
            self.set_header(name, value)
        try:
            async for chunk in response.aiter_raw():
                self.write(chunk)
                await self.flush()
        except StreamClosedError:
            return
        except httpx.HTTPError:
            # The status has gone out: all that can still be said is that this is not the whole answer.
            self.log.warning("genai_notebook: the LLM broke off in the middle of an answer")
            if self.request.connection is not None and self._headers_written:
                self.detach().close()
                return
            raise ServerError("The LLM broke off its answer.", code="BACKEND_ERROR") from None
        self.finish(set_content_type=response.headers.get("Content-Type", "application/octet-stream"))

    def _query(self) -> str:
        """The query without Jupyter's own `token`."""
        pairs = [
            (name, value.decode("utf-8", "replace"))
            for name, values in self.request.query_arguments.items()
            for value in values
            if name not in ("token", "_xsrf", "no_track_activity")
        ]
        return "?" + urlencode(pairs) if pairs else ""

    def _stepped_aside(self) -> bool:
        state = self.runtime.orchestrator.get_saved_state()
        return state is not None and state.was_running and state.error is None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if getattr(self, "_retry_after", False):
            self.set_header("Retry-After", "10")
        super().write_error(status_code, **kwargs)
