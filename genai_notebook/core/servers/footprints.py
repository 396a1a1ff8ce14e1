"""What image models really took when they were loaded, kept on disk: the next decision is better than a rule of thumb.

Per model file, engine and the flags that move memory around; a model that was replaced, another engine or another flag
begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from genai_notebook.core.engines.load_report import Footprint
from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import FileSystemError

#: The oldest ones go.
KEPT = 200


class Footprints:
    """Remembers footprints in `<folder>/footprints.json`; a file that cannot be read or written is no misfortune."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "footprints.json"
        self._known: dict[str, Footprint] | None = None

    def recall(self, key: str) -> Footprint | None:
        return self._load().get(key)

    def remember(self, key: str, footprint: Footprint) -> None:
        known = self._load()
        if known.get(key) == footprint:
            return
        known.pop(key, None)
        known[key] = footprint
        for oldest in list(known)[:-KEPT]:
            del known[oldest]
        temporary = self._path.with_name(f"footprints.{os.getpid()}.new")
        with contextlib.suppress(OSError, FileSystemError):
            private_folder(self._path.parent)
            temporary.write_bytes(msgspec.json.encode(known))
            os.replace(temporary, self._path)

    def _load(self) -> dict[str, Footprint]:
        if self._known is None:
            try:
                self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Footprint])
            except (OSError, msgspec.DecodeError, msgspec.ValidationError):
                self._known = {}
        return self._known


def footprint_key(model: ModelInfo, engine: str, flags: list[str]) -> str:
    """One word for a model, an engine's name and version, and its memory flags."""
    facts = msgspec.json.encode([model.id, model.path, model.size, model.downloaded_at, engine, flags])
    return hashlib.sha256(facts).hexdigest()[:32]
