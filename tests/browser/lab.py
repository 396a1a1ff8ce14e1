"""JupyterLab in a process group of its own, and a notebook in it as a person sees it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page, expect

from tests.notebook.kernels import environment
from tests.processes import free_port

#: Milliseconds that a cell with a model behind it may take. Generous: it only ends what would hang.
LIMIT = 120_000
_NUMBER = re.compile(r"\[\d+\]")
_IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


class Lab:
    """One running JupyterLab.

    Attributes:
        root: the folder it serves.
        url, token: how to reach it.
        process: the server's process.
    """

    def __init__(self, folder: Path, home: Path, **more: str) -> None:
        self.root = folder / "notebooks"
        self.log = folder / "server.log"
        self.port, self.token = free_port(), secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{self.port}"
        page_config = folder / "config" / "labconfig" / "page_config.json"
        for path in (self.root, page_config.parent):
            path.mkdir(parents=True)
        page_config.write_text(
            json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
        )
        command = [
            *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}"),
            *(
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={self.root}",
            ),
            *("--LabApp.expose_app_in_browser=True", "--allow-root"),
        ]
        environ = {**environment(folder, home), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), **more}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environ, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        self._wait()

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/{path}", headers={"Authorization": f"token {self.token}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return json.load(reply)

    def _wait(self) -> None:
        end = time.monotonic() + 90
        while True:
            try:
                self.get("api/status")
                return
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text()}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"JupyterLab did not stop:\n{self.log.read_text()[-3000:]}") from None

    def write(self, name: str, *cells: str) -> None:
        """A notebook of code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(text) for text in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}},
        )
        nbformat.write(notebook, self.root / name)

    def read(self, name: str) -> Any:
        return nbformat.read(self.root / name, as_version=4)


@contextmanager
def lab(folder: Path, home: Path, **environ: str) -> Iterator[Lab]:
    server = Lab(folder, home, **environ)
    try:
        yield server
    finally:
        server.stop()


class NotebookPage:
    """A notebook in a tab. Collects what the console complains about."""

    def __init__(self, page: Page, server: Lab, name: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{server.url}/lab/tree/{name}?reset&token={server.token}")
        page.wait_for_selector(".jp-Notebook", timeout=LIMIT)
        page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=LIMIT)
        page.wait_for_function(_IDLE, timeout=LIMIT)

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def start_all(self) -> None:
        """Execute all cells, without waiting for them."""
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")

    def run_all(self) -> None:
        """Execute all cells, and wait until the last one has a number."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        last = self.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
        expect(last).to_have_text(_NUMBER, timeout=LIMIT)

    def save(self) -> None:
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def cell(self, index: int) -> Any:
        return self.page.locator(".jp-CodeCell").nth(index)
