"""Who holds memory: shares by engine and process, on machines of our choice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from genai_notebook.core.schema import CPUInfo, EngineRecord, GPUInfo, MemoryHolder, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo
from genai_notebook.core.system.probe import Held
from genai_notebook.core.system.use import live_engines, measure
from genai_notebook.errors import InvalidRequestError

GIB = 1 << 30
ME = os.getpid()


class Machine:
    """A probe of 16 GB, 10 of them in use; every process holds 1 GB of RAM and what `vram` says, unless it is gone."""

    def __init__(self, *, gpus: list[GPUInfo] | None = None, vram: int | None = None, used: int = 10 * GIB) -> None:
        self.cards, self.vram, self.used = gpus or [], vram, used
        self.gone: set[int] = set()

    def cpu(self) -> CPUInfo:
        raise AssertionError("nobody asked for that")

    def memory(self) -> MemoryInfo:
        return MemoryInfo(total=16 * GIB, available=16 * GIB - self.used, used=self.used)

    def gpus(self) -> list[GPUInfo]:
        return self.cards

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        return {pid: Held(ram=GIB, vram=self.vram) for pid in pids if pid not in self.gone}


def card(vram: int = 8 * GIB, free: int | None = 3 * GIB, **more: Any) -> GPUInfo:
    return GPUInfo(available=True, type="nvidia", name="card", vram=vram, vram_available=free, **more)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Three processes that do nothing."""
    code = "import sys; sys.stdin.read()"
    started = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(3)]
    yield [child.pid for child in started]
    for child in started:
        child.communicate()


def write(run: Path, pid: int, name: str, model: str | None = "tiny", created: float | None = None) -> None:
    run.mkdir(exist_ok=True)
    record = EngineRecord(
        name=name,
        pid=pid,
        pid_created=psutil.Process(pid).create_time() if created is None else created,
        owner_pid=1,
        owner_created=0.0,
        owner="kernel",
        engine="an engine",
        started_at="",
        model_id=model,
    )
    (run / f"engine-{name}-{pid}.json").write_bytes(msgspec.json.encode(record))


def rows(holders: list[MemoryHolder]) -> list[tuple[str, str, int | None]]:
    return [(holder.kind, holder.name, holder.pid) for holder in holders]


def test_engines_kernel_owner_and_the_rest(tmp_path: Path, children: list[int]) -> None:
    image, llm, kernel = children
    write(tmp_path / "run", image, "diffusion", "paint")
    write(tmp_path / "run", llm, "second", model=None)
    use = measure(Machine(), tmp_path / "run", kernel)
    assert rows(use.holders) == [
        ("llm", "an engine", llm),
        ("images", "paint", image),
        ("kernel", "this kernel", kernel),
        ("owner", "Jupyter server", ME),
        ("others", "other programs", None),
    ]
    assert [holder.ram for holder in use.holders] == [GIB, GIB, GIB, GIB, 6 * GIB]
    assert sum(holder.ram for holder in use.holders) == use.memory.used
    assert {holder.vram for holder in use.holders} == {None}
    assert use.measured_at > 1e12


@pytest.mark.parametrize("kernel", [None, ME])
def test_the_asking_process_may_be_the_answering_one(tmp_path: Path, kernel: int | None) -> None:
    use = measure(Machine(), tmp_path, kernel)
    assert rows(use.holders) == [("owner", "this kernel", ME), ("others", "other programs", None)]


@pytest.mark.parametrize("kernel", [0, 2**31 - 1, 10**30])
def test_an_unknown_kernel_has_no_row(tmp_path: Path, kernel: int) -> None:
    assert [holder.kind for holder in measure(Machine(), tmp_path, kernel).holders] == ["owner", "others"]


def test_a_process_of_another_user_has_no_row(
    tmp_path: Path, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = children[0]
    monkeypatch.setattr(psutil.Process, "username", lambda self: "them" if self.pid == stranger else "me")
    shown = [measure(Machine(), tmp_path, pid) for pid in (stranger, 0)]
    assert rows(shown[0].holders) == rows(shown[1].holders)


def test_an_engine_that_asks_is_not_counted_twice(tmp_path: Path, children: list[int]) -> None:
    write(tmp_path, children[0], "llama")
    assert [holder.kind for holder in measure(Machine(), tmp_path, children[0]).holders] == ["llm", "owner", "others"]


@pytest.mark.parametrize("kernel", [-1, True, "1", 1.5])
def test_a_kernel_is_a_process_id(tmp_path: Path, kernel: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        measure(Machine(), tmp_path, kernel)
    assert (caught.value.details or {})["field"] == "kernel"


def test_dead_recycled_and_unreadable_records_are_passed_over(tmp_path: Path, children: list[int]) -> None:
    alive, recycled, _ = children
    write(tmp_path, alive, "llama")
    write(tmp_path, recycled, "other", created=psutil.Process(recycled).create_time() - 60)
    (tmp_path / "engine-gone-2147483647.json").write_bytes(
        (tmp_path / f"engine-llama-{alive}.json").read_bytes().replace(b"%d" % alive, b"2147483647")
    )
    (tmp_path / "engine-broken-1.json").write_text("{")
    (tmp_path / "engine-folder-1.json").mkdir()
    assert [record.pid for record in live_engines(tmp_path)] == [alive]


def test_who_ends_while_we_look_is_left_out(tmp_path: Path, children: list[int]) -> None:
    write(tmp_path, children[0], "llama")
    machine = Machine()
    machine.gone = {children[0]}
    use = measure(machine, tmp_path)
    assert rows(use.holders) == [("owner", "this kernel", ME), ("others", "other programs", None)]
    assert use.holders[-1].ram == 9 * GIB


def test_others_never_hold_less_than_nothing(tmp_path: Path) -> None:
    use = measure(Machine(used=GIB // 2, gpus=[card(free=8 * GIB)], vram=GIB), tmp_path)
    assert (use.holders[-1].ram, use.holders[-1].vram) == (0, 0)


@pytest.mark.parametrize(
    ("gpus", "vram", "others"),
    [
        ([card()], GIB, 4 * GIB),
        ([card(), card(4 * GIB, GIB)], GIB, 7 * GIB),  # 5 and 3 in use, 1 of them ours
        ([card()], None, None),  # who holds what cannot be seen
        ([card(free=None)], GIB, None),  # how much is in use cannot be seen
        ([], None, None),
        ([card(unified=True)], 0, None),  # it is RAM, and counted there
    ],
)
def test_vram_of_others(tmp_path: Path, gpus: list[GPUInfo], vram: int | None, others: int | None) -> None:
    use = measure(Machine(gpus=gpus, vram=vram), tmp_path)
    assert use.gpus == gpus
    assert use.holders[-1].vram == others


def test_system_info_measures_off_the_loop_and_live(tmp_path: Path) -> None:
    machine = Machine()
    info = SystemInfo(Settings(home=tmp_path), probe=machine)

    async def main() -> None:
        assert (await info.memory_use()).memory.used == 10 * GIB
        machine.used = 12 * GIB
        use = await info.memory_use()
        assert (use.memory.used, use.holders[-1].ram) == (12 * GIB, 11 * GIB)

    asyncio.run(main())
