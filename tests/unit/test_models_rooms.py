"""Rooms for files on their way in: one at a time, over all processes, and what is left in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.core.models import rooms as rooms_module
from genai_notebook.core.models.rooms import Rooms
from genai_notebook.errors import DownloadError


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def left_in(models: Path) -> list[str]:
    return sorted(path.name for path in (models / ".incoming").iterdir() if path.is_dir())


def interrupted(models: Path, keys: list[str], fill: list[str]) -> Mapping[str, Path]:
    """The rooms of a download that was cancelled after a byte."""
    with contextlib.suppress(KeyError), Rooms(models).entered(keys, Work()) as rooms:
        for key in fill:
            (rooms[key] / "x.part").write_text("x")
        raise KeyError
    return rooms


def test_they_are_gone_when_all_went_well(models: Path) -> None:
    with Rooms(models).entered(["a", "b"], Work()) as rooms:
        assert len({*rooms.values()}) == 2
        for room in rooms.values():
            assert list(room.iterdir()) == []
            (room / "x").write_text("x")
    assert left_in(models) == []


def test_what_is_in_them_stays_when_it_did_not(models: Path) -> None:
    rooms = interrupted(models, ["full", "empty"], fill=["full"])
    assert left_in(models) == [rooms["full"].name]
    with Rooms(models).entered(["full"], Work()) as again:
        assert (again["full"] / "x.part").read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX modes")
def test_they_are_private(models: Path) -> None:
    before = os.umask(0)
    try:
        with Rooms(models).entered(["a"], Work()) as rooms:
            for path in (rooms["a"], rooms["a"].parent, models):
                assert path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_what_nobody_came_back_for_goes(models: Path) -> None:
    rooms = interrupted(models, ["old", "young"], fill=["old", "young"])
    incoming = models / ".incoming"
    for name in ("new-1", "old-2"):
        (incoming / name).mkdir()
        (incoming / name / "x").write_text("x")
    long_ago = time.time() - rooms_module.KEPT - 60
    for room in (rooms["old"], incoming / "new-1", incoming / "old-2"):
        os.utime(room, (long_ago, long_ago))
    with Rooms(models).entered(["another"], Work()):
        pass
    assert left_in(models) == [rooms["young"].name]


def test_one_at_a_time(models: Path) -> None:
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def first() -> None:
        with Rooms(models).entered(["k"], Work()):
            inside.set()
            go.wait(30)
            order.append("first")

    def second() -> None:
        with Rooms(models).entered(["k"], work):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    phases: list[str] = []
    work = Work(phase=phases.append)
    threads[0].start()
    inside.wait(30)
    with Rooms(models).entered(["other"], Work()):
        pass  # another thing does not wait
    threads[1].start()
    while not phases:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second"]
    assert phases[0] == "queued"


def test_who_wants_the_same_two_never_waits_for_ever(models: Path) -> None:
    done: list[int] = []

    def enter(keys: list[str]) -> None:
        for _ in range(20):
            with Rooms(models).entered(keys, Work()):
                pass
        done.append(1)

    threads = [threading.Thread(target=enter, args=(keys,)) for keys in (["a", "b"], ["b", "a"], ["b", "c"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3


HOLD = """
import sys
from pathlib import Path
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.rooms import Rooms
with Rooms(Path(sys.argv[1])).entered(["k"], Work()):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_other_processes_wait_too_and_can_be_cancelled(models: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(models)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        work = Work()
        threading.Timer(0.2, work.cancel).start()
        with pytest.raises(DownloadError) as caught, Rooms(models).entered(["k"], work):
            pass
        assert is_cancelled(caught.value)
        child.communicate()
    with Rooms(models).entered(["k"], Work()) as rooms:
        assert rooms["k"].is_dir()
