"""The sockets of one download: dialled, led through proxies, secured, used again, and ended from anywhere.

Each is known here before it connects, so that `Lines.end` wakes whoever waits on one: for the connection, the TLS
handshake, an answer or a body. Only the look-up of a name cannot be woken. Proxies come from the environment and the
system, certificates as httpx finds them.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

from genai_notebook.core.downloads.urls import port_of, without_credentials
from genai_notebook.errors import DownloadError

_CHECK = "Check the network, the address and the proxy settings."


class PassingError(DownloadError):
    """A failure that a retry may cure. `wait`: seconds that the server asked for, where it did."""

    wait: float | None = None


class Line:
    """One connection to the host of a URL. Requests on it carry `headers`, and `prefix` before their path."""

    def __init__(self, place: tuple[str, str, int], sock: socket.socket, proxy: SplitResult | None) -> None:
        scheme, host, port = place
        self.place, self.sock = place, sock
        self.http = http.client.HTTPConnection(host, port)
        self.http.sock = sock
        self.http.auto_open = 0  # a socket of its own making would be unknown here
        name = f"[{host.partition('%')[0]}]" if ":" in host else host
        name = name if name.isascii() else name.encode("idna").decode()
        self.headers = {"Host": name if port == port_of(urlsplit(f"{scheme}://x")) else f"{name}:{port}"}
        self.prefix = ""
        if proxy is not None and scheme == "http":
            self.prefix = f"http://{self.headers['Host']}"
            self.headers |= login(proxy.geturl(), "Proxy-Authorization")

    def has_more(self, seconds: float) -> bool:
        """Whether bytes come within that time."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        if not hasattr(select, "poll"):
            return bool(select.select([self.sock], [], [], seconds)[0])
        poll = select.poll()  # select knows only the first 1024 descriptors
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(1000 * seconds))


class Lines:
    """Thread-safe. After `end` there are no lines any more, and no new ones."""

    def __init__(self, connect_limit: float, stall_limit: float) -> None:
        self._connect_limit, self._stall_limit = connect_limit, stall_limit
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._idle: list[Line] = []
        self._certificates: ssl.SSLContext | None = None
        self.ended = False

    def dial(self, url: str) -> Line:
        """A new connection to the host of `url`.

        Raises:
            PassingError: it cannot be reached (now).
            DownloadError: it cannot be trusted, or only through a proxy that we cannot use.
        """
        parts = urlsplit(url)
        place = _place(parts)
        proxy = _proxy_for(parts)
        with _connecting(without_credentials(url)):
            sock = self._connected(place[1:] if proxy is None else (proxy.hostname or "", port_of(proxy)))
            try:
                if proxy is not None and parts.scheme == "https":
                    _tunnel(sock, place[1:], proxy)
                if parts.scheme == "https":
                    sock = self._secured(sock, place[1])
                sock.settimeout(self._stall_limit)
                return Line(place, sock, proxy)
            except BaseException:
                self._drop(sock)
                raise

    def idle(self, url: str) -> Line | None:
        """A connection to the host of `url` that waits for a request."""
        place = _place(urlsplit(url))
        with self._lock:
            for line in self._idle:
                if line.place == place:
                    self._idle.remove(line)
                    return line
        return None

    def give_back(self, line: Line) -> None:
        with self._lock:
            if not self.ended:
                self._idle.append(line)
                return
        self.drop(line)

    def drop(self, line: Line) -> None:
        line.http.close()
        self._drop(line.sock)

    def end(self) -> None:
        """Wake whoever waits on a socket, and close those that nobody uses."""
        with self._lock:
            self.ended = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own: after that one, a reader would get what it can no longer decipher.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            idle, self._idle = self._idle, []
        for line in idle:
            self.drop(line)

    def _connected(self, address: tuple[str, int]) -> socket.socket:
        failure: OSError = OSError("the name stands for no address")
        for family, kind, protocol, _, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                self._know(sock)
                sock.settimeout(self._connect_limit)
                sock.connect(found)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                failure = error
                self._drop(sock)
        raise failure

    def _secured(self, sock: socket.socket, host: str) -> socket.socket:
        with self._lock:
            if self._certificates is None:
                import httpx

                self._certificates = httpx.create_ssl_context()
            context = self._certificates
        secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        # The plain socket has handed its descriptor over.
        self._drop(sock)
        try:
            self._know(secured)
            secured.do_handshake()
        except BaseException:
            self._drop(secured)
            raise
        return secured

    def _know(self, sock: socket.socket) -> None:
        with self._lock:
            if self.ended:
                raise ConnectionAbortedError("the download was ended")
            self._sockets.add(sock)

    def _drop(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)
        sock.close()


def login(url: str, header: str) -> dict[str, str]:
    """User and password of a URL as a header; none where it has none."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _place(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", port_of(parts)


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment or the system names for an address; `all` speaks for both schemes."""
    found = urllib.request.getproxies()
    text = found.get(parts.scheme) or found.get("all")
    if not text or urllib.request.proxy_bypass(f"{parts.hostname}:{port_of(parts)}"):
        return None
    proxy = urlsplit(text if "://" in text else f"http://{text}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise DownloadError(
            f"The proxy {without_credentials(text)} is of a kind that downloads cannot use.",
            {"reason": "proxy"},
            hint="Name one whose address begins with http:// in HTTPS_PROXY and HTTP_PROXY; it may well lead to https.",
        )
    return proxy


def _tunnel(sock: socket.socket, address: tuple[str, int], proxy: SplitResult) -> None:
    """Have the proxy connect us through to `address`."""
    host, port = address
    name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
    lines += [f"{key}: {value}" for key, value in login(proxy.geturl(), "Proxy-Authorization").items()]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    response = http.client.HTTPResponse(sock, method="CONNECT")
    try:
        response.begin()
    finally:
        response.close()
    if response.status == 407:
        raise DownloadError(
            f"The proxy {proxy.hostname} wants a login.",
            {"reason": "proxy"},
            hint="Put user and password into its address: http://user:password@proxy:3128.",
        )
    if response.status != 200:
        raise PassingError(
            f"The proxy {proxy.hostname} does not connect to {host}: it answers {response.status}.",
            {"reason": "unreachable"},
            hint=_CHECK,
        )


@contextlib.contextmanager
def _connecting(shown: str) -> Iterator[None]:
    """What goes wrong before a connection stands, as our errors."""
    try:
        yield
    except TimeoutError as error:
        raise PassingError(f"No answer from {shown}.", {"reason": "unreachable"}, hint=_CHECK) from error
    except ssl.SSLEOFError as error:
        raise PassingError(f"{shown} hung up.", {"reason": "unreachable"}, hint=_CHECK) from error
    except ssl.SSLError as error:
        raise DownloadError(
            f"{shown} cannot be trusted: {error.reason or error}",
            {"reason": "certificate"},
            hint="Behind a proxy with certificates of its own, SSL_CERT_FILE names them.",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        what = getattr(error, "strerror", None) or error
        raise PassingError(f"{shown} cannot be reached: {what}", {"reason": "unreachable"}, hint=_CHECK) from error
    except UnicodeError as error:
        raise DownloadError(f"{shown} is no name of a host.", {"reason": "unreachable"}, hint=_CHECK) from error
