"""NVIDIA GPUs through the driver's own library (NVML). Never raises, never takes longer than two seconds."""

from __future__ import annotations

import logging
import threading
from typing import Any

from genai_notebook.core.schema import GPUInfo

log = logging.getLogger("genai_notebook")

LIMIT = 2.0

_lock = threading.Lock()
_asking: threading.Thread | None = None
_absent = False


def nvidia_gpus(limit: float = LIMIT) -> list[GPUInfo]:
    """The GPUs, or an empty list: without a driver, with a broken one, or when it does not answer in time."""
    global _asking
    if _absent:
        return []
    found: list[GPUInfo] = []
    with _lock:
        if _asking is not None and _asking.is_alive():
            return []  # a driver that hangs is not asked twice
        thread = _asking = threading.Thread(target=_ask, args=(found,), name="genai-nvml", daemon=True)
        thread.start()
    thread.join(limit)
    if thread.is_alive():
        log.warning("the NVIDIA driver does not answer within %g s; going on without a GPU", limit)
        return []
    return found


def _ask(found: list[GPUInfo]) -> None:
    global _absent
    try:
        import pynvml
    except Exception:
        _absent = True
        return
    try:
        pynvml.nvmlInit()
    except Exception as error:
        log.debug("no NVIDIA GPU: %s", error)
        _absent = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        return
    try:
        gpus = [_describe(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
        found.extend(gpu for gpu in gpus if gpu is not None)
    except Exception as error:
        log.debug("the NVIDIA driver failed: %s", error)
    finally:
        try:
            pynvml.nvmlShutdown()
        except Exception as error:
            log.debug("the NVIDIA driver failed at the end: %s", error)


def _describe(pynvml: Any, number: int) -> GPUInfo | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = pynvml.nvmlDeviceGetName(handle)
    except Exception as error:  # one broken card does not hide the others
        log.debug("NVIDIA GPU %d cannot be read: %s", number, error)
        return None
    return GPUInfo(
        available=True,
        type="nvidia",
        name=name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name),
        vram=int(memory.total),
        vram_available=int(memory.free),
        cuda=True,
    )
