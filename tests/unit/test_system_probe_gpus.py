"""GPUs of AMD, Intel and Apple, and those of Windows: from recorded machines, and from files that say anything."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system import registry
from genai_notebook.core.system.bounded import Bounded
from genai_notebook.core.system.gpus import apple, detect, drm, pci, rocm, vulkan, windows

GIB = 1 << 30
MACHINES = Path(__file__).parent.parent / "fixtures" / "machines"
links = pytest.mark.skipif(os.name != "posix", reason="other platform: sysfs has links")


def ram() -> MemoryInfo:
    return MemoryInfo(total=32 * GIB, available=20 * GIB, used=12 * GIB)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the hardware, programs, lists and variables of the machine the tests run on."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(drm, "_kernel", Bounded("the kernel", 10.0))
    monkeypatch.setattr(drm, "has_rocm", lambda: True)
    monkeypatch.setattr(drm, "pci_name", lambda vendor, device: None)
    monkeypatch.setattr(rocm, "_program", Bounded("rocm-smi", 10.0))
    monkeypatch.setattr(rocm, "_names", {})
    monkeypatch.setattr(rocm, "trusted_folders", list)
    monkeypatch.setattr(apple, "_name", None)
    monkeypatch.setattr(detect.nvidia, "gpus", lambda memory: None)


def sysfs(root: Path, cards: Mapping[str, Mapping[str, Any]]) -> Path:
    """A tree like /sys/class/drm. '/name' stands beside `device`; 'address' and 'driver' are links."""
    drm_root = root / "class/drm"
    for number, (card, files) in enumerate(cards.items()):
        address = files.get("address", f"0000:{number + 3:02x}:00.0")
        device = root / "devices" / address
        device.mkdir(parents=True)
        (drm_root / card).mkdir(parents=True)
        (drm_root / card / "device").symlink_to(device)
        if driver := files.get("driver"):
            (device / "driver").symlink_to(root / "drivers" / driver)
        for name, value in files.items():
            if name in ("address", "driver"):
                continue
            path = drm_root / card / name[1:] if name.startswith("/") else device / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode("utf-8", "surrogatepass"))
    return drm_root


RX_7900 = {
    "vendor": "0x1002",
    "device": "0x744c",
    "driver": "amdgpu",
    "mem_info_vram_total": 20 * GIB,
    "mem_info_vram_used": 2 * GIB,
    "mem_info_gtt_total": 16 * GIB,
    "mem_info_gtt_used": GIB,
    "gpu_metrics": b"\x78\x00\x01\x03" + bytes(116),
    "unique_id": "3b7b2c8e4d5f6a70",
}
PHOENIX = {
    "vendor": "0x1002",
    "device": "0x15bf",
    "driver": "amdgpu",
    "mem_info_vram_total": 4 * GIB,
    "mem_info_vram_used": GIB,
    "mem_info_gtt_total": 14 * GIB,
    "mem_info_gtt_used": 2 * GIB,
    "gpu_metrics": b"\x80\x00\x02\x01" + bytes(124),
}
UHD = {"address": "0000:00:02.0", "vendor": "0x8086", "device": "0x46a6", "driver": "i915"}
ARC_I915 = {"vendor": "0x8086", "device": "0x56a0", "driver": "i915", "/lmem_total_bytes": 16 * GIB}
ARC_XE = {
    "vendor": "0x8086",
    "device": "0xe20b",
    "driver": "xe",
    "tile0/physical_vram_size_bytes": 12 * GIB,
    "label": "Slot 1",
}
CONSOLES = {
    "card5": {"vendor": "0x1a03", "device": "0x2000", "driver": "ast"},
    "card6": {"vendor": "0x1af4", "device": "0x1050", "driver": "virtio-pci"},
    "card7": {"vendor": "0x10de", "device": "0x2684", "driver": "nouveau"},
}


# ---- AMD and Intel on Linux


@links
def test_amd_cards(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {"card1": RX_7900, "card1-DP-1": RX_7900 | {"address": "x"}, **CONSOLES})
    (gpu,) = drm.gpus(ram, root)
    assert gpu == GPUInfo(
        available=True,
        type="amd",
        name="AMD GPU 0x744c",
        vram=20 * GIB,
        vram_available=18 * GIB,
        rocm=True,
        id="0000:03:00.0",
        driver="amdgpu",
        unified=False,
    )


@links
def test_graphics_in_an_amd_processor_share_the_ram(tmp_path: Path) -> None:
    small = {name: value for name, value in PHOENIX.items() if name != "gpu_metrics"} | {
        "mem_info_vram_total": GIB // 2
    }
    halo = PHOENIX | {"mem_info_vram_total": 96 * GIB}  # the larger part set aside is as good as a card's
    old_card = {**small, "mem_info_vram_total": 2 * GIB, "mem_info_vram_used": 0}
    root = sysfs(tmp_path, {"card0": PHOENIX, "card1": small, "card2": halo, "card3": old_card})
    assert [(gpu.unified, gpu.vram, gpu.vram_available) for gpu in drm.gpus(ram, root)] == [
        (True, 18 * GIB, 15 * GIB),
        (True, 14 * GIB + GIB // 2, 12 * GIB),
        (False, 96 * GIB, 95 * GIB),
        (False, 2 * GIB, 2 * GIB),
    ]
    tight = MemoryInfo(total=8 * GIB, available=3 * GIB, used=5 * GIB)  # e.g. a container's limit
    gpu = drm.gpus(lambda: tight, root)[0]
    assert (gpu.vram, gpu.vram_available) == (12 * GIB, 6 * GIB)


@links
def test_intel(tmp_path: Path) -> None:
    root = sysfs(
        tmp_path, {"card0": UHD, "card1": ARC_I915, "card2": ARC_XE, "card10": {**ARC_I915, "/lmem_total_bytes": 0}}
    )
    found = drm.gpus(ram, root)
    assert [(gpu.available, gpu.unified, gpu.vram, gpu.name, gpu.driver) for gpu in found] == [
        (False, True, None, "Intel GPU 0x46a6", "i915"),
        (True, False, 16 * GIB, "Intel GPU 0x56a0", "i915"),
        (True, False, 12 * GIB, "Slot 1", "xe"),
        (False, False, None, "Intel GPU 0x56a0", "i915"),  # a card whose memory the driver does not publish
    ]
    assert found[0].id == "0000:00:02.0"
    assert {gpu.vram_available for gpu in found} == {None}


@links
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tmp_path / "pci.ids"
    ids.write_text(
        "# a list\n1002  Advanced Micro Devices, Inc. [AMD/ATI]\n\t744c  Navi 31 [Radeon RX 7900 XT]\n"
        "\t\t1002 0e3b  RX 7900 GRE [XFX]\n\n8086  Intel Corporation\n\t15bf  Something else\n"
    )
    monkeypatch.setattr(drm, "pci_name", lambda vendor, device: pci.pci_name(vendor, device, (tmp_path / "no", ids)))
    root = sysfs(
        tmp_path, {"card0": RX_7900, "card1": RX_7900 | {"product_name": "Radeon PRO W7900"}, "card2": PHOENIX}
    )
    assert [gpu.name for gpu in drm.gpus(ram, root)] == [
        "Navi 31 [Radeon RX 7900 XT]",
        "Radeon PRO W7900",
        "AMD GPU 0x15bf",
    ]


@links
@pytest.mark.parametrize(
    ("rocr", "hip", "expected"),
    [
        (None, None, ["03", "04", "05"]),
        (None, "1", ["04", "05"]),
        ("1,0", "1", ["03", "05"]),
        ("0", "1", ["05"]),
        ("", None, ["05"]),
        ("GPU-3b7b", None, ["03", "05"]),
        (None, "-1", ["05"]),
    ],
)
def test_visible_amd_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rocr: str | None, hip: str | None, expected: list[str]
) -> None:
    for name, value in (("ROCR_VISIBLE_DEVICES", rocr), ("HIP_VISIBLE_DEVICES", hip)):
        if value is not None:
            monkeypatch.setenv(name, value)
    root = sysfs(tmp_path, {"card0": RX_7900, "card1": PHOENIX, "card2": ARC_XE})
    assert [(gpu.id or "")[5:7] for gpu in drm.gpus(ram, root)] == expected


NONSENSE = st.one_of(
    st.integers(-(2**71), 2**71).map(str),
    st.sampled_from(["", "max", "N/A", "0x", "²", "9" * 5000, "1 2", "\0"]),
    st.text(max_size=20),
)


@links
@settings(max_examples=60, deadline=None)
@given(data=st.data(), vendor=st.sampled_from(["0x1002", "0x8086", "0xffff", "1002"]))
def test_absurd_files_never_hurt(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, vendor: str) -> None:
    names = [*RX_7900, *ARC_XE, "product_name", "uevent", "/lmem_total_bytes"]
    free_names = [name for name in dict.fromkeys(names) if name not in ("vendor", "address", "driver")]
    files = data.draw(st.dictionaries(st.sampled_from(free_names), NONSENSE, max_size=len(free_names)))
    root = sysfs(tmp_path_factory.mktemp("sys"), {"card0": files | {"vendor": vendor, "address": "odd"}})
    for card in drm.read_cards(root, ram):
        gpu = card.gpu
        assert gpu.available is (gpu.vram is not None)
        assert gpu.vram is None or 0 < gpu.vram <= 2 << 50
        assert gpu.name
        assert 0 <= (gpu.vram_available or 0) <= (gpu.vram or 0)


@links
def test_missing_files_dangling_links_and_folders_in_place_of_files(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {"card0": {"vendor": "0x1002"}, "card1": RX_7900 | {"mem_info_vram_used": 30 * GIB}})
    (root / "card2").mkdir()
    (root / "card2/device").symlink_to(tmp_path / "gone")
    (root / "card3").symlink_to(tmp_path / "gone")
    (root / "card0/device/mem_info_vram_total").mkdir()
    (root / "version").write_text("drm 1.1.0\n")
    assert [(gpu.available, gpu.vram_available) for gpu in drm.gpus(ram, root)] == [(False, None), (True, 0)]
    assert drm.gpus(ram, tmp_path / "none") == []


@links
def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path, mode: str) -> Any:
        if path.name == "mem_info_vram_total":
            raise PermissionError(13, "Permission denied")
        return open(path, mode)

    monkeypatch.setattr(drm, "open", refusing, raising=False)
    root = sysfs(tmp_path, {"card0": RX_7900})
    assert [gpu.available for gpu in drm.gpus(ram, root)] == [False]


def test_rocm_is_here_by_its_kernel_part_or_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not drm.has_rocm(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert drm.has_rocm(tmp_path)


# ---- rocm-smi


def recorded(name: str) -> str:
    return (MACHINES / f"{name}.json").read_text()


def test_rocm_smi_over_the_years() -> None:
    assert rocm.parse("WARNING: AMD GPU device(s) is/are in a low-power state.\n" + recorded("rocm_smi_6")) == [
        rocm.Report("0000:03:00.0", "Radeon RX 7900 XT", 21458059264, 27856896)
    ]
    assert rocm.parse(recorded("rocm_smi_5")) == [
        rocm.Report("0000:03:00.0", "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]", 17163091968, 692142080),
        rocm.Report("0000:0c:00.0", "Raphael", 67108864, 26079232),
    ]
    assert rocm.parse(recorded("rocm_smi_old")) == [
        rocm.Report(None, None, None, None),
        rocm.Report(None, "Vega 10 XT [Radeon RX Vega 64]", 8573157376, 6291456),
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"card0": 5}', '{"a":' * 5000, '{"card0": {"PCI Bus": 7}}', "\ud800{"]
)
def test_rocm_smi_garbage(text: str) -> None:
    assert all(report == rocm.Report(None, None, None, None) for report in rocm.parse(text))


@pytest.mark.skipif(os.name != "posix", reason="other platform: a shell script")
def test_rocm_smi_fills_gaps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "rocm-smi"
    program.write_text(f"#!/bin/sh\necho run >> {tmp_path}/log\ncat {MACHINES}/rocm_smi_5.json\n")
    program.chmod(0o755)
    monkeypatch.setattr(rocm, "trusted_folders", lambda: [tmp_path])
    whole = GPUInfo(available=True, type="amd", name="Known", vram=5, vram_available=1, id="0000:03:00.0")
    nameless = GPUInfo(available=True, type="amd", name="AMD GPU 0x164e", vram=7, vram_available=6, id="0000:0c:00.0")
    bare = GPUInfo(available=False, type="amd", name="Known", id="0000:03:00.0")
    intel = GPUInfo(available=False, type="intel", name="Intel GPU")
    stranger = GPUInfo(available=False, type="amd", name="AMD GPU", id="0000:99:00.0")
    assert rocm.supplemented([whole, intel]) == [whole, intel]
    assert not (tmp_path / "log").exists()
    named, same = rocm.supplemented([nameless, intel])
    assert (named.name, named.vram, same) == ("Raphael", 7, intel)
    assert rocm.supplemented([nameless])[0].name == "Raphael"  # remembered
    assert (tmp_path / "log").read_text() == "run\n"
    filled = rocm.supplemented([stranger, bare])
    assert filled[0] == stranger
    known = GPUInfo(available=True, type="amd", name="AMD GPU", vram=7, id="0000:99:00.0")
    assert rocm.supplemented([known]) == [known]  # the program knows no name for it: not asked again
    assert (tmp_path / "log").read_text() == "run\n" * 2
    assert (filled[1].available, filled[1].vram, filled[1].vram_available) == (
        True,
        17163091968,
        17163091968 - 692142080,
    )


@pytest.mark.skipif(os.name != "posix", reason="other platform: a shell script")
def test_a_rocm_smi_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rocm-smi").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "rocm-smi").chmod(0o755)
    monkeypatch.setattr(rocm, "trusted_folders", lambda: [tmp_path])
    monkeypatch.setattr(rocm, "_program", Bounded("rocm-smi"))
    bare = GPUInfo(available=False, type="amd", name="AMD GPU")
    began = time.monotonic()
    assert rocm.supplemented([bare]) == [bare]
    assert time.monotonic() - began < 10


# ---- Apple


@pytest.mark.parametrize(("name", "expected"), [("m3", "Apple M3 Pro (18 cores)"), ("m1", "Apple M1"), ("intel", "")])
def test_system_profiler(name: str, expected: str) -> None:
    assert apple.parse(recorded(f"system_profiler_{name}")) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"SPDisplaysDataType": 5}', '{"SPDisplaysDataType": [5, null, {}]}', "[" * 9000]
)
def test_system_profiler_garbage(text: str) -> None:
    assert apple.parse(text) == ""


@pytest.mark.parametrize(
    ("total", "wired", "share"),
    [
        (36 * GIB, "", 24 * GIB),
        (64 * GIB, "0\n", 48 * GIB),
        (64 * GIB, "57344\n", 56 * GIB),
        (16 * GIB, "99999999", 16 * GIB),
        (64 * GIB, "-5", 48 * GIB),
        (64 * GIB, "unknown oid", 48 * GIB),
    ],
)
def test_the_share_of_the_gpu(total: int, wired: str, share: int) -> None:
    assert apple.gpu_share(total, wired) == share


def test_apple_silicon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def tool(command: list[str]) -> str:
        asked.append(command[0])
        return recorded("system_profiler_m3")

    monkeypatch.setattr(apple, "run_tool", tool)
    monkeypatch.setattr(apple, "sysctl", lambda name: "")
    monkeypatch.setattr(detect, "get_platform", lambda: "darwin")
    monkeypatch.setattr(detect, "get_architecture", lambda: "arm64")
    monkeypatch.setattr(detect, "has_vulkan", lambda: True)
    for _ in range(2):
        (gpu,) = detect.find_gpus(ram)
    assert (gpu.name, gpu.type, gpu.metal, gpu.unified, gpu.cuda, gpu.vulkan) == (
        "Apple M3 Pro (18 cores)", "apple", True, True, None, True
    )  # fmt: skip
    assert (gpu.vram, gpu.vram_available) == (32 * GIB * 2 // 3, 20 * GIB)
    assert asked == ["/usr/sbin/system_profiler"]
    monkeypatch.setattr(detect, "get_architecture", lambda: "x64")
    assert detect.find_gpus(ram) == []


# ---- Windows

ADAPTERS: list[tuple[str, dict[str, object]]] = [
    ("0000", {"DriverDesc": "AMD Radeon(TM) Graphics", "MatchingDeviceId": r"PCI\VEN_1002&DEV_164E&REV_C1",
              "HardwareInformation.qwMemorySize": 512 << 20, "DriverVersion": "32.0.12033.1030"}),
    ("0001", {"DriverDesc": "AMD Radeon RX 7900 XTX", "MatchingDeviceId": r"pci\ven_1002&dev_744c",
              "HardwareInformation.qwMemorySize": 24 * GIB, "DriverVersion": "32.0.12033.1030"}),
    ("0002", {"DriverDesc": "NVIDIA GeForce RTX 4070", "MatchingDeviceId": r"PCI\VEN_10DE&DEV_2786",
              "HardwareInformation.qwMemorySize": (12 * GIB).to_bytes(8, "little")}),
    ("0003", {"DriverDesc": "Intel(R) UHD Graphics 770", "MatchingDeviceId": r"PCI\VEN_8086&DEV_4680",
              "HardwareInformation.qwMemorySize": GIB}),
    ("0004", {"DriverDesc": "Microsoft Basic Display Adapter", "MatchingDeviceId": r"PCI\CC_0300"}),
    ("0005", {"DriverDesc": "Parsec Virtual Display Adapter", "MatchingDeviceId": r"Root\Parsec\VDA"}),
    ("Configuration", {"MatchingDeviceId": r"PCI\VEN_1002&DEV_744C"}),
]  # fmt: skip


def test_adapters_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    found = windows.gpus(nvidia_too=False, read=lambda: ADAPTERS)
    assert [(gpu.type, gpu.available, gpu.vram, gpu.unified, gpu.rocm) for gpu in found] == [
        ("amd", False, None, True, False),
        ("amd", True, 24 * GIB, False, False),
        ("intel", False, None, True, None),
    ]
    assert (found[1].name, found[1].driver, found[1].id) == (
        "AMD Radeon RX 7900 XTX",
        "32.0.12033.1030",
        "display-0001",
    )
    first = windows.gpus(nvidia_too=True, read=lambda: ADAPTERS)[0]
    assert (first.name, first.cuda, first.vram) == ("NVIDIA GeForce RTX 4070", True, 12 * GIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert windows.gpus(nvidia_too=True, read=lambda: ADAPTERS) == found


def test_nvidias_own_driver_goes_before_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "get_platform", lambda: "win32")
    monkeypatch.setattr(windows.registry, "keys_below", lambda key: [name for name, _ in ADAPTERS])
    monkeypatch.setattr(windows.registry, "values_of", lambda key: dict(ADAPTERS)[key.rpartition("\\")[2]])
    assert [gpu.type for gpu in detect.find_gpus(ram)] == ["nvidia", "amd", "amd", "intel"]
    own = GPUInfo(available=True, type="nvidia", name="RTX 4070", vram=12 * GIB)
    for shown in ([own], []):  # CUDA_VISIBLE_DEVICES may hide it
        monkeypatch.setattr(detect.nvidia, "gpus", lambda memory, shown=shown: shown)
        assert [gpu.type for gpu in detect.find_gpus(ram)] == ["nvidia"] * len(shown) + ["amd", "amd", "intel"]


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {"MatchingDeviceId": st.sampled_from([r"PCI\VEN_1002", r"PCI\VEN_8086", r"PCI\VEN_10DE", "VEN_", 7])},
        optional={
            name: st.one_of(st.integers(-(2**80), 2**80), st.binary(max_size=9), st.text(max_size=9), st.none())
            for name in ("HardwareInformation.qwMemorySize", "DriverDesc", "DriverVersion")
        },
    )
)
def test_an_absurd_registry_never_hurts(values: dict[str, object]) -> None:
    for gpu in windows.parse([("0000", values)]):
        assert gpu.name
        assert gpu.available is (gpu.vram is not None)


@pytest.mark.skipif(os.name == "nt", reason="other platform: there is one")
def test_without_a_registry_there_is_nothing_in_it() -> None:
    assert registry.keys_below(windows.DISPLAYS) == []
    assert registry.values_of(windows.DISPLAYS) == {}


# ---- Vulkan, and all together


def test_the_vulkan_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "ld.so.cache"
    cache.write_bytes(b"glibc-ld.so.cache1.1\0libvulkan.so.10\0/usr/lib/libc.so.6\0")
    assert not vulkan.in_linker_cache("libvulkan.so.1", cache)
    cache.write_bytes(cache.read_bytes() + b"/usr/lib/x86_64-linux-gnu/libvulkan.so.1\0")
    assert vulkan.in_linker_cache("libvulkan.so.1", cache)
    assert not vulkan.in_linker_cache("libvulkan.so.1", tmp_path / "none")
    monkeypatch.setattr(vulkan, "in_linker_cache", lambda name: False)
    for system, variable, name in (
        ("linux", "LD_LIBRARY_PATH", "libvulkan.so.1"),
        ("darwin", "DYLD_LIBRARY_PATH", "libMoltenVK.dylib"),
        ("win32", "SYSTEMROOT", "System32/vulkan-1.dll"),
    ):
        monkeypatch.setattr(vulkan, "get_platform", lambda system=system: system)
        monkeypatch.setenv(variable, str(tmp_path / system))
        monkeypatch.setattr(vulkan, "_LINUX", "/nowhere")
        monkeypatch.setattr(vulkan, "_MAC", "/nowhere")
        assert not vulkan.has_vulkan()
        (tmp_path / system / name).parent.mkdir(parents=True)
        (tmp_path / system / name).touch()
        assert vulkan.has_vulkan()


@links
def test_every_gpu_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sysfs(tmp_path, {"card0": UHD, "card1": RX_7900})
    ask = drm.gpus
    own = GPUInfo(available=True, type="nvidia", name="RTX 4070", vram=12 * GIB, cuda=True)
    monkeypatch.setattr(detect, "get_platform", lambda: "linux")
    monkeypatch.setattr(detect.drm, "gpus", lambda memory: ask(memory, root))
    monkeypatch.setattr(detect.nvidia, "gpus", lambda memory: [own])
    for present in (True, False):
        monkeypatch.setattr(detect, "has_vulkan", lambda present=present: present)
        found = detect.find_gpus(ram)
        assert [(gpu.type, gpu.vulkan) for gpu in found] == [(kind, present) for kind in ("nvidia", "amd", "intel")]

    def fail(memory: object) -> list[GPUInfo]:
        raise RuntimeError("of any kind")

    monkeypatch.setattr(detect.nvidia, "gpus", fail)
    assert [gpu.type for gpu in detect.find_gpus(ram)] == ["amd", "intel"]
    monkeypatch.setattr(detect.drm, "gpus", fail)
    assert detect.find_gpus(ram) == []
