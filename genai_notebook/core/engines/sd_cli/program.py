"""What an sd-cli says of itself: the flags, samplers and schedulers it knows, and its version."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

#: Seconds an sd-cli may take to print its help: libraries of a GPU are loaded for that.
_PATIENCE = 60.0
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


class ProgramError(Exception):
    """The program cannot be run, or is no sd-cli; the text says which."""


class Program(NamedTuple):
    """An sd-cli: its path, and what its help names (the words in the order they have there)."""

    path: str
    flags: frozenset[str]
    samplers: tuple[str, ...]
    schedulers: tuple[str, ...]


def ask(path: str) -> Program:
    """Run `--help` and read it. Blocks.

    Raises:
        ProgramError: see there.
    """
    code, text = _output(path, "--help")
    flags = frozenset(_FLAG.findall(text))
    samplers = _choices(text, "--sampling-method")
    if not {"--prompt", "--output", "--steps"} <= flags or not samplers:
        last = text.strip().rpartition("\n")[2][:200]
        raise ProgramError(f"{path} is no sd-cli: --help ended with exit code {code}: {last}")
    return Program(path, flags, samplers, _choices(text, "--scheduler"))


def version(path: str) -> str:
    """What `--version` prints, or a line that says as much where an older one has no such flag. Blocks.

    Raises:
        ProgramError: see there.
    """
    code, text = _output(path, "--version")
    if code == 0:
        return text.strip()
    ask(path)
    return "version: unknown (sd-cli)"


def _output(path: str, flag: str) -> tuple[int, str]:
    try:
        result = subprocess.run(
            [path, flag], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
    except OSError as error:
        raise ProgramError(f"{path} cannot be started: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{path} {flag} did not end within {_PATIENCE:g} s") from None
    # Its errors first: what it prints in good order is looked for at the end.
    return result.returncode, (result.stderr + result.stdout).decode("utf-8", "replace")


def _choices(text: str, flag: str) -> tuple[str, ...]:
    """The words in the first brackets behind a flag's description, which older ones write with braces."""
    words = " ".join(text.split())
    match = re.search(rf"(?<![\w-]){flag}\b[^\[{{]*?(?:one of )?[\[{{]([^\]}}]+)[\]}}]", words)
    return tuple(word.strip() for word in match[1].split(",") if word.strip()) if match else ()
