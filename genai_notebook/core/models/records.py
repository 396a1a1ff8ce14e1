"""What a `model.json` says, seen as everybody sees a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from genai_notebook.core.models.files import supports_reasoning
from genai_notebook.core.schema import GGUFMetadata, ModelFile, ModelInfo, ModelRecord, ModelType
from genai_notebook.core.utilities import now_iso


def info_of(record: ModelRecord) -> ModelInfo:
    """The model that a record with absolute paths describes."""
    first = record.files[0]
    roles: dict[str, str] = {}
    for file in record.files:
        if file.role is not None:
            roles.setdefault(file.role, file.path)  # of numbered files, the first speaks for all
    shards = [file.path for file in record.files] if len(record.files) > 1 and not roles else None
    checksum = checksum_of(record.files)
    return ModelInfo(
        id=record.id,
        name=record.name,
        type=record.type,
        size=sum(file.size for file in record.files),
        path=first.path,
        downloaded_at=record.downloaded_at,
        source=first.source,
        checksum=f"sha256:{checksum}" if checksum else None,
        supports_reasoning=record.supports_reasoning,
        gguf_metadata=record.gguf_metadata,
        components=roles or None,
        shards=shards,
    )


def checksum_of(files: Sequence[ModelFile]) -> str | None:
    """The SHA-256 of a model, bare hex: of its only file, or of the listing of all of them as sha256sum prints it,
    sorted by name. None while that of a file is not known.
    """
    if len(files) == 1:
        return files[0].sha256
    if not all(file.sha256 for file in files):
        return None
    lines = sorted((Path(file.path).name, file.sha256) for file in files)
    listing = "".join(f"{digest}  {name}\n" for name, digest in lines)
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def is_whole(record: ModelRecord) -> bool:
    """Whether all files are there, each in its full size."""
    try:
        return all(Path(file.path).stat().st_size == file.size for file in record.files)
    except OSError:
        return False


def new_record(name: str, type: ModelType, files: Sequence[ModelFile], metadata: GGUFMetadata | None) -> ModelRecord:
    """The record of a model that comes into the store now; it gets its id there."""
    return ModelRecord(
        id="",
        name=name,
        type=type,
        downloaded_at=now_iso(),
        files=list(files),
        supports_reasoning=supports_reasoning(type, Path(files[0].path).name, metadata),
        gguf_metadata=metadata,
    )
