"""Waiting until the memory of a process that has ended is really free: drivers and kernels give it back late."""

from __future__ import annotations

import asyncio
import time

from genai_notebook.core.system.probe import Probe

#: Share of what the process held that must be free again, and seconds after which the wait is given up.
SHARE = 0.75
LIMIT = 5.0
#: Seconds between looks.
POLL = 0.05


class MemoryWatch:
    """Made before a process is ended (blocks); `wait` afterwards.

    Args:
        probe: the machine.
        pid: the process; None: there is none, and nothing to wait for.
        vram: bytes it is expected to hold on GPUs, for where the driver does not tell (in a container, say).
    """

    def __init__(self, probe: Probe, pid: int | None, vram: int = 0) -> None:
        self._probe = probe
        held = probe.held([pid]).get(pid) if pid is not None else None
        self._ram = held.ram if held is not None else 0
        self._vram = 0 if held is None else held.vram if held.vram is not None else vram
        self._ram_before = probe.memory().available if self._ram else 0
        free = self._vram_free() if self._vram else []
        self._vram_before = sum(free)
        if not free:
            self._vram = 0  # nobody tells

    async def wait(self, ram: int | None = None, vram: int | None = None, limit: float = LIMIT) -> bool:
        """Wait until most of it is free again, or as much as is needed next.

        Args:
            ram, vram: bytes that are needed; None: not known.
            limit: seconds; False where it was not seen by then, because somebody else has taken it.
        """
        end = time.monotonic() + limit
        while not await asyncio.to_thread(self._is_back, ram, vram):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL)
        return True

    def _is_back(self, ram: int | None, vram: int | None) -> bool:
        if self._ram:
            free = self._probe.memory().available
            if free - self._ram_before < SHARE * self._ram and (ram is None or free < ram):
                return False
        if self._vram:
            each = self._vram_free()
            # What comes next may be an image model, which one card must hold.
            enough = vram is not None and max(each, default=0) >= vram
            return sum(each) - self._vram_before >= SHARE * self._vram or enough
        return True

    def _vram_free(self) -> list[int]:
        return [gpu.vram_available for gpu in self._probe.gpus() if gpu.vram_available is not None]
