"""Running the small programs that drivers bring along: from trusted folders only, with a time limit.

Never through PATH: a notebook's working folder or a virtual environment may hold a program of the same name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from genai_notebook.core.system.bounded import LIMIT

if TYPE_CHECKING:
    import subprocess

#: Bytes of output that are read; what these programs have to say is a few thousand.
_MOST = 1 << 20


def trusted_folders() -> list[Path]:
    """Where a system keeps its drivers' programs. Only an administrator can write there."""
    if os.name == "nt":
        return [Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"]
    places = "/usr/bin /usr/local/bin /bin /usr/sbin /opt/bin /usr/lib/wsl/lib /usr/local/nvidia/bin /opt/rocm/bin"
    return [Path(place) for place in (*places.split(), "/run/current-system/sw/bin")]


def find_tool(name: str, folders: Iterable[Path]) -> Path | None:
    """The first executable file `name` in `folders` that not everybody can write, or None."""
    if os.name == "nt":
        name += ".exe"
    for folder in folders:
        path = folder / name
        try:
            mode, folder_mode = path.stat().st_mode, folder.stat().st_mode
        except OSError:
            continue
        open_to_all = os.name == "posix" and bool((mode | folder_mode) & stat.S_IWOTH)
        if stat.S_ISREG(mode) and os.access(path, os.X_OK) and not open_to_all:
            return path
    return None


def run_tool(command: list[str], limit: float = LIMIT) -> str:
    """What `command` prints (up to 1 MiB), whatever its exit status; it is killed after `limit` seconds.

    A process stuck inside of a driver cannot be killed: call this through `Bounded`.

    Raises:
        OSError: it cannot be started.
    """
    import subprocess

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        cwd=Path(command[0]).parent,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    timer = threading.Timer(limit, _kill, [process])
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        return process.stdout.read(_MOST).decode("utf-8", "replace")
    finally:
        timer.cancel()
        process.stdout.close()
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process with all that it started, and collect it."""
    import subprocess

    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)


def _environment() -> dict[str, str]:
    """Next to nothing: no token of the notebook, and plain English numbers."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return {**kept, "PATH": os.defpath if os.name == "nt" else "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}
