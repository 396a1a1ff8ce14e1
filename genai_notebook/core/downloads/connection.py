"""Asking a URL for its bytes: our own rules for redirects, and errors that say whether a retry may help.

Underneath is http.client, which reads bulk bytes at about twice the speed of httpx; the sockets come from `lines`, so
that another thread can wake whatever waits on one of them.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import threading
import time
from urllib.parse import quote, urlsplit

from genai_notebook._version import __version__
from genai_notebook.core.downloads.lines import Line, Lines, PassingError, login
from genai_notebook.core.downloads.urls import follow, same_host, without_credentials
from genai_notebook.errors import DownloadError

__all__ = ["CONNECT_LIMIT", "STALL_LIMIT", "Client", "PassingError", "Reply"]

MAX_REDIRECTS = 10
CONNECT_LIMIT = 8.0
#: Seconds without a byte after which a connection is given up.
STALL_LIMIT = 30.0
#: How long small pieces of a body are gathered: to handle a few bytes costs as much as to handle many.
_GATHERING = 0.05
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
_SECRETS = ("authorization", "cookie", "proxy-authorization")
_STATUS_HINTS = {
    401: "The server wants a token.",
    403: "The server refuses access: a token or an accepted licence may be missing.",
    404: "Check the address.",
    410: "Check the address: the file has been removed there.",
    429: "Too many requests: wait a little.",
}
_LATER = "Try again later."


class Reply:
    """One answer, whose body is read piece by piece."""

    def __init__(self, lines: Lines, line: Line, response: http.client.HTTPResponse, url: str) -> None:
        self._lines, self._line, self._response = lines, line, response
        self._shown = without_credentials(url)
        self._error: DownloadError | None = None
        self.status = response.status

    @property
    def length(self) -> int | None:
        """How many bytes of the body are left, as the server announced it; None where it did not."""
        return self._response.length

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    def read(self, buffer: memoryview) -> int:
        """Fill the buffer with the next bytes, or part of it where they come slowly; returns how many, 0 at the end.

        Into a buffer that lives on: memory got and given back for every piece costs more than all else here.

        Raises:
            PassingError: the connection broke or stalled, or the body is shorter than announced.
        """
        count, until = 0, 0.0
        try:
            while self._error is None and (more := self._piece(buffer[count:])):
                count += more
                if count == len(buffer):
                    break
                now = time.monotonic()
                until = until or now + _GATHERING
                if now >= until or not self._line.has_more(until - now):
                    break
            if not count and self._error is None and self._response.length:
                self._error = _too_short(self._shown)
        except _TROUBLE as error:
            self._error = _typed(error, self._shown)  # what came before it comes first
        if self._lines.ended:
            # A body that we cut short must not look as if that were its end.
            raise PassingError(f"The download of {self._shown} was ended.", {"reason": "broken"})
        if self._error is not None and not count:
            raise self._error
        return count

    def _piece(self, buffer: memoryview) -> int:
        response = self._response
        if response.isclosed():
            return 0
        if response.chunked:
            piece = response.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        count = response.fp.readinto1(buffer[: response.length])
        if response.length is not None:
            response.length -= count
        return count

    def close(self) -> None:
        """Done with it. The connection serves the next request, if nothing is left on it and the server agrees."""
        whole = self._response.length == 0 or self._response.isclosed()
        keep = whole and self._error is None and not self._response.will_close
        self._response.close()
        if keep:
            self._lines.give_back(self._line)
        else:
            self._lines.drop(self._line)


class Client:
    """The connections of one download; thread-safe. Credentials stay with the host they are for."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        *,
        stall_limit: float = STALL_LIMIT,
        connect_limit: float = CONNECT_LIMIT,
    ) -> None:
        self.url = url
        own = {"User-Agent": f"genai-notebook/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
        self._typed = (without_credentials(url), _with_login(own | headers, url))
        #: Where redirects led the last time, and what may be sent there.
        self._final = self._typed
        self._lines = Lines(connect_limit, stall_limit)
        self._lock = threading.Lock()

    def get(self, more: dict[str, str]) -> Reply:
        """The answer to a GET with the headers `more`: 200, 206 or 416; redirects are followed.

        Raises:
            PassingError: a retry may help.
            DownloadError: it does not; or a redirect that we do not follow.
        """
        with self._lock:
            start = self._final
        try:
            reply = self._follow(start, more)
            if start != self._typed and 400 <= reply.status < 500 and reply.status not in _PASSING | {416}:
                # A signed address expires: the typed one gives a new one.
                reply.close()
                reply = self._follow(self._typed, more)
        except PassingError:
            with self._lock:
                self._final = self._typed  # perhaps it leads to another mirror next time
            raise
        if reply.status in (200, 206, 416):
            return reply
        reply.close()
        raise self._refusal(reply)

    def end(self) -> None:
        """Wake every thread that waits for a connection, an answer or a body; nothing more is fetched."""
        self._lines.end()

    def close(self) -> None:
        self._lines.end()

    def _follow(self, start: tuple[str, dict[str, str]], more: dict[str, str]) -> Reply:
        url, headers = start
        for _ in range(MAX_REDIRECTS):
            reply = self._send(url, headers | more)
            location = reply.header("location")
            if not (reply.status in _REDIRECTS and location):
                if reply.status in (200, 206):
                    with self._lock:
                        self._final = (url, headers)
                return reply
            reply.close()
            target = follow(self.url, url, _readable(location))
            if not same_host(url, target):
                headers = {name: value for name, value in headers.items() if name.lower() not in _SECRETS}
            url, headers = target, _with_login(headers, target)
        raise DownloadError(
            f"The server redirects more than {MAX_REDIRECTS} times.", {"reason": "redirects"}, hint="Check the address."
        )

    def _send(self, url: str, headers: dict[str, str]) -> Reply:
        shown = without_credentials(url)
        line = self._lines.idle(url)
        if line is not None:
            try:
                return self._exchanged(line, url, shown, headers)
            except PassingError as error:
                if (error.details or {}).get("reason") != "broken":
                    raise
                # The server had closed it meanwhile, as it may: a new one then.
        return self._exchanged(self._lines.dial(url), url, shown, headers)

    def _exchanged(self, line: Line, url: str, shown: str, headers: dict[str, str]) -> Reply:
        try:
            _check_headers(headers)
            line.http.request("GET", line.prefix + _target(url), headers=line.headers | headers)
            return Reply(self._lines, line, line.http.getresponse(), url)
        except BaseException as error:
            self._lines.drop(line)
            if isinstance(error, _TROUBLE):
                raise _typed(error, shown) from error
            raise

    def _refusal(self, reply: Reply) -> DownloadError:
        shown, details = without_credentials(self.url), {"reason": "status", "status": reply.status}
        hint = _STATUS_HINTS.get(reply.status)
        if reply.status not in _PASSING:
            return DownloadError(f"{shown} answers {reply.status}.", details, hint=hint)
        error = PassingError(f"{shown} answers {reply.status}.", details, hint=hint or _LATER)
        error.wait = _seconds(reply.header("retry-after"))
        return error


def _target(url: str) -> str:
    """Path and query, with everything quoted that somebody forgot to quote."""
    parts = urlsplit(url)
    text = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(text, safe="%/:=&?~#+!$,;'@()*[]")


def _with_login(headers: dict[str, str], url: str) -> dict[str, str]:
    """The headers, and user and password of the URL among them, unless there is a token already."""
    if any(name.lower() == "authorization" for name in headers):
        return headers
    return headers | login(url, "Authorization")


def _check_headers(headers: dict[str, str]) -> None:
    """As http.client would, but without a word of what may be a secret."""
    for name, value in headers.items():
        if not value.isprintable() or not value.isascii():
            raise DownloadError(
                f"The header {name} holds characters that HTTP does not know.",
                {"reason": "header"},
                hint="Look for line breaks and foreign letters in the token.",
            )


def _readable(location: str) -> str:
    """A Location as it was meant: http.client takes for Latin-1 what is UTF-8 nearly always."""
    with contextlib.suppress(UnicodeError):
        return location.encode("latin-1").decode("utf-8")
    return location


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After asks for: it is a number of seconds or a date."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _too_short(shown: str) -> PassingError:
    return PassingError(f"The download of {shown} ended too early.", {"reason": "length"}, hint=_LATER)


#: What goes wrong on a connection that stands. Where another thread has ended it, http.client fails in ways of its own.
_TROUBLE = (OSError, http.client.HTTPException, ValueError, AttributeError)


def _typed(error: Exception, shown: str) -> PassingError:
    """One of `_TROUBLE` as our error."""
    if isinstance(error, TimeoutError):
        return PassingError(f"No byte from {shown} within the time limit.", {"reason": "stalled"}, hint=_LATER)
    if isinstance(error, http.client.IncompleteRead):
        return _too_short(shown)
    what = str(error) or type(error).__name__
    return PassingError(f"The download of {shown} broke off: {what}", {"reason": "broken"}, hint=_LATER)
