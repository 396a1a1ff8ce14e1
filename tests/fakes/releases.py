"""Releases that a test pins: a catalogue whose archives hold fakes, on a server of its own.

with Shelf() as shelf:
    shelf.add("llama", "cpu", fake)
    engines = BinaryManager(shelf.settings(home), catalog=shelf.catalog)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from genai_notebook.core.engines.catalog import Archive, Build
from genai_notebook.core.engines.engine import Kind, Variant
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.utilities import get_platform_key
from tests.fakes import FakeEngine
from tests.fakes.machine import Machine
from tests.fakes.release_server import Member, ReleasedFile, ReleaseServer, engine_archive, tar_gz, zipped

GIB = 1 << 30
#: A program that finds one of its libraries missing, as the dynamic loader says it.
NO_LIBRARY = b"""#!/bin/sh
echo "$0: error while loading shared libraries: libcuda.so.1: cannot open shared object file" >&2
exit 127
"""


class Shelf(ReleaseServer):
    """A server of releases, and the catalogue that pins what is on it, in the order in which it was put there."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog: list[Build] = []
        self.files: dict[str, ReleasedFile] = {}

    def __enter__(self) -> Shelf:
        return self

    def add(
        self,
        kind: Kind,
        variant: Variant,
        program: FakeEngine | bytes,
        *,
        tag: str = "b2",
        format: Literal["tar.gz", "zip"] = "tar.gz",
        archive: bytes | None = None,
        runtime: bytes | None = None,
        sha256: str | None = None,
        **behaviour: Any,
    ) -> Build:
        """Pin one more build, and serve it as `ReleaseServer.put` says.

        Args:
            archive: the archive, where it is not to be one like upstream's.
            runtime: the archive of its runtime.
            sha256: what is pinned, where that is not the archive's own.
        """
        if archive is None:
            body = program.path if isinstance(program, FakeEngine) else program
            archive = engine_archive(body, kind="llama" if kind == "llama" else "sd", format=format)
        path = f"{kind}/releases/download/{tag}/{kind}-{tag}-bin-{variant}.{format}"
        self.put(path, archive, **behaviour)
        build = Build(
            kind=kind,
            platform=get_platform_key(),
            variant=variant,
            tag=tag,
            archive=Archive(path, sha256 or hashlib.sha256(archive).hexdigest()),
            runtime=self._runtime(runtime) if runtime is not None else None,
        )
        self.catalog.append(build)
        return build

    def _runtime(self, data: bytes) -> Archive:
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"runtimes/cudart-{sha256[:8]}.zip"
        self.put(path, data)
        return Archive(path, sha256)

    def put(self, path: str, data: bytes, **behaviour: Any) -> ReleasedFile:
        self.files[path] = super().put(path, data, **behaviour)
        return self.files[path]

    def again(self, build: Build, archive: bytes, **behaviour: Any) -> ReleasedFile:
        """Serve a build in another way from now on."""
        return self.put(build.archive.path, archive, **behaviour)

    def gets(self, archive: Archive) -> int:
        """How often an archive, or a part of it, was asked for."""
        return sum(path.partition("?")[0] == f"/{archive.path}" for _, path, _ in self.requests)

    def file(self, build: Build) -> ReleasedFile:
        """How a build's archive is served right now."""
        return self.files[build.archive.path]

    def settings(self, home: Path, **more: Any) -> Settings:
        return Settings(home=home, mirror=self.url, **more)

    def manager(self, home: Path, machine: Machine | None = None, **options: Any) -> BinaryManager:
        """A manager for these releases; the machine has no GPU unless it is another one."""
        settings = self.settings(home)
        system = SystemInfo(settings, probe=machine or Machine(ram=16 * GIB))
        return BinaryManager(settings, system=system, catalog=self.catalog, **options)


def library_archive(name: str = "libcudart.so.12", size: int = 1000) -> bytes:
    """The archive of a GPU maker's libraries."""
    return zipped(Member(name, b"\x7fELF" + bytes(size), 0o755))


def without_program() -> bytes:
    """An archive that holds everything but the server."""
    return tar_gz(Member("llama-b2/llama-cli", b"#!/bin/sh\nexit 0\n", 0o755), Member("llama-b2/LICENSE", b"MIT"))
