"""A real kernel in a process of its own, driven as a frontend drives it."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

#: Seconds that a cell may take here. Generous: it only ends what would hang.
LIMIT = 120.0


class Result:
    """What one cell did, as a notebook would keep it.

    Attributes:
        status: 'ok' or 'error'.
        outputs: displayed data in order, updates applied; each {"data", "metadata", "display_id"}.
        updates: every state a changing output went through, in order.
        stdout, stderr: printed text.
        error: {"ename", "evalue", "traceback"} or None.
    """

    def __init__(self) -> None:
        self.status = ""
        self.outputs: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []
        self.stdout = self.stderr = ""
        self.error: dict[str, Any] | None = None
        self.reply: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """All final plain text, in order."""
        return "\n".join(output["data"].get("text/plain", "") for output in self.outputs)

    @property
    def traceback(self) -> str:
        return "\n".join(self.error["traceback"]) if self.error else ""

    def take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            setattr(self, content["name"], getattr(self, content["name"]) + content["text"])
        elif kind in ("display_data", "execute_result"):
            display_id = content.get("transient", {}).get("display_id")
            self.outputs.append({**_kept(content), "display_id": display_id})
            self.updates.append(_kept(content))
        elif kind == "update_display_data":
            for output in self.outputs:
                if output["display_id"] == content["transient"]["display_id"]:
                    output.update(_kept(content))
            self.updates.append(_kept(content))
        elif kind == "error":
            self.error = content


def _kept(content: dict[str, Any]) -> dict[str, Any]:
    return {"data": content["data"], "metadata": content["metadata"]}


class Kernel:
    """One kernel and its client."""

    def __init__(self, manager: KernelManager | None, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def run(
        self, code: str, *, when: Callable[[Result], bool] | None = None, then: Callable[[], Any] | None = None
    ) -> Result:
        """Execute a cell. As soon as `when(result so far)` is true, `then()` is called once (e.g. an interrupt)."""
        id = self.client.execute(code, allow_stdin=False)
        result = Result()
        end = time.monotonic() + LIMIT
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                if time.monotonic() > end:
                    raise AssertionError(f"the cell did not end: {code!r}; so far: {result.text}") from None
                continue
            if message["parent_header"].get("msg_id") != id and message["msg_type"] != "update_display_data":
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
            result.take(message)
            if when and then and when(result):
                then()
                when = None
        if when:
            raise AssertionError(f"the moment to act never came; outputs: {result.text}\n{result.traceback}")
        result.reply = self._reply(id)
        result.status = result.reply["status"]
        return result

    def ok(self, code: str) -> Result:
        """`run` a cell that must succeed."""
        result = self.run(code)
        assert result.status == "ok", f"{code}\n{result.traceback}"
        return result

    def value(self, expression: str) -> str:
        """The repr of an expression."""
        id = self.client.execute("", user_expressions={"x": expression}, silent=True)
        found = self._reply(id)["user_expressions"]["x"]
        assert found["status"] == "ok", found
        return str(found["data"]["text/plain"])

    def complete(self, code: str) -> list[str]:
        return list(self.client.complete(code, reply=True, timeout=LIMIT)["content"]["matches"])

    def interrupt(self) -> None:
        assert self.manager is not None
        self.manager.interrupt_kernel()

    def _reply(self, id: str) -> dict[str, Any]:
        while True:
            message = self.client.get_shell_msg(timeout=LIMIT)
            if message["parent_header"].get("msg_id") == id:
                return dict(message["content"])


def environment(folder: Path, home: Path) -> dict[str, str]:
    """An environment in which nothing outside `folder` is read or written."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("GENAI_NOTEBOOK_")},
        "GENAI_NOTEBOOK_MIRROR": "off",
        "GENAI_NOTEBOOK_HOME": str(home),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }


@contextmanager
def kernel(folder: Path, home: Path, **environ: str) -> Iterator[Kernel]:
    """A fresh kernel that owns its engines; it and they are gone at the end."""
    manager = KernelManager()
    manager.connection_file = str(folder / "kernel-test.json")
    folder.mkdir(parents=True, exist_ok=True)
    manager.start_kernel(env={**environment(folder, home), **environ}, cwd=str(folder))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
