"""`sd-server` from the wheel `cyllama`: the same flags, the same job API, one model loaded once.

    python -m genai_notebook.core.engines.embedded.sd_server -m model.gguf --listen-port 0

The log and the progress bars on stdout are stable-diffusion.cpp's own. What differs from the native program: only the
`/sdcpp/v1` API for images is served, no web page and no CORS headers, and a flag that is not in the table below is
refused.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from genai_notebook.core.engines.embedded.flags import (
    Flag,
    FlagError,
    choice,
    help_text,
    integer,
    number,
    parse,
    refuse,
    text,
    version_text,
)
from genai_notebook.core.engines.embedded.sd_program import SdProgram

PROGRAM = "python -m genai_notebook.core.engines.embedded.sd_server"
ABOUT = "stable-diffusion.cpp's job server, from the Python package cyllama."

# What the flag calls it: what the wheel's enum does.
_RNG = {"std_default": "STD_DEFAULT", "cuda": "CUDA", "cpu": "CPU"}
_PREDICTIONS = {
    "eps": "EPS",
    "v": "V",
    "edm_v": "EDM_V",
    "sd3_flow": "FLOW",
    "flux_flow": "FLUX_FLOW",
    "flux2_flow": "FLUX2_FLOW",
}
_ENUMS = {
    "RNG": ("rng_type", "RngType"),
    "SAMPLER_RNG": ("sampler_rng_type", "RngType"),
    "PREDICTION": ("prediction", "Prediction"),
}

# Keys in capitals are ours; the others are attributes of cyllama's SDContextParams.
FLAGS: tuple[Flag, ...] = (
    Flag(("-h", "--help"), "HELP", help="print this and exit"),
    Flag(("--version",), "VERSION", help="print the version and exit"),
    Flag(("-l", "--listen-ip"), "IP", text, help="address to listen on (default: 127.0.0.1)"),
    Flag(("--listen-port",), "PORT", integer(0, 65535), help="port to listen on, 0 for a free one (default: 1234)"),
    Flag(("-v", "--verbose"), "VERBOSE", help="log debug messages too"),
    Flag(("-m", "--model"), "model_path", text, help="a whole model"),
    Flag(("--diffusion-model",), "diffusion_model_path", text, help="the diffusion part of a split model"),
    Flag(("--high-noise-diffusion-model",), "high_noise_diffusion_model_path", text, help="its high-noise half"),
    Flag(("--vae",), "vae_path", text, help="autoencoder"),
    Flag(("--taesd", "--tae"), "taesd_path", text, help="tiny autoencoder"),
    Flag(("--clip_l",), "clip_l_path", text, help="CLIP-L text encoder"),
    Flag(("--clip_g",), "clip_g_path", text, help="CLIP-G text encoder"),
    Flag(("--clip_vision",), "clip_vision_path", text, help="CLIP vision encoder"),
    Flag(("--t5xxl",), "t5xxl_path", text, help="T5-XXL text encoder"),
    Flag(("--llm",), "llm_path", text, help="LLM text encoder"),
    Flag(("--llm_vision",), "llm_vision_path", text, help="its vision part"),
    Flag(("-t", "--threads"), "n_threads", integer(-1, 512), help="threads, -1: one per physical core (default: -1)"),
    Flag(("--type",), "TYPE", text, help="weight type to convert to, e.g. f16 or q8_0 (default: the file's)"),
    Flag(("--fa",), "flash_attn", help="flash attention everywhere"),
    Flag(("--diffusion-fa",), "diffusion_flash_attn", help="flash attention in the diffusion model"),
    Flag(("--diffusion-conv-direct",), "diffusion_conv_direct", help="direct convolution in the diffusion model"),
    Flag(("--vae-conv-direct",), "vae_conv_direct", help="direct convolution in the autoencoder"),
    Flag(("--force-sdxl-vae-conv-scale",), "force_sdxl_vae_conv_scale", help="scale in SDXL's autoencoder"),
    Flag(("--clip-on-cpu",), "keep_clip_on_cpu", help="text encoders stay in RAM"),
    Flag(("--vae-on-cpu",), "keep_vae_on_cpu", help="the autoencoder stays in RAM"),
    Flag(("--offload-to-cpu",), "offload_params_to_cpu", help="weights rest in RAM, and move to VRAM when needed"),
    Flag(("--taesd-preview-only",), "tae_preview_only", help="the tiny autoencoder only makes previews"),
    Flag(("--vae-tiling",), "TILING", help="decode in tiles: less memory"),
    Flag(("--max-vram",), "max_vram", number(0), help="VRAM to use at most, in GiB (0: no limit)"),
    Flag(("--mmap",), "enable_mmap", help="map the file into memory"),
)
# Not for a program in front of sd-cli: older names, and words that are turned into values of the wheel.
WHEEL_FLAGS: tuple[Flag, ...] = (
    Flag(("--qwen2vl",), "llm_path", text, help="an older name of --llm"),
    Flag(("--qwen2vl_vision",), "llm_vision_path", text, help="an older name of --llm_vision"),
    Flag(("--tensor-type-rules",), "tensor_type_rules", text, help="weight types of some tensors, e.g. ^vae\\.=f16"),
    Flag(("--rng",), "RNG", choice(_RNG), help="source of noise: " + ", ".join(_RNG)),
    Flag(("--sampler-rng",), "SAMPLER_RNG", choice(_RNG), help="that of the samplers (default: as --rng)"),
    Flag(
        ("--prediction",), "PREDICTION", choice(_PREDICTIONS), help=", ".join(_PREDICTIONS) + " (default: the model's)"
    ),
)
ALL_FLAGS = FLAGS + WHEEL_FLAGS
_FILES = tuple(flag.key for flag in FLAGS if flag.key.endswith("_path"))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT."""
    try:
        options = parse(ALL_FLAGS, sys.argv[1:] if argv is None else argv)
        if options.get("HELP"):
            print(help_text(PROGRAM, ABOUT, ALL_FLAGS))
            sys.exit(0)
        if options.get("VERSION"):
            import PIL.Image  # noqa: F401 - part of the engine: it encodes the pictures

            print(version_text("cyllama", "cyllama.sd"))
            sys.exit(0)
        program = SdProgram("sd_server.py", options, _FILES)
        program.check_files()
        _serve(program, options)
    except (FlagError, ImportError) as error:
        refuse(PROGRAM, error)


def _serve(program: SdProgram, options: dict[str, Any]) -> NoReturn:
    import PIL.Image  # noqa: F401 - a missing wheel is said now, not after the first picture

    from genai_notebook.core.engines.embedded.sd_capabilities import capabilities
    from genai_notebook.core.engines.embedded.sd_jobs import JobBoard
    from genai_notebook.core.engines.embedded.sd_painter import Painter, log_to_stdout, wait_politely

    server = program.bind()
    program.check_whole()
    wait_politely()
    log_to_stdout(bool(options.get("VERBOSE")))
    settings = _settings(options)
    try:
        # Until this returns no Python code runs: SIGTERM has its default action, which ends the process at once.
        painter = Painter(settings, vae_tiling=bool(options.get("TILING")))
    except (RuntimeError, ValueError, OSError) as error:
        # Of what the wheel says only the first sentence is about this model; then it lists all that ever goes wrong.
        program.fail(f"new_sd_ctx_t failed: '{_model_path(options)}': {str(error).partition('. ')[0]}")
    # The engine has no way to stop in the middle of a picture: the process goes, and the system takes back all it has.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    board = JobBoard(painter.paint, painter.cancel if painter.can_cancel else None)
    painter.show_preview = board.show_preview
    told = capabilities(
        _model_path(options),
        painter.samplers,
        painter.schedulers,
        cancel_generating=board.can_cancel_running,
        previews=painter.preview_modes,
    )
    program.serve(server, painter, board, told)


def _model_path(options: dict[str, Any]) -> str:
    return str(options.get("model_path") or options["diffusion_model_path"])


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Values for the attributes of SDContextParams."""
    import cyllama.sd as engine

    settings = {key: value for key, value in options.items() if not key.isupper()}
    if settings.get("n_threads", -1) < 1:
        settings.pop("n_threads", None)
    if "TYPE" in options:
        settings["wtype"] = _weight_type(options["TYPE"])
    for key, (attribute, enum) in _ENUMS.items():
        if key in options:
            member = getattr(getattr(engine, enum), options[key], None)
            if member is None:
                raise FlagError(f"this version of cyllama does not know {options[key]} ({enum})")
            settings[attribute] = member
    return settings


def _weight_type(name: str) -> Any:
    from genai_notebook.core.engines.embedded.sd_painter import type_names

    known = {word.lower(): value for word, value in type_names().items()}
    if name.lower() not in known:
        raise FlagError(f"--type: invalid value {name!r}: must be one of " + ", ".join(known))
    return known[name.lower()]


if __name__ == "__main__":
    main()
