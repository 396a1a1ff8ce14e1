"""The user's own engine, the wheels and the PATH: which is taken, what is said when there is none, and the list."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines import check, places, proof, verdicts
from genai_notebook.core.engines.check import CheckFailedError, check_runs, version_in
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.verdicts import Failure, Verdict
from genai_notebook.core.processes.environment import child_environment
from genai_notebook.core.schema import EngineCandidate
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.errors import BinaryError, InvalidRequestError

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


def manager_of(settings: Settings) -> BinaryManager:
    """One that knows no releases."""
    return BinaryManager(settings, catalog=())


def resolve(settings: Settings, kind: Any = "llama", **options: Any) -> Engine:
    return asyncio.run(manager_of(settings).resolve(kind, **options))


def listed(engines: BinaryManager, kind: str = "llama") -> list[EngineCandidate]:
    return [candidate for candidate in asyncio.run(engines.list()) if candidate.kind == kind]


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, mirror=OFF)


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "is_there", lambda module: False)


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder, which is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


# ---- wheels


@pytest.mark.parametrize(("kind", "wheel"), [("llama", "xllamacpp"), ("diffusion", "cyllama")])
def test_the_wheels_are_found_without_being_imported(settings: Settings, kind: str, wheel: str) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from genai_notebook.core.engines.manager import BinaryManager\n"
        "from genai_notebook.core.settings import Settings\n"
        f"settings = Settings(home=Path({str(settings.home)!r}), mirror='off')\n"
        f"engine = asyncio.run(BinaryManager(settings).resolve({kind!r}))\n"
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
    assert engine.version
    environment = child_environment(engine.env)
    done = subprocess.run([*engine.argv, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert engine.version in done.stdout


def test_a_wheel_without_its_companions_is_missing(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "is_there", lambda module: module != "PIL")
    with pytest.raises(BinaryError, match="not installed: pillow"):
        resolve(settings, "diffusion")


def test_a_wheel_whose_program_does_not_run_is_not_taken(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(places._MODULES, "llama", "genai_notebook.there_is_no_such_module")
    with pytest.raises(BinaryError, match="No module named"):
        resolve(settings)


def test_no_engine_is_no_verdict(settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = manager_of(settings)
    with monkeypatch.context() as patch:
        patch.setattr(places, "is_there", lambda module: False)
        with pytest.raises(BinaryError):
            asyncio.run(engines.resolve("llama"))
    assert asyncio.run(engines.resolve("llama")).variant == "embedded"  # as after a pip install


# ---- the user's own


@posix
def test_an_own_engine_comes_first(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "own" / "llama-server", "echo 'version: 9860 (abc1234)' >&2")
    said: list[tuple[str, str]] = []
    engine = resolve(
        Settings(home=settings.home, llama_server=own), on_log=lambda message, level: said.append((message, level))
    )
    assert (engine.name, engine.version, engine.variant) == ("llama-server 9860 (explicit)", "9860", "explicit")
    assert engine.argv == [str(own)]
    assert engine.identity
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
    def quickly(*args: Any, **options: Any) -> str:
        return check_runs(*args, **{**options, "seconds": 0.5})

    monkeypatch.setattr(proof, "check_runs", quickly)
    own = tmp_path / "llama-server"
    if body is not None:
        script(own, body)
    if body == "":
        own.chmod(0o644)
    with pytest.raises(BinaryError, match="GENAI_NOTEBOOK_LLAMA_SERVER") as caught:
        resolve(Settings(home=settings.home, llama_server=own))
    assert reason in str(caught.value)
    assert caught.value.details
    assert caught.value.details["path"] == str(own)
    assert [candidate["state"] for candidate in caught.value.details["candidates"]] == ["failed"]
    assert "unset it" in (caught.value.hint or "")


@posix
def test_a_broken_own_engine_works_once_it_is_mended(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "exit 1")
    engines = manager_of(Settings(home=settings.home, llama_server=own))
    for number in (1, 2):
        with pytest.raises(BinaryError):
            asyncio.run(engines.resolve("llama"))
        assert runs(own) == 2 * number  # --version and --help: nothing stands in for it, so each start asks it anew
    script(own, "echo version: 3")
    assert asyncio.run(engines.resolve("llama")).version == "3"


@posix
def test_an_own_engine_whose_library_is_installed_works_at_once(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", f"[ -e '{tmp_path}/library' ] || exit 127\necho version: 3")
    chosen = Settings(home=settings.home, llama_server=own)
    engines = manager_of(chosen)
    with pytest.raises(BinaryError):
        asyncio.run(engines.resolve("llama"))
    assert listed(engines)[0].state == "failed"
    (tmp_path / "library").touch()
    assert asyncio.run(engines.resolve("llama")).version == "3"
    assert listed(engines)[0].state == "usable"
    assert resolve(chosen).version == "3"


@posix
def test_what_was_found_is_remembered_until_it_changes(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "echo version: 1")
    engines = manager_of(Settings(home=settings.home, llama_server=own))
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


@posix
def test_the_next_process_does_not_run_it_again(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "echo version: 1")
    for _ in range(2):
        assert resolve(Settings(home=settings.home, llama_server=own)).version == "1"
    assert runs(own) == 1


@posix
def test_engines_are_run_in_a_folder_of_ours(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", f"pwd > '{tmp_path}/where'\necho version: 1")
    resolve(Settings(home=settings.home, llama_server=own))
    assert (tmp_path / "where").read_text().strip() == os.path.realpath(settings.run)


@posix
def test_a_manager_works_on_one_event_loop_after_another(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "sleep 0.1; echo version: 1")
    engines = manager_of(Settings(home=settings.home, llama_server=own))

    async def several() -> set[str | None]:
        found = await asyncio.gather(*(engines.resolve("llama", force_validation=True) for _ in range(3)))
        return {engine.version for engine in found}

    for _ in range(2):
        assert asyncio.run(several()) == {"1"}
    assert runs(own) == 6


@posix
def test_a_wheel_that_is_upgraded_or_removed_meanwhile_is_noticed(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(empty_path / "llama-server", "echo version: 5")
    engines = manager_of(settings)
    monkeypatch.setattr(proof, "check_runs", lambda argv, **_: "version: 5")
    for version in ("1", "2"):
        monkeypatch.setattr(places, "_version_of", lambda package, version=version: version)
        for _ in range(2):
            engine = asyncio.run(engines.resolve("llama"))
            assert (engine.name, engine.version) == (f"xllamacpp {version} (embedded)", version)
    monkeypatch.setattr(places, "_version_of", lambda package: None)
    monkeypatch.setattr(places, "is_there", lambda module: False)
    assert asyncio.run(engines.resolve("llama")).argv == [str(program)]


# ---- the PATH, and nothing at all


@posix
def test_the_path_comes_last(settings: Settings, no_wheels: None, empty_path: Path) -> None:
    program = script(empty_path / "sd-server", "echo 'stable-diffusion.cpp version master-782-b290693, commit b290693'")
    engine = resolve(settings, "diffusion")
    assert engine.argv == [str(program)]
    assert engine.name == "sd-server master-782-b290693 (path)"


@posix
def test_what_lies_in_the_current_folder_is_not_run(
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


# ---- the list, and what is asked of one engine


@posix
def test_the_list(settings: Settings, empty_path: Path) -> None:
    script(empty_path / "llama-server", "echo version: 5")
    llama = listed(manager_of(settings))
    assert [(candidate.state, candidate.in_use) for candidate in llama] == [("usable", True), ("usable", None)]
    assert (llama[1].path, llama[1].version) == (str(empty_path / "llama-server"), "5")
    broken = Settings(home=settings.home, llama_server=empty_path / "missing")
    assert [(candidate.state, candidate.in_use) for candidate in listed(manager_of(broken))] == [
        ("failed", None),
        ("usable", None),
        ("usable", None),
    ]


@posix
def test_the_list_runs_a_program_once(settings: Settings, empty_path: Path) -> None:
    program = script(empty_path / "llama-server", "exit 3")
    for _ in range(3):
        entry = listed(manager_of(settings))[-1]
        assert (entry.state, entry.reason) == ("failed", "--help ended with exit code 3")
    assert runs(program) == 2


@posix
def test_the_list_runs_a_broken_program_again_after_a_minute(
    settings: Settings, empty_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(empty_path / "llama-server", f"[ -e '{empty_path}/library' ] || exit 3\necho version: 1")
    now = time.time()
    assert listed(manager_of(settings))[-1].state == "failed"
    monkeypatch.setattr(verdicts.time, "time", lambda: now + verdicts.BRIEFLY + 5)
    assert listed(manager_of(settings))[-1].state == "failed"
    (empty_path / "library").touch()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + 2 * (verdicts.BRIEFLY + 5))
    assert listed(manager_of(settings))[-1].state == "usable"


@posix
@pytest.mark.parametrize(
    ("verdict", "state", "reason"),
    [
        (Verdict(), "usable", None),
        (Verdict(proved=True), "works", None),
        (Verdict(proved=True).with_failure("m", Failure("x", 1.0)), "works", None),
        (Verdict().with_failure("m", Failure("x", time.time() + 3600)), "failed", "x"),
        (Verdict(proved=True).with_failure("m", Failure("x", time.time() + 3600)), "works", "failed with m: x"),
        (Verdict(proved=True).with_failure(None, Failure("x", time.time() + 3600)), "failed", "x"),
    ],
)
def test_what_the_list_says_of_tests(
    settings: Settings, empty_path: Path, verdict: Verdict, state: str, reason: str | None
) -> None:
    program = script(empty_path / "llama-server", "echo version: 1")
    engines = manager_of(settings)
    known = engines._verdicts
    drivers = verdicts.drivers_of(asyncio.run(engines._system.detect()).gpus)
    known.put(verdicts.verdict_key(known.identity_of(program), "path", None, drivers), verdict)
    entry = listed(engines)[-1]
    assert (entry.state, entry.reason) == (state, reason)


@posix
def test_a_test_without_a_model_says_why_no_more_was_tried(settings: Settings, tmp_path: Path) -> None:
    own = script(tmp_path / "llama-server", "echo version: 1")
    engines = manager_of(Settings(home=settings.home, llama_server=own))
    for number in (1, 2):
        tested = asyncio.run(engines.test("llama"))
        assert (tested.state, tested.variant) == ("usable", "explicit")
        assert "no model is at hand" in (tested.reason or "")
        assert runs(own) >= number
    script(own, "echo no; exit 4")
    tested = asyncio.run(engines.test("llama", "explicit"))
    assert (tested.state, tested.reason) == ("failed", "--help ended with exit code 4: no")


def test_what_is_not_here_is_not_tested(settings: Settings, no_wheels: None, empty_path: Path) -> None:
    engines = manager_of(settings)
    with pytest.raises(InvalidRequestError, match="not here: not installed: xllamacpp"):
        asyncio.run(engines.test("llama", "embedded"))
    with pytest.raises(BinaryError, match=r"No llama\.cpp engine is in use"):
        asyncio.run(engines.test("llama"))


@pytest.mark.parametrize("name", ["cuda", "../x", "", "llama.cpp b1 (cpu)", "x" * 300])
def test_an_engine_that_there_is_not(settings: Settings, name: str) -> None:
    engines = manager_of(settings)
    for action in (engines.use, engines.test, engines.install, engines.remove):
        with pytest.raises(InvalidRequestError, match=r"there is no llama\.cpp engine") as caught:
            asyncio.run(action("llama", name))
        assert (caught.value.details or {})["valid"] == ["embedded", "path"]


def test_only_builds_are_installed_and_removed(settings: Settings) -> None:
    engines = manager_of(settings)
    with pytest.raises(InvalidRequestError, match="nothing to install") as caught:
        asyncio.run(engines.install("llama", "embedded"))
    assert caught.value.hint == "pip install genai-notebook[embedded]"
    with pytest.raises(InvalidRequestError, match="no installed build"):
        asyncio.run(engines.remove("llama", "embedded"))
    with pytest.raises(BinaryError, match="no release for this machine"):
        asyncio.run(engines.install("llama"))


def test_kinds(settings: Settings) -> None:
    engines = manager_of(settings)
    for action in (engines.resolve, engines.use, engines.test, engines.install, engines.remove):
        with pytest.raises(InvalidRequestError, match="kind: must be one of llama, diffusion"):
            asyncio.run(action("audio"))  # type: ignore[arg-type]


def test_one_instance_for_a_process() -> None:
    assert BinaryManager.get_instance() is BinaryManager.get_instance()


# ---- the first check


@posix
def test_a_hanging_engine_is_ended_with_its_children(tmp_path: Path, no_process_left: None) -> None:
    hanging = script(tmp_path / "hang", f"cd '{tmp_path}'; sleep 60 & sleep 60")
    with pytest.raises(CheckFailedError, match="did not end"):
        check_runs([str(hanging)], flags=("--version",), seconds=0.3)


def test_secrets_do_not_reach_an_engine_under_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = "import os; print(sorted(os.environ))"
    assert "HF_TOKEN" not in check_runs([sys.executable, "-c", code], flags=("--version",))


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("version: 9860 (abc1234)\nbuilt with gcc", "9860"),
        ("version: 0.6.0-dev (build 0, commit unknown)\nbuilt with GNU 12.2.0 for Linux x86_64", "0.6.0-dev"),
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
