"""Waiting for memory that comes back late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo
from genai_notebook.core.system.freed import MemoryWatch
from genai_notebook.core.system.probe import Held

GIB = 1 << 30
PID = 4711
FOUR_GIB = Held(ram=4 * GIB, vram=None)


class Machine:
    """A process holds `ram` and `vram`; what is free of each comes from lists, the last value again and again."""

    def __init__(self, *, ram: list[float], vram: list[float] | None = None, holds: Held | None = FOUR_GIB) -> None:
        self._ram, self._vram, self.holds = ram, vram or [], holds
        self.looks = 0

    def cpu(self) -> CPUInfo:
        raise AssertionError("not asked")

    def memory(self) -> MemoryInfo:
        self.looks += 1
        free = int((self._ram.pop(0) if len(self._ram) > 1 else self._ram[0]) * GIB)
        return MemoryInfo(total=32 * GIB, available=free, used=32 * GIB - free)

    def gpus(self) -> list[GPUInfo]:
        if not self._vram:
            return []
        free = int((self._vram.pop(0) if len(self._vram) > 1 else self._vram[0]) * GIB)
        return [GPUInfo(available=True, vram=24 * GIB, vram_available=free)]

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        return {pid: self.holds for pid in pids if self.holds is not None}


def wait(machine: Machine, pid: int | None = PID, expected: int = 0, **needed: int) -> bool:
    return asyncio.run(MemoryWatch(machine, pid, expected).wait(limit=0.3, **needed))


def test_ram_that_comes_back_in_two_steps() -> None:
    machine = Machine(ram=[10, 10, 11, 13])
    assert wait(machine)
    assert machine.looks == 4


def test_somebody_else_takes_it() -> None:
    assert not wait(Machine(ram=[10, 11]))


def test_enough_for_what_comes_next_is_enough() -> None:
    assert wait(Machine(ram=[10, 11]), ram=11 * GIB)
    assert not wait(Machine(ram=[10, 11]), ram=12 * GIB)


def test_vram_as_the_driver_counts_it() -> None:
    held = Held(ram=0, vram=8 * GIB)
    assert wait(Machine(ram=[10], vram=[4, 4, 7, 12], holds=held))
    assert not wait(Machine(ram=[10], vram=[4, 7], holds=held))
    assert wait(Machine(ram=[10], vram=[4, 7], holds=held), vram=6 * GIB)


def test_vram_as_expected_where_the_driver_does_not_tell() -> None:
    unknown = Held(ram=0, vram=None)
    assert wait(Machine(ram=[10], vram=[4, 4, 12], holds=unknown), expected=8 * GIB)
    assert not wait(Machine(ram=[1], vram=[4, 4], holds=unknown), expected=8 * GIB)


def test_one_card_must_have_enough_for_what_comes_next() -> None:
    unknown = Held(ram=0, vram=None)
    two = Machine(ram=[10], vram=[4], holds=unknown)
    card = two.gpus()[0]
    two.gpus = lambda: [card, card]  # type: ignore[method-assign]
    assert not wait(two, expected=8 * GIB, vram=5 * GIB)
    assert wait(two, expected=8 * GIB, vram=4 * GIB)


def test_vram_that_nobody_tells_is_not_waited_for() -> None:
    silent = Machine(ram=[10], holds=Held(ram=0, vram=None))
    silent.gpus = lambda: [GPUInfo(available=True, vram=8 * GIB)]  # type: ignore[method-assign]
    assert wait(silent, expected=8 * GIB)


def test_nothing_to_wait_for() -> None:
    assert wait(Machine(ram=[10]), pid=None)
    assert wait(Machine(ram=[10], holds=None), expected=8 * GIB)
