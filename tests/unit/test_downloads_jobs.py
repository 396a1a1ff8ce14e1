"""Jobs: joined, watched, cancelled, and settled once."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from genai_notebook.core.downloads import jobs as jobs_module
from genai_notebook.core.downloads.hashing import hash_file, parse_checksum
from genai_notebook.core.downloads.jobs import AT_ONCE, KEPT, Jobs
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.core.schema import DownloadJob
from genai_notebook.errors import ChecksumError, DownloadError, FileSystemError, InvalidRequestError


def until_cancelled(work: Work) -> str:
    work.enter("running")
    work.sleep(60)
    return "never"


def test_a_job_says_how_it_goes() -> None:
    heard: list[DownloadJob] = []
    progress: list[tuple[int, int | None]] = []

    def run(work: Work) -> str:
        work.enter("running")
        for done in range(1001):
            work.report(done, 1000)
        work.enter("verifying")
        return "model"

    async def main() -> None:
        jobs: Jobs[str] = Jobs(heard.append)
        job = jobs.start("m", "k", run)
        job.listen(lambda done, total: progress.append((done, total)))
        assert await jobs.wait(job) == "model"
        await asyncio.sleep(0.05)  # the last snapshot is delivered on the loop
        assert [state.id for state in jobs.snapshots()] == [job.id]

    asyncio.run(main())
    statuses = list(dict.fromkeys(state.status for state in heard))
    assert statuses == ["running", "verifying", "complete"]
    assert heard[-1].downloaded == heard[-1].total == 1000
    assert progress[-1] == (1000, 1000)
    assert len(progress) < 50  # not one call per byte


def test_progress_is_heard_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(jobs_module.time, "monotonic", lambda: now[0])
    heard: list[int] = []
    job: jobs_module.Job[str] = jobs_module.Job("m", "k", until_cancelled, None)
    job.listen(lambda done, total: heard.append(done))
    for step in range(1, 301):  # three seconds, 10,000 bytes a second
        now[0] = step / 100
        job.work.report(step * 100, 30_000)
    assert 28 <= len(heard) <= 31
    assert heard[-1] == 30_000
    assert job.snapshot().rate == pytest.approx(10_000)


def test_equal_requests_join_and_different_ones_do_not() -> None:
    started: list[str] = []
    go = threading.Event()

    def run(work: Work) -> int:
        started.append("x")
        go.wait(30)
        return len(started)

    async def main() -> None:
        jobs: Jobs[int] = Jobs()
        one, two = jobs.start("a", ("k",), run), jobs.start("b", ("k",), run)
        assert one is two
        other = jobs.start("c", ("l",), run)
        go.set()
        await asyncio.gather(*(jobs.wait(job) for job in (one, two, other)))
        assert len(started) == 2
        assert jobs.start("a", ("k",), run) is not one  # a finished one is not joined

    asyncio.run(main())


def test_cancelling_one_and_all() -> None:
    async def main() -> None:
        jobs: Jobs[str] = Jobs()
        one, two = (jobs.start(name, name, until_cancelled) for name in "ab")
        waiting = [asyncio.ensure_future(jobs.wait(job)) for job in (one, two)]
        await jobs.cancel(one.id)
        assert is_cancelled(_error(await asyncio.gather(waiting[0], return_exceptions=True)))
        assert (one.snapshot().status, two.snapshot().status) == ("cancelled", "running")
        await jobs.cancel()
        assert is_cancelled(_error(await asyncio.gather(waiting[1], return_exceptions=True)))
        await jobs.cancel(one.id)  # once more does nothing
        with pytest.raises(InvalidRequestError):
            await jobs.cancel("unknown")

    asyncio.run(main())


def test_beyond_the_limit_jobs_wait_in_line() -> None:
    async def main() -> None:
        jobs: Jobs[str] = Jobs()
        first = [jobs.start(str(n), n, until_cancelled) for n in range(AT_ONCE)]
        started = threading.Event()
        fourth = jobs.start("x", "x", lambda work: started.set() or "x")  # type: ignore[func-returns-value]
        fifth = jobs.start("y", "y", lambda work: "y")
        sixth = jobs.start("z", "z", lambda work: "z")
        assert [job.snapshot().status for job in (fourth, fifth, sixth)] == 3 * ["queued"]
        assert not started.is_set()
        await jobs.cancel(fifth.id)  # while it waits: at once, and nobody has to make room
        assert fifth.snapshot().status == "cancelled"
        assert is_cancelled(_error(await asyncio.gather(jobs.wait(fifth), return_exceptions=True)))
        assert jobs.start("x", "x", until_cancelled) is fourth  # one that waits is joined too
        await jobs.cancel(first[0].id)
        assert await jobs.wait(fourth) == "x"
        assert await jobs.wait(sixth) == "z"
        assert [job.snapshot().status for job in first[1:]] == (AT_ONCE - 1) * ["running"]
        waiting = [jobs.start(str(n), n, until_cancelled) for n in range(10, 14)]
        await jobs.close()
        assert {job.snapshot().status for job in [*first, *waiting]} == {"cancelled"}

    asyncio.run(main())


def test_work_that_does_not_listen_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "WIND_DOWN", 0.1)
    go = threading.Event()

    async def main() -> None:
        jobs: Jobs[str] = Jobs()
        job = jobs.start("a", "a", lambda work: str(go.wait(30)))
        await jobs.cancel()
        with pytest.raises(DownloadError, match="cancelled"):
            await jobs.wait(job)
        go.set()  # what it brings too late changes nothing
        time.sleep(0.1)  # noqa: ASYNC251 - the thread, not the loop, must get time
        assert job.snapshot().status == "cancelled"

    asyncio.run(main())


def test_the_last_waiter_takes_the_job_with_it() -> None:
    async def main() -> None:
        jobs: Jobs[str] = Jobs()
        job = jobs.start("a", "a", until_cancelled)
        first, second = (asyncio.ensure_future(jobs.wait(job)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert not job.finished
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled()
        assert job.snapshot().status == "cancelled"

    asyncio.run(main())


def test_a_detached_job_outlives_its_waiters() -> None:
    async def main() -> None:
        jobs: Jobs[str] = Jobs()
        job = jobs.start("a", "a", until_cancelled)
        jobs.detach(job)
        waiter = asyncio.ensure_future(jobs.wait(job))
        await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.wait([waiter])
        assert not job.finished
        await jobs.close()
        assert job.finished
        with pytest.raises(DownloadError, match="shut down"):
            jobs.start("b", "b", until_cancelled)

    asyncio.run(main())


def test_errors_keep_their_type_and_others_become_download_errors() -> None:
    def fail(error: Exception) -> None:
        raise error

    async def main() -> None:
        jobs: Jobs[None] = Jobs()
        with pytest.raises(ChecksumError):
            await jobs.wait(jobs.start("a", "a", lambda work: fail(ChecksumError("x", "y"))))
        with pytest.raises(DownloadError, match="boom"):
            await jobs.wait(jobs.start("b", "b", lambda work: fail(KeyError("boom"))))
        assert [job.status for job in jobs.snapshots()] == ["error", "error"]

    asyncio.run(main())


def test_only_the_last_ended_jobs_are_kept() -> None:
    async def main() -> None:
        jobs: Jobs[int] = Jobs()
        for n in range(KEPT + 10):
            await jobs.wait(jobs.start(str(n), n, lambda work: 1))
        assert len(jobs.snapshots()) <= KEPT + 1

    asyncio.run(main())


def test_work_wakes_who_waits() -> None:
    woken: list[str] = []
    work = Work()
    with work.on_cancel(lambda: woken.append("first")):
        pass
    with work.on_cancel(lambda: woken.append("second")):
        work.cancel()
    with work.on_cancel(lambda: woken.append("late")):
        pass
    assert woken == ["second", "late"]
    with pytest.raises(DownloadError):
        work.check()


@pytest.mark.parametrize("text", ["A" * 64, "sha256:" + "a" * 64, "SHA256:" + "A" * 64, " sha256=" + "a" * 64])
def test_checksums_people_write(text: str) -> None:
    assert parse_checksum(text) == "a" * 64


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "md5:" + "a" * 32, "sha512:" + "a" * 128, "g" * 64])
def test_checksums_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_checksum(text)
    assert caught.value.details == {"field": "checksum"}


def test_hashing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert hash_file(path, Work()).startswith("ba7816bf")
    with pytest.raises(FileSystemError):
        hash_file(tmp_path / "b", Work())
    work = Work()
    work.cancel()
    with pytest.raises(DownloadError):
        hash_file(path, work)


def _error(results: list[object]) -> BaseException:
    (result,) = results
    assert isinstance(result, BaseException)
    return result
