"""Names of PCI devices, from the list that most Linux systems carry (hwdata's pci.ids)."""

from __future__ import annotations

import functools
from pathlib import Path

LISTS = tuple(Path(place) for place in ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids"))


@functools.lru_cache(maxsize=64)
def pci_name(vendor: int, device: int, lists: tuple[Path, ...] = LISTS) -> str | None:
    """E.g. 'Navi 31 [Radeon RX 7900 XT/7900 XTX]', or None where no list has it."""
    for path in lists:
        try:
            text = path.read_text("utf-8", "replace")
        except OSError:
            continue
        _, _, devices = f"\n{text}".partition(f"\n{vendor:04x}  ")
        for line in devices.splitlines()[1:]:
            if line[:1] not in ("\t", "#", ""):  # the next vendor
                break
            if line.startswith(f"\t{device:04x}  "):
                return line[7:].strip()[:200] or None
    return None
