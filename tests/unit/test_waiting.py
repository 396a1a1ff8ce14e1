from __future__ import annotations

import asyncio

import pytest

from genai_notebook.core.waiting import within


def test_results_and_errors_pass() -> None:
    async def main() -> None:
        assert await within(5, asyncio.sleep(0, "done")) == "done"
        assert await within(None, asyncio.sleep(0, "done")) == "done"

        async def fail() -> None:
            raise ValueError("inside")

        with pytest.raises(ValueError, match="inside"):
            await within(5, fail())

    asyncio.run(main())


def test_what_takes_too_long_is_cancelled() -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, slow())

    asyncio.run(main())
    assert ended == [True]


def test_a_cancellation_in_the_moment_of_the_result_is_not_lost() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[int] = loop.create_future()
        waiter = asyncio.ensure_future(within(60, result))
        await asyncio.sleep(0.01)
        # Both in one turn of the loop: first the result, then the cancellation.
        result.set_result(1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(main())


def test_cancelling_reaches_the_work() -> None:
    async def main() -> None:
        work = asyncio.ensure_future(asyncio.sleep(60))
        waiter = asyncio.ensure_future(within(60, work))
        await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await asyncio.wait({work}, timeout=5)
        assert work.cancelled()

    asyncio.run(main())
