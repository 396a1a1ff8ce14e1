"""Room on a disk, and what to say when it is short."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from genai_notebook.core.utilities import format_bytes
from genai_notebook.errors import FileSystemError, GenaiNotebookError, InsufficientResourcesError

#: What we leave free for everything else.
RESERVE = 64 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def free_space(folder: Path) -> int:
    """Bytes that a user may still write there; the nearest existing parent counts."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def ensure_space(folder: Path, needed: int, *, reserve: int = RESERVE) -> None:
    """Raises:
    InsufficientResourcesError: fewer than `needed` bytes (and a reserve) are free there.
    """
    available = free_space(folder)
    if needed + reserve > available:
        raise disk_full(folder, needed + reserve, available)


def disk_full(folder: Path, needed: int | None, available: int) -> InsufficientResourcesError:
    required = format_bytes(needed) if needed is not None else "more than is free"
    return InsufficientResourcesError(
        f"There is not enough space on the disk of {folder}: {required} needed, {format_bytes(available)} free.",
        {
            "required": required,
            "available": format_bytes(available),
            "suggestion": "Delete models you no longer need, or move GENAI_NOTEBOOK_HOME to a larger disk.",
        },
    )


def write_error(error: OSError, path: Path, needed: int | None = None) -> GenaiNotebookError:
    """The typed error for a failed write: a full disk is told apart from all else."""
    if error.errno in _FULL:
        return disk_full(path.parent, needed, free_space(path.parent))
    return FileSystemError("write", str(path), error)
