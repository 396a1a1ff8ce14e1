"""A real Jupyter server in a process of its own, with folders of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.fakes import eventually
from tests.processes import alive, free_port

TOKEN = "a-token-for-tests"


def jupyter_environment(folder: Path, **more: str) -> dict[str, str]:
    """This environment, with every folder of Jupyter's and IPython's below `folder`."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    folders = {name: str(folder / name.lower()) for name in names}
    Path(folders["JUPYTER_RUNTIME_DIR"]).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {**os.environ, **folders, "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PLATFORM_DIRS": "1", **more}


class JupyterServer:
    """`jupyter server` with our extension; a context manager that stops it and checks that it ended."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = jupyter_environment(folder, **environ)
        self.token = TOKEN
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "jupyter.log"
        root = folder / "notebooks"
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
        command += [f"--ServerApp.root_dir={root}", "--ServerApp.allow_unauthenticated_access=False"]
        command += ["--ServerApp.jpserver_extensions", "genai_notebook=True"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=root, env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            eventually(self._ready, "the notebook server", 60)
        except BaseException:
            self.kill()
            raise

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the notebook server ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            return bool(self.request("GET", "api/status"))
        except (OSError, urllib.error.URLError):
            return False

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """A request with the token; the JSON of the answer. Raises urllib's HTTPError."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, data, timeout=60) as reply:
            content = reply.read()
        return json.loads(content) if content else None

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: nothing of the server gets a chance to tidy up."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"the notebook server did not end:\n{self.log.read_text()[-4000:]}") from None
        assert not alive(self.pid)

    def __enter__(self) -> JupyterServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
