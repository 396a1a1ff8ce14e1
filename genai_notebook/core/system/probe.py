"""What this machine has: the one place that asks it. `Probe` is the seam; tests and tours put another machine there."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from typing import Protocol

import msgspec
import psutil

from genai_notebook.core.schema import CPUInfo, EngineRecord, GPUInfo, MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import cgroups
from genai_notebook.core.system.nvidia import nvidia_gpus
from genai_notebook.core.utilities import get_architecture, get_platform


class Probe(Protocol):
    """A machine. All three are blocking and quick (seconds at the very worst), and never raise for missing hardware."""

    def cpu(self) -> CPUInfo: ...

    def memory(self) -> MemoryInfo: ...

    def gpus(self) -> list[GPUInfo]: ...


class MachineProbe:
    """This machine, inside of the limits that a container and the settings set.

    With GENAI_NOTEBOOK_MEMORY_LIMIT, memory that our own running engines hold counts against that limit.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def cpu(self) -> CPUInfo:
        cores = _usable_cores()
        physical = psutil.cpu_count(logical=False) or cores
        return CPUInfo(
            cores=cores, physical_cores=min(physical, cores), model=_cpu_model(), architecture=get_architecture()
        )

    def memory(self) -> MemoryInfo:
        host = psutil.virtual_memory()
        total, available = int(host.total), int(host.available)
        for group in cgroups.memory_groups():
            total = min(total, group.limit)
            available = min(available, group.limit - group.used)
        if (limit := self.settings.memory_limit) is not None:
            total = min(total, limit)
            available = min(available, limit - _engines_hold(self.settings.run))
        available = max(0, min(available, total))
        return MemoryInfo(total=total, available=available, used=total - available)

    def gpus(self) -> list[GPUInfo]:
        found = self._apple() if get_platform() == "darwin" else nvidia_gpus()
        limit = self.settings.vram_limit
        return [_limited(gpu, limit) for gpu in found] if limit is not None else found

    def _apple(self) -> list[GPUInfo]:
        """Apple silicon shares its RAM with the GPU; macOS lets the GPU have about three quarters of it."""
        if get_architecture() != "arm64":
            return []
        memory = self.memory()
        share = memory.total * 3 // 4
        return [
            GPUInfo(
                available=True,
                type="apple",
                name=_cpu_model(),
                vram=share,
                vram_available=min(share, memory.available),
                metal=True,
            )
        ]


def _limited(gpu: GPUInfo, limit: int) -> GPUInfo:
    """The GPU, bounded by GENAI_NOTEBOOK_VRAM_LIMIT; memory that is in use now counts against the limit."""
    if gpu.vram is None:
        return gpu
    used = max(0, gpu.vram - (gpu.vram_available if gpu.vram_available is not None else gpu.vram))
    vram = min(gpu.vram, limit)
    return msgspec.structs.replace(gpu, vram=vram, vram_available=max(0, vram - used))


def _usable_cores() -> int:
    """Logical CPUs this process may use: by affinity, and by the container's quota."""
    try:
        cores = len(psutil.Process().cpu_affinity())
    except (AttributeError, OSError, psutil.Error):  # macOS has none
        cores = psutil.cpu_count() or 1
    quota = cgroups.cpu_quota()
    if quota is not None:
        cores = min(cores, int(quota))
    return max(1, cores)


@functools.lru_cache(maxsize=1)
def _cpu_model() -> str:
    """The processor's name for people."""
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip().lower() in ("model name", "hardware", "cpu model") and value.strip():
                    return value.strip()[:200]
        except OSError:
            pass
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor() or "Apple"
    return platform.processor() or platform.machine() or "unknown"


def _sysctl(name: str) -> str:
    import subprocess

    try:
        result = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _engines_hold(run: Path) -> int:
    """Bytes that the engines of this home hold now, by their records on disk."""
    total = 0
    for path in run.glob("engine-*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
            process = psutil.Process(record.pid)
            if abs(process.create_time() - record.pid_created) < 2:  # else the number belongs to another by now
                total += int(process.memory_info().rss)
        except (OSError, ValueError, psutil.Error):
            continue
    return total
