"""Which engine is taken, in which order, and what is said when there is none."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines import check, manager
from genai_notebook.core.engines.check import CheckFailedError, check_runs, version_in
from genai_notebook.core.engines.manager import BinaryManager, Engine
from genai_notebook.core.processes.environment import child_environment
from genai_notebook.core.settings import Settings
from genai_notebook.errors import BinaryError, InvalidRequestError, NotYetError

posix = pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts")


def script(path: Path, body: str) -> Path:
    """An executable that counts how often it was run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho run >> '{path}.runs'\n{body}\n")
    path.chmod(0o755)
    return path


def runs(path: Path) -> int:
    counter = Path(f"{path}.runs")
    return len(counter.read_text().splitlines()) if counter.exists() else 0


def resolve(settings: Settings, kind: Any = "llama", **options: Any) -> Engine:
    return asyncio.run(BinaryManager(settings).resolve(kind, **options))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "_is_there", lambda module: False)


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder (and the system's, for the scripts' own needs, hidden from the search)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(("kind", "wheel"), [("llama", "xllamacpp"), ("diffusion", "cyllama")])
def test_the_wheels_are_found_without_being_imported(settings: Settings, kind: str, wheel: str) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from genai_notebook.core.engines.manager import BinaryManager\n"
        "from genai_notebook.core.settings import Settings\n"
        f"engine = asyncio.run(BinaryManager(Settings(home=Path({str(settings.home)!r}))).resolve({kind!r}))\n"
        "assert not {'xllamacpp', 'cyllama', 'PIL', 'numpy'} & set(sys.modules)\n"
        "print(engine.name)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    from importlib.metadata import version

    assert out == f"{wheel} {version(wheel)} (embedded)"


def test_an_embedded_engine_runs_from_any_folder(settings: Settings, tmp_path: Path) -> None:
    engine = resolve(settings)
    assert engine.variant == "embedded"
    assert engine.argv[0] == sys.executable
    environment = child_environment(engine.env)
    done = subprocess.run([*engine.argv, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert engine.version in done.stdout


@posix
def test_an_own_engine_comes_first(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "own" / "llama-server", "echo 'version: 9860 (abc1234)' >&2")
    said: list[tuple[str, str]] = []
    engine = resolve(
        Settings(home=settings.home, llama_server=own), on_log=lambda message, level: said.append((message, level))
    )
    assert engine == Engine(
        name="llama-server 9860 (explicit)", kind="llama", argv=[str(own)], version="9860", variant="explicit"
    )
    assert said == [("engine: llama-server 9860 (explicit)", "info")]


@posix
def test_an_own_engine_that_only_knows_help(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "sd-server", '[ "$1" = --help ] && echo usage')
    engine = resolve(Settings(home=settings.home, sd_server=own), "diffusion")
    assert (engine.name, engine.version) == ("sd-server (explicit)", None)


@posix
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo libcuda.so.1: cannot open shared object file >&2; exit 127", "libcuda.so.1: cannot open shared object"),
        ("kill -ILL $$", "SIGILL"),
        ("sleep 60", "did not end within 0.5 s"),
        (None, "there is no such file"),
        ("", "it may not be executed"),
    ],
)
def test_a_broken_own_engine_is_an_error_and_never_skipped(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None, reason: str
) -> None:
    monkeypatch.setattr(
        manager, "check_runs", lambda *args, **options: check_runs(*args, **{**options, "seconds": 0.5})
    )
    own = tmp_path / "llama-server"
    if body is not None:
        script(own, body)
    if body == "":
        own.chmod(0o644)
        if os.access(own, os.X_OK):
            pytest.skip("this user may execute anything")
    with pytest.raises(BinaryError, match="GENAI_NOTEBOOK_LLAMA_SERVER") as caught:
        resolve(Settings(home=settings.home, llama_server=own))
    assert reason in str(caught.value)
    assert str(own) in str(caught.value)
    assert caught.value.details
    assert caught.value.details["candidates"][0]["state"] == "failed"
    assert caught.value.hint
    assert "unset it" in caught.value.hint


@posix
def test_a_hanging_engine_is_ended_with_its_children(tmp_path: Path, no_process_left: None) -> None:
    hanging = script(tmp_path / "hang", f"cd '{tmp_path}'; sleep 60 & sleep 60")
    with pytest.raises(CheckFailedError, match="did not end"):
        check_runs([str(hanging)], flags=("--version",), seconds=0.3)


@posix
def test_the_path_comes_last(settings: Settings, no_wheels: None, empty_path: Path) -> None:
    program = script(empty_path / "sd-server", "echo 'stable-diffusion.cpp version master-782-b290693, commit b290693'")
    engine = resolve(settings, "diffusion")
    assert engine.argv == [str(program)]
    assert engine.name == "sd-server master-782-b290693 (path)"


@posix
def test_what_lies_in_the_current_folder_is_not_on_the_path(
    settings: Settings, no_wheels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = script(tmp_path / "here" / "llama-server", "echo version: 1")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", ".")
    with pytest.raises(BinaryError, match="relative entry"):
        resolve(settings)
    assert runs(planted) == 0


@pytest.mark.parametrize("kind", ["llama", "diffusion"])
def test_no_engine_at_all(settings: Settings, no_wheels: None, empty_path: Path, kind: str) -> None:
    said: list[str] = []
    with pytest.raises(BinaryError) as caught:
        resolve(settings, kind, on_log=lambda message, level: said.append(level))
    error = caught.value
    assert error.hint == "pip install genai-notebook[embedded]"
    assert error.details
    candidates = error.details["candidates"]
    assert [candidate["state"] for candidate in candidates] == ["missing", "missing"]
    wheel, program = ("xllamacpp", "llama-server") if kind == "llama" else ("cyllama", "sd-server")
    assert candidates[0]["name"] == f"{wheel} (embedded)"
    assert wheel in candidates[0]["reason"]
    assert candidates[1]["name"] == f"{program} on the PATH"
    assert all(candidate["reason"] in str(error) for candidate in candidates)
    assert said == ["debug", "debug"]


def test_a_wheel_without_its_companions_is_missing(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "_is_there", lambda module: module != "PIL")
    with pytest.raises(BinaryError, match="not installed: pillow"):
        resolve(settings, "diffusion")


def test_a_failure_is_not_remembered(settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = BinaryManager(settings)
    with monkeypatch.context() as patch:
        patch.setattr(manager, "_is_there", lambda module: False)
        with pytest.raises(BinaryError):
            asyncio.run(engines.resolve("llama"))
    assert asyncio.run(engines.resolve("llama")).variant == "embedded"  # as after a pip install


@posix
def test_what_was_found_is_remembered_until_it_changes(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "echo version: 1")
    engines = BinaryManager(Settings(home=settings.home, llama_server=own))
    for _ in range(3):
        assert asyncio.run(engines.resolve("llama")).version == "1"
    assert runs(own) == 1
    assert asyncio.run(engines.resolve("llama", force_validation=True)).version == "1"
    assert runs(own) == 2
    script(own, "echo version: 22")
    assert asyncio.run(engines.resolve("llama")).version == "22"
    own.unlink()
    with pytest.raises(BinaryError):
        asyncio.run(engines.resolve("llama"))


def test_validation_runs_an_embedded_engine(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(manager._MODULE, "llama", "genai_notebook.there_is_no_such_module")
    assert resolve(settings).variant == "embedded"  # nothing is run unless asked
    with pytest.raises(BinaryError, match="No module named"):
        resolve(settings, force_validation=True)


@posix
def test_the_list(settings: Settings, empty_path: Path) -> None:
    script(empty_path / "llama-server", "echo version: 5")
    candidates = asyncio.run(BinaryManager(settings).list())
    llama = [candidate for candidate in candidates if candidate.kind == "llama"]
    assert [(candidate.state, candidate.in_use) for candidate in llama] == [("usable", True), ("usable", None)]
    assert llama[1].path == str(empty_path / "llama-server")
    broken = Settings(home=settings.home, llama_server=empty_path / "missing")
    llama = [candidate for candidate in asyncio.run(BinaryManager(broken).list()) if candidate.kind == "llama"]
    assert [(candidate.state, candidate.in_use) for candidate in llama] == [
        ("failed", None),
        ("usable", None),
        ("usable", None),
    ]


def test_kinds_and_what_comes_later(settings: Settings) -> None:
    engines = BinaryManager(settings)
    with pytest.raises(InvalidRequestError, match="kind: must be one of llama, diffusion"):
        asyncio.run(engines.resolve("audio"))  # type: ignore[arg-type]
    for action in (engines.use, engines.test, engines.install, engines.remove):
        with pytest.raises(NotYetError):
            asyncio.run(action(kind="llama", name="cuda"))


def test_one_instance_for_a_process() -> None:
    assert BinaryManager.get_instance() is BinaryManager.get_instance()


def test_secrets_do_not_reach_an_engine_under_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = "import os; print(sorted(os.environ))"
    assert "HF_TOKEN" not in check_runs([sys.executable, "-c", code], flags=("--version",))


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("version: 9860 (abc1234)\nbuilt with gcc", "9860"),
        ("stable-diffusion.cpp version master-782-b290693, commit b290693", "master-782-b290693"),
        ("version: 2026.10.11549 (xllamacpp, Python 3.11.7)", "2026.10.11549"),
        ("License GPLv3+: GNU GPL version 3 or later", None),
        ("", None),
    ],
)
def test_versions(output: str, version: str | None) -> None:
    assert version_in(output) == version


def test_endings_have_names() -> None:
    assert check._ending(3) == "exit code 3"
    assert check._ending(-9) == "SIGKILL"
    assert check._ending(-999) == "signal 999"
