"""The probe: this machine for real, its processor, memory, and the limits of containers, from folders."""

from __future__ import annotations

import mmap
import os
import sys
import types
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.schema import EngineRecord, GPUInfo, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import cgroups, cpu
from genai_notebook.core.system import memory as memory_module
from genai_notebook.core.system.memory import Engine, mapped_bytes, memory_now, running_engines
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


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="other platform: this system has no affinity")
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


# ---- what our own engines hold


def record_of(process: psutil.Process, model_id: str | None = None) -> EngineRecord:
    return EngineRecord(
        name="llama",
        pid=process.pid,
        pid_created=process.create_time(),
        owner_pid=1,
        owner_created=0.0,
        owner="kernel",
        engine="x",
        started_at="now",
        model_id=model_id,
    )


def write_records(run: Path) -> psutil.Process:
    """This process as an engine; beside it, one whose process id belongs to another by now, and broken files."""
    run.mkdir(parents=True)
    me = psutil.Process()
    record = record_of(me, "m")
    (run / "engine-llama-1.json").write_bytes(msgspec.json.encode(record))
    recycled = msgspec.structs.replace(record, pid_created=1.0)
    (run / "engine-recycled-2.json").write_bytes(msgspec.json.encode(recycled))
    absurd = msgspec.structs.replace(record, pid=2**40)
    (run / "engine-absurd-3.json").write_bytes(msgspec.json.encode(absurd))
    (run / "engine-broken-4.json").write_text("{")
    return me


def test_what_our_engines_hold_counts_against_the_limit(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, memory_limit=8 * GIB)
    me = write_records(settings.run)
    used = MachineProbe(settings).memory().used
    assert 0.5 * me.memory_info().rss < used < 1.5 * me.memory_info().rss


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other platform: Linux tells which pages are files'")
def test_pages_that_an_engine_maps(tmp_path: Path) -> None:
    write_records(tmp_path / "run")
    (before,) = running_engines(tmp_path / "run")
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * (32 << 20))
    with open(weights, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        (after,) = running_engines(tmp_path / "run")
    assert after.mapped - before.mapped >= 31 << 20
    assert after.resident > after.mapped


@pytest.mark.parametrize(
    ("status", "mapped"),
    [
        ("RssFile:\t    4096 kB\nVmLck:\t       0 kB\n", 4 << 20),
        ("RssFile:\t    4096 kB\nVmLck:\t    1024 kB\n", 3 << 20),  # locked pages are not "available" anyway
        ("RssFile:\t    4096 kB\nVmLck:\t    9999 kB\n", 0),
        ("RssFile:\t\nVmLck: x kB\n", 77),
        ("", 77),
    ],
)
def test_pages_of_files_in_a_processs_status(tmp_path: Path, status: str, mapped: int) -> None:
    write_records(tmp_path / "run")
    fill(tmp_path, {f"proc/{os.getpid()}/status": status})
    held = types.SimpleNamespace(shared=77)
    assert memory_module._mapped(tmp_path / "proc" / str(os.getpid()), held) == mapped
    assert memory_module._mapped(tmp_path / "none", types.SimpleNamespace()) == 0


def test_engines_of_one_model_share_its_pages() -> None:
    engines = [Engine("a", 9, 5), Engine("a", 9, 7), Engine("b", 9, 1), Engine(None, 9, 2), Engine(None, 9, 2)]
    assert mapped_bytes(engines) == 7 + 1 + 2 + 2


class Host:
    """psutil's view of a machine, one container above us, and engines of ours."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.memory = types.SimpleNamespace(total=32 * GIB, available=24 * GIB, cached=20 * GIB)
        self.groups: list[cgroups.MemoryGroup] = []
        self.engines = [Engine("m", resident=7 * GIB, mapped=5 * GIB)]
        patch.setattr(memory_module.psutil, "virtual_memory", lambda: self.memory)
        patch.setattr(cgroups, "memory_groups", lambda: self.groups)
        patch.setattr(memory_module, "running_engines", lambda run: self.engines)

    def available(self, limit: int | None = None) -> float:
        return memory_now(Settings(home=Path("/nowhere"), memory_limit=limit)).available / GIB


def test_mapped_weights_are_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    assert host.available() == 24 - 5
    host.memory.cached = 2 * GIB  # pages of files cannot be more than the page cache
    assert host.available() == 24 - 2
    host.memory.available = GIB
    assert host.available() == 0
    host.engines = []
    assert host.available() == 1


def test_mapped_weights_under_a_containers_limit_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.groups = [cgroups.MemoryGroup(limit=16 * GIB, used=3 * GIB, cache=8 * GIB)]
    assert host.available() == 16 - 3 - 5  # 3 GiB of the cache can be dropped, the weights cannot
    host.groups = [cgroups.MemoryGroup(limit=16 * GIB, used=3 * GIB, cache=2 * GIB)]  # charged to another group
    assert host.available() == 16 - 3 - 2
    host.groups = [cgroups.MemoryGroup(limit=GIB, used=3 * GIB, cache=2 * GIB)]
    assert host.available() == 0


def test_mapped_weights_under_a_limit_of_the_settings_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    assert host.available(limit=16 * GIB) == 16 - 7
    assert host.available(limit=30 * GIB) == 24 - 5  # the machine binds
    assert host.available(limit=4 * GIB) == 0


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
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(4 * GIB, 2 * GIB, GIB)]
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
            "fs/memory/a/memory.stat": "total_inactive_file 24\ntotal_active_file 6",
            "fs/memory/memory.limit_in_bytes": "9223372036854771712",
            "fs/cpu/a/cpu.cfs_quota_us": "150000",
            "fs/cpu/a/cpu.cfs_period_us": "100000",
            "fs/cpu/cpu.cfs_quota_us": "-1",
            "fs/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(2 * GIB, GIB - 30, 30)]
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") == 1.5


def test_no_cgroups_and_broken_ones(tmp_path: Path) -> None:
    assert cgroups.memory_groups(tmp_path, tmp_path) == []
    assert cgroups.cpu_quota(tmp_path, tmp_path) is None
    fill(tmp_path, {"proc/cgroup": "nonsense\n0::/", "fs/memory.max": "-7", "fs/cpu.max": "0 0"})
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == []
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") is None


def test_cgroup_1_tells_of_limits_that_a_container_cannot_see(tmp_path: Path) -> None:
    files = {
        "proc/cgroup": "4:memory:/docker/abc",
        "fs/memory/memory.limit_in_bytes": "9223372036854771712",
        "fs/memory/memory.usage_in_bytes": "500",
        "fs/memory/memory.stat": f"hierarchical_memory_limit {GIB}\nnonsense\ntotal_active_file 800",
    }
    fill(tmp_path, files)
    assert cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs") == [cgroups.MemoryGroup(GIB, 0, 500)]


def test_both_versions_at_once(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "proc/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n0::/b",
            "fs/memory/a/memory.limit_in_bytes": str(3 * GIB),
            "fs/memory/a/memory.usage_in_bytes": str(GIB),
            "fs/cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
            "fs/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "fs/unified/b/memory.max": str(2 * GIB),
            "fs/unified/b/memory.current": "7",
            "fs/unified/b/cpu.max": "max 100000",
        },
    )
    found = cgroups.memory_groups(tmp_path / "proc", tmp_path / "fs")
    assert found == [cgroups.MemoryGroup(3 * GIB, GIB), cgroups.MemoryGroup(2 * GIB, 7)]
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path / "fs") == 3


TEXT = st.one_of(
    st.integers(-(2**71), 2**71).map(str),
    st.sampled_from(["max", "", "0", "-1", "1e9", "9223372036854771712", "9" * 5000, "²", "max 100000", "5 0"]),
    st.text(max_size=20),
)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(TEXT, min_size=7, max_size=7), version=st.sampled_from([1, 2]))
def test_absurd_groups_never_hurt(tmp_path_factory: pytest.TempPathFactory, values: list[str], version: int) -> None:
    root = tmp_path_factory.mktemp("cgroup")
    one = "memory/memory.limit_in_bytes memory/memory.usage_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us"
    names = {
        1: [*one.split(), "memory/memory.stat"],
        2: ["memory.max", "memory.current", "cpu.max", "cpu.weight", "memory.stat"],
    }[version]
    texts = [*values[:4], f"inactive_file {values[4]}\ntotal_active_file {values[5]}\nactive_file {values[6]}"]
    for name, text in zip(names, texts, strict=True):
        (root / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "fs" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    fill(root, {"proc/cgroup": "4:memory:/x\n3:cpu:/\n" if version == 1 else "0::/../x"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroups, "PROC", root / "proc")
        patch.setattr(cgroups, "ROOT", root / "fs")
        for group in cgroups.memory_groups():
            assert group.limit > 0
            assert min(group.used, group.cache) >= 0
        machine = MachineProbe(Settings(home=root))
        memory = machine.memory()
        assert 0 <= memory.available <= memory.total
        assert memory.total > 0
        assert 1 <= machine.cpu().cores <= (os.cpu_count() or 1)


def test_a_container_bounds_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory_groups", lambda: [cgroups.MemoryGroup(limit=64 << 20, used=60 << 20)])
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: 0.5)
    machine = MachineProbe(Settings(home=tmp_path))
    assert machine.memory() == MemoryInfo(total=64 << 20, available=4 << 20, used=60 << 20)
    assert machine.cpu().cores == 1


# ---- the processor


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.2, 1), (2.9, 2), (1e15, 8), (1e-9, 1)])
def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(cpu.psutil, "Process", lambda: types.SimpleNamespace(cpu_affinity=lambda: list(range(8))))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert cpu.usable_cores() == cores


def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.psutil, "Process", types.SimpleNamespace)
    monkeypatch.setattr(cpu.psutil, "cpu_count", lambda logical=True: 4 if logical else None)
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: None)
    found = cpu.cpu_info()
    assert (found.cores, found.physical_cores) == (4, 4)
    monkeypatch.setattr(cpu.psutil, "cpu_count", lambda logical=True: None)
    assert cpu.usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 7B13\n"}, "AMD EPYC 7B13"),
        ({"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 243.75\nCPU part\t: 0xd0c\n"}, ""),
        ({"proc/cpuinfo": "CPU part: 0xd08", "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B\0"},
         "Raspberry Pi 4 Model B"),
        ({"proc/cpuinfo": "model name\t:\nHardware\t: BCM2835\n"}, "BCM2835"),
        ({}, ""),
    ],
)  # fmt: skip
def test_the_processors_name_on_linux(tmp_path: Path, files: dict[str, str], name: str) -> None:
    fill(tmp_path, files)
    assert cpu.linux_model(tmp_path) == name


@pytest.mark.skipif(sys.platform == "darwin", reason="other platform: macOS has it")
def test_without_sysctl_there_is_no_value() -> None:
    assert cpu.sysctl("iogpu.wired_limit_mb") == ""
