from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from genai_notebook.core.processes.registry import EngineRegistry, is_alive
from genai_notebook.core.schema import EngineRecord
from genai_notebook.core.utilities import now_iso

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: process groups")


@pytest.fixture
def engine() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def record(pid: int, created: float, owner_pid: int, owner_created: float) -> EngineRecord:
    return EngineRecord(
        name="llama",
        pid=pid,
        pid_created=created,
        owner_pid=owner_pid,
        owner_created=owner_created,
        owner="kernel",
        engine="test",
        started_at=now_iso(),
        port=1,
        api_key="secret",
    )


def created(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


def test_a_record_survives_the_disk_and_is_private(tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    registry = EngineRegistry(tmp_path / "run")
    mine = record(engine.pid, created(engine.pid), os.getpid(), created(os.getpid()))
    path = registry.add(mine)
    assert registry.engines() == [mine]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert registry.reap() == []
    assert engine.poll() is None
    registry.remove(mine)
    assert registry.engines() == []


def test_the_orphan_of_a_dead_owner_is_ended(tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    registry = EngineRegistry(tmp_path)
    orphan = record(engine.pid, created(engine.pid), dead.pid, 1.0)
    registry.add(orphan)
    assert registry.reap() == [orphan]
    assert engine.wait(10) == -9
    assert list(tmp_path.glob("engine-*")) == []


def test_a_recycled_pid_is_not_our_engine(tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    registry = EngineRegistry(tmp_path)
    registry.add(record(engine.pid, created(engine.pid) - 1000, 1, 0.0))
    assert registry.engines() == []
    assert registry.reap() == []
    assert engine.poll() is None, "a process that only shares the number must live"
    assert list(tmp_path.glob("engine-*")) == []


def test_broken_files_hide_nothing(tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    registry = EngineRegistry(tmp_path)
    registry.add(record(engine.pid, created(engine.pid), os.getpid(), created(os.getpid())))
    (tmp_path / "engine-bad-1.json").write_text('{"name": ')
    (tmp_path / "engine-worse-2.json").write_text("[]")
    assert [r.pid for r in registry.engines()] == [engine.pid]


def test_zombies_are_dead() -> None:
    process = subprocess.Popen(["true"])
    moment = created(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid, moment)
    process.wait()
