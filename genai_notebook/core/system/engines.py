"""The engines of this home that run now, by their records on disk: this owner's, and those of any other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil

from genai_notebook.core.schema import EngineRecord

#: Two readings of one process's creation time may differ by the clock's grain; a number used again differs by more.
_CLOCK_GRAIN = 2.0


def live_engines(run: Path) -> list[EngineRecord]:
    """Those of the records in `run` whose process is alive, sorted by name."""
    found = []
    for path in sorted(run.glob("engine-*.json")):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
            if abs(psutil.Process(record.pid).create_time() - record.pid_created) < _CLOCK_GRAIN:
                found.append(record)
        except (OSError, ValueError, OverflowError, psutil.Error):
            continue
    return found
