"""A web server on loopback that serves files well, badly, or not at all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

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


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    try:
        yield server
    finally:
        server.close()
