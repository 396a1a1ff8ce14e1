"""The command line of the embedded engines: small, and strict in the way the native engines are.

argparse would guess (abbreviations, `-cx` as `-c x`, exit code 2). Here a flag is known or refused, with exit code 1 as
`llama-server` and `sd-server` do, so that a manager sees the same behaviour from every engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

Convert = Callable[[str], Any]


class FlagError(Exception):
    """The command line is wrong; the text says how."""


class Flag(NamedTuple):
    """One option.

    Attributes:
        names: every spelling; the first is the one messages and `--help` lead with.
        key: where its value is found in the result of `parse`.
        convert: turns the text that follows into a value, or raises ValueError; None for a switch.
        value: what a switch stores.
        help: one line.
    """

    names: tuple[str, ...]
    key: str
    convert: Convert | None = None
    value: Any = True
    help: str = ""


def parse(flags: Sequence[Flag], argv: Sequence[str]) -> dict[str, Any]:
    """The values of the flags in `argv`, by key. The last one wins, as in the native engines.

    Raises:
        FlagError: an unknown flag, a missing or an impossible value.
    """
    known = {name: flag for flag in flags for name in flag.names}
    found: dict[str, Any] = {}
    rest = iter(argv)
    for name in rest:
        flag = known.get(name)
        if flag is None:
            raise FlagError(f"invalid argument: {name}")
        if flag.convert is None:
            found[flag.key] = flag.value
            continue
        text = next(rest, None)
        if text is None:
            raise FlagError(f"{name}: expected value for argument")
        try:
            found[flag.key] = flag.convert(text)
        except ValueError as error:
            raise FlagError(f"{name}: invalid value {text!r}: {error}") from None
    return found


def help_text(program: str, about: str, flags: Iterable[Flag]) -> str:
    """What `--help` prints."""
    lines = [f"usage: {program} [options]", "", about, "", "options:"]
    for flag in flags:
        names = ", ".join(flag.names) + (" VALUE" if flag.convert else "")
        lines.append(f"  {names:<44} {flag.help}".rstrip())
    return "\n".join(lines)


def version_text(package: str, module: str) -> str:
    """What `--version` prints. Imports the engine: that it loads is what the question is about.

    Raises:
        ImportError: it does not load.
    """
    import importlib
    from importlib import metadata

    importlib.import_module(module)
    return f"version: {metadata.version(package)} ({package}, Python {sys.version.split()[0]})"


def refuse(program: str, error: object) -> NoReturn:
    """Say on stderr what is wrong and where help is, and end with exit code 1."""
    print(f"error: {error}\nrun `{program} --help` for the flags it knows", file=sys.stderr, flush=True)
    sys.exit(1)


# ---- values ---------------------------------------------------------------------------------------------------------


def integer(low: int | None = None, high: int | None = None) -> Convert:
    """A whole number between `low` and `high`, both included."""

    def convert(text: str) -> int:
        try:
            number = int(text, 10)
        except ValueError:
            raise ValueError("a whole number is needed") from None
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"must be between {low} and {high}" if high is not None else f"must be at least {low}")
        return number

    return convert


def number(low: float) -> Convert:
    """A finite number of at least `low`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("a number is needed") from None
        if not low <= value < float("inf"):
            raise ValueError(f"must be a number of at least {low:g}")
        return value

    return convert


def choice(values: dict[str, Any] | Sequence[str]) -> Convert:
    """One of `values`; a dict maps the word to what it means."""
    meanings = values if isinstance(values, dict) else {value: value for value in values}

    def convert(text: str) -> Any:
        try:
            return meanings[text]
        except KeyError:
            raise ValueError("must be one of " + ", ".join(meanings)) from None

    return convert


def text(value: str) -> str:
    """Any text but an empty one."""
    if not value:
        raise ValueError("must not be empty")
    return value


def positive(value: str) -> float:
    """A finite number above 0."""
    found = float(number(0)(value))
    if not found:
        raise ValueError("must be more than 0")
    return found


def numbers(low: float) -> Convert:
    """Numbers of at least `low`, separated by commas or slashes."""
    one = number(low)
    return lambda text: [one(part) for part in text.replace("/", ",").split(",")]


def words(known: Sequence[str]) -> Convert:
    """Some of `known`, separated by commas."""
    one = choice(known)
    return lambda text: [one(part) for part in text.split(",")]


def scaled(value: str) -> list[tuple[str, float]]:
    """`FILE:SCALE,…` as pairs."""
    pairs = []
    for part in value.split(","):
        name, colon, scale = part.rpartition(":")
        if not colon or not name:
            raise ValueError("must be FILE:SCALE, or several of them with commas between")
        pairs.append((name, float(number(-1000)(scale))))
    return pairs


def json_object(value: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("must be a JSON object")
    return found
