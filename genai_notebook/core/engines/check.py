"""The first check of an engine: it runs at all. Five seconds, no model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from genai_notebook.core.processes.environment import child_environment

SECONDS = 5.0
_MOST = 64 << 10
# llama.cpp: "version: 9860 (abc1234)"; stable-diffusion.cpp: "stable-diffusion.cpp version master-782-b290693, …"
_VERSION = re.compile(r"^(?:stable-diffusion\.cpp )?version:?\s+(\w[\w.+-]*)", re.IGNORECASE | re.MULTILINE)


class CheckFailedError(Exception):
    """The engine does not run; the text says how that showed."""


def check_runs(
    argv: Sequence[str],
    *,
    flags: Sequence[str],
    env: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    cwd: Path | None = None,
) -> str:
    """Run `argv` with each of `flags` until one ends with exit code 0; what it printed is returned. Blocks.

    Raises:
        CheckFailedError: none did; about the last of them.
    """
    failure = CheckFailedError("nothing to try")
    for flag in flags:
        try:
            return _run([*argv, flag], env, seconds, cwd)
        except CheckFailedError as error:
            failure = error
    raise failure


def version_in(output: str) -> str | None:
    """The version in what `--version` printed."""
    match = _VERSION.search(output)
    return match[1] if match else None


def _run(argv: list[str], env: Mapping[str, str] | None, seconds: float, cwd: Path | None) -> str:
    shown = argv[-1]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=child_environment(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise CheckFailedError(f"it cannot be started ({error.strerror or error})") from None
    output = bytearray()
    reader = threading.Thread(target=_collect, args=(process, output), daemon=True)
    reader.start()
    try:
        process.wait(timeout=seconds)
        reader.join(seconds)  # what it has written is still on its way
    except subprocess.TimeoutExpired:
        raise CheckFailedError(f"{shown} did not end within {seconds:g} s") from None
    finally:
        _end(process)
    text = bytes(output).decode("utf-8", "replace")
    if process.returncode != 0:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        raise CheckFailedError(
            f"{shown} ended with {_ending(process.returncode)}" + (f": {last[:300]}" if last else "")
        )
    return text


def _collect(process: subprocess.Popen[bytes], output: bytearray) -> None:
    """The beginning of what it prints; the rest is read too, or it would wait, and forgotten."""
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):  # closed while it was read
        while piece := process.stdout.read1(_MOST):  # type: ignore[attr-defined]
            output += piece[: _MOST - len(output)]


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
