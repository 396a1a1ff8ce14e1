"""Below the downloads: TLS, proxies, logins, connections used again, and waiting that ends when it must."""

from __future__ import annotations

import base64
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest

from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads.connection import Client, PassingError
from genai_notebook.core.downloads.fetch import FIRST, Fetch, Fetched, begin, fetch
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import DownloadError
from tests.downloads import threads_left
from tests.fakes import eventually
from tests.fakes.file_server import FileServer, ServedFile, file_server

BODY = os.urandom(1 << 20)
#: For localhost and 127.0.0.1, signed by itself, until 2099; of no use but here.
PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGPBFBkBd4BDUBLW7
nyPTJvpUzLrZ3xn2AJTMfoWPrG6hRANCAARRZrsax7UZzZ3ZUj/vsE3SxvwACjeT
mW88vuma2iSeN1u7wKgq0V3qt1o/terKwXfdw1hFkaoa1CiNz8K7+7UY
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBiDCCAS6gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjA5OTAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFFmuxrHtRnNndlS
P++wTdLG/AAKN5OZbzy+6ZraJJ43W7vAqCrRXeq3Wj+16srBd93DWEWRqhrUKI3P
wrv7tRijbzBtMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNVHRMBAf8E
BTADAQH/MB0GA1UdDgQWBBSzNdONfG48lJx45yHENSDVAt8gAjAfBgNVHSMEGDAW
gBSzNdONfG48lJx45yHENSDVAt8gAjAKBggqhkjOPQQDAgNIADBFAiATGR6upWWU
UAFmmIPptKzBHjWxf+ZDFhrErsm+15p23wIhANXAfXPu5vYDjvTjhvh1iyOcjPss
UFyhQhqod6QLbe2X
-----END CERTIFICATE-----
"""


@pytest.fixture
def file(server: FileServer) -> ServedFile:
    return server.add_file("/a", BODY)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "a.bin"


@pytest.fixture(autouse=True)
def _quick_and_without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread of ours, no socket and no open file."""
    before = psutil.Process().num_fds() if os.name == "posix" else 0
    yield
    eventually(lambda: not threads_left(), f"the end of {threads_left()}")
    if os.name == "posix":
        eventually(lambda: psutil.Process().num_fds() <= before, "the end of all sockets and files")


def get(url: str, target: Path, work: Work | None = None, **limits: float) -> Fetched:
    found = fetch(Fetch(url=url, target=target, **limits), work or Work())  # type: ignore[arg-type]
    assert target.read_bytes() == BODY
    return found


class Listener:
    """Accepts connections and hands each to `serve`, on a thread of its own, until the test ends."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self._serve = serve
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            self.accepted.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.accepted:
            connection.close()
        self._thread.join()


@pytest.fixture
def listen(nothing_left: None) -> Iterator[Callable[[Callable[[socket.socket], None]], Listener]]:
    listeners: list[Listener] = []

    def start(serve: Callable[[socket.socket], None]) -> Listener:
        listeners.append(Listener(serve))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def splice(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes, both ways, until one side closes."""
    with one, other:
        while True:
            for ready in select.select([one, other], [], [])[0]:
                try:
                    data = ready.recv(1 << 16)
                    (other if ready is one else one).sendall(data)
                except OSError:
                    return
                if not data:
                    return


def read_request(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(4096)):
        data += more
    return data.decode()


# ---- TLS


@pytest.fixture
def secure(
    listen: Callable[[Callable[[socket.socket], None]], Listener], server: FileServer, tmp_path: Path
) -> Listener:
    """The server once more, behind TLS."""
    (tmp_path / "localhost.pem").write_text(PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "localhost.pem")

    def serve(connection: socket.socket) -> None:
        try:
            secured = context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return
        with secured, socket.create_connection(("127.0.0.1", server.port)) as inner:
            threading.Thread(target=_pump, args=(inner, secured), daemon=True).start()
            _pump(secured, inner)

    return listen(serve)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))


def test_over_tls(secure: Listener, trusted: None, file: ServedFile, target: Path) -> None:
    for host in ("localhost", "127.0.0.1"):
        get(f"https://{host}:{secure.port}/a", target)
        target.unlink()
    assert len(secure.accepted) == 2  # one connection each, for two requests


def test_a_certificate_that_is_not_trusted(secure: Listener, file: ServedFile, target: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        get(f"https://localhost:{secure.port}/a", target)
    assert caught.value.details == {"reason": "certificate"}
    assert "SSL_CERT_FILE" in (caught.value.hint or "")
    assert len(secure.accepted) == 1  # no retry cures that


def test_a_certificate_for_another_name(secure: Listener, trusted: None, file: ServedFile, target: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        get(f"https://127.1:{secure.port}/a", target)
    assert caught.value.details == {"reason": "certificate"}


def test_no_tls_at_all(server: FileServer, file: ServedFile, target: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        get(f"https://localhost:{server.port}/a", target)
    assert caught.value.details == {"reason": "certificate"}


def test_from_https_to_http(
    secure: Listener, trusted: None, server: FileServer, file: ServedFile, target: Path
) -> None:
    server.add_redirect("/r", file.url)
    with pytest.raises(DownloadError, match="plain http"):
        get(f"https://localhost:{secure.port}/r", target)
    assert not target.exists()


@pytest.mark.parametrize("after", [100_000, 500_000])
def test_cancelled_over_tls(
    secure: Listener, trusted: None, server: FileServer, file: ServedFile, target: Path, after: int
) -> None:
    """What a reader gets after the end is never taken for the file."""
    work = Work()

    def cancel(sent: int) -> None:
        if sent >= after and not work.cancelled:
            threading.Thread(target=work.cancel).start()

    file.before, file.piece = cancel, 10_000
    with pytest.raises(DownloadError) as caught:
        get(f"https://localhost:{secure.port}/a", target, work)
    assert is_cancelled(caught.value)
    file.before = lambda sent: None
    get(f"https://localhost:{secure.port}/a", target)


# ---- proxies


def test_through_a_proxy(
    listen: Callable[[Callable[[socket.socket], None]], Listener],
    server: FileServer,
    file: ServedFile,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            heard.append(read_request(connection))
            head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{FIRST - 1}/{FIRST}\r\n"
            connection.sendall(f"{head}Content-Length: {FIRST}\r\n\r\n".encode() + BODY[:FIRST])

    proxy = listen(serve)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
    assert fetch(Fetch(url="http://me2:x@models.example:81/a?b=1#c", target=target), Work()).size == FIRST
    lines = heard[0].split("\r\n")
    assert lines[0] == "GET http://models.example:81/a?b=1 HTTP/1.1"
    assert "Host: models.example:81" in lines
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}" in lines
    assert f"Authorization: Basic {base64.b64encode(b'me2:x').decode()}" in lines
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    target.unlink()
    get(file.url, target)
    assert len(heard) == 1


def tunnel(
    secure_port: int, heard: list[str], answer: str = "200 Connection established"
) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        heard.append(read_request(connection))
        connection.sendall(f"HTTP/1.1 {answer}\r\n\r\n".encode())
        if not answer.startswith("200"):
            connection.close()
            return
        splice(connection, socket.create_connection(("127.0.0.1", secure_port)))

    return serve


def test_tls_through_a_proxy(
    listen: Callable[[Callable[[socket.socket], None]], Listener],
    secure: Listener,
    trusted: None,
    file: ServedFile,
    server: FileServer,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    proxy = listen(tunnel(secure.port, heard))
    monkeypatch.setenv("all_proxy", f"me:secret@127.0.0.1:{proxy.port}")
    get("https://localhost:4433/a", target)
    assert heard[0].startswith("CONNECT localhost:4433 HTTP/1.1\r\nHost: localhost:4433\r\nProxy-Authorization: Basic ")
    assert "Proxy-Authorization" not in server.seen[0][2]
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("answer", "reason"), [("407 Login", "proxy"), ("502 No", "unreachable"), ("nonsense", "unreachable")]
)
def test_a_proxy_that_refuses(
    listen: Callable[[Callable[[socket.socket], None]], Listener],
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    reason: str,
) -> None:
    proxy = listen(tunnel(0, [], answer))
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(DownloadError) as caught:
        get("https://models.example/a", target)
    assert caught.value.details == {"reason": reason}
    assert caught.value.hint


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://:1"])
def test_proxies_that_we_cannot_use(target: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(DownloadError) as caught:
        get("http://models.example/a", target)
    assert caught.value.details == {"reason": "proxy"}
    assert "HTTPS_PROXY" in (caught.value.hint or "")


# ---- logins, connections


def test_a_login_in_the_address(server: FileServer, file: ServedFile, target: Path) -> None:
    """It goes to the host it is for, also after a redirect there; and to no other."""
    with file_server() as other:
        away = other.add_file("/c", BODY)
        server.add_redirect("/r", file.url)
        server.add_redirect("/away", away.url)
        url = server.url.replace("//", "//me:secret@")
        fetched = get(url + "/r", target)
        assert fetched.url == url + "/r"
        assert {headers.get("Authorization") for _, _, headers in server.seen} == {"Basic bWU6c2VjcmV0"}
        target.unlink()
        get(url + "/away", target)
        assert {headers.get("Authorization") for _, _, headers in other.seen} == {None}
        target.unlink()
        server.seen.clear()
        fetch(Fetch(url=url + "/a", target=target, headers={"authorization": "Bearer x"}), Work())
        assert {headers.get("authorization") for _, _, headers in server.seen} == {"Bearer x"}


def test_secrets_stay_out_of_messages(server: FileServer, target: Path) -> None:
    for headers in ({"Authorization": "Bearer secr\u00e9t\u20ac"}, {"Authorization": "Bearer secret\nX: y"}):
        with pytest.raises(DownloadError) as caught:
            fetch(Fetch(url=server.url + "/a", target=target, headers=headers), Work())
        assert "secr" not in f"{caught.value} {caught.value.details}"
    with pytest.raises(DownloadError) as caught:
        get(server.url.replace("//", "//me:secret@") + "/none", target)
    assert "secret" not in f"{caught.value} {caught.value.details} {caught.value.hint}"


def test_connections_are_used_again(
    listen: Callable[[Callable[[socket.socket], None]], Listener], server: FileServer, file: ServedFile, target: Path
) -> None:
    def serve(connection: socket.socket) -> None:
        splice(connection, socket.create_connection(("127.0.0.1", server.port)))

    front = listen(serve)
    get(f"http://127.0.0.1:{front.port}/a", target)
    assert len(file.asked) == 2
    assert len(front.accepted) == 1


def test_a_connection_that_the_server_has_closed_meanwhile(server: FileServer, file: ServedFile, target: Path) -> None:
    def close(handler: BaseHTTPRequestHandler, asked: object) -> bool:
        handler.close_connection = True  # though it says that it stays
        return False

    file.instead = close
    get(file.url, target)
    assert len(file.asked) == 2


def test_names_that_are_none(target: Path) -> None:
    for host in ("nowhere.invalid", "a" * 64 + ".example", "a..b", "\u20ac\u20ac.invalid"):
        with pytest.raises(DownloadError) as caught:
            get(f"http://{host}/a", target)
        assert caught.value.details == {"reason": "unreachable"}
        assert caught.value.hint


def test_several_addresses_for_a_name(
    server: FileServer, file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not answer is passed over."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **how: int) -> list[object]:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            gone = closed.getsockname()[1]
        return [*real("127.0.0.1", gone, **how), *real("127.0.0.1", port, **how)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    get(f"http://models.example:{server.port}/a", target)


# ---- cancelled in every state


def cancelled(run: Callable[[Work], object], reached: Callable[[], object]) -> None:
    """Cancel what runs once `reached()`; it must say so, though nobody else would ever end it."""
    work = Work()
    cancelling = threading.Thread(target=lambda: (eventually(reached, "what is waited for", 30), work.cancel()))
    cancelling.start()
    with pytest.raises(DownloadError) as caught:
        run(work)
    assert is_cancelled(caught.value)
    cancelling.join()


LIMITS = {"stall_limit": 100.0, "connect_limit": 100.0}


def test_while_it_looks_up_a_name(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That cannot be woken: the thread is left to itself, and ends when the answer is there."""
    waiting, answer = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        waiting.set()
        answer.wait(60)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    cancelled(lambda work: get("http://models.example/a", target, work, **LIMITS), waiting.is_set)
    answer.set()


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="Linux: full backlogs, and a look at connections")
def test_while_it_connects(target: Path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))

        def is_connecting() -> bool:
            pairs = [(c.status, c.raddr) for c in psutil.Process().net_connections("tcp") if c.raddr]
            return sum(status == "SYN_SENT" and address[1] == port for status, address in pairs) > waiting

        pairs = [(c.status, c.raddr) for c in psutil.Process().net_connections("tcp") if c.raddr]
        waiting = sum(status == "SYN_SENT" and address[1] == port for status, address in pairs)
        cancelled(lambda work: get(f"http://127.0.0.1:{port}/a", target, work, **LIMITS), is_connecting)
        eventually(lambda: not threads_left(), f"the end of {threads_left()}")
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxied", [False, True])
def test_while_nobody_answers(
    listen: Callable[[Callable[[socket.socket], None]], Listener],
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    proxied: bool,
) -> None:
    """The TLS handshake, the proxy's answer, the server's."""
    heard: list[bytes] = []
    silent = listen(lambda connection: heard.append(connection.recv(1 << 16)))
    if proxied:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{silent.port}")
    url = f"{scheme}://127.0.0.1:{silent.port}/a"
    cancelled(lambda work: get(url, target, work, **LIMITS), lambda: heard)
    eventually(
        lambda: not threads_left(), f"the end of {threads_left()}"
    )  # though the other side still holds the connection
    cancelled(lambda work: begin(Fetch(url=url, target=target, **LIMITS), work), lambda: len(heard) > 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 1000, FIRST, 3 * FIRST])
@pytest.mark.parametrize("ranges", [True, False])
def test_while_no_byte_comes(server: FileServer, file: ServedFile, target: Path, at: int, ranges: bool) -> None:
    waiting = threading.Event()

    def wait(sent: int) -> None:
        if sent >= at:
            waiting.set()
            server.hold.wait(60)

    file.before, file.ranges, file.piece = wait, ranges, 1000
    cancelled(lambda work: get(file.url, target, work, **LIMITS), waiting.is_set)
    eventually(lambda: not threads_left(), f"the end of {threads_left()}")
    server.hold.set()
    eventually(lambda: not file.open)


def test_while_it_waits_before_a_retry(server: FileServer, target: Path) -> None:
    server.add("/a", b"", status=503, Retry_After="50")
    cancelled(lambda work: get(server.url + "/a", target, work), lambda: server.seen)


def test_an_ended_client_asks_nothing_more(server: FileServer, file: ServedFile) -> None:
    client = Client(file.url, {})
    reply = client.get({"Range": "bytes=0-9"})
    client.end()
    with pytest.raises(PassingError):
        reply.read(memoryview(bytearray(10)))
    reply.close()
    with pytest.raises(PassingError):
        client.get({})
    client.end()
    assert len(file.asked) == 1
