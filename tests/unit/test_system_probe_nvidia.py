"""NVIDIA's cards: a driver that works, fails or hangs, MIG devices, nvidia-smi, and CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.bounded import Bounded
from genai_notebook.core.system.gpus import detect, nvidia, nvidia_smi, nvml
from genai_notebook.core.system.gpus.visible import Card, visible
from genai_notebook.core.system.probe import Held, MachineProbe

GIB = 1 << 30
UUIDS = ["GPU-11111111-aaaa-0000-0000-000000000001", "GPU-11111111-bbbb-0000-0000-000000000002",
         "GPU-33333333-cccc-0000-0000-000000000003"]  # fmt: skip


class Part(types.SimpleNamespace):
    """A card or a MIG device as `Driver` knows it: name, total, free, uuid, parts, running, drawing."""


def part(name: str | bytes, total: Any, free: Any, uuid: str | None = None, **more: Any) -> Part:
    values: dict[str, Any] = {"parts": None, "running": [], "drawing": [], "instances": (1, 0)}
    return Part(name=name, total=total, free=free, uuid=uuid, **{**values, **more})


def process(pid: int, used: int | None, instance: int = 0xFFFFFFFF) -> types.SimpleNamespace:
    return types.SimpleNamespace(pid=pid, usedGpuMemory=used, gpuInstanceId=instance)


class Driver(types.ModuleType):
    """The driver's Python binding, with cards of our choice; a card of None cannot be read."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
        pass

    def __init__(self, cards: list[Part | None], start: Any = None) -> None:
        super().__init__("pynvml")
        self.cards, self.start, self.started, self.stopped = cards, start, 0, 0

    def nvmlInit(self) -> None:
        self.started += 1
        if self.start:
            self.start()

    def nvmlShutdown(self) -> None:
        self.stopped += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Part:
        card = self.cards[number]
        if card is None:
            raise self.NVMLError("lost")
        return card

    def nvmlDeviceGetMemoryInfo(self, card: Part) -> Any:
        if card.total is None:
            raise self.NVMLError_NotSupported("no memory of its own")
        return types.SimpleNamespace(total=card.total, free=card.free)

    def nvmlDeviceGetName(self, card: Part) -> Any:
        return card.name

    def nvmlDeviceGetUUID(self, card: Part) -> Any:
        if card.uuid is None:
            raise self.NVMLError("no")
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card: Part) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetMigMode(self, card: Part) -> list[int]:
        if card.parts is None:
            raise self.NVMLError_NotSupported("no MIG")
        return [int(bool(card.parts)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Part) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Part, number: int) -> Part:
        found: dict[int, Part] = card.parts
        if number not in found:
            raise self.NVMLError("not found")
        return found[number]

    def nvmlDeviceGetGpuInstanceId(self, card: Part) -> int:
        return int(card.instances[0])

    def nvmlDeviceGetComputeInstanceId(self, card: Part) -> int:
        return int(card.instances[1])

    def nvmlDeviceGetComputeRunningProcesses(self, card: Part) -> list[Any]:
        return list(card.running)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Part) -> list[Any]:
        return list(card.drawing)


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)


def ram() -> MemoryInfo:
    return MemoryInfo(total=128 * GIB, available=100 * GIB, used=28 * GIB)


@pytest.fixture(autouse=True)
def fresh_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of other tests, no other ways to ask, and no variables of the machine the tests run on."""
    monkeypatch.setattr(nvml, "_absent", False)
    for name, limit in (("_library", 10.0), ("_program", 10.0), ("_processes", 10.0)):
        monkeypatch.setattr(nvidia, name, Bounded(name, limit))
    monkeypatch.setattr(nvidia, "trusted_folders", list)
    monkeypatch.setattr(nvidia, "_in_container", lambda: False)
    monkeypatch.setattr(detect, "get_platform", lambda: "linux")
    monkeypatch.setattr(detect.drm, "gpus", lambda memory: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# ---- the library


def test_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, Driver([part("A", 24 * GIB, 20 * GIB, UUIDS[0]), None, part(b"B", 8 * GIB, 8 * GIB)]))
    found = MachineProbe(Settings(home=tmp_path)).gpus()
    assert [(gpu.name, gpu.vram, gpu.vram_available, gpu.cuda, gpu.type, gpu.id) for gpu in found] == [
        ("A", 24 * GIB, 20 * GIB, True, "nvidia", UUIDS[0]),
        ("B", 8 * GIB, 8 * GIB, True, "nvidia", None),
    ]
    assert {(gpu.driver, gpu.compute_capability, gpu.unified) for gpu in found} == {("580.95.05", "9.0", False)}
    limited = MachineProbe(Settings(home=tmp_path, vram_limit=6 * GIB)).gpus()
    assert [(gpu.vram, gpu.vram_available) for gpu in limited] == [(6 * GIB, 2 * GIB), (6 * GIB, 6 * GIB)]


def test_mig_devices_stand_for_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        0: part("H100 MIG 1g.10gb", 10 * GIB, 9 * GIB, "MIG-aaaa-1", instances=(7, 0)),
        2: part("H100 MIG 2g.20gb", 20 * GIB, 20 * GIB, "MIG-bbbb-2", instances=(9, 1)),
    }
    cut, whole = part("H100", 80 * GIB, 0, UUIDS[0], parts=parts), part("A10", 24 * GIB, GIB, UUIDS[2], parts={})
    driver = Driver([cut, whole])
    install(monkeypatch, driver)
    assert [(gpu.id, gpu.vram) for gpu in nvidia.gpus(ram) or []] == [
        ("MIG-aaaa-1", 10 * GIB),
        ("MIG-bbbb-2", 20 * GIB),
        (UUIDS[2], 24 * GIB),
    ]
    assert driver.started == driver.stopped
    for variable, ids in {
        "MIG-bbbb": ["MIG-bbbb-2"],
        f"MIG-{UUIDS[0]}/9/1": ["MIG-bbbb-2"],
        "0": ["MIG-aaaa-1"],
        UUIDS[0]: ["MIG-aaaa-1"],
        "1,0": [UUIDS[2], "MIG-aaaa-1"],
        "2": [],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert [gpu.id for gpu in nvidia.gpus(ram) or []] == ids, variable


def test_a_chip_without_memory_of_its_own_shares_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([part("NVIDIA GB10", None, None, UUIDS[0])]))
    (gpu,) = nvidia.gpus(ram) or []
    assert (gpu.available, gpu.unified, gpu.vram, gpu.vram_available) == (True, True, 128 * GIB, 100 * GIB)


@settings(max_examples=60, deadline=None)
@given(total=st.one_of(st.integers(-(2**70), 2**70), st.just("x")), free=st.integers(-(2**70), 2**70))
def test_absurd_figures_never_hurt(total: Any, free: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Driver([part("A", total, free)]))
        for card in nvml.cards(ram):
            assert card.gpu.available is (card.gpu.vram is not None)
            assert 0 <= (card.gpu.vram_available or 0) <= (card.gpu.vram or 0)


def test_a_machine_without_a_driver_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Driver.NVMLError_LibraryNotFound("no library")

    driver = Driver([], fail)
    install(monkeypatch, driver)
    assert detect.find_gpus(ram) == detect.find_gpus(ram) == []
    assert driver.started == 1


def test_a_broken_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Driver.NVMLError("mismatch")

    driver = Driver([part("A", 1, 1)], fail)
    install(monkeypatch, driver)
    assert detect.find_gpus(ram) == []
    driver.start = None  # it may be mended while we run
    assert len(detect.find_gpus(ram)) == 1


def test_a_missing_binding_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert detect.find_gpus(ram) == []
    assert nvidia.gpus(ram) is None


def test_a_driver_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    driver = Driver([part("A", 1, 1)], lambda: release.wait(60))
    install(monkeypatch, driver)
    monkeypatch.setattr(nvidia, "_library", Bounded("the NVIDIA driver"))
    monkeypatch.setattr(nvidia, "trusted_folders", lambda: pytest.fail("nvidia-smi would hang, too"))
    try:
        began = time.monotonic()
        assert detect.find_gpus(ram) == []
        assert time.monotonic() - began < 10
        assert [detect.find_gpus(ram) for _ in range(100)] == [[]] * 100  # at once
        assert time.monotonic() - began < 10
        assert driver.started == 1
    finally:
        release.set()


# ---- who holds VRAM


def test_what_processes_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me, parent = os.getpid(), os.getppid()
    first = part("A", 8 * GIB, GIB, running=[process(me, 100), process(77, 5)], drawing=[process(me, 100)])
    second = part("B", 8 * GIB, GIB, running=[process(me, 20, 1), process(me, 30, 2), process(77, None)])
    install(monkeypatch, Driver([first, second]))
    held = MachineProbe(Settings(home=tmp_path)).held([me, parent, 2**22 + 7, -1, 2**70])
    assert set(held) == {me, parent}
    assert (held[me].vram, held[parent].vram) == (150, 0)
    assert held[me].ram > 1 << 20
    assert nvml.vram_of_processes()[77] is None


@pytest.mark.parametrize("used", [None, 2**64 - 1, -1])
def test_vram_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, used: int | None) -> None:
    me = os.getpid()
    cards: list[Part | None] = [part("A", 8, 1, running=[process(me, used)]), part("B", 8, 1, running=[process(me, 5)])]
    install(monkeypatch, Driver(cards))
    assert MachineProbe(Settings(home=tmp_path)).held([me])[me].vram is None


def test_in_a_container_and_without_a_driver_vram_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me = os.getpid()
    install(monkeypatch, Driver([part("A", 8, 1, running=[process(me, 5)])]))
    monkeypatch.setattr(nvidia, "_in_container", lambda: True)
    held = MachineProbe(Settings(home=tmp_path)).held([me])
    assert isinstance(held[me], Held)
    assert held[me].vram is None
    monkeypatch.setattr(nvidia, "_in_container", lambda: False)
    install(monkeypatch, None)
    assert MachineProbe(Settings(home=tmp_path)).held([me])[me].vram is None
    assert MachineProbe(Settings(home=tmp_path)).held([]) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="other platform: a link as Linux has it")
def test_the_first_namespace_of_process_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "ns").mkdir()
    assert not nvidia._in_container(tmp_path)
    (tmp_path / "ns/pid").symlink_to("pid:[4026531836]")
    assert not nvidia._in_container(tmp_path)
    (tmp_path / "ns/pid").unlink()
    (tmp_path / "ns/pid").symlink_to("pid:[4026532999]")
    assert nvidia._in_container(tmp_path)


# ---- nvidia-smi

SMI = f"""\
0, {UUIDS[0]}, NVIDIA GeForce RTX 4090, 24564, 23028, 550.54.14, 8.9
1, {UUIDS[2]}, Tesla K80, 11441, [N/A], 550.54.14, [N/A]
2, GPU-x, NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1
[GPU is lost]
3, GPU-half, Half
Unable to determine the device handle for GPU 0000:05:00.0: Unknown Error
"""


def test_nvidia_smi_lines() -> None:
    cards = nvidia_smi.parse(SMI)
    assert [(card.index, card.gpu.name, card.gpu.available) for card in cards] == [
        (0, "NVIDIA GeForce RTX 4090", True),
        (1, "Tesla K80", True),
        (2, "NVIDIA GB10", False),
    ]
    first, second = cards[0].gpu, cards[1].gpu
    assert (first.vram, first.vram_available) == (24564 << 20, 23028 << 20)
    assert (first.id, first.driver, first.compute_capability, first.cuda) == (UUIDS[0], "550.54.14", "8.9", True)
    assert (second.vram_available, second.compute_capability) == (None, None)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*SMI.split(","), "\n", "[N/A]", "-1", "9" * 30])).map(",".join)))
def test_nvidia_smi_garbage(text: str) -> None:
    for card in nvidia_smi.parse(text):
        assert (card.gpu.vram or 0) >= (card.gpu.vram_available or 0) >= 0


def script(folder: Path, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="other platform: a shell script")
def test_nvidia_smi_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, None)
    planted = tmp_path / "work"
    script(planted, "echo '0, GPU-bad, planted, 9999, 9999, 1, 1'")
    monkeypatch.setenv("PATH", f"{planted}:{os.environ['PATH']}")
    monkeypatch.chdir(planted)
    assert detect.find_gpus(ram) == []
    wanted = "--query-gpu=index,uuid,name,memory.total,memory.free,driver_version,compute_cap"
    script(tmp_path / "wsl", f'[ "$1" = {wanted} ] && cat <<END\n{SMI}END\nexit 15')
    monkeypatch.setattr(nvidia, "trusted_folders", lambda: [tmp_path / "none", tmp_path / "wsl"])
    assert [gpu.name for gpu in detect.find_gpus(ram)][:2] == ["NVIDIA GeForce RTX 4090", "Tesla K80"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in detect.find_gpus(ram)] == ["Tesla K80"]


@pytest.mark.skipif(os.name != "posix", reason="other platform: a shell script")
def test_an_nvidia_smi_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, None)
    script(tmp_path, "sleep 60 & wait")
    monkeypatch.setattr(nvidia, "trusted_folders", lambda: [tmp_path])
    monkeypatch.setattr(nvidia, "_program", Bounded("nvidia-smi"))
    began = time.monotonic()
    assert detect.find_gpus(ram) == []
    assert time.monotonic() - began < 10


# ---- CUDA_VISIBLE_DEVICES

CARDS = [
    Card(index=index, names=(uuid,), gpu=GPUInfo(available=True, name=str(index))) for index, uuid in enumerate(UUIDS)
]


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, "012"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("2,0", "20"),
        (" 1 , 0", "10"),
        ("0,-1,1", "0"),
        ("0,7,1", "0"),
        ("0,,1", "0"),
        ("1gpu,2", "12"),  # as CUDA reads numbers
        ("0,0", ""),
        ("99999999999999999999", ""),
        (UUIDS[1], "1"),
        (f"{UUIDS[2].upper()},gpu-11111111-a", "20"),
        ("GPU-11111111", ""),  # two cards
        ("GPU-3,GPU-9,GPU-11111111-a", "2"),
        ("GPU-3,0", "2"),
        ("0,GPU-3", "0"),
        ("GPU-3,GPU-33333333", ""),
        ("MIG-1", ""),
    ],
)
def test_visible_devices(variable: str | None, names: str) -> None:
    assert "".join(gpu.name or "" for gpu in visible(CARDS, variable)) == names


@given(st.text())
def test_any_variable_gives_an_answer(variable: str) -> None:
    assert len(visible(CARDS, variable)) <= len(CARDS)
