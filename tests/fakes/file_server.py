"""A web server on loopback that serves files well, badly, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class FileServer:
    """Routes are functions that get the request handler; `hold` is what a hanging route waits for."""

    def __init__(self) -> None:
        self.routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.hold = threading.Event()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.command, self.path, dict(self.headers)))
                route = outer.routes.get(self.path.partition("?")[0])
                with contextlib.suppress(ConnectionError):
                    if route is None:
                        self.send_error(404)
                    else:
                        route(self)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may go away
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, path: str, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> str:
        """Serve `body`; `length` announces another length than it has (-1: none at all)."""

        def route(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            if length != -1:
                handler.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            if handler.command == "GET":
                handler.wfile.write(body)

        self.routes[path] = route
        return self.url + path

    def add_file(self, path: str, body: bytes) -> ServedFile:
        """Serve `body` as a good server does, in ranges too; what the file's attributes say makes it a bad one."""
        file = ServedFile(self.url + path, body)
        self.routes[path] = file.answer
        return file

    def add_redirect(self, path: str, location: str) -> str:
        return self.add(path, b"", status=302, Location=location)

    def add_hanging(self, path: str, first: bytes, length: int) -> str:
        """Send `first` of `length` bytes, then nothing until `hold` is set."""

        def route(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(length))
            handler.end_headers()
            handler.wfile.write(first)
            handler.wfile.flush()
            self.hold.wait(60)

        self.routes[path] = route
        return self.url + path


class ServedFile:
    """A file on a server, which may change, and how it is served. Connections stay open, as with most servers."""

    def __init__(self, url: str, body: bytes) -> None:
        self.url = url
        self.body = body
        self.etag: str | None = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        self.modified: str | None = None
        self.ranges = True
        self.if_range = True
        self.headers: dict[str, str] = {}
        #: Every answer breaks off after so many bytes of its body.
        self.cut: int | None = None
        #: Bytes per write, and the seconds after each: together the speed of one connection.
        self.piece, self.pause = 64 << 10, 0.0
        #: Called before each piece with all bytes sent so far; it may change the file, wait, or raise ConnectionError.
        self.before: Callable[[int], None] = lambda sent: None
        #: Called with each request's range before it is answered; it may answer itself and return True.
        self.instead: Callable[[BaseHTTPRequestHandler, tuple[int, int] | None], bool] = lambda handler, asked: False
        #: Bytes of bodies that were sent, and the ranges that were asked for; None: the whole file.
        self.sent = 0
        self.asked: list[tuple[int, int] | None] = []
        #: How many answers are under way, and how many there have been at most.
        self.open = self.most = 0
        self._lock = threading.Lock()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def change(self, body: bytes) -> None:
        """Another version, with a tag of its own."""
        self.body, self.etag = body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)  # so that `sent` means received
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = False
        body, etag = self.body, self.etag
        asked = self._asked(handler, len(body), etag)
        with self._lock:
            self.asked.append(asked)
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            if self.instead(handler, asked):
                return
            begin, end = asked or (0, len(body))
            if asked and begin >= len(body):
                self._head(handler, 416, 0, etag, f"bytes */{len(body)}")
                return
            content_range = f"bytes {begin}-{end - 1}/{len(body)}" if asked else None
            self._head(handler, 206 if asked else 200, end - begin, etag, content_range)
            self._send(handler, body, begin, end)
        except ConnectionError:
            handler.close_connection = True
        finally:
            with self._lock:
                self.open -= 1

    def _asked(self, handler: BaseHTTPRequestHandler, size: int, etag: str | None) -> tuple[int, int] | None:
        match = _RANGE.fullmatch(handler.headers.get("Range", ""))
        wanted = handler.headers.get("If-Range")
        if not match or not self.ranges or (self.if_range and wanted and wanted not in (etag, self.modified)):
            return None
        return int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)

    def _head(
        self, handler: BaseHTTPRequestHandler, status: int, length: int, etag: str | None, content_range: str | None
    ) -> None:
        handler.send_response(status)
        headers = {"Content-Length": str(length), "ETag": etag, "Last-Modified": self.modified}
        for name, value in {**headers, "Content-Range": content_range, **self.headers}.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, begin: int, end: int) -> None:
        last = end if self.cut is None else min(end, begin + self.cut)
        while begin < last:
            self.before(self.sent)
            piece = body[begin : min(begin + self.piece, last)]
            with self._lock:
                self.sent += len(piece)
            handler.wfile.write(piece)
            begin += len(piece)
            if self.pause:
                time.sleep(self.pause)
        if last < end:
            raise ConnectionError


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    try:
        yield server
    finally:
        server.close()
