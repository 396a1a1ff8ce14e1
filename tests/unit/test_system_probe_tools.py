"""What the probes are made of: questions that may hang, programs from trusted folders, numbers from anywhere."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.system import numbers, tools
from genai_notebook.core.system.bounded import Bounded

posix = pytest.mark.skipif(os.name != "posix", reason="other platform: shell scripts and modes")


def test_an_answer_and_an_error() -> None:
    bounded: Bounded[int] = Bounded("x", 10.0)
    assert bounded.ask(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        bounded.ask(lambda: 1 // 0)
    assert bounded.ask(lambda: 6) == 6


def test_a_question_that_hangs_is_asked_once_and_again_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    release, asked = threading.Event(), []

    def question() -> int:
        asked.append(1)
        release.wait(60)
        return 7

    bounded: Bounded[int] = Bounded("a driver", 0.2)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="a driver"):
            bounded.ask(question)
    assert len(asked) == 1
    assert [record.message for record in caplog.records] == ["a driver does not answer within 0.2 s; going on without"]
    release.set()
    for _ in range(500):
        try:
            assert bounded.ask(question) == 7
            break
        except TimeoutError:
            time.sleep(0.01)
    else:
        pytest.fail("it was never asked again")
    assert len(asked) == 2


def test_what_took_too_long_is_given_a_rest() -> None:
    release = threading.Event()
    bounded: Bounded[object] = Bounded("a program", 0.1, rest=3600)
    with pytest.raises(TimeoutError):
        bounded.ask(lambda: release.wait(60))
    release.set()
    with pytest.raises(TimeoutError, match="a moment ago"):
        bounded.ask(lambda: pytest.fail("asked again"))


def test_who_asks_at_the_same_time_gets_the_same_answer() -> None:
    bounded: Bounded[int] = Bounded("x", 30.0)
    started, release, asked = threading.Event(), threading.Event(), []

    def question() -> int:
        asked.append(1)
        started.set()
        release.wait(30)
        return 7

    answers: list[int] = []
    callers = [threading.Thread(target=lambda: answers.append(bounded.ask(question))) for _ in range(3)]
    callers[0].start()
    assert started.wait(10)
    for caller in callers[1:]:
        caller.start()
    time.sleep(0.1)  # for them to join in; one that comes late asks again, and the test fails for no other reason
    release.set()
    for caller in callers:
        caller.join(10)
    assert (answers, len(asked)) == ([7, 7, 7], 1)


def program(folder: Path, body: str, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)
    return path


@posix
def test_programs_are_found_in_the_given_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = program(tmp_path / "good", "echo")
    program(tmp_path / "no-program", "echo", 0o644)
    program(tmp_path / "open", "echo", 0o777)
    program(tmp_path / "shared", "echo").parent.chmod(0o777)
    (tmp_path / "folder/tool").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "good"))
    monkeypatch.chdir(tmp_path / "good")
    bad = [tmp_path / name for name in ("none", "no-program", "open", "shared", "folder")]
    assert tools.find_tool("tool", bad) is None
    assert tools.find_tool("tool", [*bad, tmp_path / "good"]) == good
    assert all(folder.is_absolute() for folder in tools.trusted_folders())


@posix
def test_what_a_program_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    talker = program(tmp_path / "a", 'echo "$1 $SECRET_TOKEN"; echo noise >&2; printf "\\377"; exit 3')
    assert tools.run_tool([str(talker), "hello"]) == "hello \n\ufffd"
    with pytest.raises(OSError):
        tools.run_tool([str(tmp_path / "none")])


@posix
def test_a_program_is_cut_off_with_all_that_it_started(tmp_path: Path) -> None:
    sleeper = program(tmp_path, "sleep 60 & echo $!; wait")
    began = time.monotonic()
    child = int(tools.run_tool([str(sleeper)], limit=0.3))
    assert time.monotonic() - began < 10
    for _ in range(500):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("its child lives on")


@posix
def test_a_program_that_never_stops_talking(tmp_path: Path) -> None:
    talker = program(tmp_path, "yes")
    assert len(tools.run_tool([str(talker)], limit=30)) == 1 << 20


@given(st.one_of(st.integers(), st.text(), st.none(), st.binary(), st.booleans(), st.just("9" * 5000)))
def test_numbers_from_anywhere(value: object) -> None:
    number, size = numbers.whole_number(value), numbers.amount(value)
    assert number is None or number >= 0
    assert size is None or 0 < size <= numbers.MOST_BYTES


def test_numbers() -> None:
    assert [numbers.whole_number(value) for value in (" 12\n", 7, 2**64 - 1, "-1", "1.5", "²", True)] == [
        12, 7, 2**64 - 1, None, None, None, None
    ]  # fmt: skip
    assert [numbers.amount(value) for value in ("0", "1024", str(2**63), "max")] == [None, 1024, None, None]
    assert [numbers.free_of(*pair) for pair in ((5, 3), (5, 9), (None, 1), (5, None))] == [2, 0, None, None]
