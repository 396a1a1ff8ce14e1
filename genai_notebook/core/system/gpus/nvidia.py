"""NVIDIA GPUs: by NVML, else by nvidia-smi; those that CUDA_VISIBLE_DEVICES leaves. Two seconds, whatever they do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system.bounded import REST, Bounded
from genai_notebook.core.system.gpus import nvidia_smi, nvml
from genai_notebook.core.system.gpus.visible import Card, visible
from genai_notebook.core.system.tools import find_tool, trusted_folders

#: The process ids' namespace that a Linux system starts with always has this number.
_FIRST_NAMESPACE = "pid:[4026531836]"

_library: Bounded[list[Card]] = Bounded("the NVIDIA driver")
_program: Bounded[list[Card]] = Bounded("nvidia-smi", rest=REST)
_processes: Bounded[dict[int, int | None]] = Bounded("the NVIDIA driver, about processes")


def gpus(memory: Callable[[], MemoryInfo]) -> list[GPUInfo] | None:
    """The cards CUDA will show to an engine; None where nothing here knows of NVIDIA cards.

    Raises:
        TimeoutError: the driver hangs. (nvidia-smi is not asked then: it hangs with it.)
        Exception: the driver failed.
    """
    try:
        cards = _library.ask(lambda: nvml.cards(memory))
    except nvml.MissingError:
        program = find_tool("nvidia-smi", trusted_folders())
        if program is None:
            return None
        cards = _program.ask(lambda: nvidia_smi.cards(program))
    return visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))


def vram_of_processes() -> Callable[[int], int | None]:
    """Ask the driver (blocks); what is returned tells the bytes of VRAM that a process holds over all cards.

    None where it is not known: without an NVIDIA driver, and in a container, where the driver's process ids are the
    host's and ours are others.
    """
    if _in_container():
        return lambda pid: None
    try:
        held = _processes.ask(nvml.vram_of_processes)
    except Exception:
        return lambda pid: None
    return lambda pid: held.get(pid, 0)


def _in_container(proc: Path = Path("/proc/self")) -> bool:
    """Whether process ids here are not the system's."""
    try:
        return os.readlink(proc / "ns/pid") != _FIRST_NAMESPACE
    except OSError:
        return False  # no Linux
