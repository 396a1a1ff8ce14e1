"""What an engine is: a program that takes llama-server's or sd-server's flags."""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

Kind = Literal["llama", "diffusion"]
#: Where an engine is from; those of a release are named by what they compute on.
Variant = Literal["explicit", "cuda", "rocm", "vulkan", "metal", "cpu", "embedded", "path"]

KINDS: tuple[Kind, ...] = get_args(Kind)
GPU_VARIANTS: frozenset[str] = frozenset({"cuda", "rocm", "vulkan", "metal"})
#: The programs of each kind, the better one first: sd-cli makes one process an image.
PROGRAMS: dict[Kind, tuple[str, ...]] = {"llama": ("llama-server",), "diffusion": ("sd-server", "sd-cli")}
#: How each kind's source is called, for people.
PROJECTS: dict[Kind, str] = {"llama": "llama.cpp", "diffusion": "stable-diffusion.cpp"}


class Engine(Struct, frozen=True, kw_only=True):
    """A program that can be started.

    Attributes:
        name: for people, e.g. ``xllamacpp 2026.10.11549 (embedded)``.
        kind: 'llama' (takes llama-server's flags) or 'diffusion' (sd-server's).
        argv: how it is started; its flags follow.
        version: its own version, or None where it does not tell.
        variant: where it is from: 'explicit', 'embedded', 'path', or what a release's build computes on.
        env: environment variables it needs on top of the usual ones.
        gpu: whether it can use a GPU at all; None: it shows when it has loaded a model.
        identity: tells this very program from any other one, and from itself after a change.
    """

    name: str
    kind: Kind
    argv: list[str]
    version: str | None
    variant: Variant
    env: dict[str, str] = {}
    gpu: bool | None = None
    identity: str = ""
