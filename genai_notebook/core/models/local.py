"""Models out of files that are on this machine already, or that we write ourselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from genai_notebook.core.downloads.hashing import hash_file
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import Expect, NotAModelError, inspect_model
from genai_notebook.core.models.records import new_record
from genai_notebook.core.models.rooms import Rooms
from genai_notebook.core.models.shards import shard_names, without_number
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.models.tensors import combined
from genai_notebook.core.schema import GGUFMetadata, ModelFile, ModelInfo, ModelRecord, ModelSource, ModelType
from genai_notebook.errors import FileSystemError, InvalidRequestError


def register(store: ModelStore, path: Path, name: str | None, type: ModelType) -> ModelInfo:
    """Make a file a model where it lies; of numbered files, any stands for all. Blocks, briefly.

    Raises:
        InvalidRequestError: there is no such file, or it is no model; `details["field"]` is 'path'.
    """
    try:
        path = Path(os.path.abspath(path.expanduser()))
        files = [path.with_name(name) for name in shard_names(path.name) or [path.name]]
        metadata = _inspected(files, type)
        sizes = [file.stat().st_size for file in files]
    except NotAModelError as error:
        raise InvalidRequestError(
            f"path: {path} is no model that can be used: {error}.",
            {"field": "path"},
            hint="A language model must be GGUF, an image model GGUF or safetensors.",
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        missing = getattr(error, "filename", None) or path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(f"path: {missing} cannot be read: {reason}.", {"field": "path"}) from None
    real = os.path.realpath(files[0])

    def same(record: ModelRecord) -> bool:
        first = record.files[0]
        return record.type == type and first.role is None and os.path.realpath(first.path) == real

    if store.folder.resolve() in Path(real).parents and store.find(same) is None:
        raise InvalidRequestError(
            f"path: {path} lies inside of our own folder for models.", {"field": "path"}, hint="Move it elsewhere."
        )
    entries = [
        ModelFile(path=str(file), size=size, source=ModelSource(type="local", file=file.name))
        for file, size in zip(files, sizes, strict=True)
    ]
    name = name or without_number(path.name).rpartition(".")[0] or path.name
    return store.add_or_find(new_record(name, type, entries, metadata), same)


def create(
    store: ModelStore, name: str, file: str, type: ModelType, write: Callable[[Path], object], work: Work
) -> ModelInfo:
    """Make a model by writing its file; one of that name made before is returned instead. Blocks.

    Raises:
        FileSystemError: it could not be written, or is no model.
    """

    def made(record: ModelRecord) -> bool:
        first = record.files[0]
        ours = Path(first.path).parent == store.folder / record.id
        return first.source.type == "local" and record.name == name and ours

    key = f"create:{name}"
    with Rooms(store.folder).entered([key], work) as rooms:
        if (existing := store.find(made)) is not None:
            return existing
        path = rooms[key] / file
        write(path)
        try:
            metadata = inspect_model(path, type)
        except NotAModelError as error:
            path.unlink()
            raise FileSystemError("make a model", "from what was written", error) from error
        entry = ModelFile(
            path=file,
            size=path.stat().st_size,
            source=ModelSource(type="local", file=file),
            sha256=hash_file(path, work),
        )
        return store.add(new_record(name, type, [entry], metadata), [path])


def _inspected(files: list[Path], type: ModelType) -> GGUFMetadata | None:
    """What the first file says; the others must be parts of a model.

    Raises:
        NotAModelError, OSError: one is none, or missing.
    """
    found: list[GGUFMetadata | None] = []
    for file in files:
        expect: Expect = "shard" if found else type
        found.append(inspect_model(file, expect))
    return combined(found)
