"""What both fake engines share: the control file, the journal, misbehaviour, a small HTTP server.

Standard library only, and quick to import: a fake starts with ``python -IS`` in some 60 ms. What a fake is told to do
stands in a JSON file that it reads again and again, so that a test can change its mind while the fake runs:

    unknown_flags   flags that it does not know, though the real one does
    exit_at_start   exit code: say `start_log` and exit before listening
    start_log       lines to write first, whatever comes then
    never_listen    live, but open no port
    load_seconds    answer "loading" for so long after the port is open
    load_log_every  seconds between log lines while loading
    hang_health     accept the health request and never answer it
    garbage         answer everything but the health request with HTML and status 200
    die             {"signal": "SIGKILL"} or {"exit": 3}: do it now
    die_log         lines to write before that
    ignore_sigterm  go on after SIGTERM
    flood           number of long lines to write once ready
    half_line       seconds to pause in the middle of a log line, once ready
    bytes_line      hex of raw bytes to write as one log line, once ready
    grandchild      start a child of its own that sleeps; its pid stands in the journal

The journal (one JSON a line) says what happened: start with argv, environment and pid, each request, each signal.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_write_lock = threading.Lock()


def say(text, end="\n"):
    """Write one piece of log at once."""
    with _write_lock:
        sys.stdout.buffer.write((text + end).encode())
        sys.stdout.buffer.flush()


class Control:
    """The control file and the journal."""

    def __init__(self, path):
        self.path = path
        self.journal_path = path + ".journal"
        self._seen = None
        self._values = {}

    def get(self, name, default=None):
        try:
            stamp = os.stat(self.path).st_mtime_ns
            if stamp != self._seen:
                with open(self.path, encoding="utf-8") as file:
                    self._values = json.load(file)
                self._seen = stamp
        except (OSError, ValueError):
            pass  # being replaced right now: what we knew still holds
        value = self._values.get(name)
        return default if value is None else value

    def note(self, event, **facts):
        line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **facts}) + "\n"
        fd = os.open(self.journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


class Handler(BaseHTTPRequestHandler):
    """JSON over HTTP/1.1 with keep-alive; the engines fill `routes`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer

    def log_message(self, *_args):
        pass

    def do_GET(self):
        self.dispatch("GET")

    def do_POST(self):
        self.dispatch("POST")

    def dispatch(self, method):
        engine = self.server.engine
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        path = self.path.split("?")[0]
        engine.control.note("request", method=method, path=path)
        if path == engine.health_path and engine.control.get("hang_health"):
            while engine.control.get("hang_health"):
                time.sleep(0.02)
        if path != engine.health_path and engine.control.get("garbage"):
            return self.answer(200, b"<html>this is no engine</html>", "text/html")
        return engine.route(self, method, path)

    def json_body(self):
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def answer(self, status, value, content_type="application/json"):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


class Engine:
    """A fake engine: parse flags, misbehave as told, serve until SIGTERM."""

    health_path = "/health"
    switches = frozenset()  # flags without a value
    options = frozenset()  # flags with one

    def __init__(self, control):
        self.control = Control(control)
        self.flags = {}
        self.ready_at = None

    # -- to be filled by the two engines
    def version(self):
        raise NotImplementedError

    def route(self, request, method, path):
        raise NotImplementedError

    def listening(self, host, port):
        raise NotImplementedError

    def address(self):
        raise NotImplementedError

    # -- common
    def parse(self, argv):
        words = iter(argv)
        for word in words:
            name, _, inline = word.partition("=") if word.startswith("--") else (word, "", "")
            if name in self.control.get("unknown_flags", []):
                self.refuse(f"error: invalid argument: {word}")
            if name in self.switches:
                self.flags[name] = True
            elif name in self.options:
                value = inline or next(words, None)
                if value is None:
                    self.refuse(f"error: expected a value for argument: {name}")
                self.flags[name] = value
            else:
                self.refuse(f"error: invalid argument: {word}")

    def refuse(self, message):
        print(message, file=sys.stderr, flush=True)
        sys.exit(1)

    def flag(self, *names, default=None):
        for name in names:
            if name in self.flags:
                return self.flags[name]
        return default

    def loaded(self):
        return self.ready_at is not None and time.monotonic() >= self.ready_at

    def check_model(self, path):
        try:
            with open(path, "rb") as file:
                magic = file.read(4)
        except OSError:
            magic = b""
        if magic != b"GGUF":
            say(f"0.00.010.000 E gguf_init_from_file: '{path}' is no GGUF file")
            say("0.00.010.001 E srv  load_model: failed to load model")
            self.control.note("exit", code=1)
            sys.exit(1)

    def main(self, argv):
        if "--version" in argv or "--help" in argv or "-h" in argv:
            print(self.version(), flush=True)
            return
        self.control.note("start", argv=argv, env=dict(os.environ), cwd=os.getcwd())
        self.parse(argv)
        signal.signal(signal.SIGTERM, self.on_sigterm)
        for line in self.control.get("start_log", []):
            say(line)
        if self.control.get("grandchild"):
            child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"])
            self.control.note("grandchild", child=child.pid)
        code = self.control.get("exit_at_start")
        if code is not None:
            self.control.note("exit", code=code)
            sys.exit(code)
        threading.Thread(target=self.watch, daemon=True).start()
        if self.control.get("never_listen"):
            while True:
                time.sleep(1)
        self.serve()

    def serve(self):
        host, port = self.address()
        try:
            server = Server((host, port), Handler)
        except OSError as error:
            say(
                f"0.00.012.000 E srv  start: couldn't bind HTTP server socket, hostname: {host}, port: {port} ({error})"
            )
            self.control.note("exit", code=1)
            sys.exit(1)
        server.engine = self
        threading.Thread(target=self.load, args=(host, server.server_address[1]), daemon=True).start()
        server.serve_forever(poll_interval=0.05)

    def load(self, host, port):
        until = time.monotonic() + float(self.control.get("load_seconds", 0))
        every = self.control.get("load_log_every")
        while (left := until - time.monotonic()) > 0:
            if every:
                say("0.00.020.000 I load_tensors: still loading")
            time.sleep(min(left, every or left))
        self.ready_at = time.monotonic()
        self.listening(host, port)
        self.control.note("ready", port=port)
        self.misbehave_in_log()

    def misbehave_in_log(self):
        for number in range(int(self.control.get("flood", 0))):
            say(f"0.01.000.000 I flood {number} " + "x" * 200)
        if pause := self.control.get("half_line"):
            say("0.01.000.000 I one line cut", end="")
            time.sleep(float(pause))
            say(" in two")
        if raw := self.control.get("bytes_line"):
            with _write_lock:
                sys.stdout.buffer.write(bytes.fromhex(raw) + b"\n")
                sys.stdout.buffer.flush()

    def watch(self):
        """Die when told so."""
        while True:
            if how := self.control.get("die"):
                self.die(how)
            time.sleep(0.02)

    def die(self, how):
        for line in self.control.get("die_log", []):
            say(line)
        if name := how.get("signal"):
            number = getattr(signal, name)
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
            os.kill(os.getpid(), number)
        else:
            os._exit(how["exit"])

    def on_sigterm(self, *_args):
        self.control.note("sigterm")
        if self.control.get("ignore_sigterm"):
            return
        os._exit(0)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 64

    def server_bind(self):
        # No reverse lookup of our own name, as the base class does.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)
