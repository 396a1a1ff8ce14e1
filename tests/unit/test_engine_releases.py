"""Builds on the disk: which folders count as one, what is deleted and what is not, and links that lead elsewhere."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.downloads.work import Work
from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.releases import Installed, Releases
from genai_notebook.errors import BinaryError, DownloadError, FileSystemError
from tests.fakes.release_server import Member, tar_gz
from tests.fakes.releases import Shelf, library_archive, without_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: links and modes of POSIX")

PROGRAM = b"#!/bin/sh\necho 'version: 7 (x)'\n"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        yield shelf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of our business."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "llama-server").write_bytes(PROGRAM)
    (path / "llama-server").chmod(0o755)
    (path / "precious").write_text("x")
    return path


def yes(_: Installed) -> None:
    """Nothing is wrong with it."""


def install(shelf: Shelf, folder: Path, build: Build, accept: Any = yes) -> Installed:
    return Releases(folder, shelf.url).install(build, Work(), accept)


def names(folder: Path) -> list[str]:
    """Everything below a folder but locks."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


# ---- a good one


def test_a_build_is_whole_and_private(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    found = install(shelf, folder, build)
    assert found == Releases(folder).find(build)
    assert found.folder == folder / "llama" / "b2-cpu"
    assert found.program.read_bytes() == PROGRAM
    assert found.manifest.program == "llama-b9860/llama-server"
    assert (found.program.parent / "libllama.so.0").is_file()
    for path in (folder, found.folder, found.folder.parent, folder / ".incoming"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert names(folder / ".incoming") == []


def test_what_is_here_is_not_fetched_again(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    first = install(shelf, folder, build)
    asked = shelf.gets(build.archive)
    tried: list[Installed] = []
    assert install(shelf, folder, build, tried.append) == first
    assert tried == [first]
    assert shelf.gets(build.archive) == asked


def test_what_is_here_and_does_not_run_is_replaced(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    first = install(shelf, folder, build)
    first.program.write_bytes(b"half of it")  # a disk that was full, say
    asked = shelf.gets(build.archive)

    def whole(installed: Installed) -> None:
        if installed.program.read_bytes() != PROGRAM:
            raise BinaryError("it does not run")

    assert install(shelf, folder, build, whole) == first
    assert first.program.read_bytes() == PROGRAM
    assert shelf.gets(build.archive) > asked


def test_what_is_here_and_is_refused_twice_is_an_error(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    install(shelf, folder, build)

    def no(_: Installed) -> None:
        raise BinaryError("it does not run")

    with pytest.raises(BinaryError, match="it does not run"):
        install(shelf, folder, build, no)
    assert Releases(folder).find(build) is not None  # nothing is taken away before there is something better


def test_the_run_bit_is_set_where_an_archive_has_lost_it(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", b"", archive=tar_gz(Member("llama-server", PROGRAM, 0o644)))
    assert os.access(install(shelf, folder, build).program, os.X_OK)


def test_a_folder_of_the_program_s_name_is_no_program(shelf: Shelf, folder: Path) -> None:
    archive = tar_gz(Member("llama-server/", kind="folder"), Member("llama-server/llama-server", PROGRAM, 0o755))
    build = shelf.add("llama", "cpu", b"", archive=archive)
    assert install(shelf, folder, build).manifest.program == "llama-server/llama-server"


def test_the_better_program_is_the_one(shelf: Shelf, folder: Path) -> None:
    archive = tar_gz(Member("sd-cli", PROGRAM, 0o755), Member("bin/sd-server", PROGRAM, 0o755))
    build = shelf.add("diffusion", "cpu", b"", archive=archive)
    assert install(shelf, folder, build).manifest.program == "bin/sd-server"
    only = shelf.add("diffusion", "vulkan", b"", archive=tar_gz(Member("sd-cli", PROGRAM, 0o755)))
    assert install(shelf, folder, only).manifest.program == "sd-cli"


def test_an_archive_without_the_program(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cpu", b"", archive=without_program())
    with pytest.raises(BinaryError, match="has no llama-server in it"):
        install(shelf, folder, build)
    assert names(folder) == []


def test_what_is_refused_leaves_nothing(shelf: Shelf, folder: Path) -> None:
    class RefusedError(Exception):
        pass

    seen: list[Installed] = []

    def no(installed: Installed) -> None:
        assert installed.program.is_file()
        seen.append(installed)
        raise RefusedError

    build = shelf.add("llama", "cpu", PROGRAM)
    with pytest.raises(RefusedError):
        install(shelf, folder, build, no)
    assert len(seen) == 1
    assert names(folder) == []


def test_a_runtime_is_fetched_once_for_two_builds_and_goes_with_the_last(shelf: Shelf, folder: Path) -> None:
    libraries = library_archive()
    first = shelf.add("llama", "cuda", PROGRAM, format="zip", runtime=libraries)
    second = shelf.add("diffusion", "cuda", PROGRAM, format="zip", runtime=libraries)
    one, two = install(shelf, folder, first), install(shelf, folder, second)
    assert first.runtime is not None
    assert first.runtime == second.runtime
    assert shelf.gets(first.runtime) == 1
    assert one.libraries is not None
    assert one.libraries == two.libraries
    assert (one.libraries / "libcudart.so.12").is_file()
    releases = Releases(folder)
    releases.remove(one)
    assert releases.find(first) is None
    assert releases.find(second) == two
    releases.remove(two)
    assert names(folder) == []
    assert list((folder / "runtimes").iterdir()) == []


def test_a_build_whose_runtime_is_gone_is_none(shelf: Shelf, folder: Path) -> None:
    build = shelf.add("llama", "cuda", PROGRAM, runtime=library_archive())
    found = install(shelf, folder, build)
    assert found.libraries is not None
    (found.libraries / "libcudart.so.12").unlink()
    found.libraries.rmdir()
    assert Releases(folder).find(build) is None
    assert install(shelf, folder, build) == found


# ---- older releases


def unused_for(installed: Installed, days: float) -> None:
    os.utime(installed.folder / "install.json", (time.time() - days * 86_400,) * 2)


def test_unused_older_releases_of_the_variant_are_retired_and_no_others(shelf: Shelf, folder: Path) -> None:
    old = install(shelf, folder, shelf.add("llama", "cpu", PROGRAM, tag="b1"))
    other = install(shelf, folder, shelf.add("llama", "vulkan", PROGRAM, tag="b1"))
    pictures = install(shelf, folder, shelf.add("diffusion", "cpu", PROGRAM, tag="b1"))
    new = install(shelf, folder, shelf.add("llama", "cpu", PROGRAM, tag="b2"))
    for each in (old, other, pictures, new):
        unused_for(each, 8)
    releases = Releases(folder)
    assert [each.manifest.tag for each in releases.all_of("llama")] == ["b2", "b1", "b1"]
    releases.retire(new)
    assert sorted(each.folder for each in releases.all_of("llama")) == sorted([new.folder, other.folder])
    assert releases.all_of("diffusion") == [pictures]
    assert not old.folder.exists()


def test_two_environments_with_different_pins_leave_each_other_s_builds(shelf: Shelf, folder: Path) -> None:
    one = install(shelf, folder, shelf.add("llama", "cpu", PROGRAM, tag="b1"))
    two = install(shelf, folder, shelf.add("llama", "cpu", PROGRAM, tag="b2"))
    releases = Releases(folder)
    for day in range(6):
        unused_for((one, two)[day % 2], 6)
        releases.retire((two, one)[day % 2])
        assert len(releases.all_of("llama")) == 2
    unused_for(one, 30)
    releases.retire(one)  # used again after a month: that is what counts
    assert time.time() - (one.folder / "install.json").stat().st_mtime < 60
    releases.retire(two)
    assert len(releases.all_of("llama")) == 2
    unused_for(one, 7.1)
    releases.retire(two)
    assert [each.folder for each in releases.all_of("llama")] == [two.folder]


def test_a_build_of_the_same_name_and_another_archive_is_another_one(shelf: Shelf, folder: Path) -> None:
    first = shelf.add("llama", "cpu", PROGRAM)
    install(shelf, folder, first)
    second = shelf.add("llama", "cpu", PROGRAM + b"# 2\n")
    assert Releases(folder).find(second) is None
    assert install(shelf, folder, second).program.read_bytes() == PROGRAM + b"# 2\n"
    assert Releases(folder).find(first) is None


# ---- folders that are no builds


def plant(folder: Path, manifest: Any, *, kind: str = "llama") -> Path:
    """A folder with an install.json of somebody else's making, and a program."""
    place = folder / kind / "b2-cpu"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "llama-server").write_bytes(PROGRAM)
    (place / "bin" / "llama-server").chmod(0o755)
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (place / "install.json").write_bytes(content)
    return place


GOOD = {"kind": "llama", "variant": "cpu", "tag": "b2", "program": "bin/llama-server", "archive": "0" * 64}


def test_a_planted_manifest_that_is_good_would_count(folder: Path) -> None:
    plant(folder, GOOD)
    assert [each.manifest.tag for each in Releases(folder).all_of("llama")] == ["b2"]


@pytest.mark.parametrize(
    "manifest",
    [
        {**GOOD, "program": "../../bin/sh"},
        {**GOOD, "program": "../../../../../../../../bin/sh"},
        {**GOOD, "program": "/bin/sh"},
        {**GOOD, "program": "bin/../../../../outside/llama-server"},
        {**GOOD, "program": "bin/../bin/llama-server"},
        {**GOOD, "program": "bin"},
        {**GOOD, "program": "nothing"},
        {**GOOD, "program": ""},
        {**GOOD, "kind": "diffusion"},
        {**GOOD, "kind": "audio"},
        {**GOOD, "variant": "x"},
        {**GOOD, "tag": "../x"},
        {**GOOD, "tag": "b2\n"},
        {**GOOD, "tag": ""},
        {**GOOD, "runtime": "../../outside"},
        {**GOOD, "runtime": "f" * 64},
        {key: value for key, value in GOOD.items() if key != "program"},
        [],
        b"",
        b"{",
        b"\xff",
    ],
)
def test_a_manifest_that_leads_out_or_is_nonsense_is_none(folder: Path, outside: Path, manifest: Any) -> None:
    plant(folder, manifest)
    assert Releases(folder).all_of("llama") == []


def test_a_program_with_a_nul_in_its_name(folder: Path) -> None:
    plant(folder, {**GOOD, "program": "bin/llama-server\0x"})
    assert Releases(folder).all_of("llama") == []


def test_a_linked_program_is_none(folder: Path, outside: Path) -> None:
    place = plant(folder, GOOD)
    (place / "bin" / "llama-server").unlink()
    (place / "bin" / "llama-server").symlink_to(outside / "llama-server")
    assert Releases(folder).all_of("llama") == []


def test_a_linked_folder_in_a_build_is_none(folder: Path, outside: Path) -> None:
    place = plant(folder, GOOD)
    (place / "bin").rename(place / "was")
    (place / "bin").symlink_to(outside)
    assert Releases(folder).all_of("llama") == []


def test_a_linked_build_is_none_and_what_it_leads_to_stays(shelf: Shelf, folder: Path, outside: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    (outside / "install.json").write_text(
        json.dumps({**GOOD, "program": "llama-server", "archive": build.archive.sha256})
    )
    (folder / "llama").mkdir(parents=True)
    (folder / "llama" / "b2-cpu").symlink_to(outside)
    releases = Releases(folder, shelf.url)
    assert releases.find(build) is None
    assert releases.all_of("llama") == []
    found = install(shelf, folder, build)
    assert not (folder / "llama" / "b2-cpu").is_symlink()
    releases.remove(found)
    assert names(outside) == ["install.json", "llama-server", "precious"]
    assert names(folder) == []


def test_a_link_that_leads_nowhere_is_replaced(shelf: Shelf, folder: Path) -> None:
    (folder / "llama").mkdir(parents=True)
    (folder / "llama" / "b2-cpu").symlink_to(folder / "nowhere")
    assert install(shelf, folder, shelf.add("llama", "cpu", PROGRAM)).program.is_file()


def test_a_linked_runtime_is_none(shelf: Shelf, folder: Path, outside: Path) -> None:
    build = shelf.add("llama", "cuda", PROGRAM, runtime=library_archive())
    found = install(shelf, folder, build)
    assert found.libraries is not None
    found.libraries.rename(found.libraries.with_name("was"))
    found.libraries.symlink_to(outside)
    releases = Releases(folder)
    assert releases.find(build) is None
    releases.remove(found)
    assert names(outside) == ["llama-server", "precious"]


def test_deleting_follows_no_link(shelf: Shelf, folder: Path, outside: Path) -> None:
    found = install(shelf, folder, shelf.add("llama", "cpu", PROGRAM))
    (found.folder / "more").symlink_to(outside)
    (found.folder / "precious").hardlink_to(outside / "precious")
    Releases(folder).remove(found)
    assert names(outside) == ["llama-server", "precious"]
    assert not found.folder.exists()


def test_a_linked_room_is_emptied_of_nothing(shelf: Shelf, folder: Path, outside: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    (outside / "unpacked").mkdir()
    (outside / "unpacked" / "x").write_text("x")
    (folder / ".incoming").mkdir(parents=True)
    (folder / ".incoming" / "llama-b2-cpu").symlink_to(outside)
    assert install(shelf, folder, build).program.is_file()
    assert names(outside) == ["llama-server", "precious", "unpacked/x"]


def test_tidying_up_follows_no_link(shelf: Shelf, folder: Path, outside: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    (outside / "old-x").mkdir()
    (outside / "old-x" / "y").write_text("x")
    (outside / "folder").mkdir()
    for path in (outside / "old-x", outside / "folder"):
        os.utime(path, (1, 1))
    folder.mkdir()
    (folder / ".incoming").symlink_to(outside)
    found = install(shelf, folder, build)
    Releases(folder).remove(found)
    assert (outside / "folder").is_dir()
    assert (outside / "old-x" / "y").is_file()


def test_a_link_for_all_of_our_folder_is_the_user_s_own(shelf: Shelf, folder: Path, outside: Path) -> None:
    folder.symlink_to(outside)  # a larger disk, say
    build = shelf.add("llama", "cpu", PROGRAM)
    found = install(shelf, folder, build)
    assert Releases(folder).find(build) == found


# ---- what is left over


def test_what_nobody_has_come_back_for_goes(shelf: Shelf, folder: Path) -> None:
    incoming = folder / ".incoming"
    for name, age in (("old-x", 7200), ("old-y", 60), ("llama-b0-cpu", 15 * 86_400), ("llama-b1-cpu", 86_400)):
        (incoming / name).mkdir(parents=True)
        (incoming / name / "file").write_text("x")
        os.utime(incoming / name, (time.time() - age,) * 2)
    install(shelf, folder, shelf.add("llama", "cpu", PROGRAM))
    assert names(incoming) == ["llama-b1-cpu/file", "old-y/file"]


def test_what_somebody_is_just_bringing_stays(shelf: Shelf, folder: Path) -> None:
    from filelock import FileLock

    room = folder / ".incoming" / "llama-b0-cpu"
    room.mkdir(parents=True)
    (room / "file").write_text("x")
    os.utime(room, (1, 1))
    with FileLock(f"{room}.lock"):
        install(shelf, folder, shelf.add("llama", "cpu", PROGRAM))
    assert (room / "file").is_file()


def test_cancelled_work_begins_nothing(shelf: Shelf, folder: Path) -> None:
    work = Work()
    work.cancel()
    with pytest.raises(DownloadError, match="cancelled"):
        Releases(folder, shelf.url).install(shelf.add("llama", "cpu", PROGRAM), work, yes)
    assert shelf.requests == []


def test_a_file_where_our_folder_should_be(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("x")
    with pytest.raises(FileSystemError):
        install(shelf, tmp_path / "engines", shelf.add("llama", "cpu", PROGRAM))
    assert Releases(tmp_path / "engines").all_of("llama") == []
