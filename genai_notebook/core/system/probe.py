"""What this machine has: the one place that asks it. `Probe` is the seam; tests and tours put another machine there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec
import psutil

from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.cpu import cpu_info
from genai_notebook.core.system.gpus import find_gpus, vram_of_processes
from genai_notebook.core.system.memory import memory_now


class Held(msgspec.Struct, frozen=True):
    """What one process holds right now, in bytes: `ram` resident, `vram` over all GPUs (None: not known)."""

    ram: int
    vram: int | None


class Probe(Protocol):
    """A machine. All of it is blocking and quick (seconds at the very worst), and never raises for missing hardware."""

    def cpu(self) -> CPUInfo: ...

    def memory(self) -> MemoryInfo: ...

    def gpus(self) -> list[GPUInfo]: ...

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        """What each of these processes holds; the ones that are not alive are absent."""
        ...


class MachineProbe:
    """This machine, inside of the limits that a container and the settings set."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def cpu(self) -> CPUInfo:
        return cpu_info()

    def memory(self) -> MemoryInfo:
        """RAM right now; see `memory_now` for what counts as available."""
        return memory_now(self.settings)

    def gpus(self) -> list[GPUInfo]:
        """The GPUs engines may use, each bounded by GENAI_NOTEBOOK_VRAM_LIMIT."""
        found = find_gpus(self.memory)
        limit = self.settings.vram_limit
        return [_limited(gpu, limit) for gpu in found] if limit is not None else found

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        """What each of these processes holds; the ones that are not alive, or not ours to see, are absent.

        VRAM is known for NVIDIA's GPUs only, and not inside of a container.
        """
        resident = {pid: ram for pid in pids if (ram := _resident(pid)) is not None}
        if not resident:
            return {}
        vram = vram_of_processes()
        return {pid: Held(ram=ram, vram=vram(pid)) for pid, ram in resident.items()}


def _limited(gpu: GPUInfo, limit: int) -> GPUInfo:
    """The GPU, bounded by GENAI_NOTEBOOK_VRAM_LIMIT; memory that is in use now counts against the limit."""
    if gpu.vram is None:
        return gpu
    used = max(0, gpu.vram - (gpu.vram_available if gpu.vram_available is not None else gpu.vram))
    vram = min(gpu.vram, limit)
    return msgspec.structs.replace(gpu, vram=vram, vram_available=max(0, vram - used))


def _resident(pid: int) -> int | None:
    """Bytes of RAM a living process holds."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return int(process.memory_info().rss)
    except (OSError, ValueError, OverflowError, TypeError, psutil.Error):
        return None
