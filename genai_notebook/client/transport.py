"""HTTP to the Jupyter server that owns the engines: requests, typed errors, and its event stream.

No proxies from the environment, ever: the token goes where the URL says and nowhere else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from genai_notebook.errors import GenaiNotebookError, InvalidRequestError, ServerError, error_from_wire

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

#: Seconds for requests that only read, and for every connection.
TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0
#: Seconds for reads made from synchronous code.
SYNC_TIMEOUT = 10.0
#: A stream that has been silent for longer than three heartbeats is dead.
STREAM_SILENCE = 50.0


class Reply(NamedTuple):
    """`sequence`: how far the server's event stream had come when it answered."""

    status: int
    body: bytes
    sequence: int

    def json(self) -> Any:
        """The decoded body; errors as `as_a`."""
        return self.as_a(object)

    def as_a(self, cls: type[T]) -> T:
        """The body as a `cls`.

        Raises:
            ServerError: it is something else.
        """
        try:
            return msgspec.json.decode(self.body, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _strange(error) from None

    def part(self, name: str, cls: type[T]) -> T:
        """One member of the body, an object, as a `cls`; errors as `as_a`."""
        try:
            return msgspec.convert(self.as_a(dict[str, Any])[name], cls)
        except (msgspec.ValidationError, KeyError) as error:
            raise _strange(error) from None


class ServerEvent(NamedTuple):
    name: str
    data: Any
    sequence: int


class Connection:
    """Requests to one server, below its ``genai/``. The asynchronous ones belong to one event loop.

    Args:
        url: the Jupyter server's base URL: http, https, or ``http+unix://`` with the socket's encoded path as host.
        token: sent as ``Authorization: token …``; None sends nothing.
    """

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url if url.endswith("/") else url + "/")
        if parts.scheme not in ("http", "https", "http+unix") or not parts.netloc:
            raise InvalidRequestError(f"{url!r} is no URL of a Jupyter server.", {"field": "url"})
        self.url = parts._replace(query="", fragment="").geturl()
        self._socket = unquote(parts.netloc) if parts.scheme == "http+unix" else None
        self._base = f"http://localhost{parts.path}" if self._socket else self.url
        # A server on this machine shows a certificate for some other name, if not one of its own making; it has been
        # found by other proof, and nobody sits between two ends of the loopback interface.
        self._verify = parts.scheme == "https" and not is_loopback(parts.hostname or "")
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._client: httpx.AsyncClient | None = None
        #: The highest sequence number in any answer: how much of the server's history this process has seen happen.
        self.heard = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        timeout: float | None = TIMEOUT,
    ) -> Reply:
        """Ask, and return what is answered with a status below 400.

        Args:
            method: GET, POST or DELETE.
            path: below ``genai/``.
            body: a struct or dict, sent as JSON.
            query: query arguments.
            timeout: seconds without an answer; None waits for ever.

        Raises:
            GenaiNotebookError: what the server reported, rebuilt; SERVER_UNREACHABLE where there was no answer.
        """
        import httpx

        request = self._async_client().build_request(
            method,
            f"{self._base}genai/{path}",
            params=query,
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            **_json(body),
        )
        try:
            response = await self._async_client().send(request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._reply(response)

    def request_now(self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None) -> Reply:
        """As `request`, blocking, from any thread; for the few synchronous reads that need the server."""
        return self._reply(self._send_now(method, f"genai/{path}", SYNC_TIMEOUT, params=query, **_json(body)))

    def get_now(self, path: str, timeout: float) -> Any:
        """What a GET below the Jupyter server's base URL answers, decoded. Blocking.

        Raises:
            GenaiNotebookError: as `request`.
        """
        return self._reply(self._send_now("GET", path, timeout)).json()

    async def events(self) -> AsyncIterator[ServerEvent]:
        """The event stream, until it ends.

        Raises:
            GenaiNotebookError: as `request`.
        """
        import httpx

        timeout = httpx.Timeout(STREAM_SILENCE, connect=CONNECT_TIMEOUT)
        try:
            async with self._async_client().stream("GET", f"{self._base}genai/events", timeout=timeout) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._reply(response)
                async for event in _parse(response.aiter_lines()):
                    yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _async_client(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            transport = httpx.AsyncHTTPTransport(uds=self._socket) if self._socket else None
            self._client = httpx.AsyncClient(
                headers=self._headers, trust_env=False, verify=self._verify, transport=transport
            )
        return self._client

    def _send_now(self, method: str, path: str, seconds: float, **content: Any) -> httpx.Response:
        import httpx

        timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))
        transport = httpx.HTTPTransport(uds=self._socket) if self._socket else None
        try:
            with httpx.Client(
                headers=self._headers, trust_env=False, verify=self._verify, timeout=timeout, transport=transport
            ) as client:
                return client.request(method, self._base + path, **content)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _reply(self, response: httpx.Response) -> Reply:
        number = response.headers.get("X-Genai-Sequence", "")
        sequence = int(number) if number.isdigit() else 0
        self.heard = max(self.heard, sequence)
        if response.status_code >= 400:
            raise reported_error(response.status_code, response.content)
        if response.status_code >= 300:  # a login page: the token was not accepted
            raise reported_error(403, b"")
        return Reply(response.status_code, response.content, sequence)

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(
            f"The Jupyter server at {self.url} does not answer.",
            {"url": self.url, "reason": f"{type(error).__name__}: {error}"},
            code="SERVER_UNREACHABLE",
            hint="If Jupyter was stopped or restarted, restart this kernel.",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine talking to itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reported_error(status: int, body: bytes) -> GenaiNotebookError:
    """The error that an answer describes: ours as it was raised there, anybody else's as a ServerError."""
    try:
        wire = msgspec.json.decode(body)
    except msgspec.DecodeError:
        wire = None
    if isinstance(wire, dict) and isinstance(wire.get("error"), dict) and wire["error"].get("code") not in _FOREIGN:
        return error_from_wire(wire["error"])
    if status in (401, 403):
        return ServerError(
            "The Jupyter server does not accept this kernel's token.",
            {"status": status},
            code="FORBIDDEN",
            hint="Restart the kernel, or set GENAI_NOTEBOOK_TOKEN to the token of GENAI_NOTEBOOK_RUNTIME.",
        )
    message = wire.get("message") if isinstance(wire, dict) else None
    return ServerError(
        f"The Jupyter server answered {status}" + (f": {message}" if isinstance(message, str) else "."),
        {"status": status},
        hint="Is genai_notebook installed there? `jupyter server extension list` tells.",
    )


def _strange(error: Exception) -> ServerError:
    return ServerError(
        f"The Jupyter server gave an answer that makes no sense here: {error}",
        code="BACKEND_ERROR",
        hint="Are genai-notebook's versions the same in the kernel and in the server?",
    )


def segment(text: str) -> str:
    """An id or a name as one segment of a path, whatever characters it has."""
    # Dots alone would be taken for steps through folders, by HTTP clients and by whatever lies in between.
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


# Our own words for Jupyter's refusal; the kernel has better advice.
_FOREIGN = frozenset({"FORBIDDEN", "UNAUTHORIZED"})


def _json(body: Any) -> dict[str, Any]:
    if body is None:
        return {}
    return {"content": msgspec.json.encode(body), "headers": {"Content-Type": "application/json"}}


async def _parse(lines: AsyncIterator[str]) -> AsyncIterator[ServerEvent]:
    """Server-sent events from lines; comments and events without data are skipped."""
    name, sequence = "message", 0
    data: list[str] = []
    async for line in lines:
        if not line:
            if data:
                yield ServerEvent(name, msgspec.json.decode("\n".join(data)), sequence)
            name, data = "message", []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("id:") and line[3:].strip().isdigit():
            sequence = int(line[3:])
