"""sd-server's flags and job API, with an sd-cli that is run once for each job.

    python -m genai_notebook.core.engines.sd_cli --cli /path/to/sd-cli -m model.gguf --listen-port 0

It answers at once, because it loads nothing: that every job does for itself. So a job that runs can be cancelled, and a
crash of sd-cli costs no more than its job.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from genai_notebook.core.engines.embedded import sd_server
from genai_notebook.core.engines.embedded.flags import Flag, FlagError, help_text, parse, refuse, text
from genai_notebook.core.engines.embedded.sd_program import SdProgram
from genai_notebook.core.engines.sd_cli.program import Program, ProgramError, ask, version

PROGRAM = "python -m genai_notebook.core.engines.sd_cli"
ABOUT = "stable-diffusion.cpp's job server, made of an sd-cli that is run once for each job."

_OWN = (
    Flag(("--cli",), "CLI", text, help="the sd-cli to run (required)"),
    Flag(("--lora-model-dir",), "lora_model_dir", text, help="folder of LoRAs, which prompts name as <lora:NAME:1>"),
    Flag(("--embd-dir",), "embd_dir", text, help="folder of embeddings"),
    Flag(("--tensor-type-rules",), "tensor_type_rules", text, help="weight types by tensor name"),
    Flag(("--lora-apply-mode",), "lora_apply_mode", text, help="auto, immediately or at_runtime"),
    Flag(("--rng",), "rng", text, help="std_default, cuda or cpu"),
    Flag(("--sampler-rng",), "sampler_rng", text, help="as --rng, for the sampler alone"),
    Flag(("--prediction",), "prediction", text, help="the kind of prediction, e.g. eps or v"),
)
FLAGS: tuple[Flag, ...] = (_OWN[0], *sd_server.FLAGS, *_OWN[1:])
#: All that is not for sd-cli. Tiles are a matter of each job.
_NOT_PASSED = frozenset({"HELP", "VERSION", "CLI", "IP", "PORT", "TILING"})
_FILES = tuple(flag.key for flag in FLAGS if flag.key.endswith("_path"))
_FOLDERS = ("lora_model_dir", "embd_dir")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT."""
    try:
        options = parse(FLAGS, sys.argv[1:] if argv is None else argv)
        if options.get("HELP"):
            print(help_text(PROGRAM, ABOUT, FLAGS))
            sys.exit(0)
        if "CLI" not in options:
            raise FlagError("the following arguments are required: --cli")
        options["CLI"] = os.path.abspath(options["CLI"])
        if options.get("VERSION"):
            print(version(options["CLI"]))
            sys.exit(0)
        server = SdProgram("sd_cli", options, _FILES)
        server.check_files()
        _serve(server, options)
    except (FlagError, ProgramError) as error:
        refuse(PROGRAM, error)


def _serve(server: SdProgram, options: dict[str, Any]) -> NoReturn:
    from genai_notebook.core.engines.embedded.sd_capabilities import capabilities
    from genai_notebook.core.engines.embedded.sd_jobs import JobBoard
    from genai_notebook.core.engines.embedded.sd_painter import wait_politely
    from genai_notebook.core.engines.sd_cli.painter import CliPainter, remove_leftovers

    port = server.bind()
    server.check_whole()
    program = ask(options["CLI"])
    painter = CliPainter(program, passed_on(options, program), vae_tiling=bool(options.get("TILING")))
    wait_politely()
    remove_leftovers()

    def end(*_: object) -> NoReturn:
        painter.close()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    model = options.get("model_path") or options["diffusion_model_path"]
    answer = capabilities(model, painter.samplers, painter.schedulers, cancel_generating=True)
    server.serve(port, painter, JobBoard(painter.paint, painter.cancel), answer)


def passed_on(options: dict[str, Any], program: Program) -> list[str]:
    """The flags that sd-cli gets for every job.

    Raises:
        FlagError: it does not know one of them.
    """
    words = []
    for flag in FLAGS:
        if flag.key in _NOT_PASSED or flag.key not in options:
            continue
        name = next((name for name in reversed(flag.names) if name in program.flags), None)
        if name is None:
            raise FlagError(f"this sd-cli has no {flag.names[-1]}")
        words.append(name)
        if flag.convert is not None:
            value = options[flag.key]
            # Jobs run in folders of their own.
            words.append(os.path.abspath(value) if flag.key in (*_FILES, *_FOLDERS) else str(value))
    if "lora_model_dir" not in options and "--lora-model-dir" in program.flags:
        # As in sd-server's jobs, no prompt names files, unless there is a folder for them.
        words += ["--lora-model-dir", ""]
    return words


if __name__ == "__main__":
    main()
