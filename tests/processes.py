"""Which processes belong to a test: found by what they hold, never by their name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

from tests.fakes import eventually


def ours(root: Path) -> list[psutil.Process]:
    """Live processes that work in `root`, name it in their arguments, or were given it as their home.

    Engines and guards have their working folder in the home they serve, so this finds them however they were orphaned.
    """
    text = str(root)
    found = []
    me = psutil.Process()
    not_ours = {me.pid, *(parent.pid for parent in me.parents())}  # whoever runs the tests may name the folder too
    for process in psutil.process_iter():
        if process.pid in not_ours:
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if (
                _inside(process.cwd(), text)
                or any(_mentions(word, text) for word in process.cmdline())
                or _inside(process.environ().get("GENAI_NOTEBOOK_HOME", ""), text)
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def describe(processes: list[psutil.Process]) -> str:
    """One line a process, for a failure's message."""
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())[:300]}")
        except psutil.Error:
            continue
    return "\n".join(lines)


def assert_none_left(root: Path, seconds: float = 10.0) -> None:
    """No process of `root` is left, at the latest after `seconds`."""
    try:
        eventually(lambda: not ours(root), "the end of all processes", seconds)
    except AssertionError:
        left = ours(root)
        message = f"processes left behind:\n{describe(left)}"
        end(left)
        raise AssertionError(message) from None


def end(processes: list[psutil.Process]) -> None:
    """Kill what a failed test left, by pid, so that it does not disturb the next one."""
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue


def alive(pid: int) -> bool:
    """Whether a process of that id exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root + os.sep)


def _mentions(word: str, root: str) -> bool:
    return root in word
