"""One download from the request to the model in the store. Runs on a job's thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from genai_notebook.core.downloads.hashing import parse_checksum
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.acquire import acquire
from genai_notebook.core.models.files import NotAModelError, inspect_model
from genai_notebook.core.models.pieces import Delivered, Piece
from genai_notebook.core.models.records import checksum_of, new_record
from genai_notebook.core.models.requests import answering, name_of
from genai_notebook.core.models.rooms import Rooms
from genai_notebook.core.models.search import Fits, choose
from genai_notebook.core.models.sources import pieces_of
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.models.tensors import combined
from genai_notebook.core.schema import DownloadConfig, GGUFMetadata, ModelFile, ModelInfo, ModelRecord
from genai_notebook.errors import ChecksumError, DownloadError


def download(config: DownloadConfig, store: ModelStore, placing: Callable[[], Fits], work: Work) -> ModelInfo:
    """Bring a model. One that is already there, whole, is returned at once. Blocks.

    Args:
        placing: looks at the machine and tells what fits; asked where no file is named.

    Raises:
        DownloadError, ChecksumError, InsufficientResourcesError, FileSystemError: as `ModelManager.download_model`.
    """
    if (model := store.find(answering(config))) is not None:
        return _there_already(model, work)
    if config.source == "huggingface" and config.file is None and config.components is None:
        config = choose(config, placing(), work)
    pieces = pieces_of(config, work)
    keys = [piece.key for piece in pieces]
    with Rooms(store.folder).entered(keys, work) as rooms:
        # Perhaps somebody else has just brought it.
        answers = answering(config)
        model = store.find(lambda record: answers(record) or _brought(record, pieces, config))
        if model is not None:
            return _there_already(model, work)
        files = acquire(pieces, rooms, store.find_file, work)
        work.check()
        work.enter("verifying")
        metadata = _inspected(pieces, files)
        record = new_record(name_of(config), config.type, [_file(file) for file in files], metadata)
        _hold_to(config, record, files)
        work.check()
        return store.add(record, [file.path for file in files if not file.in_place])


def _there_already(model: ModelInfo, work: Work) -> ModelInfo:
    work.report(model.size, model.size)
    return model


def _brought(record: ModelRecord, pieces: Sequence[Piece], config: DownloadConfig) -> bool:
    """Whether a model is made of these very files: a branch, say, may stand for the commit that we have."""
    if record.type != config.type or config.name not in (None, record.name) or len(record.files) != len(pieces):
        return False
    if config.checksum is not None and parse_checksum(config.checksum) != checksum_of(record.files):
        return False
    return all(
        _same_bytes(piece, file)
        and (piece.role, piece.source.repo, piece.source.file) == (file.role, file.source.repo, file.source.file)
        for piece, file in zip(pieces, record.files, strict=True)
    )


def _same_bytes(piece: Piece, file: ModelFile) -> bool:
    """By the SHA-256; of a small file on Hugging Face only the commit is known beforehand."""
    if piece.sha256 is not None:
        return piece.sha256 == file.sha256
    source = piece.source
    return source.type == "huggingface" and source.revision is not None and source.revision == file.source.revision


def _inspected(pieces: Sequence[Piece], files: Sequence[Delivered]) -> GGUFMetadata | None:
    """What the first file says of the model; all of them are looked at.

    Raises:
        DownloadError: one is no model, or they do not belong together.
    """
    found: list[GGUFMetadata | None] = []
    for piece, file in zip(pieces, files, strict=True):
        try:
            found.append(inspect_model(file.path, piece.expect))
        except NotAModelError as error:
            _throw_away(files)
            raise DownloadError(f"{file.path.name} is no model: {error}.", {"reason": "not-a-model"}) from None
    return combined(found)


def _hold_to(config: DownloadConfig, record: ModelRecord, files: Sequence[Delivered]) -> None:
    """A model in numbered files has one checksum over all of them."""
    wanted = parse_checksum(config.checksum)
    actual = checksum_of(record.files)
    if wanted is not None and wanted != actual:
        _throw_away(files)
        raise ChecksumError(wanted, actual or "unknown")


def _throw_away(files: Sequence[Delivered]) -> None:
    for file in files:
        if not file.in_place:
            with contextlib.suppress(OSError):
                file.path.unlink()


def _file(file: Delivered) -> ModelFile:
    return ModelFile(
        path=str(file.path) if file.in_place else file.path.name,
        size=file.size,
        source=file.source,
        sha256=file.sha256,
        role=file.role,
    )
