"""Unpacks the release archives of the engines, and trusts nothing that is in them.

A matching SHA-256 says that an archive is the one that was pinned, not that it is harmless: a name can lead out of the
folder, a link can stand where the next file is written, a few kilobytes can hold terabytes. So every member is judged
by its name, kind and size before anything of it is written, and only plain files and folders come out.

The archives of llama.cpp for Linux and macOS hold links, from `libllama.so` over `libllama.so.0` to the file with the
whole version, and the programs ask for the one in the middle. A link that leads to a file of the same archive becomes a
second name of that file; no symbolic link is ever made.

All of it happens in pieces, so that neither a cancellation nor the event loop of the process waits for it.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from genai_notebook.core.downloads.disk import ensure_space, write_error
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.engines.contents import ArchiveError, Contents, parts_of, refused, shown
from genai_notebook.errors import FileSystemError

__all__ = ["MOST_BYTES", "MOST_MEMBERS", "ArchiveError", "unpack"]

#: The most that an archive may hold: bytes when unpacked; files, folders and links.
MOST_BYTES, MOST_MEMBERS = 8 << 30, 10_000
#: What is read, unpacked and written at once.
_PIECE = 256 << 10
#: The longest header of a tar member: `tarfile` reads any length that is asked of it. It also searches longer ones than
#: a block for patterns that begin with digits, which takes the square of their number, and nobody else runs meanwhile.
_MOST_HEADER = 8 << 10
_MANY_DIGITS = re.compile(rb"[0-9]{33}")
#: The longest read that `zipfile` may ask for, which is the whole table of contents.
_MOST_TABLE = 4 << 20
#: The longest target of a link in a zip.
_MOST_TARGET = 1000
_ENCRYPTED = 0x1 | 0x40 | 0x2000
#: What the parsers of the standard library raise when they are fed nonsense.
_NONSENSE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    ValueError,
)


def unpack(
    archive: Path, folder: Path, work: Work, *, most_bytes: int = MOST_BYTES, most_members: int = MOST_MEMBERS
) -> None:
    """Unpack `archive`, a .tar.gz or .zip by its content, into `folder`, which exists and is empty. Blocks.

    Files get the mode 0600, or 0700 if they may be run, folders 0700. Progress is in unpacked bytes for a zip, and in
    bytes of the archive for a tar.gz, whose unpacked size only its end tells. After an error the folder holds a part.

    Args:
        most_bytes, most_members: what is refused beyond.

    Raises:
        ArchiveError: it is no archive, is broken, or holds what does not belong there.
        DownloadError: the work was cancelled.
        FileSystemError: a file cannot be read or written.
        InsufficientResourcesError: the disk is full, or would be.
    """
    try:
        source = _Source(archive, work)
    except OSError as error:
        raise FileSystemError("read", str(archive), error) from error
    contents = Contents(most_bytes, most_members)
    with source:
        magic = source.read(4)
        source.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            _unpack_tar(source, folder, contents, work)
        elif magic in (b"PK\3\4", b"PK\5\6"):
            _unpack_zip(source, folder, contents, work)
        else:
            raise ArchiveError("the file is neither a tar.gz nor a zip archive")


# ---- reading


@contextlib.contextmanager
def _parsing(member: str | None = None) -> Iterator[None]:
    """What the standard library finds wrong becomes an ArchiveError."""
    try:
        yield
    except _NONSENSE as error:
        where = "the archive" if member is None else f"the member {shown(member)}"
        raise ArchiveError(f"{where} is broken: {error or type(error).__name__}") from error


class _Source(io.FileIO):
    """The archive. Reading ends when the work is cancelled, and never takes much at once."""

    def __init__(self, path: Path, work: Work) -> None:
        super().__init__(path)
        self._path, self._work = path, work
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        self._work.check()
        if size is None or size < 0:
            size = max(0, self.size - self.tell())
        if size > _MOST_TABLE:
            raise ArchiveError("the archive's table of contents is too large")
        try:
            return super().read(size) or b""
        except OSError as error:
            raise FileSystemError("read", str(self._path), error) from error

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:
            raise ArchiveError("the archive is broken: it points out of itself") from None


class _Stream:
    """What a gzip file holds, from its beginning to its end; as much of a file as `tarfile` needs.

    `tarfile` stops without a word at a header that it cannot read: `header` keeps what it has seen last.
    """

    def __init__(self, source: _Source) -> None:
        self.header = b""
        self._source = source
        self._inflate = zlib.decompressobj(wbits=31)
        self._ready = b""
        self._used = 0
        self._at = 0

    def piece(self, most: int) -> bytes:
        """The next bytes, `most` of them at most; none at the end.

        Raises:
            ArchiveError: the file is broken, or breaks off.
        """
        if self._used == len(self._ready):
            self._ready, self._used = self._more(), 0
        piece = self._ready[self._used : self._used + most]
        self._used += len(piece)
        self._at += len(piece)
        return piece

    def _more(self) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._source.read(_PIECE)
            if not packed:
                raise ArchiveError("the archive breaks off in its middle")
            with _parsing():
                if data := self._inflate.decompress(packed, _PIECE):
                    return data
        rest = self._inflate.unused_data
        while rest and not rest.strip(b"\0"):
            rest = self._source.read(_PIECE)
        if rest:
            raise ArchiveError("the archive has something behind its end")
        return b""

    def finish(self) -> None:
        """To be called when `tarfile` sees no further member.

        Raises:
            ArchiveError: that is not because there is none.
        """
        if self.header != bytes(tarfile.BLOCKSIZE):
            raise ArchiveError("the archive is broken: there is no header where one should be")
        padding = 0
        while piece := self.piece(_PIECE):
            padding += len(piece)
            if padding > _MOST_TABLE:
                raise ArchiveError("the archive has something behind its end")

    # ---- for `tarfile`

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise ArchiveError("a header in the archive is too large")
        data = bytearray()
        while len(data) < size and (piece := self.piece(size - len(data))):
            data += piece
        if size > tarfile.BLOCKSIZE and _MANY_DIGITS.search(data):
            raise ArchiveError("a header in the archive is nonsense")
        self.header = bytes(data)
        return self.header

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, /) -> int:
        if position < self._at:
            raise ArchiveError("a header in the archive points back")
        while self._at < position and self.piece(min(_PIECE, position - self._at)):
            pass
        return self._at

    def write(self, data: bytes, /) -> int:
        raise io.UnsupportedOperation

    def close(self) -> None:
        """The source belongs to who has opened it."""


# ---- the two formats


def _unpack_tar(source: _Source, folder: Path, contents: Contents, work: Work) -> None:
    ensure_space(folder, source.size)  # the least that it unpacks to
    stream = _Stream(source)
    with _parsing():
        tar = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
    while True:
        work.report(source.tell(), source.size)
        with _parsing():
            member = tar.next()
        if member is None:
            break
        if member.isdir():
            contents.add_folder(member.name)
        elif member.issym() or member.islnk():
            contents.add_link(member.name, member.linkname, symbolic=member.issym())
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
            name = contents.add_file(member.name, member.size)
            ensure_space(folder, member.size)
            _make_folders(folder, contents)
            stream.seek(member.offset_data)
            _write(folder / name, _tar_pieces(stream, source, member, work), member.mode)
        else:
            raise refused(member.name, "is neither a file nor a folder nor a link")
        work.check()
    stream.finish()
    _complete(folder, contents, work)
    work.report(source.size, source.size)


def _tar_pieces(stream: _Stream, source: _Source, member: tarfile.TarInfo, work: Work) -> Iterator[bytes]:
    left = member.size
    while left:
        piece = stream.piece(min(left, _PIECE))
        if not piece:
            raise refused(member.name, "is shorter than it says")
        left -= len(piece)
        yield piece
        work.report(source.tell(), source.size)
        work.check()


def _unpack_zip(source: _Source, folder: Path, contents: Contents, work: Work) -> None:
    with contextlib.ExitStack() as opened:
        with _parsing():
            archive = opened.enter_context(zipfile.ZipFile(source))
            members = archive.infolist()
        files: list[tuple[str, zipfile.ZipInfo]] = []
        for member in members:
            work.check()
            kind = _zip_kind(member)
            if kind == stat.S_IFDIR:
                contents.add_folder(member.filename)
            elif kind == stat.S_IFLNK:
                contents.add_link(member.filename, _zip_link(archive, member), symbolic=True)
            else:
                files.append((contents.add_file(member.filename, member.file_size), member))
        total = contents.total
        ensure_space(folder, total)
        work.report(0, total)
        done = 0
        _make_folders(folder, contents)
        for name, member in files:
            _write(folder / name, _zip_pieces(archive, member, work, done, total), _mode(member))
            done += member.file_size
    _complete(folder, contents, work)
    work.report(total, total)


def _zip_kind(member: zipfile.ZipInfo) -> int:
    """S_IFREG, S_IFDIR or S_IFLNK.

    Raises:
        ArchiveError: it is another kind, or one that is not read here.
    """
    # `zipfile` cuts a name at a NUL, and makes slashes of backslashes on Windows.
    parts_of(member.orig_filename)
    if member.filename != member.orig_filename:
        raise refused(member.orig_filename, "has two names")
    if member.flag_bits & _ENCRYPTED:
        raise refused(member.filename, "is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refused(member.filename, "is packed in a way that is not read here")
    kind = stat.S_IFMT(_mode(member))
    if member.is_dir():
        if kind not in (0, stat.S_IFDIR) or member.file_size:
            raise refused(member.filename, "is a folder and something else")
        return stat.S_IFDIR
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise refused(member.filename, "is neither a file nor a folder nor a link")
    return kind or stat.S_IFREG


def _mode(member: zipfile.ZipInfo) -> int:
    """The mode that a Unix has given it; 0 if there was none."""
    return member.external_attr >> 16 if member.create_system == 3 else 0


def _zip_link(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    if member.file_size > _MOST_TARGET:
        raise refused(member.filename, "is a link with too long a target")
    with _parsing(member.filename):
        return b"".join(_zip_pieces(archive, member, Work(), 0, 0)).decode()


def _zip_pieces(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, work: Work, before: int, total: int
) -> Iterator[bytes]:
    # `zipfile` never gives more than the stated size, so that a lie would go unnoticed: ask for one byte more.
    wanted = copy.copy(member)
    wanted.file_size += 1
    done = 0
    with contextlib.ExitStack() as opened:
        with _parsing(member.filename):
            file = opened.enter_context(archive.open(wanted))
        while True:
            with _parsing(member.filename):
                piece = file.read(_PIECE)
            done += len(piece)
            if done > member.file_size or (not piece and done < member.file_size):
                raise refused(member.filename, f"is {'longer' if piece else 'shorter'} than it says")
            if not piece:
                return
            yield piece
            work.report(before + done, total)
            work.check()


# ---- writing


def _make_folders(folder: Path, contents: Contents) -> None:
    for name in contents.new_folders():
        path = folder / name
        try:
            path.mkdir(0o700)
        except OSError as error:
            raise write_error(error, path) from error


def _write(path: Path, pieces: Iterable[bytes], mode: int) -> None:
    """A new file; of `mode` counts only whether anybody may run it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags, 0o700 if mode & 0o111 else 0o600), "wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise write_error(error, path) from error


def _complete(folder: Path, contents: Contents, work: Work) -> None:
    """What can be made only when all files are there: folders without any, and links."""
    links = contents.links()
    if not contents.files:
        raise ArchiveError("there is no file in the archive")
    _make_folders(folder, contents)
    for name, target in links.items():
        work.check()
        path, origin = folder / name, folder / target
        try:
            os.link(origin, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise write_error(error, path) from error
            contents.add_bytes(name, contents.files[target])  # a disk without hard links
            ensure_space(folder, contents.files[target])
            _write(path, _copied(origin, work), origin.stat().st_mode)


def _copied(path: Path, work: Work) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            work.check()
            yield piece
