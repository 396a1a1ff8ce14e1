"""What a container allows: memory and CPU limits of the control groups this process is in, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from genai_notebook.core.system.numbers import amount, whole_number

PROC = Path("/proc/self")
ROOT = Path("/sys/fs/cgroup")


class MemoryGroup(Struct, frozen=True):
    """One group with a memory limit, in bytes.

    `used` is without page cache, because that can be dropped when memory is short; `cache` is how much of it there
    is. All of it, active or not: the machine's own "available" counts it the same way.
    """

    limit: int
    used: int
    cache: int = 0


def memory_groups(proc: Path | None = None, root: Path | None = None) -> list[MemoryGroup]:
    """Every memory limit on this process, from its own group up to the root. Unlimited groups are left out.

    What is no amount of memory is no limit: 'max', version 1's number near 2^63, and nonsense such as 0 or text. (A
    process cannot live under a limit of 0.)
    """
    found = []
    for folder, names in _folders(proc or PROC, root or ROOT, "memory"):
        statistics = _statistics(folder / "memory.stat")
        # Version 1 tells the lowest limit of all groups above, too, where a container cannot see their folders.
        limits = [amount(_read(folder / names["limit"])), amount(statistics.get("hierarchical_memory_limit"))]
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is None:
            continue
        used = whole_number(_read(folder / names["used"])) or 0
        cache = min(used, sum(statistics.get(name, 0) for name in names["cache"].split()))
        found.append(MemoryGroup(limit=limit, used=used - cache, cache=cache))
    return found


def cpu_quota(proc: Path | None = None, root: Path | None = None) -> float | None:
    """Processors' worth of time this process may use, or None where nothing limits it."""
    quotas = []
    for folder, names in _folders(proc or PROC, root or ROOT, "cpu"):
        if names["version"] == "2":
            fields = _read(folder / "cpu.max").split()
            texts = [*fields, "", ""][:2]
        else:
            texts = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        quota, period = (whole_number(text) for text in texts)
        if quota and period:  # neither 'max', -1 nor 0
            quotas.append(quota / period)
    return min(quotas, default=None)


_V1 = {
    "version": "1",
    "limit": "memory.limit_in_bytes",
    "used": "memory.usage_in_bytes",
    "cache": "total_inactive_file total_active_file",
}
_V2 = {"version": "2", "limit": "memory.max", "used": "memory.current", "cache": "inactive_file active_file"}


def _folders(proc: Path, root: Path, controller: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """The group's folder and its parents. In a container the host's path may not exist: then the mount's root is it."""
    for line in _read(proc / "cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        if controllers == "":
            mount, names = (root / "unified" if (root / "unified").is_dir() else root), _V2
        elif controller in controllers.split(","):
            mount, names = root / controller, _V1
            if not mount.is_dir():
                mount = root / controllers
        else:
            continue
        steps = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(steps), -1, -1):
            folder = mount.joinpath(*steps[:depth])
            if folder.is_dir():
                yield folder, names


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except (OSError, ValueError):
        return ""


def _statistics(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    numbers = ((pair[0], whole_number(pair[1])) for pair in pairs if len(pair) == 2)
    return {name: number for name, number in numbers if number is not None}
