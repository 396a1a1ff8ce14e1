"""The job board of the embedded image engine, with a painter that waits to be told."""

from __future__ import annotations

import base64
import enum
import threading
import time
from typing import Any

import numpy as np
import pytest

from genai_notebook.core.engines.embedded import sd_jobs, sd_preview
from genai_notebook.core.engines.embedded.sd_jobs import MAX_PENDING, JobBoard, Painted, QueueFullError
from genai_notebook.core.engines.embedded.sd_preview import Previews
from genai_notebook.core.engines.embedded.sd_requests import ImageRequest
from tests.fakes import eventually


class Easel:
    """Paints when it is let; remembers in which order."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.painted: list[str] = []
        self.asked: list[bool] = []

    def paint(self, request: ImageRequest) -> Painted:
        assert self.go.acquire(timeout=30)
        self.painted.append(request.prompt)
        if request.prompt == "fail":
            raise RuntimeError("out of memory")
        return Painted(["x" * int(request.width)], [request.seed])

    def cancel(self, asked: bool) -> None:
        self.asked.append(asked)
        if asked:
            self.go.release()


def status(board: JobBoard, id: str) -> Any:
    described = board.describe(id)
    return described and described["status"]


def over(board: JobBoard, id: str) -> dict[str, Any]:
    eventually(lambda: status(board, id) in ("completed", "failed", "cancelled"), "the end of a job", 10)
    described = board.describe(id)
    assert described
    return described


def test_one_after_the_other_in_their_order() -> None:
    easel = Easel()
    board = JobBoard(easel.paint)
    ids = [board.submit(ImageRequest(prompt=name)).id for name in ("a", "b", "c")]
    assert len(set(ids)) == 3
    eventually(lambda: status(board, ids[0]) == "generating", "the first job", 10)
    described = [board.describe(id) for id in ids]
    assert [(job["status"], job["queue_position"]) for job in described if job] == [
        ("generating", 0),
        ("queued", 1),
        ("queued", 2),
    ]
    for _ in ids:
        easel.go.release()
    last = over(board, ids[2])
    assert easel.painted == ["a", "b", "c"]
    assert last["result"]["images"] == [{"index": 0, "b64_json": "x" * 512, "seed": -1}]
    assert last["started"] >= last["created"]
    assert last["error"] is None


def test_a_failure_is_told_and_the_next_job_runs() -> None:
    easel = Easel()
    board = JobBoard(easel.paint)
    bad, good = (board.submit(ImageRequest(prompt=name)).id for name in ("fail", "b"))
    easel.go.release()
    easel.go.release()
    failed = over(board, bad)
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "generation_failed", "message": "out of memory"}
    assert failed["result"] is None
    assert over(board, good)["status"] == "completed"


def test_a_running_job_that_cannot_be_cancelled() -> None:
    easel = Easel()
    board = JobBoard(easel.paint)
    id = board.submit(ImageRequest(prompt="a")).id
    eventually(lambda: status(board, id) == "generating", "the job", 10)
    answer = board.cancel(id)
    assert answer
    assert (answer[0], answer[1]["status"]) == (False, "generating")
    easel.go.release()
    assert over(board, id)["status"] == "completed"


def test_a_running_job_that_can() -> None:
    easel = Easel()
    board = JobBoard(easel.paint, easel.cancel)
    first, second = (board.submit(ImageRequest(prompt=name)).id for name in ("a", "b"))
    eventually(lambda: status(board, first) == "generating", "the job", 10)
    answer = board.cancel(first)
    assert answer
    assert (answer[0], answer[1]["status"]) == (True, "cancelled")
    easel.go.release()
    assert over(board, second)["status"] == "completed"
    assert status(board, first) == "cancelled"  # final, although the painter delivered
    # Every job begins with a clean slate, so that a late cancel does not hit the next one.
    assert easel.asked == [False, True, False]


def test_the_queue_is_bounded() -> None:
    board = JobBoard(Easel().paint)
    for _ in range(MAX_PENDING):
        board.submit(ImageRequest(prompt="a"))
    with pytest.raises(QueueFullError):
        board.submit(ImageRequest(prompt="one too many"))


def test_unknown_jobs() -> None:
    board = JobBoard(Easel().paint)
    assert board.describe("job_0") is None
    assert board.cancel("job_0") is None
    assert not board.expired("job_0")


@pytest.mark.parametrize(("limit", "value"), [("_KEPT_JOBS", 2), ("_KEPT_BYTES", 1100)])
def test_finished_jobs_do_not_pile_up(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(sd_jobs, limit, value)
    easel = Easel()
    board = JobBoard(easel.paint)
    ids = []
    for name in "abcd":
        ids.append(board.submit(ImageRequest(prompt=name)).id)
        easel.go.release()
        over(board, ids[-1])
    assert [status(board, id) for id in ids] == [None, None, "completed", "completed"]
    assert [board.expired(id) for id in ids] == [True, True, False, False]


def test_finished_jobs_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    easel = Easel()
    board = JobBoard(easel.paint)
    id = board.submit(ImageRequest(prompt="a")).id
    easel.go.release()
    over(board, id)
    monkeypatch.setattr(sd_jobs, "_KEPT_SECONDS", 0.0)
    assert board.describe(id) is None
    assert board.expired(id)


def test_one_picture_that_is_too_big_is_kept_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd_jobs, "_KEPT_BYTES", 10)
    easel = Easel()
    board = JobBoard(easel.paint)
    id = board.submit(ImageRequest(prompt="a")).id
    easel.go.release()
    assert over(board, id)["result"]["images"]


# ---- previews -------------------------------------------------------------------------------------------------------


def preview(board: JobBoard, id: str) -> Any:
    described = board.describe(id)
    assert described
    return described["preview"]


def test_a_preview_is_the_running_jobs_until_it_ends() -> None:
    easel = Easel()
    board = JobBoard(easel.paint, easel.cancel)
    board.show_preview(1, "nobody's")
    first, second = (board.submit(ImageRequest(prompt=name)).id for name in ("a", "b"))
    eventually(lambda: status(board, first) == "generating", "the job", 10)
    assert preview(board, first) is None
    for step in (1, 2):
        board.show_preview(step, f"picture {step}")
    assert preview(board, first) == {"step": 2, "b64_json": "picture 2"}
    assert preview(board, second) is None
    board.cancel(first)
    board.show_preview(3, "too late")
    assert preview(board, first) is None
    easel.go.release()
    over(board, second)
    board.show_preview(4, "too late")
    assert (preview(board, first), preview(board, second)) == (None, None)


class Frame:
    """What the engine shows: a buffer that is good for as long as the callback runs."""

    def __init__(self, shade: int, side: int = 8) -> None:
        self.pixels = np.full((side, side, 3), shade, np.uint8)

    def to_numpy(self) -> Any:
        return self.pixels


class FakeEngine:
    """An engine whose steps a test makes."""

    PreviewMode = enum.IntEnum("PreviewMode", ["NONE", "PROJ", "COUNT"])

    def __init__(self) -> None:
        self.callback: Any = None
        self.refuses = False

    def set_preview_callback(self, callback: Any, mode: Any = None, interval: int = 1) -> None:
        if self.refuses:
            raise TypeError("not like this")
        self.callback = callback


def test_previews_come_at_their_interval_and_not_after_the_end() -> None:
    engine, seen, said = FakeEngine(), [], []
    previews = Previews(engine, said.append)
    assert previews.modes == ["none", "proj"]
    with previews.during("proj", 2, lambda step, image: seen.append((step, image))):
        late = engine.callback
        for step in (1, 2, 3):
            late(step, [Frame(step)], False)
        eventually(lambda: seen, "a preview", 10)
        late(4, [], False)
    assert [step for step, _ in seen] == [2]
    assert base64.b64decode(seen[0][1]).startswith(b"\x89PNG")
    assert engine.callback is None
    late(6, [Frame(6)], False)
    with previews.during("proj", 1, lambda step, image: seen.append((step, image))):
        time.sleep(0.05)
    assert len(seen) == 1
    assert not said


def test_only_the_latest_waits() -> None:
    """While one is encoded or shown, steps go on; what was not looked at is dropped."""
    engine, seen = FakeEngine(), []
    shown, go = threading.Event(), threading.Event()
    previews = Previews(engine, lambda words: None)

    def slow(pixels: Any) -> str:
        shown.set()
        assert go.wait(10)
        return str(pixels[0, 0, 0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd_preview, "_small_png", slow)
        with previews.during("proj", 1, lambda step, image: seen.append((step, image))):
            frame = Frame(1)
            engine.callback(1, [frame], False)
            assert shown.wait(10)
            for step in range(2, 7):
                frame.pixels[:] = step
                engine.callback(step, [frame], False)
            frame.pixels[:] = 99  # the engine uses its buffer again
            go.set()
            eventually(lambda: len(seen) == 2, "two previews", 10)
    assert seen == [(1, "1"), (6, "6")]


def test_a_preview_that_fails_is_said_once_and_breaks_nothing() -> None:
    engine, said = FakeEngine(), []
    previews = Previews(engine, said.append)

    def show(step: int, image: str) -> None:
        raise RuntimeError("nobody looks")

    with previews.during("proj", 1, show):
        for step in (1, 2):
            engine.callback(step, [object()], False)
            engine.callback(step, [Frame(1)], False)
    engine.refuses = True
    with previews.during("proj", 1, show):
        pass
    assert len(said) == 1
    assert "a preview failed" in said[0]


def test_an_engine_without_previews() -> None:
    previews = Previews(object(), lambda words: None)
    assert previews.modes == ["none"]
    with previews.during("none", 1, lambda step, image: None):
        pass
