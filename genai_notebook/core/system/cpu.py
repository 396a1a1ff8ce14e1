"""The processor: its name, and how much of it this process may use."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path

import psutil

from genai_notebook.core.schema import CPUInfo
from genai_notebook.core.system import cgroups, registry
from genai_notebook.core.system.bounded import Bounded
from genai_notebook.core.system.tools import run_tool
from genai_notebook.core.utilities import get_architecture


def cpu_info() -> CPUInfo:
    """Cores are those this process may use: by its affinity (or cpuset), and by the container's quota."""
    cores = usable_cores()
    physical = psutil.cpu_count(logical=False) or cores
    return CPUInfo(cores=cores, physical_cores=min(physical, cores), model=cpu_model(), architecture=get_architecture())


def usable_cores() -> int:
    """Logical CPUs this process may use; at least one."""
    try:
        cores = len(psutil.Process().cpu_affinity())
    except (AttributeError, OSError, psutil.Error):  # macOS has none
        cores = psutil.cpu_count() or 1
    quota = cgroups.cpu_quota()
    if quota is not None:
        cores = min(cores, int(quota))
    return max(1, cores)


@functools.lru_cache(maxsize=1)
def cpu_model() -> str:
    """The processor's name for people."""
    name = ""
    if sys.platform.startswith("linux"):
        name = linux_model()
    elif sys.platform == "darwin":
        name = sysctl("machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = _windows_model() or platform.processor()
    return name[:200] or platform.machine() or "unknown"


def linux_model(root: Path = Path("/")) -> str:
    """From /proc/cpuinfo; boards without a name there have one in their device tree."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("model name", "hardware", "cpu model") and value.strip():
            return value.strip()
    return _text(root / "sys/firmware/devicetree/base/model").strip("\0\n ")


def sysctl(name: str) -> str:
    """One of macOS's kernel values as text, or '' where there is none."""
    try:
        return _kernel_value(name).ask(lambda: run_tool(["/usr/sbin/sysctl", "-n", name])).strip()
    except OSError:  # TimeoutError is one
        return ""


@functools.lru_cache
def _kernel_value(name: str) -> Bounded[str]:
    return Bounded(f"sysctl {name}")


def _windows_model() -> str:
    value = registry.values_of(r"HARDWARE\DESCRIPTION\System\CentralProcessor\0").get("ProcessorNameString")
    return value.strip() if isinstance(value, str) else ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
