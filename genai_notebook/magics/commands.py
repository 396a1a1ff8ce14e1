"""%genai: its subcommands, their parser, and how a line is carried out."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.magics import download_commands, model_commands, server_commands
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
    system = subparsers.add_parser("system", help="show what this machine can hold")
    system.add_argument("--refresh", action="store_true", help="look again instead of remembering")
    add_into(system, "the capabilities")
    system.set_defaults(run=show_system)
    download_commands.add(subparsers)
    model_commands.add(subparsers)
    server_commands.add(subparsers)
    panel = subparsers.add_parser("panel", help="show a panel: servers, models, and a prompt that makes an image")
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


def show_system(shell: Shell, arguments: argparse.Namespace) -> Any:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import system_info

    found = run(system_info.detect(force=arguments.refresh))
    memory = system_info.get_memory_info()
    advice = found.recommendations
    cores = f"{found.cpu.cores} cores"
    rows: list[tuple[str, object]] = [
        ("Processor", " · ".join(part for part in (found.cpu.model, cores, found.cpu.architecture) if part)),
        ("Memory", f"{views.size(memory.total)}, {views.size(memory.available)} free"),
    ]
    rows += [("GPU", _gpu(gpu)) for gpu in found.gpus if gpu.available] or [("GPU", "none that can be used")]
    rows += [
        ("Platform", found.platform),
        ("Largest model", advice.max_model_size),
        ("Quantisation", ", ".join(advice.recommended_quantization)),
        ("Threads", advice.threads),
        ("GPU layers", advice.gpu_layers),
    ]
    shell.emit(views.facts("What this machine can hold", rows))
    return found


def _gpu(gpu: Any) -> str:
    memory = ""
    if gpu.vram is not None:
        memory = views.size(gpu.vram)
        if gpu.vram_available is not None:
            memory += f", {views.size(gpu.vram_available)} free"
    return " · ".join(part for part in (gpu.name or gpu.type, memory) if part)


def show_panel(shell: Shell, arguments: argparse.Namespace) -> Any:
    from genai_notebook.widgets import Panel

    panel = Panel()
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
