"""From a wish to the files behind it: what an address, Hugging Face, a package index or a path stands for."""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from genai_notebook.core.downloads.hashing import parse_checksum
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import Expect
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.pieces import Piece
from genai_notebook.core.models.requests import Wish, file_name_of, source_of, wishes
from genai_notebook.core.models.shards import safe_shard_names, shard_names
from genai_notebook.core.schema import DownloadConfig, ModelSource, PartConfig, Role
from genai_notebook.errors import DownloadError


def pieces_of(config: DownloadConfig, work: Work) -> list[Piece]:
    """Everything a download has to bring; the first piece is the file an engine is given. Blocks.

    Raises:
        DownloadError, ChecksumError: a source knows nothing of it, or contradicts the request.
    """
    pieces: list[Piece] = []
    for wish in wishes(config):
        work.check()
        pieces += _pieces(wish, config.type, work)
    return pieces


def _pieces(wish: Wish, expect: Expect, work: Work) -> list[Piece]:
    part, role = wish.part, wish.role
    if part.source == "huggingface":
        from genai_notebook.core.models.hub import pieces_of

        return pieces_of(part, role, expect, work)
    if part.source == "url":
        return _addresses(part, role, expect)
    if part.source == "local":
        return _local(part, role, expect)
    piece = Piece(name=file_name_of(part), source=source_of(part), expect=expect, role=role, package=part)
    return [msgspec.structs.replace(piece, sha256=parse_checksum(part.checksum))]


def _addresses(part: PartConfig, role: Role | None, expect: Expect) -> list[Piece]:
    assert part.url is not None
    place = urlsplit(part.url)
    paths = shard_names(place.path)
    if paths is None:
        sha256 = parse_checksum(part.checksum)
        name = file_name_of(part)
        return [Piece(name=name, source=source_of(part), expect=expect, role=role, url=part.url, sha256=sha256)]
    pieces: list[Piece] = []
    for path, name in zip(paths, safe_shard_names(unquote(place.path)) or (), strict=True):
        one = msgspec.structs.replace(part, url=urlunsplit(place._replace(path=path)))
        kind: Expect = "shard" if pieces else expect
        pieces.append(Piece(name=name, source=source_of(one), expect=kind, role=role, url=one.url))
    return pieces


def _local(part: PartConfig, role: Role | None, expect: Expect) -> list[Piece]:
    given = Path(part.path or "")
    pieces: list[Piece] = []
    for name in shard_names(given.name) or [given.name]:
        path = given.with_name(name)
        try:
            status = path.stat()
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error.strerror}.", {"reason": "unreadable"}) from error
        if not stat.S_ISREG(status.st_mode):
            raise DownloadError(f"{path} is no model: it is not a regular file.", {"reason": "not-a-model"})
        pieces.append(
            Piece(
                name=safe_file_name(name),
                source=ModelSource(type="local", file=name),
                expect="shard" if pieces else expect,
                role=role,
                local=path,
                in_place=True,
                size=status.st_size,
                sha256=parse_checksum(part.checksum),
            )
        )
    return pieces
