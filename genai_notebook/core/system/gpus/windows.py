"""GPUs on Windows, from what display drivers wrote into the registry."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.system import registry
from genai_notebook.core.system.bounded import Bounded
from genai_notebook.core.system.gpus.visible import Card, visible
from genai_notebook.core.system.numbers import amount

GIB = 1 << 30
DISPLAYS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_VENDORS = {"10DE": "nvidia", "1002": "amd", "8086": "intel"}
#: What firmware sets aside for graphics inside of a processor stays at or below this; cards have more.
_SET_ASIDE = {"amd": 1 * GIB, "intel": 2 * GIB}

Adapters = Iterable[tuple[str, Mapping[str, object]]]

_registry: Bounded[list[GPUInfo]] = Bounded("the registry")


def read_adapters() -> Adapters:
    """Sub-key and values of each display driver."""
    return [(name, registry.values_of(rf"{DISPLAYS}\{name}")) for name in registry.keys_below(DISPLAYS)]


def gpus(*, nvidia_too: bool, read: Callable[[], Adapters] = read_adapters) -> list[GPUInfo]:
    """The GPUs that have a driver. What is free on them is written nowhere. Blocks.

    Args:
        nvidia_too: list NVIDIA's; False where their own driver has told about them.

    Raises:
        TimeoutError: the registry does not answer.
    """
    found = _registry.ask(lambda: parse(read()))
    others = [gpu for gpu in found if gpu.type != "nvidia"]
    if not nvidia_too:
        return others
    nvidia = [gpu for gpu in found if gpu.type == "nvidia"]
    cards = [Card(index=index, names=(), gpu=gpu) for index, gpu in enumerate(nvidia)]
    return visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES")) + others


def parse(adapters: Adapters) -> list[GPUInfo]:
    """GPUs of the three vendors; remote, virtual and basic display adapters have no PCI vendor or another one."""
    found = [_gpu(name, values) for name, values in adapters if re.fullmatch(r"\d{4}", name, re.ASCII)]
    return [gpu for gpu in found if gpu is not None]


def _gpu(key: str, values: Mapping[str, object]) -> GPUInfo | None:
    device, name = values.get("MatchingDeviceId"), values.get("DriverDesc")
    vendor = re.search(r"VEN_([0-9A-F]{4})", device.upper()) if isinstance(device, str) else None
    kind = _VENDORS.get(vendor[1]) if vendor else None
    if kind is None:
        return None
    size = _bytes(values.get("HardwareInformation.qwMemorySize"))
    # Graphics inside of a processor take RAM as they need it; the piece set aside says nothing about how much.
    inside = size is None or size <= _SET_ASIDE.get(kind, 0)
    driver = values.get("DriverVersion")
    return GPUInfo(
        available=not inside,
        type=kind,
        name=name.strip()[:200] if isinstance(name, str) and name.strip() else f"{kind} GPU",
        vram=None if inside else size,
        cuda=True if kind == "nvidia" else None,
        rocm=False if kind == "amd" else None,
        id=f"display-{key}",
        driver=driver[:100] if isinstance(driver, str) else None,
        unified=inside and kind != "nvidia",
    )


def _bytes(value: object) -> int | None:
    """Drivers write a number, or its eight bytes."""
    if isinstance(value, bytes):
        return amount(int.from_bytes(value, "little")) if len(value) == 8 else None
    return amount(value)
