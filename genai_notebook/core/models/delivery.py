"""What every source of models hands over."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from genai_notebook.core.schema import ModelSource


class Delivery(Struct, kw_only=True):
    """A complete file in the incoming folder. `sha256` is the file's own."""

    path: Path
    sha256: str
    source: ModelSource
