"""Bytes from a URL into a file: hashed while written, checked for length and checksum, moved into place when complete.

The bytes go to `<target>.part` beside the target. A failed or cancelled download removes it. The connection lives on an
event loop of its own in the calling worker thread, so that a cancellation ends it at once, in every state.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from genai_notebook._version import __version__
from genai_notebook.core.downloads.disk import ensure_space, write_error
from genai_notebook.core.downloads.urls import check_url, follow, same_host, without_credentials
from genai_notebook.core.downloads.work import Work, cancelled_error
from genai_notebook.errors import ChecksumError, DownloadError

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 10
#: Seconds without a byte after which a download is given up.
STALL_LIMIT = 30.0
CONNECT_LIMIT = 8.0
#: A body of unknown length is weighed against the disk each time that much has come.
_SPACE_CHECK = 64 << 20
#: When `inspect` is shown the beginning for the first time, and how much of it is kept for it at most.
_FIRST_LOOK = 1 << 16
_HEAD = 1 << 20

#: Gets the first bytes of the body; True: satisfied, False: it wants more of them. It raises to refuse the download.
Inspect = Callable[[bytes], bool]


class Fetch(Struct, kw_only=True):
    """What to fetch. `size` and `sha256` (bare hex) are promises that must hold, where given."""

    url: str
    target: Path
    headers: dict[str, str] = {}
    size: int | None = None
    sha256: str | None = None
    inspect: Inspect | None = None
    stall_limit: float = STALL_LIMIT
    connect_limit: float = CONNECT_LIMIT


class Fetched(Struct, kw_only=True):
    path: Path
    size: int
    sha256: str
    url: str


def fetch(request: Fetch, work: Work) -> Fetched:
    """Download `request.url` to `request.target`. Blocks; run it on a worker thread.

    Raises:
        DownloadError: no connection, no success, a stall, a wrong length, a refused redirect, cancelled.
        ChecksumError: all arrived, but not what was promised; the file is gone.
        InsufficientResourcesError: the disk is full, or would be.
        FileSystemError: the file cannot be written.
    """
    check_url(request.url)
    part = request.target.with_name(request.target.name + ".part")
    try:
        fetched = _run_cancellable(request, part, work)
        work.check()
        os.replace(part, request.target)
    except OSError as error:
        raise write_error(error, request.target, request.size) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return fetched


def _run_cancellable(request: Fetch, part: Path, work: Work) -> Fetched:
    async def main() -> Fetched:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(_fetch(request, part, work))

        def wake() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

        with work.on_cancel(wake):
            try:
                return await task
            except asyncio.CancelledError:
                raise cancelled_error() from None

    return asyncio.run(main())


async def _fetch(request: Fetch, part: Path, work: Work) -> Fetched:
    import httpx

    timeout = httpx.Timeout(request.stall_limit, connect=request.connect_limit)
    shown = without_credentials(request.url)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, follow_redirects=False) as client,
            _response(client, request) as response,
        ):
            return await _receive(request, response, part, work)
    except httpx.TimeoutException as error:
        what = "answer" if isinstance(error, httpx.ConnectTimeout) else f"byte for {request.stall_limit:g} s"
        raise DownloadError(f"No {what} from {shown}.", {"reason": "stalled"}, hint="Try again later.") from error
    except httpx.ConnectError as error:
        raise DownloadError(
            f"{shown} cannot be reached: {error}",
            {"reason": "unreachable"},
            hint="Check the network, the address and the proxy settings.",
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"The download of {shown} broke off: {error}", {"reason": "broken"}) from error


@contextlib.asynccontextmanager
async def _response(client: httpx.AsyncClient, request: Fetch) -> AsyncIterator[httpx.Response]:
    """The final response, redirects followed by our own rules; credentials stay with the host they are for."""
    url = request.url
    headers = {"User-Agent": f"genai-notebook/{__version__}", "Accept-Encoding": "identity", **request.headers}
    for _ in range(MAX_REDIRECTS):
        message = client.build_request("GET", url, headers=headers)
        response = await client.send(message, stream=True)
        try:
            location = response.headers.get("location")
            if not (response.is_redirect and location):
                yield response
                return
        finally:
            await response.aclose()
        target = await asyncio.to_thread(follow, request.url, url, location)
        if not same_host(url, target):
            headers = {
                name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")
            }
        url = target
    raise DownloadError(f"The server redirects more than {MAX_REDIRECTS} times.")


async def _receive(request: Fetch, response: httpx.Response, part: Path, work: Work) -> Fetched:
    total = _announced(request, response)
    ensure_space(part.parent, total or 0)
    digest = hashlib.sha256()
    done = 0
    work.enter("running")
    work.report(0, total)
    with _open_new(part) as file:
        head = _Head(request.inspect)
        async for chunk in response.aiter_raw():
            if total is not None and done + len(chunk) > total:
                raise DownloadError(f"The server sends more than the {total} bytes it announced.", {"reason": "length"})
            if total is None and done // _SPACE_CHECK != (done + len(chunk)) // _SPACE_CHECK:
                ensure_space(part.parent, _SPACE_CHECK)
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            head.feed(chunk)
            work.report(done, total)
    if total is not None and done < total:
        raise DownloadError(f"The download ended after {done} of {total} bytes.", {"reason": "length"})
    head.end()
    work.enter("verifying")
    actual = digest.hexdigest()
    if request.sha256 is not None and actual != request.sha256:
        raise ChecksumError(request.sha256, actual)
    work.report(done, done)
    return Fetched(path=request.target, size=done, sha256=actual, url=str(response.url))


def _announced(request: Fetch, response: httpx.Response) -> int | None:
    """The body's length, after a look at the status and at what contradicts the promise."""
    shown = without_credentials(request.url)
    if response.status_code != 200:
        raise DownloadError(
            f"{shown} answers {response.status_code} {response.reason_phrase}.",
            {"reason": "status", "status": response.status_code},
            hint=_STATUS_HINTS.get(response.status_code),
        )
    if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise DownloadError(f"{shown} sends a compressed body though none was asked for.", {"reason": "encoding"})
    text = response.headers.get("content-length")
    announced = int(text) if text is not None and text.isascii() and text.isdigit() else None
    if announced is not None and request.size is not None and announced != request.size:
        raise DownloadError(f"{shown} has {announced} bytes, {request.size} were promised.", {"reason": "length"})
    return announced if announced is not None else request.size


_STATUS_HINTS = {
    401: "The server wants a token.",
    403: "The server refuses access: a token or an accepted licence may be missing.",
    404: "Check the address.",
    429: "Too many requests: wait a little.",
}


class _Head:
    """Shows the beginning of the body to `inspect` until that is satisfied."""

    def __init__(self, inspect: Inspect | None) -> None:
        self.inspect = inspect
        self.data = bytearray()

    def feed(self, chunk: bytes) -> None:
        if self.inspect is None:
            return
        self.data += chunk
        if len(self.data) >= _FIRST_LOOK:
            self._look()

    def end(self) -> None:
        if self.inspect is not None:
            self._look()

    def _look(self) -> None:
        assert self.inspect is not None
        if self.inspect(bytes(self.data)) or len(self.data) >= _HEAD:
            self.inspect = None
            self.data.clear()


def _open_new(path: Path) -> BinaryIO:
    """A new private file; whatever lay at that name, a link too, is removed, not written through."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o600), "wb", buffering=1 << 20)
