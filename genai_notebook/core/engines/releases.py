"""Builds of releases on this disk: fetched, verified, unpacked aside, tried, and put into place as a whole.

    engines/llama/b9860-vulkan/       one build, with an install.json that says what it is
    engines/runtimes/<digest>/        libraries that several builds share, by the SHA-256 of their archive
    engines/.incoming/<name>/         what is on its way: archives, and what is being unpacked
    engines/.incoming/<name>.lock     held by the process that installs it

A process may be killed at any moment: what has a name outside of `.incoming` is whole, and what was there before stays
until `retire` is called. A download goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from genai_notebook.core.downloads.disk import write_error
from genai_notebook.core.downloads.fetch import Fetch, fetch
from genai_notebook.core.downloads.locks import locked
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.engines.archives import ArchiveError, unpack
from genai_notebook.core.engines.catalog import GITHUB, Archive, Build
from genai_notebook.core.engines.engine import PROGRAMS, Kind, Variant
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import BinaryError, DownloadError, FileSystemError, InsufficientResourcesError

_MANIFEST = "install.json"
#: Seconds without use after which a release goes that another one takes the place of.
UNUSED = 7 * 86_400
#: Seconds after which nobody is expected to come back for the rest of an archive.
_KEPT = 14 * 86_400

#: Called with the program before it is put into place; raises to refuse it.
Try = Callable[["Installed"], None]


class Manifest(Struct, frozen=True, kw_only=True, rename="camel"):
    """An `install.json`. `program` is relative to its folder; digests are those of the archives."""

    kind: Kind
    variant: Variant
    tag: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}\Z")]
    program: str
    archive: str
    runtime: str | None = None


class Installed(Struct, frozen=True, kw_only=True):
    """A build that is on this disk. `libraries`: the folder of its runtime, where it needs one."""

    folder: Path
    program: Path
    manifest: Manifest
    libraries: Path | None = None


class Releases:
    """The builds below one folder.

    Args:
        folder: `Settings.engines`; made at the first installation.
        mirror: what takes the place of ``https://github.com``; None: nothing does.
    """

    def __init__(self, folder: Path, mirror: str | None = None) -> None:
        self._folder = folder
        self._incoming = folder / ".incoming"
        self.mirror = (mirror or GITHUB).rstrip("/")

    def find(self, build: Build) -> Installed | None:
        """That very build, if it is here."""
        found = self._read(self._place(build))
        return found if found is not None and found.manifest.archive == build.archive.sha256 else None

    def all_of(self, kind: Kind) -> list[Installed]:
        """Every build of that kind that is here, the latest first."""
        places = self._folders(self._folder / kind)
        found = [installed for place in places if (installed := self._read(place)) is not None]
        return sorted(found, key=lambda installed: _age(installed.folder))

    def install(self, build: Build, work: Work, accept: Try, *, connect_limit: float | None = None) -> Installed:
        """Bring a build here. One that is here already is returned at once; of two processes one does it, and the other
        waits. Blocks.

        Args:
            accept: tries the program before it is put into place.
            connect_limit: seconds for a connection.

        Raises:
            DownloadError, ChecksumError: an archive did not arrive, or is not the pinned one.
            BinaryError: there is no program in it, or it does not unpack.
            InsufficientResourcesError, FileSystemError: the disk is full, or cannot be written.
            Exception: what `accept` raised.
        """
        private_folder(private_folder(self._folder) / ".incoming")
        self._tidy_up()
        with self._room(f"{build.kind}-{_name(build)}", work) as room:
            if (found := self.find(build)) is not None and _is_good(found, accept):
                return found
            if build.runtime is not None:
                self._bring_runtime(build.runtime, work, connect_limit)
            archive = self._fetch(build.archive, room, work, connect_limit)
            aside = self._tried(build, archive, room, work, accept)
            self._put(aside, self._place(build))
            found = self.find(build)
            assert found is not None
            return found

    def remove(self, installed: Installed) -> None:
        """Delete a build, and the runtime that nobody else needs.

        Raises:
            FileSystemError: it is in use (Windows), or may not be deleted.
        """
        self._discard(installed.folder)
        needed = {other.libraries for kind in PROGRAMS for other in self.all_of(kind)}
        for folder in self._folders(self._folder / "runtimes"):
            if folder not in needed:
                with contextlib.suppress(FileSystemError):
                    self._discard(folder)

    def retire(self, proved: Installed) -> None:
        """Delete what `proved` takes the place of: releases of the same kind and variant that nobody has used for a
        week. Sooner would not do: two environments may pin different ones, and share this folder.
        """
        with contextlib.suppress(OSError):
            os.utime(proved.folder / _MANIFEST)
        manifest = proved.manifest
        name = f"{manifest.kind}-{_name(manifest)}"
        with contextlib.suppress(OSError, FileSystemError, DownloadError), self._room(name, _impatient()):
            pass  # what is left of its arrival, if that was cut off in its last moment
        for other in self.all_of(manifest.kind):
            same = other.manifest.variant == manifest.variant and other.folder != proved.folder
            if same and _age(other.folder / _MANIFEST, 0.0) > UNUSED:
                with contextlib.suppress(FileSystemError):
                    self.remove(other)

    # ---- what is here

    def _place(self, build: Build) -> Path:
        return self._folder / build.kind / _name(build)

    @staticmethod
    def _folders(folder: Path) -> list[Path]:
        if folder.is_symlink():
            return []  # what lies behind it is not ours
        try:
            with os.scandir(folder) as entries:
                found = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        return sorted(path for path in found if not path.name.startswith("."))

    def _read(self, folder: Path) -> Installed | None:
        """The build in a folder, or None where there is none that can be used."""
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None
        program = folder / manifest.program
        libraries = self._runtime(manifest.runtime) if manifest.runtime else None
        if manifest.kind != folder.parent.name or not self._holds(program) or not program.is_file():
            return None
        if libraries is not None and not (self._holds(libraries) and libraries.is_dir()):
            return None
        return Installed(folder=folder, program=program, manifest=manifest, libraries=libraries)

    def _holds(self, path: Path) -> bool:
        """Whether `path` really is where it says, below our folder: no link, and no `..`, leads out."""
        try:
            inside = path.relative_to(self._folder)
            root, real = (Path(os.path.realpath(each)) for each in (self._folder, path))
        except (OSError, ValueError):
            return False
        return ".." not in inside.parts and real == root / inside

    def _runtime(self, sha256: str) -> Path:
        return self._folder / "runtimes" / "".join(filter(str.isalnum, sha256))[:16]

    # ---- bringing one

    @contextlib.contextmanager
    def _room(self, name: str, work: Work) -> Iterator[Path]:
        """A folder for what is on its way, for one process at a time. It is gone afterwards when all went well."""
        room = self._incoming / name
        with locked(self._incoming / f"{name}.lock", work, lambda: work.enter("queued")):
            if room.is_symlink():
                room.unlink()
            private_folder(room)
            os.utime(room)
            yield room
            shutil.rmtree(room, ignore_errors=True)

    def _bring_runtime(self, archive: Archive, work: Work, connect_limit: float | None) -> None:
        place = self._runtime(archive.sha256)
        with self._room(f"runtime-{place.name}", work) as room:
            if not place.is_dir():
                fetched = self._fetch(archive, room, work, connect_limit)
                self._put(self._unpacked(fetched, room, work), place)

    def _tried(self, build: Build, archive: Path, room: Path, work: Work, accept: Try) -> Path:
        """The unpacked build, when `accept` has nothing against it."""
        try:
            aside = self._unpacked(archive, room, work)
            accept(self._describe(build, aside))
        except (DownloadError, InsufficientResourcesError, FileSystemError):  # cut off, or for want of room
            raise
        except BaseException:
            shutil.rmtree(room, ignore_errors=True)  # the same bytes would be refused again
            raise
        return aside

    def _fetch(self, archive: Archive, room: Path, work: Work, connect_limit: float | None) -> Path:
        work.enter("downloading")
        # The downloader has words of its own for what it does; of those only this one is news.
        inner = work.phases(lambda phase: work.enter("verifying") if phase == "verifying" else None)
        request = Fetch(url=f"{self.mirror}/{archive.path}", target=room / archive.file, sha256=archive.sha256)
        if connect_limit is not None:
            request.connect_limit = connect_limit
        return fetch(request, inner).path

    @staticmethod
    def _unpacked(archive: Path, room: Path, work: Work) -> Path:
        aside = room / "unpacked"
        if aside.is_symlink():
            aside.unlink()  # planted: nothing is unpacked where it leads
        shutil.rmtree(aside, ignore_errors=True)  # what a killed process has left
        work.enter("unpacking")
        try:
            unpack(archive, private_folder(aside), work)
        except ArchiveError as error:
            raise BinaryError(f"{archive.name} cannot be unpacked: {error}.", {"archive": archive.name}) from error
        return aside

    def _describe(self, build: Build, folder: Path) -> Installed:
        """Find the program, and write down what this is."""
        names = [f"{name}.exe" if build.platform.startswith("win32") else name for name in PROGRAMS[build.kind]]
        files = [path for path in sorted(folder.rglob("*"), reverse=True) if path.name in names and path.is_file()]
        found = {path.name: path for path in files}
        program = next((found[name] for name in names if name in found), None)
        if program is None:
            raise BinaryError(f"{build.archive.file} has no {names[0]} in it.", {"archive": build.archive.file})
        manifest = Manifest(
            kind=build.kind,
            variant=build.variant,
            tag=build.tag,
            program=program.relative_to(folder).as_posix(),
            archive=build.archive.sha256,
            runtime=build.runtime.sha256 if build.runtime else None,
        )
        try:
            program.chmod(0o700)  # an archive may have lost the run bit
            (folder / _MANIFEST).write_bytes(msgspec.json.encode(manifest))
        except OSError as error:
            raise write_error(error, folder / _MANIFEST) from error
        libraries = self._runtime(build.runtime.sha256) if build.runtime else None
        return Installed(folder=folder, program=program, manifest=manifest, libraries=libraries)

    # ---- folders as a whole

    def _put(self, aside: Path, place: Path) -> None:
        private_folder(place.parent)
        if os.path.lexists(place):
            self._discard(place)  # it was no build that could be used
        try:
            os.replace(aside, place)
        except OSError as error:
            raise FileSystemError("put into place", str(place), error) from error

    def _discard(self, folder: Path) -> None:
        """Delete a folder: first its name, at once, then what was in it."""
        trash = private_folder(self._incoming) / f"old-{folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            os.replace(folder, trash)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileSystemError("delete", str(folder), error, hint="Stop what uses it first.") from error
        if trash.is_symlink():
            trash.unlink(missing_ok=True)
        shutil.rmtree(trash, ignore_errors=True)

    def _tidy_up(self) -> None:
        """Remove what an interrupted deletion has left, and what nobody has come back for."""
        for folder in self._folders(self._incoming):
            with contextlib.suppress(OSError, FileSystemError, DownloadError):
                age = time.time() - folder.stat().st_mtime
                if folder.name.startswith("old-"):
                    if age > 3600:
                        shutil.rmtree(folder, ignore_errors=True)
                elif age > _KEPT:
                    with locked(self._incoming / f"{folder.name}.lock", _impatient()):
                        shutil.rmtree(folder, ignore_errors=True)


def _is_good(found: Installed, accept: Try) -> bool:
    """Whether a build that is here still runs; for one that does not a new copy of itself is brought."""
    try:
        accept(found)
    except Exception:
        return False
    return True


def _impatient() -> Work:
    """Work that waits for nothing."""
    work = Work()
    work.cancel()
    return work


def _age(path: Path, gone: float = float("inf")) -> float:
    """Seconds since it was written, put there or touched; `gone` where somebody has just removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return gone


def _name(build: Build | Manifest) -> str:
    return f"{build.tag}-{build.variant}"
