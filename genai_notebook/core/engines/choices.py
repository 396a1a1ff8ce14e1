"""What a user has chosen for good (`%genai engines use`), in `engines/choices.json`."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from genai_notebook.core.engines.engine import Kind
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import FileSystemError


class Choices:
    """The chosen variants, by kind. A choice is of a variant, so that it holds over releases.

    Args:
        folder: `Settings.engines`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "choices.json"

    def get(self, kind: Kind) -> str | None:
        """The chosen variant, or None where the choice is ours."""
        return self._read().get(kind)

    def set(self, kind: Kind, variant: str | None) -> None:
        """Raises:
        FileSystemError: it cannot be written down.
        """
        chosen = self._read()
        chosen.pop(kind, None)
        if variant is not None:
            chosen[kind] = variant
        temporary = self._path.with_name(f"choices.{os.getpid()}.new")
        try:
            private_folder(self._path.parent)
            temporary.write_bytes(msgspec.json.encode(chosen))
            os.replace(temporary, self._path)
        except OSError as error:
            raise FileSystemError("write", str(self._path), error) from error

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}
