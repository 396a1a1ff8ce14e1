"""NVIDIA cards through the driver's own library (NVML). Everything here blocks and may hang with the driver."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system.gpus.visible import Card
from genai_notebook.core.system.numbers import MOST_BYTES, amount, whole_number

log = logging.getLogger("genai_notebook")

#: More MIG devices than any card can be cut into.
_MOST_PARTS = 64

_absent = False


class MissingError(Exception):
    """There is no library, or no binding for it: nothing here knows about NVIDIA cards."""


@contextlib.contextmanager
def session() -> Iterator[Any]:
    """The library, started.

    Raises:
        MissingError: there is none; remembered, so that asking again costs nothing.
        Exception: pynvml's, when the driver does not start. It may be mended while we run.
    """
    global _absent
    if _absent:
        raise MissingError
    try:
        import pynvml
    except Exception as error:
        _absent = True
        raise MissingError from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        _absent = True
        raise MissingError from error
    try:
        yield pynvml
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def cards(memory: Callable[[], MemoryInfo]) -> list[Card]:
    """Every card in PCI order; one in MIG mode is replaced by its MIG devices. Errors as `session`.

    Args:
        memory: the RAM right now, for GPUs that have no memory of their own.
    """
    with session() as nvml:
        driver = _text(_try(nvml, "nvmlSystemGetDriverVersion"))
        found: list[Card] = []
        for index in range(int(nvml.nvmlDeviceGetCount())):
            try:
                found += _one_card(nvml, index, driver, memory)
            except Exception as error:  # one broken card does not hide the others
                log.debug("NVIDIA GPU %d cannot be read: %s", index, error)
        return found


def vram_of_processes() -> dict[int, int | None]:
    """Bytes of VRAM each process holds over all cards, by process id; None where the driver does not tell.

    Errors as `session`, and pynvml's where a card tells nothing about processes.
    """
    held: dict[int, int | None] = {}
    with session() as nvml:
        for index in range(int(nvml.nvmlDeviceGetCount())):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            running = [*nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
            running += _try(nvml, "nvmlDeviceGetGraphicsRunningProcesses", handle) or []
            for pid, used in _on_one_card(running).items():
                before = held.get(pid, 0)
                held[pid] = None if used is None or before is None else before + used
    return held


def _on_one_card(running: Iterable[Any]) -> dict[int, int | None]:
    """A process that computes and draws is listed twice with the same number; one on several MIG devices, once each."""
    parts: dict[tuple[int, object], int | None] = {}
    for process in running:
        key = (int(process.pid), getattr(process, "gpuInstanceId", None))
        used = whole_number(process.usedGpuMemory)  # None, or all bits set, where it is not known
        used = None if used is None or used > MOST_BYTES else used
        before = parts.get(key, used)
        parts[key] = None if used is None or before is None else max(before, used)
    held: dict[int, int | None] = {}
    for (pid, _), used in parts.items():
        before = held.get(pid, 0)
        held[pid] = None if used is None or before is None else before + used
    return held


def _one_card(nvml: Any, index: int, driver: str | None, memory: Callable[[], MemoryInfo]) -> list[Card]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(_try(nvml, "nvmlDeviceGetUUID", handle))
    mode = _try(nvml, "nvmlDeviceGetMigMode", handle)  # current and pending
    if not mode or int(mode[0]) != 1:
        gpu = _describe(nvml, handle, driver, _capability(nvml, handle), memory)
        return [Card(index=index, names=(uuid,) if uuid else (), gpu=gpu)]
    found: list[Card] = []
    for number in range(min(_MOST_PARTS, int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)))):
        part = _try(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if part is None:  # the card could be cut into more parts than it is
            continue
        gpu = _describe(nvml, part, driver, _capability(nvml, handle), memory)
        # The card's own number and UUID lead CUDA to its first part.
        own = (uuid,) if uuid and not found else ()
        names = (*_mig_names(nvml, part, uuid), *own)
        found.append(Card(index=None if found else index, names=names, gpu=gpu))
    return found


def _describe(
    nvml: Any, handle: Any, driver: str | None, capability: str | None, memory: Callable[[], MemoryInfo]
) -> GPUInfo:
    unified = False
    try:
        figures = nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:
        # Chips that share the machine's RAM (Grace Blackwell, Jetson) have no memory of their own to speak of.
        if not isinstance(error, getattr(nvml, "NVMLError_NotSupported", ())):
            raise
        unified, ram = True, memory()
        total, free = amount(ram.total), whole_number(ram.available)
    else:
        total = amount(figures.total)
        free = whole_number(figures.free)
    return GPUInfo(
        available=total is not None,
        type="nvidia",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        vram=total,
        vram_available=None if total is None or free is None else min(free, total),
        cuda=True,
        id=_text(_try(nvml, "nvmlDeviceGetUUID", handle)),
        driver=driver,
        compute_capability=capability,
        unified=unified,
    )


def _capability(nvml: Any, handle: Any) -> str | None:
    found = _try(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    return f"{found[0]}.{found[1]}" if found else None


def _mig_names(nvml: Any, part: Any, card: str | None) -> tuple[str, ...]:
    """A MIG device's UUID, and the name that older drivers give it: card, GPU instance and compute instance."""
    names = [_text(_try(nvml, "nvmlDeviceGetUUID", part))]
    gpu_instance = _try(nvml, "nvmlDeviceGetGpuInstanceId", part)
    compute_instance = _try(nvml, "nvmlDeviceGetComputeInstanceId", part)
    if card and gpu_instance is not None and compute_instance is not None:
        names.append(f"MIG-{card}/{gpu_instance}/{compute_instance}")
    return tuple(name for name in names if name)


def _try(nvml: Any, function: str, *arguments: Any) -> Any:
    """What `function` returns; None where the driver, or this version of the binding, cannot tell."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception as error:
        log.debug("%s: %s", function, error)
        return None


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value)[:200] if value else None
