"""Real child processes behind the real guard."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from genai_notebook.core.processes.environment import child_environment
from genai_notebook.core.processes.launcher import Exit, GuardLauncher, LaunchSpec
from genai_notebook.errors import BinaryError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX shells and signals")


def spec(tmp_path: Path, *argv: str) -> LaunchSpec:
    return LaunchSpec(name="test", argv=list(argv), env=child_environment(), cwd=tmp_path / "run")


def launch(tmp_path: Path, *argv: str) -> tuple[Exit, list[tuple[str, bool]]]:
    lines: list[tuple[str, bool]] = []

    async def main() -> Exit:
        process = await GuardLauncher().launch(spec(tmp_path, *argv), lambda text, is_bar: lines.append((text, is_bar)))
        return await process.wait()

    return asyncio.run(main()), lines


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends within a generous limit."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_output_and_exit_code_arrive(tmp_path: Path) -> None:
    result, lines = launch(tmp_path, "sh", "-c", "echo one; echo two >&2; exit 3")
    assert result == Exit(code=3)
    assert result.describe() == "exited with code 3"
    assert sorted(lines) == [("one", False), ("two", False)]


def test_the_last_line_arrives_without_its_end(tmp_path: Path) -> None:
    _, lines = launch(tmp_path, "sh", "-c", "printf 'no newline'")
    assert lines == [("no newline", False)]


def test_progress_bars_are_told_apart(tmp_path: Path) -> None:
    _, lines = launch(
        tmp_path, "printf", r"log\n\r  |==>  | 1/4 - 2.00it/s\033[K\r  |====>| 2/4 - 2.00it/s\033[K\nend\n"
    )
    assert [text for text, is_bar in lines if is_bar] == ["  |==>  | 1/4 - 2.00it/s", "  |====>| 2/4 - 2.00it/s"]
    assert [text for text, is_bar in lines if not is_bar] == ["log", "end"]


def test_a_signal_is_named(tmp_path: Path) -> None:
    result, _ = launch(tmp_path, "sh", "-c", "kill -SEGV $$")
    assert result == Exit(signal="SIGSEGV")


def test_a_missing_program_is_a_binary_error(tmp_path: Path) -> None:
    with pytest.raises(BinaryError, match="No such file"):
        launch(tmp_path, "/nonexistent/engine")


def test_a_flood_of_output_is_read_to_its_end(tmp_path: Path) -> None:
    result, lines = launch(tmp_path, "sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 200000")
    assert result.code == 0
    assert len(lines) == 200_000


def test_terminate_and_kill(tmp_path: Path) -> None:
    async def main() -> list[Exit]:
        results = []
        for end in ("terminate", "kill"):
            process = await GuardLauncher().launch(spec(tmp_path, "sleep", "60"), lambda *_: None)
            assert psutil.Process(process.pid).create_time() == pytest.approx(process.created, abs=0.05)
            getattr(process, end)()
            results.append(await process.wait())
        return results

    assert asyncio.run(main()) == [Exit(signal="SIGTERM"), Exit(signal="SIGKILL")]


def test_what_the_engine_forked_ends_with_it(tmp_path: Path) -> None:
    result, lines = launch(tmp_path, "sh", "-c", "sleep 300 & echo $!; exit 0")
    assert result.code == 0
    assert gone(int(lines[0][0]))


def test_killing_the_guard_ends_the_engine(tmp_path: Path) -> None:
    async def main() -> tuple[int, Exit]:
        process = await GuardLauncher().launch(spec(tmp_path, "sleep", "300"), lambda *_: None)
        guard = psutil.Process(process.pid).ppid()
        os.kill(guard, signal.SIGKILL)
        return process.pid, await process.wait()

    pid, result = asyncio.run(main())
    assert gone(pid)
    assert result == Exit()


@pytest.mark.parametrize("forked", [False, True], ids=["plain", "a forked child keeps the pipe open"])
def test_killing_the_owner_ends_the_engine(tmp_path: Path, forked: bool) -> None:
    script = f"""
import asyncio, os, sys, time
from pathlib import Path
from genai_notebook.core.processes.launcher import GuardLauncher, LaunchSpec
async def main():
    process = await GuardLauncher().launch(
        LaunchSpec(name="test", argv=["sleep", "300"], env=dict(os.environ), cwd=Path({str(tmp_path)!r})), print)
    if {forked} and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print(process.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    children = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    assert gone(pid)
    for child in children:
        if child.is_running() and "sleep" not in child.name():
            child.kill()
    owner.stdout.close()


def test_the_environment_is_an_allow_list() -> None:
    source = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "LC_ALL": "C",
        "HF_TOKEN": "secret",
        "JUPYTER_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "LD_PRELOAD": "/tmp/x.so",
        "GENAI_NOTEBOOK_TOKEN": "secret",
    }
    env = child_environment({"LLAMA_API_KEY": "k"}, source)
    assert "secret" not in env.values()
    assert "LD_PRELOAD" not in env
    assert env["PATH"] == "/bin"
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert env["LC_ALL"] == "C"
    assert env["LLAMA_API_KEY"] == "k"
