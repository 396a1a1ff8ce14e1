"""A new release is pinned while an older one is here, and builds are removed: what works stays."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import (
    BinaryError,
    InvalidRequestError,
)
from tests.fakes import FakeEngine
from tests.fakes.machine import Machine
from tests.fakes.releases import GIB, NO_LIBRARY, Shelf, library_archive
from tests.faults.builds import NVIDIA, install, left
from tests.faults.trying import House, start
from tests.processes import assert_none_left

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts and signals"),
    pytest.mark.usefixtures("other"),
]


# ---- a new pin


class Pins:
    """An older release that has passed, and a new pin in its place."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.shelf = shelf
        self.house = House(folder, shelf=shelf)
        self.old = FakeEngine(folder / "old", "llama", proved=False)
        self.new = FakeEngine(folder / "new", "llama", proved=False)
        self.first = shelf.add("llama", "cpu", self.old, tag="b1")
        assert self.house.works("llm") == "llama.cpp b1 (cpu)"
        shelf.catalog.clear()

    def grow_old(self, days: float) -> None:
        """Nobody has used the older release for so long."""
        then = time.time() - days * 86_400
        os.utime(self.house.settings.engines / "llama" / "b1-cpu" / "install.json", (then, then))

    def here(self) -> list[str]:
        return sorted(path.name for path in (self.house.settings.engines / "llama").iterdir())


@pytest.fixture
def pins(tmp_path: Path, shelf: Shelf, other: Path) -> Iterator[Pins]:
    other.unlink()
    yield Pins(tmp_path, shelf)
    assert_none_left(tmp_path)


@pytest.mark.parametrize("behaviour", [{"status": 404}, {"sha256": "0" * 64}])
def test_the_old_release_serves_while_the_new_one_cannot_be_had(pins: Pins, behaviour: dict[str, Any]) -> None:
    pins.shelf.add("llama", "cpu", pins.new, **behaviour)
    for _ in range(2):
        assert pins.house.works("llm") == "llama.cpp b1 (cpu)"
    assert pins.here() == ["b1-cpu"]


def test_the_old_release_goes_when_the_new_one_has_computed(pins: Pins) -> None:
    pins.shelf.add("llama", "cpu", pins.new)

    async def only_runs(runtime: Runtime) -> str:
        return (await runtime.engine_manager.resolve("llama")).name

    assert pins.house.run(only_runs) == "llama.cpp b2 (cpu)"
    assert pins.here() == ["b1-cpu", "b2-cpu"]
    for days, here in ((6.9, ["b1-cpu", "b2-cpu"]), (7.1, ["b2-cpu"])):
        pins.grow_old(days)
        assert pins.house.works("llm", force_validation=True) == "llama.cpp b2 (cpu)"
        assert pins.here() == here
    assert len(pins.new.starts) == 4


def test_two_pins_on_one_home_take_turns_and_fetch_each_build_once(pins: Pins) -> None:
    second = pins.shelf.add("llama", "cpu", pins.new)
    for turn in range(4):
        pins.shelf.catalog[:] = [second if turn % 2 == 0 else pins.first]
        assert pins.house.works("llm") == f"llama.cpp b{2 - turn % 2} (cpu)"
    assert pins.here() == ["b1-cpu", "b2-cpu"]
    assert [pins.shelf.gets(build.archive) for build in (pins.first, second)] == [1, 1]


@pytest.mark.parametrize("program", [NO_LIBRARY, None])
def test_the_old_release_stays_when_the_new_one_fails(pins: Pins, program: bytes | None) -> None:
    pins.new.set(exit_at_start=3)
    pins.shelf.add("llama", "cpu", program or pins.new)
    for _ in range(2):
        assert pins.house.works("llm") == "llama.cpp b1 (cpu)"
    assert "b1-cpu" in pins.here()


def test_what_is_installed_by_its_variant_is_the_pinned_release(pins: Pins) -> None:
    pins.shelf.add("llama", "cpu", pins.new)
    entry = install(pins.shelf.manager(pins.house.settings.home))
    assert (entry.name, entry.state) == ("llama.cpp b2 (cpu)", "usable")
    assert pins.here() == ["b1-cpu", "b2-cpu"]


def test_an_older_release_can_be_asked_for_by_its_name(pins: Pins) -> None:
    pins.shelf.add("llama", "cpu", pins.new, status=404)
    engines = pins.shelf.manager(pins.house.settings.home)
    with pytest.raises(InvalidRequestError, match="nothing to install"):
        install(engines, "llama.cpp b1 (cpu)")
    removed = asyncio.run(engines.remove("llama", "llama.cpp b1 (cpu)"))
    assert (removed.name, removed.state) == ("llama.cpp b1 (cpu)", "missing")
    assert pins.here() == []


# ---- removed


def test_what_runs_is_not_removed(shelf: Shelf, tmp_path: Path) -> None:
    house = House(tmp_path, machine=Machine(ram=16 * GIB, gpus=[NVIDIA]), shelf=shelf)
    shelf.add("llama", "cuda", FakeEngine(tmp_path / "f", "llama", proved=False), runtime=library_archive())

    async def scenario(runtime: Runtime) -> None:
        await start(runtime, "llm")
        with pytest.raises(BinaryError, match="is running"):
            await runtime.engine_manager.remove("llama", "cuda")
        with pytest.raises(BinaryError, match="is running"):
            await runtime.engine_manager.remove("llama")
        await runtime.llama_server.stop()
        removed = await runtime.engine_manager.remove("llama")
        assert (removed.variant, removed.state) == ("cuda", "available")
        with pytest.raises(InvalidRequestError):
            await runtime.engine_manager.remove("llama", "cuda")

    house.run(scenario)
    assert left(tmp_path / "home") == []
    assert_none_left(tmp_path)
