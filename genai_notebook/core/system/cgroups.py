"""What a container allows: memory and CPU limits of the control groups this process is in, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

#: Version 1 writes a number near 2^63 where there is no limit.
_UNLIMITED = 1 << 60


class MemoryGroup(Struct, frozen=True):
    """One group with a memory limit: `limit` and `used` in bytes; page cache that can be dropped is not in `used`."""

    limit: int
    used: int


def memory_groups(proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> list[MemoryGroup]:
    """Every memory limit on this process, from its own group up to the root."""
    found = []
    for folder, names in _folders(proc, root, "memory"):
        limit = _number(folder / names["limit"])
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _number(folder / names["used"]) or 0
        inactive = _statistics(folder / "memory.stat").get(names["inactive"], 0)
        found.append(MemoryGroup(limit=limit, used=max(0, used - inactive)))
    return found


def cpu_quota(proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors' worth of time this process may use, or None where nothing limits it."""
    quotas = []
    for folder, names in _folders(proc, root, "cpu"):
        if names["version"] == "2":
            fields = _read(folder / "cpu.max").split()
            quota, period = [*fields, "", ""][:2]
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period) > 0 and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


_V1 = {
    "version": "1",
    "limit": "memory.limit_in_bytes",
    "used": "memory.usage_in_bytes",
    "inactive": "total_inactive_file",
}
_V2 = {"version": "2", "limit": "memory.max", "used": "memory.current", "inactive": "inactive_file"}


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
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _statistics(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
