"""%genai: its subcommands, their parser, and how a line is carried out."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from IPython.core.error import UsageError

from genai_notebook.magics import download_commands, engine_commands, model_commands, server_commands, system_commands
from genai_notebook.magics.arguments import HelpShown, Parser, add_into, split, suggest
from genai_notebook.magics.shell import Interrupted, Shell

_DESCRIPTION = """\
A local language model and an image generator.

  %genai download starter      %genai start      %%genai_chat
  %genai download starter-image      %genai start --images      %%genai_image
"""


@functools.lru_cache(maxsize=1)
def parser() -> Parser:
    """The parser of the whole `%genai` line; made at the first use."""
    top = Parser(prog="%genai", description=_DESCRIPTION, epilog="%genai COMMAND -h explains one command.")
    subparsers = top.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    system_commands.add(subparsers)
    download_commands.add(subparsers)
    model_commands.add(subparsers)
    server_commands.add(subparsers)
    engine_commands.add(subparsers)
    panel = subparsers.add_parser("panel", help="show a panel: servers, models and a prompt; or the machine's memory")
    panel.add_argument("what", nargs="?", choices=("servers", "system"), default="servers", help="default: servers")
    add_into(panel, "the panel")
    panel.set_defaults(run=show_panel)
    help_ = subparsers.add_parser("help", help="show this, or the help of one command")
    help_.add_argument("command", nargs="?", metavar="COMMAND")
    help_.set_defaults(run=show_help)
    return top


def run_line(shell: Shell, line: str) -> None:
    """Carry out one `%genai` line.

    Raises:
        UsageError: the line is wrong.
        GenaiNotebookError: the work failed.
    """
    words = split(line)
    if not words:
        print(parser().format_help())
        return
    if not words[0].startswith("-") and words[0] not in parser().subcommands():
        names = parser().subcommands()
        raise UsageError(f"%genai: there is no command {words[0]!r}.{suggest(words[0], names)} (%genai -h lists them.)")
    try:
        arguments = parser().parse_args(words)
    except HelpShown:
        return
    try:
        result = arguments.run(shell, arguments)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted("Interrupted.") from None
    shell.store(getattr(arguments, "into", None), result)


def show_panel(shell: Shell, arguments: argparse.Namespace) -> Any:
    from genai_notebook.widgets import Panel, SystemPanel

    panel = SystemPanel() if arguments.what == "system" else Panel()
    panel._ipython_display_()
    return panel


def show_help(shell: Shell, arguments: argparse.Namespace) -> None:
    commands = parser().subcommands()
    if arguments.command is None:
        print(parser().format_help())
    elif arguments.command in commands:
        print(commands[arguments.command].format_help())
    else:
        raise UsageError(
            f"%genai help: there is no command {arguments.command!r}.{suggest(arguments.command, commands)}"
        )
