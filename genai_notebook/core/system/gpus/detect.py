"""Which GPUs there are: asks all the ways this system has, and lists each card once.

A GPU is `available` when its memory is known: then a model can be placed on it by size. The others are listed for
people to see, with `available=False`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system.gpus import apple, drm, nvidia, rocm, windows
from genai_notebook.core.system.gpus.vulkan import has_vulkan
from genai_notebook.core.utilities import get_architecture, get_platform

log = logging.getLogger("genai_notebook")


def find_gpus(memory: Callable[[], MemoryInfo]) -> list[GPUInfo]:
    """The GPUs engines may use, NVIDIA's first. Blocks, each way to ask for two seconds at most; never raises.

    Args:
        memory: the RAM right now, for GPUs that share it.
    """
    system = get_platform()
    found: list[GPUInfo] = []
    if system != "darwin":
        cards = _asked(lambda: nvidia.gpus(memory))
        found = cards or []
        if system == "linux":
            found = found + (_asked(lambda: rocm.supplemented(drm.gpus(memory))) or [])
        elif system == "win32":
            found = found + (_asked(lambda: windows.gpus(nvidia_too=cards is None)) or [])
    elif get_architecture() == "arm64":  # an Intel Mac's GPU is none that engines gain from
        found = _asked(lambda: apple.gpus(memory)) or []
    vulkan = bool(found) and has_vulkan()
    return [msgspec.structs.replace(gpu, vulkan=vulkan) for gpu in found]


def _asked(ask: Callable[[], list[GPUInfo] | None]) -> list[GPUInfo] | None:
    """What `ask` finds; nothing where it fails: hardware, drivers and their programs do so in every way there is."""
    try:
        return ask()
    except Exception as error:
        log.debug("a GPU probe failed: %s", error)
        return []
