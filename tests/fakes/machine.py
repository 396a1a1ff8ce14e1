"""Another machine, of the size that a test needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo
from genai_notebook.core.system.probe import Held


class Machine:
    """A probe; counts how often it is asked."""

    def __init__(self, *, ram: int, free: int | None = None, gpus: list[GPUInfo] | None = None, cores: int = 8) -> None:
        self.ram, self.free, self.cards, self.cores = ram, ram if free is None else free, gpus or [], cores
        self.asked = 0

    def cpu(self) -> CPUInfo:
        self.asked += 1
        return CPUInfo(cores=self.cores, physical_cores=self.cores, model="test", architecture="x64")

    def memory(self) -> MemoryInfo:
        return MemoryInfo(total=self.ram, available=self.free, used=self.ram - self.free)

    def gpus(self) -> list[GPUInfo]:
        return self.cards

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        return {}


def card(vram: int, free: int | None = None, **more: Any) -> GPUInfo:
    """An NVIDIA card, all of it free unless `free` says otherwise."""
    left = vram if free is None else free
    return GPUInfo(available=True, type="nvidia", name="card", vram=vram, vram_available=left, **more)
