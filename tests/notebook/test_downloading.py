"""%genai download from a server of our own: the bar, the result, errors, the interrupt."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fakes import eventually
from tests.fakes.gguf_files import write_gguf
from tests.notebook.kernels import Kernel


class Files(ThreadingHTTPServer):
    """Serves one model file, slowly if told so, and counts what it has sent."""

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.pause = 0.0
        self.gone = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        if not self.path.startswith("/model"):
            self.send_error(404)
            return
        data = self.server.data
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for start in range(0, len(data), 65536):
                self.wfile.write(data[start : start + 65536])
                time.sleep(self.server.pause)
        except OSError:
            self.server.gone = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama", "llama.block_count": 1}, {"w": (1 << 20,)})
    server = Files(path.read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def test_a_bar_with_bytes_and_rate_then_the_result(bare_kernel: Kernel, files: Files):
    files.pause = 0.02
    result = bare_kernel.ok(f"%genai download {files.url}/model.gguf --name 'My <i>model</i>' --into model")
    (output,) = result.outputs
    bars = [update["data"]["text/plain"] for update in result.updates if "%" in update["data"]["text/plain"]]
    assert any(" of 4 MB" in bar for bar in bars)
    assert any("/s" in bar and "left" in bar for bar in bars)
    assert "is ready: a language model, 4 MB" in output["data"]["text/plain"]
    assert hashlib.sha256(files.data).hexdigest() in output["data"]["text/plain"]
    assert "verified" not in output["data"]["text/plain"]  # nobody promised a checksum
    assert all("<i>" not in update["data"]["text/html"] for update in result.updates)
    assert bare_kernel.value("model.size") == str(len(files.data))


def test_a_checksum_is_held_to(bare_kernel: Kernel, files: Files):
    good = hashlib.sha256(files.data).hexdigest()
    wrong = bare_kernel.run(f"%genai download {files.url}/model.gguf --name m --checksum {'0' * 64}")
    assert wrong.error is not None
    assert wrong.error["ename"] == "ChecksumError"
    assert "failed" in wrong.text
    assert "No models yet" in bare_kernel.ok("%genai models").text
    right = bare_kernel.ok(f"%genai download {files.url}/model.gguf --name m --checksum {good}")
    assert "verified" in right.text


def test_what_is_not_there_is_one_error(bare_kernel: Kernel, files: Files):
    result = bare_kernel.run(f"%genai download {files.url}/nothing.gguf")
    assert result.error is not None
    assert result.error["ename"] == "DownloadError"
    assert "404" in result.traceback
    assert "Traceback" not in result.traceback


def test_interrupt_ends_the_download(bare_kernel: Kernel, files: Files):
    files.pause = 0.2
    result = bare_kernel.run(
        f"%genai download {files.url}/model.gguf --name m",
        when=lambda so_far: " of 4 MB" in so_far.text,
        then=bare_kernel.interrupt,
    )
    assert result.error is not None
    assert result.error["ename"] == "Interrupted"
    assert "interrupted" in result.text
    eventually(lambda: files.gone, "the end of the connection")
    bare_kernel.ok("from genai_notebook import model_manager")
    assert bare_kernel.value("[j for j in model_manager.list_downloads() if j.status == 'running']") == "[]"
    files.pause = 0
    assert "is ready" in bare_kernel.ok(f"%genai download {files.url}/model.gguf --name m").text
