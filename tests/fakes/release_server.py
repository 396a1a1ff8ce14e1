"""A server of releases on loopback, and archives like those of the engines, well made and hostile.

    with ReleaseServer(folder) as server:
        server.put(llama_path("ubuntu-x64.tar.gz"), engine_archive(fake.path))

Behaviours of `put`, which may be combined; with ``times=n`` n answers for that path misbehave, and then none:

    status            answer with this status
    truncate          close the connection where the file's byte of that number should come
    stall_after       send nothing more there, until the server is closed
    bytes_per_second  for each connection
    corrupt           one bit in the file's middle is wrong
    no_ranges         every answer is the whole file

Positions are those in the file, not in one answer: however often a client comes back, it gets no further, and answers
that end before are good ones.
"""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

from tests.fakes.file_server import FileServer, ServedFile

Format = Literal["tar.gz", "zip"]
TAG = "b9860"
#: Where a member is to be put as upstream does it.
UPSTREAM = "<upstream>"
#: How often a slow answer sends something, per second.
_PIECES = 20


class ReleaseServer(FileServer):
    """Serves what lies in `folder`, by its path there, and what `put` adds, with ETags and ranges as GitHub does."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        if folder is not None and folder.is_dir():
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                self.put(path.relative_to(folder).as_posix(), path.read_bytes())

    def __enter__(self) -> ReleaseServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, path: str, data: bytes, **behaviour: Any) -> ReleasedFile:
        """Serve `data` from now on, instead of what was there; the words are in the module's text."""
        path = "/" + path.lstrip("/")
        file = ReleasedFile(self, self.url + path, data, **behaviour)
        self.routes[path] = file.answer
        return file

    @property
    def requests(self) -> list[tuple[str, str, str | None]]:
        """Method, path and range of each request so far."""
        return [(method, path, headers.get("Range")) for method, path, headers in list(self.seen)]


class ReleasedFile(ServedFile):
    """A file of a release, and how it is served."""

    def __init__(
        self,
        server: FileServer,
        url: str,
        body: bytes,
        *,
        status: int | None = None,
        truncate: int | None = None,
        stall_after: int | None = None,
        bytes_per_second: int | None = None,
        corrupt: bool = False,
        no_ranges: bool = False,
        times: int | None = None,
    ) -> None:
        super().__init__(url, body)
        self._server, self._left, self._counting = server, times, threading.Lock()
        self._status, self._truncate, self._stall = status, truncate, stall_after
        self._speed, self._corrupt, self.ranges = bytes_per_second, corrupt, not no_ranges

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self._status is not None and self._spend():
            handler.send_error(self._status)
        else:
            super().answer(handler)

    def _spend(self) -> bool:
        """Whether to misbehave once more."""
        with self._counting:
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, begin: int, end: int) -> None:
        if handler.command == "HEAD":
            return
        middle = len(body) // 2
        stops = [stop for stop in (self._truncate, self._stall) if stop is not None]
        concerned = any(stop < end for stop in stops) or (self._corrupt and begin <= middle < end)
        if not ((concerned or self._speed is not None) and self._spend()):
            super()._send(handler, body, begin, end)
            return
        if self._corrupt:
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        last = max(begin, min([end, *stops]))
        piece = self.piece if self._speed is None else max(1, self._speed // _PIECES)
        for at in range(begin, last, piece):
            part = body[at : min(at + piece, last)]
            handler.wfile.write(part)
            with self._lock:
                self.sent += len(part)
            if self._speed is not None:
                time.sleep(len(part) / self._speed)
        if last < end:
            if self._stall is not None and self._stall == min(stops):
                self._server.hold.wait(120)
            raise ConnectionError


def llama_path(asset: str, tag: str = TAG) -> str:
    """Where upstream has an archive of llama.cpp, e.g. of 'ubuntu-x64.tar.gz'."""
    return f"ggml-org/llama.cpp/releases/download/{tag}/llama-{tag}-bin-{asset}"


def sd_path(asset: str, tag: str = "master-782-b290693") -> str:
    """Where upstream has an archive of stable-diffusion.cpp, e.g. of 'win-cpu-x64'."""
    return f"leejet/stable-diffusion.cpp/releases/download/{tag}/sd-master-{tag.rpartition('-')[2]}-bin-{asset}.zip"


# ---- archives


def engine_archive(
    program: Path | bytes,
    *,
    kind: Literal["llama", "sd"] = "llama",
    format: Format | None = None,
    nested: str | None = UPSTREAM,
    extra: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
) -> bytes:
    """An archive like upstream's, with `program` for its server and stubs for the rest.

    Args:
        format: llama.cpp's for Linux is a tar.gz, stable-diffusion.cpp's a zip.
        nested: the folder that all is in, None for none. llama.cpp has one named after the tag in its tar.gz, and none
            in a zip; stable-diffusion.cpp has none.
        extra: further files, by name.
        links: symbolic links, by name, instead of those between the versions of llama.cpp's libraries.
    """
    body = program.read_bytes() if isinstance(program, Path) else program
    format = format or ("tar.gz" if kind == "llama" else "zip")
    if nested == UPSTREAM:
        nested = f"llama-{TAG}" if kind == "llama" and format == "tar.gz" else None
    stub = b"#!/bin/sh\nexit 0\n"
    programs = {"llama-server": body, "llama-cli": stub} if kind == "llama" else {"sd-server": body, "sd-cli": stub}
    plain: dict[str, bytes] = {"LICENSE": b"MIT License\n"} if kind == "llama" else {"ggml.txt": b"MIT License\n"}
    aliases: dict[str, str] = {}
    for library in ("llama", "ggml", "ggml-base") if kind == "llama" else ("stable-diffusion",):
        content = f"\x7fELF {library}".encode()
        if kind == "llama" and format == "tar.gz":
            whole = f"lib{library}.so.0.0.{TAG[1:]}"
            programs[whole] = content
            aliases |= {f"lib{library}.so": f"lib{library}.so.0", f"lib{library}.so.0": whole}
        else:
            programs[f"lib{library}.so"] = content
    members = {name: (data, 0o755) for name, data in programs.items()}
    members |= {name: (data, 0o644) for name, data in {**plain, **(extra or {})}.items()}
    prefix = f"{nested}/" if nested else ""
    aliases = dict(links) if links is not None else aliases
    # A link may come before what it leads to, as it does upstream, where folders list their files in no order.
    pack = tar_gz if format == "tar.gz" else zipped
    folder = [Member(prefix, kind="folder")] if prefix else []
    return pack(
        *folder,
        *(Member(prefix + name, kind="symlink", target=target) for name, target in aliases.items()),
        *(Member(prefix + name, data, mode) for name, (data, mode) in members.items()),
    )


class Member:
    """One member of an archive. `size` is what its header says, where that is a lie."""

    def __init__(
        self,
        name: str,
        data: bytes = b"",
        mode: int = 0o644,
        *,
        kind: Literal["file", "folder", "symlink", "hardlink", "fifo", "device"] = "file",
        target: str = "",
        size: int | None = None,
    ) -> None:
        self.name, self.data, self.mode = name, data, mode
        self.kind, self.target, self.size = kind, target, size


_TAR_KINDS = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}
_MODES = {"folder": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO, "device": stat.S_IFCHR}


def tar_gz(*members: Member, end: bool = True) -> bytes:
    """A .tar.gz; without `end` the tar in it breaks off behind the last member."""
    plain = io.BytesIO()
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.type, info.mode, info.linkname = _TAR_KINDS[member.kind], member.mode, member.target
        info.size = len(member.data) if member.size is None else member.size
        plain.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        plain.write(member.data + bytes(-len(member.data) % tarfile.BLOCKSIZE))
    return gzipped(plain.getvalue() + bytes(2 * tarfile.BLOCKSIZE if end else 0))


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def zipped(*members: Member, system: int = 3, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A .zip, made on a Unix (3) or another `system`. A lie about a size is told wherever the size stands."""
    out = io.BytesIO()
    lies: dict[str, int] = {}
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # two members of one name are what is wanted
        for member in members:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = member.name  # as it is: the constructor mends names
            info.create_system, info.compress_type = system, method
            info.external_attr = (_MODES.get(member.kind, stat.S_IFREG) | member.mode) << 16
            archive.writestr(info, member.target if member.kind == "symlink" else member.data)
            if member.size is not None:
                lies[member.name] = member.size
    data = bytearray(out.getvalue())
    for name, size in lies.items():
        _lie(data, name.encode(), size)
    return bytes(data)


def _lie(data: bytearray, name: bytes, size: int) -> None:
    """Write another unpacked size for `name` (below 4 GiB) into its two headers."""
    for signature, at, length in ((b"PK\3\4", 22, 30), (b"PK\1\2", 24, 46)):
        begin = 0
        while (begin := data.find(signature, begin)) >= 0:
            if data[begin + length : begin + length + len(name)] == name:
                struct.pack_into("<I", data, begin + at, size)
            begin += 4


#: What must never be unpacked, by what is wrong with it; each makes its archive when it is called, quickly.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "tar: leads out": lambda: tar_gz(Member("../planted", b"x")),
    "tar: leads out later": lambda: tar_gz(Member("a/good", b"x"), Member("a/../../planted", b"x")),
    "tar: absolute": lambda: tar_gz(Member("/tmp/planted", b"x")),
    "tar: symbolic link out": lambda: tar_gz(
        Member("a", kind="symlink", target="../.."), Member("a/planted", b"x"), Member("b", b"x")
    ),
    "tar: symbolic link to a file outside": lambda: tar_gz(
        Member("b", b"x"), Member("a", kind="symlink", target="/etc/passwd")
    ),
    "tar: hard link out": lambda: tar_gz(Member("b", b"x"), Member("a", kind="hardlink", target="../../etc/passwd")),
    "tar: device": lambda: tar_gz(Member("b", b"x"), Member("a", kind="device")),
    "tar: too large": lambda: tar_gz(Member("b", b"x"), Member("a", size=9 << 30)),
    "tar: breaks off": lambda: tar_gz(Member("a", bytes(range(256)) * 400))[:-300],
    "zip: leads out": lambda: zipped(Member("../planted", b"x")),
    "zip: absolute": lambda: zipped(Member("/tmp/planted", b"x")),
    "zip: drive": lambda: zipped(Member("C:\\planted", b"x")),
    "zip: symbolic link out": lambda: zipped(Member("b", b"x"), Member("a", kind="symlink", target="../../planted")),
    "zip: longer than it says": lambda: zipped(Member("a", bytes(64 << 20), size=100)),
    "zip: too large": lambda: zipped(*(Member(f"a{n}", b"x", size=0xFFFFFFF0) for n in range(3))),
    "zip: breaks off": lambda: zipped(Member("a", bytes(range(256)) * 400))[:-300],
}
