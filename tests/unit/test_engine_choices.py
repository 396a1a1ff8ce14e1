"""An engine that the user has chosen: it and no other one, in later sessions too, until they say otherwise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_notebook.core.engines import places
from genai_notebook.core.engines.choices import Choices
from genai_notebook.core.settings import Settings
from genai_notebook.errors import BinaryError, FileSystemError, InvalidRequestError
from tests.fakes.machine import Machine, card
from tests.fakes.releases import GIB, NO_LIBRARY, Shelf

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts")

PROGRAM = b"#!/bin/sh\necho 'version: 7 (x)'\n"
VULKAN = card(8 * GIB, vulkan=True)


@pytest.fixture(autouse=True)
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine on the PATH, and no wheels."""
    monkeypatch.setattr(places, "is_there", lambda module: False)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    (folder / "llama-server").write_bytes(PROGRAM)
    (folder / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "llama-server"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        shelf.add("llama", "cpu", PROGRAM)
        yield shelf


def used(shelf: Shelf, home: Path) -> str:
    """What a new session takes."""
    return asyncio.run(shelf.manager(home).resolve("llama")).variant


def test_a_choice_outlives_the_session(shelf: Shelf, home: Path) -> None:
    assert used(shelf, home) == "cpu"
    chosen = asyncio.run(shelf.manager(home).use("llama", "path"))
    assert (chosen.variant, chosen.state, chosen.in_use) == ("path", "usable", True)
    assert used(shelf, home) == "path"
    listing = asyncio.run(shelf.manager(home).list())
    assert [each.variant for each in listing if each.kind == "llama" and each.in_use] == ["path"]


def test_a_choice_holds_at_once(shelf: Shelf, home: Path) -> None:
    engines = shelf.manager(home)

    async def session() -> list[str]:
        first = await engines.resolve("llama")
        await engines.use("llama", "path")
        second = await engines.resolve("llama")
        await engines.use("llama", "auto")
        return [first.variant, second.variant, (await engines.resolve("llama")).variant]

    assert asyncio.run(session()) == ["cpu", "path", "cpu"]


@pytest.mark.parametrize("word", ["auto", None])
def test_it_is_ours_again(shelf: Shelf, home: Path, word: str | None) -> None:
    used(shelf, home)
    asyncio.run(shelf.manager(home).use("llama", "path"))
    entry = asyncio.run(shelf.manager(home).use("llama", word))
    assert (entry.variant, entry.in_use) == ("cpu", True)
    assert used(shelf, home) == "cpu"


def test_a_choice_is_of_one_kind(shelf: Shelf, home: Path) -> None:
    asyncio.run(shelf.manager(home).use("llama", "path"))
    assert Choices(home / "engines").get("diffusion") is None


def test_a_build_that_is_not_here_is_fetched(shelf: Shelf, home: Path) -> None:
    chosen = asyncio.run(shelf.manager(home).use("llama", "llama.cpp b2 (cpu)"))
    assert (chosen.name, chosen.state, chosen.in_use) == ("llama.cpp b2 (cpu)", "usable", True)
    assert used(shelf, home) == "cpu"


def test_a_choice_is_of_a_variant_and_holds_over_releases(shelf: Shelf, home: Path) -> None:
    asyncio.run(shelf.manager(home).use("llama", "cpu"))
    shelf.catalog.clear()
    shelf.add("llama", "vulkan", PROGRAM, tag="b3")
    shelf.add("llama", "cpu", PROGRAM + b"# newer\n", tag="b3")
    machine = Machine(ram=16 * GIB, gpus=[VULKAN])
    engine = asyncio.run(shelf.manager(home, machine).resolve("llama"))
    assert engine.name == "llama.cpp b3 (cpu)"


def newer(shelf: Shelf) -> None:
    """The next release is pinned."""
    shelf.catalog.clear()
    shelf.add("llama", "cpu", PROGRAM + b"# newer\n", tag="b3")


def test_an_older_release_is_not_chosen_by_its_name(shelf: Shelf, home: Path) -> None:
    used(shelf, home)
    newer(shelf)
    engines = shelf.manager(home)
    assert "llama.cpp b2 (cpu)" in [each.name for each in asyncio.run(engines.list())]
    with pytest.raises(InvalidRequestError, match=r"llama\.cpp b2 \(cpu\) is an older release") as caught:
        asyncio.run(engines.use("llama", "llama.cpp b2 (cpu)"))
    assert "%genai engines use llm cpu" in (caught.value.hint or "")
    assert Choices(home / "engines").get("llama") is None


def test_a_variant_means_the_pinned_release(shelf: Shelf, home: Path) -> None:
    used(shelf, home)
    newer(shelf)
    chosen = asyncio.run(shelf.manager(home).use("llama", "cpu"))
    assert (chosen.name, chosen.in_use) == ("llama.cpp b3 (cpu)", True)
    assert Choices(home / "engines").get("llama") == "cpu"


def test_it_is_refused_where_a_setting_names_one(shelf: Shelf, home: Path, on_path: Path) -> None:
    engines = shelf.manager(home)
    engines.settings = Settings(home=home, mirror=shelf.url, llama_server=on_path)
    with pytest.raises(InvalidRequestError, match="GENAI_NOTEBOOK_LLAMA_SERVER") as caught:
        asyncio.run(engines.use("llama", "cpu"))
    assert "Unset" in (caught.value.hint or "")
    assert asyncio.run(engines.use("llama", "auto")).variant == "explicit"


def test_what_does_not_run_is_not_chosen(shelf: Shelf, home: Path, on_path: Path) -> None:
    on_path.write_bytes(NO_LIBRARY)
    with pytest.raises(BinaryError, match=r"libcuda\.so\.1"):
        asyncio.run(shelf.manager(home).use("llama", "path"))
    with pytest.raises(BinaryError, match="not installed: xllamacpp"):
        asyncio.run(shelf.manager(home).use("llama", "embedded"))
    assert Choices(home / "engines").get("llama") is None
    assert used(shelf, home) == "cpu"


def test_what_is_not_for_this_machine_is_not_chosen(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cuda", PROGRAM)
    with pytest.raises(BinaryError, match="no NVIDIA GPU"):
        asyncio.run(shelf.manager(home).use("llama", "cuda"))
    assert shelf.gets(build.archive) == 0


def test_a_chosen_one_that_breaks_is_an_error_and_no_other_takes_its_place(
    shelf: Shelf, home: Path, on_path: Path
) -> None:
    used(shelf, home)
    asyncio.run(shelf.manager(home).use("llama", "path"))
    on_path.write_bytes(NO_LIBRARY)
    with pytest.raises(BinaryError, match=r"was chosen \(path\) does not work") as caught:
        used(shelf, home)
    assert "libcuda.so.1" in str(caught.value)
    assert caught.value.hint == "%genai engines use llm auto leaves the choice to genai-notebook."
    assert [each["state"] for each in (caught.value.details or {})["candidates"]] == ["failed"]
    on_path.unlink()
    with pytest.raises(BinaryError, match=r"was chosen \(path\)"):
        used(shelf, home)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"llama": 1}', b'{"llama": null}', b"\xff"])
def test_a_spoilt_file_is_no_choice(shelf: Shelf, home: Path, content: bytes) -> None:
    (home / "engines").mkdir(parents=True)
    (home / "engines" / "choices.json").write_bytes(content)
    assert used(shelf, home) == "cpu"
    asyncio.run(shelf.manager(home).use("llama", "path"))
    assert used(shelf, home) == "path"


def test_a_choice_that_means_nothing_is_said(shelf: Shelf, home: Path) -> None:
    (home / "engines").mkdir(parents=True)
    (home / "engines" / "choices.json").write_text('{"llama": "../../x"}')
    with pytest.raises(BinaryError, match=r"was chosen \(\.\./\.\./x\) does not work: it is not here"):
        used(shelf, home)


def test_a_choice_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file where the folder should be")
    with pytest.raises(FileSystemError):
        Choices(tmp_path / "engines").set("llama", "cpu")
