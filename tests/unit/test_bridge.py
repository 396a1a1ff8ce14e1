from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from genai_notebook.client.bridge import background_loop, call_in_background, on_background_loop, run


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_run_returns_and_raises() -> None:
    assert run(double(21)) == 42

    async def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        run(fail())


def test_an_exit_inside_does_not_end_the_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(leave(), timeout=10)
    assert run(double(3), timeout=10) == 6


def test_run_works_inside_a_running_loop() -> None:
    async def cell() -> int:
        return run(double(4))

    assert asyncio.run(cell()) == 8


def test_a_timeout_cancels_the_work() -> None:
    ended = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        run(slow(), timeout=0.05)
    assert ended.is_set()


@pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")
def test_an_interrupt_cancels_the_work_and_lets_it_tidy_up() -> None:
    tidied = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            tidied.append(True)

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run(slow())
    assert tidied == [True]


def test_run_on_its_own_loop_is_refused() -> None:
    async def wrong() -> None:
        run(double(1))

    with pytest.raises(RuntimeError, match="await"):
        run(wrong())


def test_work_happens_on_the_background_loop() -> None:
    async def where() -> tuple[bool, bool]:
        async def work() -> bool:
            return on_background_loop()

        return on_background_loop(), await call_in_background(work)

    assert asyncio.run(where()) == (False, True)
    assert run(where()) == (True, True)
    assert background_loop().is_running()


def test_cancelling_passes_through() -> None:
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def main() -> None:
        task = asyncio.create_task(call_in_background(work))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    run(double(1))
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if run(double(2), timeout=10) == 4 else 1)
        except BaseException:
            os._exit(2)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child did not finish")
