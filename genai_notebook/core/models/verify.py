"""Are a model's files still what they were?"""

from __future__ import annotations

from pathlib import Path

import msgspec

from genai_notebook.core.downloads.hashing import hash_file
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.schema import ModelRecord


def verify(store: ModelStore, id: str, work: Work) -> bool:
    """Hash every file. Where no checksum is known yet (a registered file), this one is kept. Blocks.

    Raises:
        ModelNotFoundError: there is no model of that id.
        FileSystemError: a file cannot be read.
    """
    taken: dict[str, str] = {}
    for file in store.record(id).files:
        actual = hash_file(Path(file.path), work)
        if file.sha256 is None:
            taken[file.path] = actual
        elif file.sha256 != actual:
            return False
    if taken:
        store.change(id, lambda record: _with_checksums(record, taken))
    return True


def _with_checksums(record: ModelRecord, taken: dict[str, str]) -> ModelRecord:
    files = [
        msgspec.structs.replace(file, sha256=taken[file.path]) if file.sha256 is None and file.path in taken else file
        for file in record.files
    ]
    return msgspec.structs.replace(record, files=files)
