"""The GPU of Apple silicon: it shares the machine's RAM, and macOS lets it have a part of that."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from genai_notebook.core.schema import GPUInfo, MemoryInfo
from genai_notebook.core.system.bounded import REST, Bounded
from genai_notebook.core.system.cpu import cpu_model, sysctl
from genai_notebook.core.system.numbers import whole_number
from genai_notebook.core.system.tools import run_tool

GIB, MIB = 1 << 30, 1 << 20
#: Metal recommends two thirds of the RAM up to here, three quarters above.
_LARGE = 36 * GIB

_profiler: Bounded[str] = Bounded("system_profiler", rest=REST)
_name: str | None = None


def gpus(memory: Callable[[], MemoryInfo]) -> list[GPUInfo]:
    """The one GPU of this machine. Blocks; never raises."""
    ram = memory()
    share = gpu_share(ram.total, sysctl("iogpu.wired_limit_mb"))
    return [
        GPUInfo(
            available=share > 0,
            type="apple",
            name=gpu_name(),
            vram=share,
            vram_available=min(share, ram.available),
            metal=True,
            id="apple",
            unified=True,
        )
    ]


def gpu_share(total: int, wired_limit: str = "") -> int:
    """Bytes of `total` that the GPU may use: what the user set (in MiB; 0: nothing set), or as Metal recommends."""
    limit = whole_number(wired_limit)
    if limit:
        return min(total, limit * MIB)
    return total * 2 // 3 if total <= _LARGE else total * 3 // 4


def gpu_name() -> str:
    """Model and cores, e.g. 'Apple M3 Pro (18 cores)'. Asked once: system_profiler takes its time."""
    global _name
    if _name is None:
        command = ["/usr/sbin/system_profiler", "SPDisplaysDataType", "-json"]
        try:
            _name = parse(_profiler.ask(lambda: run_tool(command)))
        except OSError:  # TimeoutError is one
            _name = ""
    return _name or cpu_model()


def parse(text: str) -> str:
    """The Apple GPU's name in system_profiler's JSON, or ''."""
    try:
        report = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return ""
    entries = report.get("SPDisplaysDataType") if isinstance(report, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        model = entry.get("sppci_model") if isinstance(entry, dict) else None
        if isinstance(model, str) and model.startswith("Apple"):
            cores = whole_number(entry.get("sppci_cores"))
            return f"{model[:200]} ({cores} cores)" if cores else model[:200]
    return ""
