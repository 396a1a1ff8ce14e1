"""Command lines of the magics: argparse, with IPython's manners.

A wrong argument is one line and fails the cell (`UsageError`); ``-h`` prints help and leaves the cell in order.
"""

from __future__ import annotations

import argparse
import difflib
import keyword
import os
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from IPython.core.error import UsageError

_CHOICES = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<valid>[^)]*)\)")


class HelpShown(Exception):  # noqa: N818 - not an error: help was asked for and has been printed
    """Parsing ended because help was asked for."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that never exits the kernel."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {_friendly(message)} ({self.prog} -h shows how it is used.)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def subcommands(self) -> dict[str, Parser]:
        """The parsers of the subcommands, by name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def options(self) -> list[str]:
        """The long options, sorted."""
        return sorted(text for action in self._actions for text in action.option_strings if text.startswith("--"))

    def choices_of(self, option: str | None) -> list[str]:
        """The values that `option` takes, or with None those of the first positional argument; [] when free."""
        for action in self._actions:
            matches = option in action.option_strings if option else not action.option_strings
            if matches:
                return [str(choice) for choice in action.choices or ()]
        return []

    def takes_value(self, option: str) -> bool:
        return any(option in action.option_strings and action.nargs != 0 for action in self._actions)


def split(line: str) -> list[str]:
    """A magic's line as a list of arguments, quotes honoured as in a shell.

    Raises:
        UsageError: a quote is not closed.
    """
    from IPython.utils import process

    arg_split: Any = process.arg_split  # type: ignore[attr-defined, unused-ignore]
    try:
        return list(arg_split(line, posix=os.name == "posix"))
    except ValueError as error:
        raise UsageError(f"The line cannot be read: {str(error).lower()}.") from None


def suggest(word: str, valid: Iterable[str]) -> str:
    """'Did you mean …?' with a space before it, or ''."""
    close = difflib.get_close_matches(word, list(valid), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def variable_name(text: str) -> str:
    """An argparse type: the name of a Python variable."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a variable name")
    return text


def port_number(text: str) -> int | str:
    """An argparse type: 1 to 65535, or 'auto'."""
    if text == "auto":
        return text
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a port (1-65535) nor 'auto'")


def add_into(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--into", type=variable_name, metavar="NAME", help=f"put {what} into this variable")


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The arguments among `names` that were given, as keywords."""
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def _friendly(message: str) -> str:
    match = _CHOICES.search(message)
    if match:
        valid = [choice.strip(" '") for choice in match["valid"].split(",")]
        names = ", ".join(valid)
        return f"there is no {match['given']!r} here; choose from {names}.{suggest(match['given'], valid)}"
    return message.removeprefix("argument ").rstrip(".") + "."
