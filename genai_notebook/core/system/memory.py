"""RAM right now: the machine's, inside of what a container and GENAI_NOTEBOOK_MEMORY_LIMIT allow. Never remembered."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil

from genai_notebook.core.schema import MemoryInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import cgroups
from genai_notebook.core.system.engines import live_engines
from genai_notebook.core.system.numbers import whole_number


class Engine(msgspec.Struct, frozen=True):
    """A running engine of this home: bytes it holds, and how many of them are pages of files (`mapped`)."""

    model_id: str | None
    resident: int
    mapped: int


def memory_now(settings: Settings) -> MemoryInfo:
    """Total and available bytes under every limit that binds; `used` is what lies between.

    Engines map their weights, so the system counts those pages as cache that it can drop: as available. It can, but
    the engine would have to read them from disk again for every token. So what our own engines hold mapped is not
    available here. Each limit below is a bound of its own (the lowest counts), and takes those pages off once:

    - the machine: they are in its `available` (as page cache), so they are subtracted from it;
    - a container: they are in its usage, and again in the page cache that is taken off the usage because it could be
      dropped, so that much of the cache is left in;
    - GENAI_NOTEBOOK_MEMORY_LIMIT: all that our engines hold counts against it, the mapped pages with the rest.
    """
    host = psutil.virtual_memory()
    engines = running_engines(settings.run)
    mapped = mapped_bytes(engines)
    # They cannot be more than the page cache is.
    total, available = int(host.total), int(host.available) - min(mapped, int(getattr(host, "cached", mapped)))
    for group in cgroups.memory_groups():
        total = min(total, group.limit)
        available = min(available, group.limit - group.used - min(mapped, group.cache))
    if (limit := settings.memory_limit) is not None:
        total = min(total, limit)
        available = min(available, limit - sum(engine.resident for engine in engines))
    available = max(0, min(available, total))
    return MemoryInfo(total=total, available=available, used=total - available)


def mapped_bytes(engines: list[Engine]) -> int:
    """Bytes of files in RAM because of them. Engines of the same model share its pages: those count once."""
    shared: dict[str, int] = {}
    alone = 0
    for engine in engines:
        if engine.model_id is None:
            alone += engine.mapped
        else:
            shared[engine.model_id] = max(engine.mapped, shared.get(engine.model_id, 0))
    return alone + sum(shared.values())


def running_engines(run: Path, proc: Path = Path("/proc")) -> list[Engine]:
    """The engines of this home that are alive, by their records on disk."""
    found = []
    for record in live_engines(run):
        try:
            held = psutil.Process(record.pid).memory_info()
        except psutil.Error:
            continue
        mapped = _mapped(proc / str(record.pid), held)
        found.append(Engine(model_id=record.model_id, resident=int(held.rss), mapped=mapped))
    return found


def _mapped(folder: Path, held: object) -> int:
    """Pages of files in the process's memory, without the locked ones: those the system does not count as available.

    Only Linux needs it: macOS and Windows do not count what a living process maps as available.
    """
    try:
        lines = (folder / "status").read_text("ascii", "replace").splitlines()
    except OSError:
        lines = []
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    files, locked = (_kibibytes(fields.get(name)) for name in ("RssFile", "VmLck"))
    if files is None:
        return int(getattr(held, "shared", 0))
    return max(0, files - (locked or 0))


def _kibibytes(words: list[str] | None) -> int | None:
    number = whole_number(words[0]) if words else None
    return None if number is None else number << 10
