"""callbacks: on the caller's loop or the callback thread, in order, never in the way, never fatal."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from genai_notebook.core.callbacks import deliver_here, deliver_on_loop, deliver_on_thread
from tests.fakes import eventually


def test_without_a_loop_it_runs_on_the_callback_thread_in_order() -> None:
    calls: list[tuple[int, str]] = []
    call = deliver_here(lambda number: calls.append((number, threading.current_thread().name)))
    for number in range(100):
        call(number)
    eventually(lambda: len(calls) == 100)
    assert [number for number, _ in calls] == list(range(100))
    names = {name for _, name in calls}
    assert len(names) == 1
    assert threading.current_thread().name not in names


def test_it_never_holds_up_the_caller() -> None:
    release = threading.Event()
    done = threading.Event()

    def slow(_: int) -> None:
        release.wait(10)
        done.set()

    deliver_on_thread(slow)(1)
    assert not done.is_set()  # we came back while it waits
    release.set()
    assert done.wait(10)


def test_with_a_loop_it_runs_there_from_any_thread() -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        call = deliver_here(lambda *args: seen.append((args, threading.get_ident())))
        threads = [threading.Thread(target=call, args=(n, "x")) for n in range(5)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(eventually, lambda: len(seen) == 5)
        return seen

    seen = asyncio.run(main())
    assert {args[0] for args, _ in seen} == set(range(5))
    assert {ident for _, ident in seen} == {threading.get_ident()}


def test_coroutine_functions_are_awaited_on_the_loop() -> None:
    async def main() -> int:
        done = asyncio.Event()
        found = []

        async def callback(value: int) -> None:
            await asyncio.sleep(0)
            found.append(value)
            done.set()

        deliver_here(callback)(7)
        await asyncio.wait_for(done.wait(), 10)
        return found[0]

    assert asyncio.run(main()) == 7


def test_coroutine_functions_are_awaited_on_the_thread() -> None:
    found: list[int] = []

    async def callback(value: int) -> None:
        await asyncio.sleep(0)
        found.append(value)

    deliver_on_thread(callback)(7)
    eventually(lambda: found == [7])


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
@pytest.mark.parametrize("place", ["loop", "thread"])
def test_what_it_raises_is_logged_and_forgotten(caplog: pytest.LogCaptureFixture, place: str, kind: str) -> None:
    caplog.set_level(logging.ERROR, logger="genai_notebook")
    after: list[int] = []

    def plain(_: int) -> None:
        raise ValueError("by the callback")

    async def coroutine(_: int) -> None:
        raise ValueError("by the callback")

    callback = plain if kind == "function" else coroutine

    async def on_loop() -> None:
        loop = asyncio.get_running_loop()
        deliver_on_loop(callback, loop)(1)
        deliver_on_loop(after.append, loop)(1)
        await asyncio.to_thread(eventually, lambda: after and caplog.records)

    if place == "loop":
        asyncio.run(on_loop())
    else:
        deliver_on_thread(callback)(1)
        deliver_on_thread(after.append)(1)
        eventually(lambda: after and caplog.records)
    assert "by the callback" in caplog.text


def test_a_closed_loop_is_no_error() -> None:
    async def main() -> Any:
        return deliver_here(lambda: pytest.fail("nobody is there to be told"))

    call = asyncio.run(main())
    call()
    time.sleep(0.05)


def test_it_keeps_the_callbacks_name() -> None:
    def on_progress(*_: Any) -> None: ...

    assert deliver_on_thread(on_progress).__name__ == "on_progress"
