"""Archives unpacked: what comes out of good ones, and that nothing bad comes out of the others."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_notebook.core.downloads.fetch import Fetch, fetch
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.core.engines import archives
from genai_notebook.core.engines.archives import ArchiveError, unpack
from genai_notebook.core.engines.check import check_runs
from genai_notebook.errors import DownloadError, FileSystemError, InsufficientResourcesError
from tests.fakes import FakeEngine
from tests.fakes.release_server import (
    HOSTILE,
    Member,
    ReleaseServer,
    engine_archive,
    gzipped,
    llama_path,
    tar_gz,
    zipped,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")
#: Does not compress, so that a small archive has many pieces.
NOISE = os.urandom(3 << 20)
Pack = Callable[..., bytes]
both = pytest.mark.parametrize("pack", [tar_gz, zipped], ids=["tar.gz", "zip"])


class Place:
    """An archive and the folder that it is unpacked to, in a folder with a neighbour that must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.outer, self.archive, self.folder = folder, folder / "archive", folder / "there"
        self.folder.mkdir(0o700)
        (folder / "neighbour").write_text("as it was")

    def unpack(self, data: bytes, work: Work | None = None, **limits: int) -> dict[str, bytes]:
        """The content of each file that is there afterwards, by name."""
        self.archive.write_bytes(data)
        unpack(self.archive, self.folder, work or Work(), **limits)
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}

    def refuse(self, data: bytes, match: str, **limits: int) -> None:
        with pytest.raises(ArchiveError, match=match):
            self.unpack(data, **limits)
        self.check()

    def check(self) -> None:
        """Nothing is there outside, and nothing odd inside."""
        assert {path.name for path in self.outer.iterdir()} <= {"archive", "there", "neighbour"}
        assert (self.outer / "neighbour").read_text() == "as it was"
        for path in self.folder.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert os.name != "posix" or not mode & 0o7077, path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "place"
    folder.mkdir()
    return Place(folder)


# ---- what comes out


@both
def test_files_and_folders(place: Place, pack: Pack) -> None:
    members = [Member("./", kind="folder"), Member("./a", b"1"), Member("b//c/d", NOISE), Member("b/", kind="folder")]
    found = place.unpack(pack(*members, Member("e/f/g/", kind="folder"), Member("ä-ß", b"")))
    assert found == {"a": b"1", "b/c/d": NOISE, "ä-ß": b""}
    assert (place.folder / "e/f/g").is_dir()
    place.check()


@posix_only
@both
def test_of_modes_only_whether_it_runs_is_kept(place: Place, pack: Pack) -> None:
    modes = {"plain": 0o666, "others-run": 0o645, "setuid": 0o4755, "setgid": 0o2777, "sticky": 0o1644, "none": 0}
    before = os.umask(0)
    try:
        place.unpack(pack(*(Member(f"x/{name}", b"x", mode) for name, mode in modes.items())))
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place.folder / "x").iterdir()}
    runs = {"others-run", "setuid", "setgid"}
    assert found == {name: 0o700 if name in runs else 0o600 for name in modes}
    assert stat.S_IMODE((place.folder / "x").stat().st_mode) == 0o700


@posix_only
def test_a_zip_from_windows_has_no_modes(place: Place) -> None:
    place.unpack(zipped(Member("a.exe", b"x", 0o755), system=0))
    assert stat.S_IMODE((place.folder / "a.exe").stat().st_mode) == 0o600


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_stored_and_deflated(place: Place, method: int) -> None:
    data = {"noise": NOISE, "zeros": bytes(5 << 20), "empty": b""}
    assert place.unpack(zipped(*(Member(name, body) for name, body in data.items()), method=method)) == data


def test_zip64(place: Place) -> None:
    with zipfile.ZipFile(place.archive, "w") as archive:
        info = zipfile.ZipInfo("a")
        with archive.open(info, "w", force_zip64=True) as file:
            file.write(NOISE)
    assert place.unpack(place.archive.read_bytes()) == {"a": NOISE}


def test_gnu_tar_with_long_names(place: Place, tmp_path: Path) -> None:
    name = "/".join(["n" * 90] * 5)
    with tarfile.open(tmp_path / "gnu", "w:gz", format=tarfile.GNU_FORMAT) as tar:
        (tmp_path / "x").write_bytes(b"x")
        tar.add(tmp_path / "x", name)
    assert place.unpack((tmp_path / "gnu").read_bytes()) == {name: b"x"}


def test_llama_cpp_as_upstream_packs_it(place: Place) -> None:
    found = place.unpack(engine_archive(b"#!/bin/sh\n"))
    assert found["llama-b9860/llama-server"] == b"#!/bin/sh\n"
    three = ["libllama.so", "libllama.so.0", "libllama.so.0.0.9860"]
    assert len({found[f"llama-b9860/{name}"] for name in three}) == 1
    assert len({(place.folder / "llama-b9860" / name).stat().st_ino for name in three}) == 1
    place.check()


def test_stable_diffusion_cpp_as_upstream_packs_it(place: Place) -> None:
    found = place.unpack(engine_archive(b"#!/bin/sh\n", kind="sd"))
    assert found["sd-server"] == b"#!/bin/sh\n"
    assert "sd-cli" in found


@posix_only
def test_an_engine_fetched_from_a_release_runs(place: Place) -> None:
    fake = FakeEngine(place.outer / "there", "llama")
    data = engine_archive(fake.path)
    shutil.rmtree(place.folder)
    place.folder.mkdir(0o700)
    with ReleaseServer() as server:
        file = server.put(llama_path("ubuntu-x64.tar.gz"), data, status=503, times=1)
        fetch(Fetch(url=file.url, target=place.archive, sha256=file.sha256), Work())
        assert [request[0] for request in server.requests][:1] == ["GET"]
    unpack(place.archive, place.folder, Work())
    program = place.folder / "llama-b9860/llama-server"
    assert "9860" in check_runs([str(program)], flags=["--version"])


# ---- names


NAMES = {
    "../x": "leads out",
    "a/../x": "leads out",
    "a/..": "leads out",
    "/x": "absolute",
    "//host/share": "absolute",
    "C:\\x": "Windows",
    "c:x": "Windows",
    "a/b:stream": "Windows",
    "\\\\host\\share": "Windows",
    "a\\..\\x": "Windows",
    "a*": "Windows",
    "CON": "Windows",
    "a/nul.txt": "Windows",
    "Com1": "Windows",
    "lpt¹.x": "Windows",
    "aux .c": "Windows",
    "a.": "Windows",
    "a ": "Windows",
    "a /b": "Windows",
    "a\nb": "nobody sees",
    "a\x1b[2Jb": "nobody sees",
    "a\x7fb": "nobody sees",
    "a\u202eb": "nobody sees",
    "a\u2028b": "nobody sees",
    "n" * 256: "too long",
    "ä" * 128: "too long",
    "/".join(["n" * 200] * 6)[:1001]: "too long",
    "/".join(["ä" * 100] * 5): "too long",
    "/".join("d" * 40): "too deep",
    "./.": "no name",
}


@both
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_names(place: Place, pack: Pack, name: str) -> None:
    if pack is tar_gz and name.endswith("/"):
        pytest.skip("a folder")
    place.refuse(pack(Member("first", b"x"), Member(name, b"x")), NAMES[name])


@both
def test_longest_names(place: Place, pack: Pack) -> None:
    name = "/".join(["n" * 255] * 3 + ["n" * 232])
    assert len(name) == 1000
    with contextlib.suppress(FileSystemError):  # the system's own limit may be lower
        assert place.unpack(pack(Member(name, b"x"))) == {name: b"x"}


def test_nul_in_a_name(place: Place) -> None:
    place.refuse(zipped(Member("good\0../x", b"x")), "nobody sees")
    header = tarfile.TarInfo("x")
    header.pax_headers = {"path": "good\0../x"}
    data = header.tobuf(tarfile.PAX_FORMAT, "utf-8") + bytes(1024)
    place.refuse(gzipped(data), "nobody sees")


def test_names_that_are_no_text(place: Place) -> None:
    header = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    block = bytearray(header)
    block[:2] = b"\xff\xfe"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    place.refuse(gzipped(bytes(block) + bytes(1024)), "nobody sees")
    data = bytearray(zipped(Member("ä", b"x")))
    place.refuse(bytes(data).replace("ä".encode(), b"\xff\xfe"), "broken")


TWICE = {
    "file": ("a", "a"),
    "spelt otherwise": ("a", "./a"),
    "case": ("a/b", "a/B"),
    "case of a folder": ("a/b", "A/c"),
    "case of a letter that grows": ("ß", "SS"),
    "composed": ("\u00e4", "a\u0308"),
    "file, then folder": ("a", "a/b"),
    "folder, then file": ("a/b", "a"),
}


@both
@pytest.mark.parametrize("names", TWICE.values(), ids=list(TWICE))
def test_names_that_are_there_twice(place: Place, pack: Pack, names: tuple[str, str]) -> None:
    place.refuse(pack(*(Member(name, b"x") for name in names)), "twice|in case only|needs a folder")


@both
def test_folders_that_are_there_twice(place: Place, pack: Pack) -> None:
    again = [Member("a/", kind="folder"), Member("a/b", b"x"), Member("a/", kind="folder")]
    place.refuse(pack(*again), "'a/?' is there twice")
    roots = [Member("./", kind="folder"), Member(".//", kind="folder")]
    place.refuse(pack(*roots), "is there twice")


# ---- kinds


@both
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_kinds(place: Place, pack: Pack, kind: Any) -> None:
    place.refuse(pack(Member("b", b"x"), Member("a", kind=kind)), "'a' is neither a file")


@pytest.mark.parametrize("kind", [tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_odd_kinds_of_tar(place: Place, kind: bytes) -> None:
    member = tarfile.TarInfo("a")
    member.type = kind
    place.refuse(gzipped(member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)), "neither a file")


def test_sparse_by_pax(place: Place) -> None:
    member = tarfile.TarInfo("a")
    member.pax_headers = {"GNU.sparse.size": "1000", "GNU.sparse.map": "0,1"}
    place.refuse(gzipped(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)), "neither a file")


def test_zip_folders_that_are_something_else(place: Place) -> None:
    place.refuse(zipped(Member("a/", b"content", kind="folder")), "something else")
    place.refuse(zipped(Member("a/", kind="device")), "something else")
    place.refuse(zipped(Member("a", kind="folder")), "neither a file")


def test_encrypted(place: Place) -> None:
    for flag in (0x1, 0x40, 0x2000):
        data = bytearray(zipped(Member("a", b"x")))
        struct.pack_into("<H", data, data.index(b"PK\1\2") + 8, flag)
        place.refuse(bytes(data), "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings(place: Place, method: int) -> None:
    place.refuse(zipped(Member("a", b"x" * 100), method=method), "packed in a way")


def test_two_names_for_one_member(place: Place) -> None:
    data = zipped(Member("good", b"x"))
    at = data.index(b"PK\1\2") + 46
    place.refuse(data[:at] + b"evil" + data[at + 4 :], "broken")


# ---- links


def link(name: str, target: str) -> Member:
    return Member(name, kind="symlink", target=target)


@both
@pytest.mark.parametrize("target", ["real", "./real", "../a/real", "..//a/./real"])
def test_links(place: Place, pack: Pack, target: str) -> None:
    members = [link("a/link", target), Member("a/real", b"content", 0o755)]
    for order in (members, members[::-1]):
        shutil.rmtree(place.folder)
        place.folder.mkdir(0o700)
        assert place.unpack(pack(*order)) == {"a/link": b"content", "a/real": b"content"}
        place.check()


def test_hard_links(place: Place) -> None:
    hard = Member("x/hard", kind="hardlink", target="./a/real")
    found = place.unpack(tar_gz(hard, link("soft", "x/hard"), Member("a/real", b"content")))
    assert set(found) == {"a/real", "x/hard", "soft"}
    assert set(found.values()) == {b"content"}


@both
@pytest.mark.parametrize(("hops", "good"), [(1, True), (8, True), (9, False), (50, False)])
def test_chains(place: Place, pack: Pack, hops: int, good: bool) -> None:
    data = pack(Member("l0", b"x"), *(link(f"l{n + 1}", f"l{n}") for n in range(hops)))
    if good:
        assert len(place.unpack(data)) == hops + 1
    else:
        place.refuse(data, "circle")


TARGETS = {
    "nothing": "no file of this archive",
    "": "no file of this archive",
    ".": "no file of this archive",
    "a": "no file of this archive",
    "self": "circle",
    "loop": "circle",
    "../real": "out of the archive",
    "a/../../real": "out of the archive",
    "/real": "out of the archive",
    "/etc/passwd": "out of the archive",
    "C:\\real": "no file of this archive",
    "no/../real": "no folder",
    "real/../real": "no folder",
    "into/real": "no folder",
    "REAL": "no file of this archive",
    "a" * 1001: "out of the archive|too long",
}


@both
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:20] or "empty")
def test_links_that_lead_nowhere(place: Place, pack: Pack, target: str) -> None:
    rest = [Member("real", b"x"), Member("a/real", b"x")]
    if target == "loop":
        rest.append(link("loop", "self"))
    if target == "into/real":
        rest.append(link("into", "a"))
    place.refuse(pack(link("self", target), *rest), TARGETS[target])


def test_hard_links_that_lead_nowhere(place: Place) -> None:
    for target in ("nothing", "../neighbour", "/etc/passwd", "a/../real", "a", "hard"):
        hard = Member("hard", kind="hardlink", target=target)
        place.refuse(tar_gz(hard, Member("real", b"x"), Member("a/b", b"x")), "'hard' is a link")
        shutil.rmtree(place.folder)
        place.folder.mkdir(0o700)


@both
def test_what_lies_below_a_link(place: Place, pack: Pack) -> None:
    place.refuse(pack(link("a", ".."), Member("a/planted", b"x")), "needs a folder")


def test_a_zip_link_with_a_long_target(place: Place) -> None:
    place.refuse(zipped(link("a", "x" * (20 << 20)), Member("x", b"x")), "too long a target")


@posix_only
@both
def test_what_was_planted_in_the_folder_is_not_followed(place: Place, pack: Pack) -> None:
    planted = place.folder / "a"
    for plant in (lambda: planted.symlink_to("../neighbour"), lambda: os.link(place.outer / "neighbour", planted)):
        plant()
        with pytest.raises(FileSystemError):
            place.unpack(pack(Member("a", b"x")))
        planted.unlink()
        place.check()


def test_a_disk_without_hard_links(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    data = tar_gz(Member("real", NOISE, 0o755), link("one", "real"), link("two", "one"))
    assert set(place.unpack(data).values()) == {NOISE}
    assert os.name != "posix" or stat.S_IMODE((place.folder / "two").stat().st_mode) == 0o700
    place.check()
    shutil.rmtree(place.folder)
    place.folder.mkdir()
    place.refuse(data, "more than", most_bytes=2 * len(NOISE))


# ---- sizes


@both
def test_limits(place: Place, pack: Pack) -> None:
    data = pack(*(Member(f"a/{n}", bytes(100)) for n in range(10)))
    place.refuse(data, "'a/9' makes the archive unpack to more than 999 bytes", most_bytes=999)
    place.refuse(pack(*(Member(f"{n}/x", b"x") for n in range(6))), "more than the 11 members", most_members=11)
    shutil.rmtree(place.folder)
    place.folder.mkdir()
    assert len(place.unpack(data, most_bytes=1000, most_members=11)) == 10


@both
def test_ten_thousand_members_at_most(place: Place, pack: Pack) -> None:
    data = pack(*(Member(f"{n}", kind="folder" if pack is tar_gz else "file") for n in range(10_001)))
    place.refuse(data, "more than the 10000 members")


def test_a_long_table_of_contents(place: Place) -> None:
    place.refuse(zipped(*(Member(f"{n:0100}") for n in range(30_000))), "table of contents is too large")


def test_bombs_by_ratio(place: Place) -> None:
    for data in (tar_gz(Member("a", bytes(64 << 20))), zipped(Member("a", bytes(64 << 20)))):
        place.refuse(data, "more than", most_bytes=10 << 20)
        assert sum(path.stat().st_size for path in place.folder.rglob("*")) == 0


@pytest.mark.parametrize("size", [0, 1, 1 << 19, (1 << 20) - 1, (1 << 20) + 1, 50 << 20])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_that_lie(place: Place, size: int, method: int) -> None:
    data = bytearray(zipped(Member("a", bytes(1 << 20), size=size), method=method))
    for crc in (zlib.crc32(bytes(size)), zlib.crc32(bytes(size + 1))):
        struct.pack_into("<I", data, data.index(b"PK\1\2") + 16, crc)  # what would fit, were it believed
        place.refuse(bytes(data), "'a' is (longer|shorter) than it says|'a' is broken: Bad CRC")
        assert (place.folder / "a").stat().st_size <= 1 << 20
        (place.folder / "a").unlink()


def test_tars_that_lie(place: Place) -> None:
    place.refuse(tar_gz(Member("a", b"x" * 1024, size=10_000)), "shorter than it says")
    place.refuse(tar_gz(Member("b", b"x" * 1024, size=1)), "no header|broken")
    member = tarfile.TarInfo("c")
    member.pax_headers = {"size": "-5"}
    place.refuse(gzipped(member.tobuf(tarfile.PAX_FORMAT) + bytes(2048)), "negative|no header|broken|points back")
    member = tarfile.TarInfo("d")
    member.size = -512
    place.refuse(gzipped(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)), "negative|no header|broken|points back")


def test_long_headers_of_tar(place: Place) -> None:
    member = tarfile.TarInfo("a")
    member.pax_headers = {"comment": "x" * 10_000}
    place.refuse(gzipped(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)), "header in the archive is too large")
    member.pax_headers = {"comment": "1" * 5000}
    place.refuse(gzipped(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)), "header in the archive is nonsense")


def test_headers_before_headers(place: Place) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XGLTYPE, 512
    data = (header.tobuf(tarfile.USTAR_FORMAT) + bytes(512)) * 3000 + tarfile.TarInfo("a").tobuf() + bytes(1024)
    place.refuse(gzipped(data), "broken")


# ---- broken ones


@both
def test_breaking_off(place: Place, pack: Pack) -> None:
    data = pack(Member("a/", kind="folder"), Member("a/b", NOISE[:300_000]), Member("c", b"x" * 5000))
    for end in [*range(0, 600, 40), *range(600, len(data), 30_011), *range(len(data) - 30, len(data))]:
        place.refuse(data[:end], "neither a tar.gz|broken|breaks off")
        shutil.rmtree(place.folder)
        place.folder.mkdir(0o700)


@both
def test_one_wrong_bit(place: Place, pack: Pack) -> None:
    data = pack(Member("a", NOISE[:5000]), Member("b", b"x"))
    for at in range(2500, 4000, 100):
        bad = bytearray(data)
        bad[at] ^= 1
        place.refuse(bytes(bad), "broken|breaks off")
        shutil.rmtree(place.folder)
        place.folder.mkdir(0o700)


def test_tar_without_its_end(place: Place) -> None:
    place.refuse(tar_gz(Member("a", b"x"), end=False), "no header")
    shutil.rmtree(place.folder)
    place.folder.mkdir(0o700)
    whole = tarfile.TarInfo("a").tobuf() + b"nonsense" * 64 + tarfile.TarInfo("b").tobuf() + bytes(1024)
    place.refuse(gzipped(whole), "no header")


def test_zip_that_points_before_its_beginning(place: Place) -> None:
    data = bytearray(zipped(Member("a", b"x")))
    at = data.rindex(b"PK\5\6") + 16
    struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] + 20)
    place.refuse(bytes(data), "points out of itself|broken")


def test_what_lies_behind_the_end(place: Place) -> None:
    good = tar_gz(Member("a", b"x"))
    assert place.unpack(good + bytes(1 << 19)) == {"a": b"x"}
    for data in (good + b"x", good + good, good + bytes(1 << 19) + b"x", gzipped(bytes(1024)) + good):
        shutil.rmtree(place.folder)
        place.folder.mkdir()
        place.refuse(data, "behind its end|no file|points back")
    tail = gzipped(tarfile.TarInfo("a").tobuf() + bytes(32 << 20))
    shutil.rmtree(place.folder)
    place.folder.mkdir()
    place.refuse(tail, "behind its end")


NOTHING = {
    "nothing": b"",
    "gzip's magic": b"\x1f\x8b",
    "zip's magic": b"PK\3\4",
    "an empty zip's magic": b"PK\5\6",
    "noise": NOISE[:4000],
    "a script": b"#!/bin/sh\n",
    "noise behind gzip's magic": b"\x1f\x8b" + NOISE[:4000],
    "noise behind zip's magic": b"PK\3\4" + NOISE[:4000],
    "nothing in gzip": gzipped(b""),
    "noise in gzip": gzipped(NOISE[:4000]),
    "one byte in gzip": gzipped(b"x"),
    "an empty tar": gzipped(bytes(10_240)),
    "an empty zip": zipped(),
    "a folder in a tar": tar_gz(Member("a/", kind="folder")),
    "a folder in a zip": zipped(Member("a/", kind="folder")),
}


@pytest.mark.parametrize("data", NOTHING.values(), ids=list(NOTHING))
def test_no_archive_or_an_empty_one(place: Place, data: bytes) -> None:
    place.refuse(data, "neither a tar.gz|broken|breaks off|no file in|too large|points back")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_ones_for_others(place: Place, name: str) -> None:
    place.refuse(HOSTILE[name](), ".")


def test_no_file(place: Place) -> None:
    with pytest.raises(FileSystemError):
        unpack(place.outer / "missing", place.folder, Work())


MEMBERS = st.builds(
    Member,
    st.lists(
        st.sampled_from(["a", "b", "A", "..", ".", "", "c.", "nul", "d\\e", "é", "e\u0301"]), min_size=1, max_size=4
    )
    .map("/".join)
    .filter(bool),
    st.sampled_from([b"", b"x", b"x" * 1000]),
    st.sampled_from([0o644, 0o4755, 0o777, 0]),
    kind=st.sampled_from(["file", "file", "file", "folder", "symlink", "hardlink", "fifo", "device"]),
    target=st.sampled_from(["a", "b", "../a", "..", "/etc/passwd", "../neighbour", "../../neighbour", "a/b", "A"]),
    size=st.sampled_from([None, None, None, None, 1, 700]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MEMBERS, min_size=1, max_size=5), st.booleans(), st.integers(0, 400))
def test_whatever_is_in_it_nothing_gets_out(members: list[Member], tar: bool, cut: int) -> None:
    if not tar:
        members = [member for member in members if member.kind != "hardlink"]
    data = (tar_gz if tar else zipped)(*members)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        with contextlib.suppress(ArchiveError):
            place.unpack(data if cut > 100 else data[:-cut] if cut else data)
        place.check()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_whatever_is_wrong_in_it_there_is_one_error(data: st.DataObject, tar: bool) -> None:
    good = bytearray(ENGINE if not tar else zlib.decompress(TAR, 31))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        with contextlib.suppress(ArchiveError):
            place.unpack(gzipped(bytes(good)) if tar else bytes(good))
        place.check()


TAR, ENGINE = engine_archive(b"x"), engine_archive(b"x", kind="sd")


# ---- cancellation, progress, space


@both
def test_cancelled(place: Place, pack: Pack) -> None:
    data = pack(*(Member(f"zeros{n}", bytes(40 << 20)) for n in range(3)), *(Member(str(n), b"x") for n in range(4000)))
    begun = threading.Event()
    work = Work(lambda done, _: begun.set() if done else None)
    place.archive.write_bytes(data)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            unpack(place.archive, place.folder, work)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    before = time.monotonic()
    work.cancel()
    thread.join(10)
    assert time.monotonic() - before < 0.5
    assert isinstance(errors[0], DownloadError)
    assert is_cancelled(errors[0])


@both
def test_cancelled_before(place: Place, pack: Pack) -> None:
    work = Work()
    work.cancel()
    with pytest.raises(DownloadError):
        place.unpack(pack(Member("a", b"x")), work)
    assert not list(place.folder.iterdir())


@both
def test_progress(place: Place, pack: Pack) -> None:
    seen: list[tuple[int, int | None]] = []
    data = pack(Member("a", NOISE), Member("b", bytes(3 << 20)), Member("c", b""), Member("d", NOISE))
    place.unpack(data, Work(lambda done, total: seen.append((done, total))))
    done, totals = [step[0] for step in seen], {step[1] for step in seen}
    assert totals == {len(data) if pack is tar_gz else 3 * len(NOISE)}
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert len(set(done)) > 20


@both
def test_no_space(place: Place, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, (64 << 20) + 4000))
    with pytest.raises(InsufficientResourcesError):
        place.unpack(pack(Member("a", bytes(8000))))
    assert not list(place.folder.iterdir())


@both
@posix_only
def test_a_disk_that_fills_up(place: Place, pack: Pack) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    place.archive.write_bytes(pack(Member("a", NOISE)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(FileSystemError, match="write"):
            unpack(place.archive, place.folder, Work())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@both
def test_a_full_disk_while_linking(place: Place, monkeypatch: pytest.MonkeyPatch, pack: Pack) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(InsufficientResourcesError):
        place.unpack(pack(Member("a", b"x"), link("b", "a")))


def test_pieces_are_small() -> None:
    """What the loop's patience rests on; `benchmarks/unpack.py` measures it."""
    assert archives._PIECE <= 1 << 20
