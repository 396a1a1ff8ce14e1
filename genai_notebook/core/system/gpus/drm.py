"""AMD and Intel GPUs on Linux, from what the kernel's drivers publish in /sys/class/drm.

Other vendors are left out: NVIDIA's driver publishes no memory here (see `nvml`), and what servers and virtual
machines draw their console with (ASPEED, Matrox, virtio, …) computes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system.bounded import Bounded
from genai_notebook.core.system.gpus.pci import pci_name
from genai_notebook.core.system.gpus.visible import Card, visible
from genai_notebook.core.system.numbers import amount, free_of, whole_number

AMD, INTEL = 0x1002, 0x8086
ROOT = Path("/sys/class/drm")
#: No graphics card that the driver supports has so little memory of its own.
_SMALL = 1 << 30

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HEX = re.compile(r"\s*(?:0x)?([0-9a-fA-F]{1,8})\s*")

_kernel: Bounded[list[Card]] = Bounded("the kernel's list of GPUs")


def gpus(memory: Callable[[], MemoryInfo], root: Path = ROOT) -> list[GPUInfo]:
    """AMD's cards that ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES leave, then Intel's. Blocks.

    Raises:
        TimeoutError: a driver hangs.
    """
    cards = _kernel.ask(lambda: read_cards(root, memory))
    amd = [card for card in cards if card.gpu.type == "amd"]
    shown = visible(amd, os.environ.get("ROCR_VISIBLE_DEVICES"))
    # HIP counts in what ROCR leaves.
    again = [Card(index=index, names=(), gpu=gpu) for index, gpu in enumerate(shown)]
    return visible(again, os.environ.get("HIP_VISIBLE_DEVICES")) + [c.gpu for c in cards if c.gpu.type == "intel"]


def read_cards(root: Path, memory: Callable[[], MemoryInfo]) -> list[Card]:
    """The GPUs below `root` in the kernel's order; `index` counts AMD's and Intel's apart."""
    rocm = has_rocm()
    found: list[Card] = []
    for folder in _card_folders(root):
        vendor = _hex(folder / "device/vendor")
        if vendor == AMD:
            gpu = _amd(folder / "device", rocm, memory)
        elif vendor == INTEL:
            gpu = _intel(folder)
        else:
            continue
        unique = _text(folder / "device/unique_id")
        names = (f"GPU-{unique}",) if unique else ()
        found.append(Card(index=sum(card.gpu.type == gpu.type for card in found), names=names, gpu=gpu))
    return found


def has_rocm(root: Path = Path("/")) -> bool:
    """Whether AMD's compute stack is here: the kernel's part, or the libraries."""
    return os.path.exists(root / "dev/kfd") or os.path.exists(root / "opt/rocm")


def _card_folders(root: Path) -> Iterator[Path]:
    """card0, card1, … without the connectors (card0-DP-1)."""
    try:
        names = os.listdir(root)
    except OSError:
        return
    numbers = sorted(int(name[4:]) for name in names if re.fullmatch(r"card\d{1,6}", name, re.ASCII))
    yield from (root / f"card{number}" for number in numbers)


def _amd(device: Path, rocm: bool, memory: Callable[[], MemoryInfo]) -> GPUInfo:
    own, own_used = amount(_text(device / "mem_info_vram_total")), whole_number(_text(device / "mem_info_vram_used"))
    shared = amount(_text(device / "mem_info_gtt_total"))
    vram, free = own, free_of(own, own_used)
    # A processor's graphics have a piece of RAM set aside by the firmware, and may take more of the RAM (GTT) as they
    # need it: both together are what an engine can allocate. Where the larger part is set aside, that piece is as good
    # as a card's own memory, and the rest is better left to the RAM's other users. Cards have GTT, too: there it is
    # only the slow way to RAM, and no place for a model.
    unified = shared is not None and shared > (own or 0) and _in_processor(device, own)
    if unified and shared is not None:
        ram = memory()
        shared = min(shared, ram.total)
        left = free_of(shared, whole_number(_text(device / "mem_info_gtt_used")) or 0) or 0
        vram = (own or 0) + shared
        free = (free_of(own, own_used or 0) or 0) + min(left, ram.available)
    return GPUInfo(
        available=vram is not None,
        type="amd",
        name=_name(device, AMD, "AMD GPU"),
        vram=vram,
        vram_available=free,
        rocm=rocm,
        id=_address(device),
        driver=_driver(device),
        unified=unified,
    )


def _in_processor(device: Path, own: int | None) -> bool:
    """Whether AMD graphics sit in the processor. Their driver's metrics are of format 2 or later, cards' of format 1;
    where there are none, very little memory gives it away."""
    try:
        with open(device / "gpu_metrics", "rb") as file:
            head = file.read(4)  # size (2 bytes), format, revision
    except OSError:
        head = b""
    return head[2] >= 2 if len(head) == 4 else own is None or own <= _SMALL


def _intel(folder: Path) -> GPUInfo:
    device = folder / "device"
    vram = _intel_memory(folder)
    address = _address(device)
    # Graphics inside of the processor are on the first bus; they have no memory of their own, and no figure says how
    # much of the RAM they would get.
    inside = vram is None and (address is None or address.split(":")[1] == "00")
    return GPUInfo(
        available=vram is not None,
        type="intel",
        name=_name(device, INTEL, "Intel GPU"),
        vram=vram,
        id=address,
        driver=_driver(device),
        unified=inside,
    )


def _intel_memory(folder: Path) -> int | None:
    """Bytes of a card's local memory: from i915 as one number, from xe for each tile. What is free is not published."""
    for place in (folder, folder / "device"):
        if size := amount(_text(place / "lmem_total_bytes")):
            return size
    tiles = [
        amount(_text(folder / f"device/tile{number}" / name)) or 0
        for number in range(8)
        for name in ("physical_vram_size_bytes", "memory/physical_vram_size_bytes")
    ]
    return amount(sum(tiles))


def _name(device: Path, vendor: int, otherwise: str) -> str:
    number = _hex(device / "device")
    known = pci_name(vendor, number) if number is not None else None
    nameless = otherwise if number is None else f"{otherwise} 0x{number:04x}"
    return (_text(device / "product_name") or known or _text(device / "label") or nameless)[:200]


def _address(device: Path) -> str | None:
    """Where on the PCI bus it is, e.g. '0000:03:00.0'."""
    name = os.path.basename(os.path.realpath(device))
    if not _ADDRESS.fullmatch(name):
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", _text(device / "uevent"), re.MULTILINE)
        name = slot[1].lower() if slot else ""
    return name if _ADDRESS.fullmatch(name) else None


def _driver(device: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(device / "driver"))[:100] or None
    except OSError:
        return None


def _hex(path: Path) -> int | None:
    match = _HEX.fullmatch(_text(path))
    return int(match[1], 16) if match else None


def _text(path: Path) -> str:
    """The first 4 KiB without white space around, or '' where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip("\0 \n\t\r")
    except (OSError, ValueError):
        return ""
