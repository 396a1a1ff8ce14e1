"""The magics: %genai, %%genai_chat, %%genai_image.

Loading registers three functions and a completion matcher, and imports nothing heavy: HTTP, the managers and the panels
come at their first use.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakKeyDictionary

from IPython.core.magic import no_var_expand

from genai_notebook.magics.shell import Shell

__all__ = ["load", "unload"]

_LINE, _CELLS = "genai", ("genai_chat", "genai_image")
_shells: WeakKeyDictionary[Any, Shell] = WeakKeyDictionary()


def load(ip: Any) -> None:
    """Register the magics and the completions in this IPython session. A second time: nothing happens."""
    if ip in _shells:
        return
    shell = _shells[ip] = Shell(ip)
    _register(ip, shell)
    if ip.Completer is not None:
        from genai_notebook.magics.completion import matcher

        ip.Completer.custom_matchers.append(matcher)


def unload(ip: Any) -> None:
    """Take the magics, the completions and the panels away again. Engines that run go on running."""
    if _shells.pop(ip, None) is None:
        return
    ip.magics_manager.magics["line"].pop(_LINE, None)
    for name in _CELLS:
        ip.magics_manager.magics["cell"].pop(name, None)
    if ip.Completer is not None:
        from genai_notebook.magics.completion import matcher

        if matcher in ip.Completer.custom_matchers:
            ip.Completer.custom_matchers.remove(matcher)
    if widgets := sys.modules.get("genai_notebook.widgets"):
        widgets.close_panels()


def _register(ip: Any, shell: Shell) -> None:
    def genai(line: str) -> None:
        from genai_notebook.magics.commands import run_line

        run_line(shell, line)

    @no_var_expand
    def genai_chat(line: str, cell: str) -> None:
        from genai_notebook.magics.chat_cell import run_cell

        run_cell(shell, line, cell)

    @no_var_expand
    def genai_image(line: str, cell: str) -> None:
        from genai_notebook.magics.image_cell import run_cell

        run_cell(shell, line, cell)

    magics: tuple[tuple[Any, str, str, str], ...] = (
        (genai, "line", _LINE, "commands"),
        (genai_chat, "cell", _CELLS[0], "chat_cell"),
        (genai_image, "cell", _CELLS[1], "image_cell"),
    )
    for function, kind, name, module in magics:
        # `%genai?` asks an object for its own documentation first: the parser's help, made when asked for.
        function.getdoc = _help_of(module)
        ip.register_magic_function(function, kind, name)


def _help_of(module: str) -> Any:
    def getdoc() -> str:
        from importlib import import_module

        return str(import_module(f"genai_notebook.magics.{module}").parser().format_help())

    return getdoc
