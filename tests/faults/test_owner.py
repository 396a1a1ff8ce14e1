"""However an owner of engines ends, they end with it."""

from __future__ import annotations

import asyncio
import signal
import time

import psutil
import pytest

from genai_notebook.core.processes.registry import EngineRegistry
from genai_notebook.core.runtime import Runtime
from tests.fakes import eventually
from tests.faults.conftest import Scene, gone, guard_of
from tests.processes import alive


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_a_killed_owner_takes_everything_with_it(scene: Scene, number: str) -> None:
    scene.llama.set(grandchild=True, ignore_sigterm=True)
    owner = scene.owner("llama", "images")
    llama, sd = scene.llama.pid, scene.sd.pid
    grandchild = scene.llama.journal("grandchild")[-1]["child"]
    guards = [guard_of(llama).pid, guard_of(sd).pid]
    assert all(map(alive, [llama, sd, grandchild, *guards]))
    owner.send_signal(getattr(signal, number))
    owner.wait(30)
    gone(llama, sd, grandchild, *guards)


def test_also_in_the_middle_of_an_image(scene: Scene) -> None:
    scene.sd.set(step_seconds=0.2)
    owner = scene.owner("painting")
    eventually(lambda: len(scene.sd.journal("job")) == 2)
    owner.kill()
    gone(scene.sd.pid)


def test_also_while_an_engine_loads(scene: Scene) -> None:
    scene.llama.set(load_seconds=300)
    owner = scene.owner("starting")
    eventually(lambda: scene.llama.starts)
    owner.kill()
    gone(scene.llama.pid)


def test_an_owner_that_just_ends(scene: Scene) -> None:
    owner = scene.owner("llama")
    assert owner.stdin is not None
    owner.stdin.close()
    assert owner.wait(30) == 0
    gone(scene.llama.pid)


def test_an_owner_that_closes_properly_lets_engines_end_by_themselves(scene: Scene) -> None:
    owner = scene.owner("llama", "images", "close")
    assert owner.stdin is not None
    owner.stdin.close()
    assert owner.wait(30) == 0
    assert not alive(scene.llama.pid)
    assert not alive(scene.sd.pid)
    assert scene.llama.journal("sigterm")
    assert scene.sd.journal("sigterm")


def test_interrupt_in_the_middle_of_a_start(scene: Scene) -> None:
    scene.llama.set(load_seconds=300)
    owner = scene.owner("blocking")
    eventually(lambda: scene.llama.starts)
    owner.send_signal(signal.SIGINT)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"interrupted stopped\n"
    gone(scene.llama.pid)


def test_a_stopped_owner_is_not_a_dead_one(scene: Scene) -> None:
    owner = scene.owner("llama")
    owner.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert alive(scene.llama.pid)
    owner.send_signal(signal.SIGCONT)
    assert alive(scene.llama.pid)


def test_when_owner_and_guard_die_together_the_next_owner_reaps(scene: Scene) -> None:
    owner = scene.owner("llama")
    engine = scene.llama.pid
    guard = guard_of(engine)
    guard.suspend()  # so that it cannot see its owner's end before its own
    owner.kill()
    owner.wait(30)
    guard.kill()
    eventually(lambda: not alive(guard.pid))
    time.sleep(0.3)
    assert alive(engine)  # nobody is left who could know

    async def next_owner() -> None:
        runtime = Runtime(scene.settings)
        await runtime.open()
        await runtime.close()

    asyncio.run(next_owner())
    gone(engine)
    assert EngineRegistry(scene.settings.run).engines() == []
    assert list(scene.settings.run.glob("engine-*.json")) == []


def test_a_living_owners_engines_are_left_alone(scene: Scene) -> None:
    scene.owner("llama")
    created = psutil.Process(scene.llama.pid).create_time()

    async def second_owner() -> None:
        runtime = Runtime(scene.settings)
        await runtime.open()
        await runtime.close()

    asyncio.run(second_owner())
    assert psutil.Process(scene.llama.pid).create_time() == created
    assert [record.pid for record in EngineRegistry(scene.settings.run).engines()] == [scene.llama.pid]


def test_what_stands_on_disk_is_private(scene: Scene) -> None:
    scene.owner("llama")
    (record,) = scene.settings.run.glob("engine-*.json")
    assert record.stat().st_mode & 0o077 == 0
    assert scene.settings.run.stat().st_mode & 0o077 == 0
