"""The probe: this machine for real, containers from folders, GPUs from a driver that works, fails or hangs."""

from __future__ import annotations

import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from genai_notebook.core.schema import EngineRecord, GPUInfo, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import cgroups, nvidia, probe
from genai_notebook.core.system.probe import MachineProbe

GIB = 1 << 30


def fill(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


# ---- this machine


def test_this_machine(tmp_path: Path) -> None:
    machine = MachineProbe(Settings(home=tmp_path))
    cpu, memory = machine.cpu(), machine.memory()
    assert 1 <= cpu.physical_cores <= cpu.cores <= (os.cpu_count() or 1)
    assert cpu.model
    assert 0 < memory.available <= memory.total <= psutil.virtual_memory().total
    assert memory.used == memory.total - memory.available
    assert all(isinstance(gpu, GPUInfo) for gpu in machine.gpus())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        cpu = MachineProbe(Settings(home=Path("/nowhere"))).cpu()
        assert (cpu.cores, cpu.physical_cores) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)


def test_the_memory_limit_bounds_total_and_available(tmp_path: Path) -> None:
    limit = 256 << 20
    memory = MachineProbe(Settings(home=tmp_path, memory_limit=limit)).memory()
    assert memory == MemoryInfo(total=limit, available=limit, used=0)


def test_what_our_engines_hold_counts_against_the_limit(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, memory_limit=8 * GIB)
    settings.run.mkdir(parents=True)
    me = psutil.Process()
    record = EngineRecord(
        name="llama",
        pid=me.pid,
        pid_created=me.create_time(),
        owner_pid=1,
        owner_created=0.0,
        owner="kernel",
        engine="x",
        started_at="now",
    )
    (settings.run / "engine-llama-1.json").write_bytes(msgspec.json.encode(record))
    (settings.run / "engine-recycled-2.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(record, pid_created=1.0))
    )
    (settings.run / "engine-broken-3.json").write_text("{")
    used = MachineProbe(settings).memory().used
    assert 0.5 * me.memory_info().rss < used < 1.5 * me.memory_info().rss


# ---- containers


def test_cgroup_2_limits_up_to_the_root(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "proc/cgroup": "0::/outer/inner",
            "fs/outer/inner/memory.max": "max",
            "fs/outer/inner/cpu.max": "max 100000",
            "fs/outer/memory.max": str(4 * GIB),
            "fs/outer/memory.current": str(3 * GIB),
            "fs/outer/memory.stat": f"anon 5\ninactive_file {GIB}",
            "fs/outer/cpu.max": "250000 100000",
        },
    )
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(4 * GIB, 2 * GIB)]
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") == 2.5


def test_cgroup_2_inside_of_a_container(tmp_path: Path) -> None:
    # The path is the host's; the container sees its own group as the root of the mount.
    fill(tmp_path, {"proc/cgroup": "0::/../docker/abc", "fs/memory.max": str(GIB), "fs/memory.current": "1000"})
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(GIB, 1000)]


def test_cgroup_1(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "proc/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a",
            "fs/memory/a/memory.limit_in_bytes": str(2 * GIB),
            "fs/memory/a/memory.usage_in_bytes": str(GIB),
            "fs/memory/a/memory.stat": "total_inactive_file 24",
            "fs/memory/memory.limit_in_bytes": "9223372036854771712",
            "fs/cpu/a/cpu.cfs_quota_us": "150000",
            "fs/cpu/a/cpu.cfs_period_us": "100000",
            "fs/cpu/cpu.cfs_quota_us": "-1",
            "fs/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(2 * GIB, GIB - 24)]
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") == 1.5


def test_no_cgroups_and_broken_ones(tmp_path: Path) -> None:
    assert cgroups.memory_groups(tmp_path, tmp_path) == []
    assert cgroups.cpu_quota(tmp_path, tmp_path) is None
    fill(tmp_path, {"proc/cgroup": "nonsense\n0::/", "fs/memory.max": "-7", "fs/cpu.max": "0 0"})
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == []
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") is None


def test_a_container_bounds_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory_groups", lambda: [cgroups.MemoryGroup(limit=64 << 20, used=60 << 20)])
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: 0.5)
    machine = MachineProbe(Settings(home=tmp_path))
    assert machine.memory() == MemoryInfo(total=64 << 20, available=4 << 20, used=60 << 20)
    assert machine.cpu().cores == 1


# ---- GPUs


class Driver(types.ModuleType):
    """The driver's Python binding, with cards of our choice; a card of None cannot be read."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818
        pass

    def __init__(self, cards: list[Any], start: Any = None) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.started = 0
        self.start = start

    def nvmlInit(self) -> None:
        self.started += 1
        if self.start:
            self.start()

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Any:
        if self.cards[number] is None:
            raise self.NVMLError("lost")
        return self.cards[number]

    def nvmlDeviceGetMemoryInfo(self, card: Any) -> Any:
        return types.SimpleNamespace(total=card[1], free=card[2])

    def nvmlDeviceGetName(self, card: Any) -> Any:
        return card[0]


@pytest.fixture(autouse=True)
def fresh_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_absent", False)
    monkeypatch.setattr(nvidia, "_asking", None)


def test_nvidia_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = Driver([("A", 24 * GIB, 20 * GIB), None, (b"B", 8 * GIB, 8 * GIB)])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(probe, "get_platform", lambda: "linux")
    found = MachineProbe(Settings(home=tmp_path)).gpus()
    assert [(gpu.name, gpu.vram, gpu.vram_available, gpu.cuda, gpu.type) for gpu in found] == [
        ("A", 24 * GIB, 20 * GIB, True, "nvidia"),
        ("B", 8 * GIB, 8 * GIB, True, "nvidia"),
    ]
    limited = MachineProbe(Settings(home=tmp_path, vram_limit=6 * GIB)).gpus()
    assert [(gpu.vram, gpu.vram_available) for gpu in limited] == [(6 * GIB, 2 * GIB), (6 * GIB, 6 * GIB)]


def test_a_machine_without_a_driver_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Driver.NVMLError_LibraryNotFound("no library")

    driver = Driver([], fail)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert nvidia.nvidia_gpus() == nvidia.nvidia_gpus() == []
    assert driver.started == 1


def test_a_broken_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("mismatch")

    driver = Driver([("A", 1, 1)], fail)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert nvidia.nvidia_gpus() == []
    driver.start = None  # it may be mended while we run
    assert len(nvidia.nvidia_gpus()) == 1


def test_a_missing_binding_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia.nvidia_gpus() == []


def test_a_driver_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    driver = Driver([("A", 1, 1)], lambda: release.wait(30))
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    try:
        assert nvidia.nvidia_gpus(limit=0.1) == []
        assert nvidia.nvidia_gpus(limit=0.1) == []
        assert driver.started == 1
    finally:
        release.set()


def test_apple_silicon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "get_platform", lambda: "darwin")
    monkeypatch.setattr(probe, "get_architecture", lambda: "arm64")
    (gpu,) = MachineProbe(Settings(home=tmp_path, memory_limit=128 << 20)).gpus()
    assert (gpu.type, gpu.metal, gpu.cuda, gpu.vram) == ("apple", True, None, 96 << 20)
    monkeypatch.setattr(probe, "get_architecture", lambda: "x64")
    assert MachineProbe(Settings(home=tmp_path)).gpus() == []
