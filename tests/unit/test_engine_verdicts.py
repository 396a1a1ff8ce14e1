"""What is remembered of engines, when it no longer holds, and what a spoilt or forged memory does: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.core.engines import places, proof, verdicts
from genai_notebook.core.engines.catalog import Archive, Build
from genai_notebook.core.engines.check import CheckFailedError
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.proof import Prover, UnusableError
from genai_notebook.core.engines.trial import InconclusiveError, Proof, Trial, TrialFailedError
from genai_notebook.core.engines.verdicts import (
    BRIEFLY,
    FOR_A_DAY,
    KEPT,
    KEPT_FAILURES,
    UNREACHED,
    Failure,
    Verdict,
    Verdicts,
    drivers_of,
    verdict_key,
)
from genai_notebook.core.schema import GPUInfo
from genai_notebook.errors import FileSystemError, ServerError

posix = pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\necho 'version: 7 (abc)'\n")
    path.chmod(0o755)
    return path


def trial_of(model: str) -> Trial:
    return Trial(kind="llama", model_id=model, size=1, session=None, flags=lambda port: [])  # type: ignore[arg-type]


class Counted:
    """Counts the tests that are made; what comes of them is the test's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.trials: list[str] = []
        self.hashes = 0
        self.outcome: Callable[[str], Any] = lambda model: Proof(gpu=None)
        self.broken: str | None = None
        self.options: dict[str, Any] = {}
        real = verdicts.sha256_of

        def hashed(path: Any) -> str:
            self.hashes += 1
            return real(path)

        def check(argv: list[str], **options: Any) -> str:
            self.runs.append(argv[0])
            self.options = options
            if self.broken is not None:
                raise CheckFailedError(self.broken)
            return "version: 7"

        async def try_engine(engine: Engine, trial: Trial) -> Proof:
            self.trials.append(trial.model_id)
            outcome = self.outcome(trial.model_id)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(verdicts, "sha256_of", hashed)
        monkeypatch.setattr(proof, "check_runs", check)
        monkeypatch.setattr(proof, "try_engine", try_engine)


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def nothing(*_: object) -> None:
    pass


def look_at(program: Path, variant: Any = "path") -> places.Look:
    return msgspec.structs.replace(places.own("llama", str(program)), variant=variant)


def prover_of(folder: Path, drivers: str = "") -> Prover:
    return Prover(Verdicts(folder), drivers, folder.parent / "run", asyncio.Lock())


def prove(
    folder: Path,
    program: Path,
    model: str | None = "m",
    *,
    again: bool = False,
    drivers: str = "",
    variant: str = "path",
) -> Any:
    """As a process of its own would."""
    wanted = trial_of(model) if model is not None else None

    async def proven() -> Any:
        look = look_at(program, variant)
        return await prover_of(folder, drivers).prove(look, wanted, again=again, tell=nothing, begin=nothing)

    return asyncio.run(proven())


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + seconds)


def failure_for(seconds: float, reason: str = "x") -> Failure:
    return Failure(reason, time.time() + seconds)


# ---- a hit


def test_what_has_passed_is_not_tested_again(tmp_path: Path, program: Path, tests: Counted) -> None:
    for _ in range(3):
        proven = prove(tmp_path / "cache", program)
        assert proven.computed
        assert proven.engine.version == "7"
    assert (len(tests.runs), tests.trials, tests.hashes) == (1, ["m"], 1)


def test_what_only_had_to_run_still_has_to_compute(tmp_path: Path, program: Path, tests: Counted) -> None:
    assert not prove(tmp_path, program, None).computed
    assert prove(tmp_path, program).computed
    assert prove(tmp_path, program, None).computed
    assert (len(tests.runs), tests.trials) == (1, ["m"])


def test_who_insists_gets_all_tests_again(tmp_path: Path, program: Path, tests: Counted) -> None:
    prove(tmp_path, program)
    prove(tmp_path, program, again=True)
    assert (len(tests.runs), tests.trials) == (2, ["m", "m"])


def test_whether_it_used_a_gpu_is_remembered(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.outcome = lambda model: Proof(gpu=True)
    assert [prove(tmp_path, program).engine.gpu for _ in range(2)] == [True, True]


# ---- changes


def test_another_time_or_inode_costs_a_hash_and_no_test(tmp_path: Path, program: Path, tests: Counted) -> None:
    prove(tmp_path / "cache", program)
    os.utime(program, (1, 1))
    prove(tmp_path / "cache", program)
    assert tests.hashes == 2
    copy = tmp_path / "copy"
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    os.utime(copy, (1, 1))
    os.replace(copy, program)
    prove(tmp_path / "cache", program)
    assert (tests.hashes, len(tests.runs), tests.trials) == (3, 1, ["m"])


def test_other_bytes_are_another_program(tmp_path: Path, program: Path, tests: Counted) -> None:
    prove(tmp_path / "cache", program)
    program.write_text(program.read_text() + "# more\n")
    prove(tmp_path / "cache", program)
    assert (len(tests.runs), tests.trials) == (2, ["m", "m"])


def test_other_bytes_of_the_same_size_and_time_in_another_file(tmp_path: Path, program: Path, tests: Counted) -> None:
    prove(tmp_path / "cache", program)
    status = program.stat()
    other = tmp_path / "other"
    other.write_bytes(program.read_bytes().replace(b"abc", b"xyz"))
    other.chmod(0o755)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, program)
    prove(tmp_path / "cache", program)
    assert (len(tests.runs), tests.hashes) == (2, 2)


def test_other_drivers_are_another_machine(tmp_path: Path, program: Path, tests: Counted) -> None:
    for drivers in ("card 1", "card 2", "card 1"):
        prove(tmp_path, program, drivers=drivers)
    assert (len(tests.runs), tests.trials) == (2, ["m", "m"])


def test_drivers_in_a_word() -> None:
    first, second = (
        GPUInfo(available=True, name="a", driver="1", vram_available=3),
        GPUInfo(available=True, name="b", driver="2"),
    )
    assert drivers_of([first, second]) == drivers_of([second, first]) == "a 1, b 2"
    assert drivers_of([]) == ""


def test_a_key_tells_everything_apart() -> None:
    keys = {
        verdict_key(identity, variant, release, drivers)
        for identity in ("i", "j")
        for variant in ("cpu", "cuda")
        for release in (None, "b1")
        for drivers in ("", "d")
    }
    assert len(keys) == 16


# ---- failures


def test_what_does_not_run_is_not_run_again(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.broken = "--help ended with exit code 127: libcuda.so.1 is missing"
    for words in ("missing", r"missing \(in an earlier test\)"):
        with pytest.raises(UnusableError, match=words):
            prove(tmp_path, program)
    assert len(tests.runs) == 1
    tests.broken = None
    assert prove(tmp_path, program, again=True).computed
    assert prove(tmp_path, program).computed


def test_what_does_not_run_is_run_again_after_a_minute(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests.broken = "libcuda.so.1 is missing"
    with pytest.raises(UnusableError):
        prove(tmp_path, program)
    tests.broken = None  # as after apt-get install
    later(monkeypatch, BRIEFLY - 5)
    with pytest.raises(UnusableError, match="in an earlier test"):
        prove(tmp_path, program)
    later(monkeypatch, 10)
    assert prove(tmp_path, program).computed
    assert len(tests.runs) == 2


def test_what_does_not_compute_is_tried_again_after_a_day(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests.outcome = lambda model: TrialFailedError("CUDA error: x", [])
    with pytest.raises(UnusableError):
        prove(tmp_path, program)
    tests.outcome = lambda model: Proof(gpu=True)
    later(monkeypatch, FOR_A_DAY - 60)
    with pytest.raises(UnusableError, match="in an earlier test"):
        prove(tmp_path, program)
    later(monkeypatch, 120)
    assert prove(tmp_path, program).computed
    assert (len(tests.runs), tests.trials) == (2, ["m", "m"])


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [(-1e9, False), (-1, False), (30, True), (FOR_A_DAY - 30, True), (FOR_A_DAY + 30, False), (1e9, False)],
)
def test_a_failure_counts_for_a_day_at_most(seconds: float, counts: bool) -> None:
    failure = failure_for(seconds)
    assert failure.counts is counts
    verdict = Verdict(failures={"m": failure})
    assert verdict.failure_with("m") == (failure if counts else None)
    assert verdict.failure_with("other") is None
    assert verdict.failure_with(None) is None


def test_a_clock_that_goes_back_takes_the_failures_back(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests.outcome = lambda model: TrialFailedError("CUDA error: x", [])
    with pytest.raises(UnusableError):
        prove(tmp_path, program)
    later(monkeypatch, -1e6)
    tests.outcome = lambda model: Proof(gpu=None)
    assert prove(tmp_path, program).computed


def test_what_holds_for_every_model_comes_before_what_holds_for_one() -> None:
    every, one = failure_for(30, "every"), failure_for(30, "one")
    verdict = Verdict(failures={"m": one, "": every})
    assert (verdict.failure_with("m"), verdict.failure_with(None)) == (every, every)
    over = Verdict(failures={"m": one, "": failure_for(-1)})
    assert (over.failure_with("m"), over.failure_with(None)) == (one, None)


def test_the_models_that_it_fails_with() -> None:
    failures = {"": failure_for(30), "m": failure_for(30), "over": failure_for(-1)}
    assert Verdict(failures=failures).unfit == {"m"}


def test_only_a_failure_with_every_model_takes_back_what_was_proved() -> None:
    proved = Verdict(proved=True)
    assert proved.with_failure("m", failure_for(30)).proved
    assert not proved.with_failure(None, failure_for(30)).proved


def test_the_oldest_failures_go() -> None:
    verdict = Verdict()
    for number in range(KEPT_FAILURES):
        verdict = verdict.with_failure(str(number), failure_for(30))
    verdict = verdict.with_failure("0", failure_for(30)).with_failure("new", failure_for(30))
    assert list(verdict.failures) == [*(str(number) for number in range(2, KEPT_FAILURES)), "0", "new"]


def test_success_with_one_model_leaves_the_failure_of_another(tmp_path: Path, program: Path, tests: Counted) -> None:
    bad = TrialFailedError("it crashed", [], model_only=True)
    tests.outcome = lambda model: bad if model == "bad" else Proof(gpu=None)
    for _ in range(2):
        with pytest.raises(UnusableError):
            prove(tmp_path, program, "bad")
        assert prove(tmp_path, program, "good").computed
        assert prove(tmp_path, program, "good").unfit == {"bad"}
    assert tests.trials == ["bad", "good"]
    tests.outcome = lambda model: Proof(gpu=None)
    assert prove(tmp_path, program, "bad", again=True).computed
    assert prove(tmp_path, program, "bad").computed
    assert tests.trials == ["bad", "good", "bad"]


def test_a_failure_that_is_over_with_one_model_is_tried_again_and_no_other(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = TrialFailedError("it crashed", [], model_only=True)
    tests.outcome = lambda model: bad if model == "bad" else Proof(gpu=None)
    with pytest.raises(UnusableError):
        prove(tmp_path, program, "bad")
    prove(tmp_path, program, "good")
    tests.outcome = lambda model: Proof(gpu=None)
    later(monkeypatch, FOR_A_DAY + 1)
    assert prove(tmp_path, program, "good").computed
    assert prove(tmp_path, program, "bad").computed
    assert (len(tests.runs), tests.trials) == (1, ["bad", "good", "bad"])


def test_running_is_no_answer_to_a_failure_with_a_model(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.outcome = lambda model: TrialFailedError("it crashed", [], model_only=True)
    with pytest.raises(UnusableError):
        prove(tmp_path, program)
    assert not prove(tmp_path, program, None, again=True).computed
    with pytest.raises(UnusableError, match=r"it crashed \(in an earlier test\)"):
        prove(tmp_path, program)
    assert tests.trials == ["m"]


def test_what_does_not_run_any_more_has_to_compute_again(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(tmp_path, program)
    tests.broken = "libcuda.so.1 is missing"
    with pytest.raises(UnusableError):
        prove(tmp_path, program, again=True)
    tests.broken = None
    later(monkeypatch, BRIEFLY + 1)
    assert not prove(tmp_path, program, None).computed
    assert prove(tmp_path, program).computed
    assert tests.trials == ["m", "m"]


@pytest.mark.parametrize("model_only", [False, True])
def test_what_the_user_has_named_is_tried_at_every_start(
    tmp_path: Path, program: Path, tests: Counted, model_only: bool
) -> None:
    tests.outcome = lambda model: TrialFailedError("it crashed", [], model_only=model_only)
    for _ in range(2):
        with pytest.raises(UnusableError, match=r"it crashed$"):
            prove(tmp_path, program, variant="explicit")
    tests.outcome = lambda model: Proof(gpu=None)
    for _ in range(2):
        assert prove(tmp_path, program, variant="explicit").computed
    assert tests.trials == ["m", "m", "m"]


def test_a_named_program_that_does_not_run_is_run_at_every_start(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.broken = "libcuda.so.1 is missing"
    for _ in range(2):
        with pytest.raises(UnusableError, match=r"is missing$"):
            prove(tmp_path, program, variant="explicit")
    tests.broken = None
    assert prove(tmp_path, program, variant="explicit").computed
    assert len(tests.runs) == 3


def test_a_failure_with_one_model_says_nothing_of_others(tmp_path: Path, program: Path, tests: Counted) -> None:
    failure = TrialFailedError("it crashed", ["the last line"], model_only=True)
    tests.outcome = lambda model: failure if model == "bad" else Proof(gpu=None)
    for _ in range(2):
        with pytest.raises(UnusableError, match="it crashed") as caught:
            prove(tmp_path, program, "bad")
        assert caught.value.log == ["the last line"]
        assert caught.value.model_only
    assert tests.trials == ["bad"]
    assert not prove(tmp_path, program, None).computed
    assert prove(tmp_path, program, "good").computed
    assert tests.trials == ["bad", "good"]


def test_a_gpu_s_error_condemns_for_all(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.outcome = lambda model: TrialFailedError("CUDA error: x", [])
    for model in ("a", "b", None):
        with pytest.raises(UnusableError, match="CUDA error") as caught:
            prove(tmp_path, program, model)
        assert not caught.value.model_only
    assert tests.trials == ["a"]


@pytest.mark.parametrize("error", [TrialFailedError("no memory", [], lasting=False), InconclusiveError("no memory")])
def test_want_of_memory_is_not_remembered(tmp_path: Path, program: Path, tests: Counted, error: Exception) -> None:
    tests.outcome = lambda model: error
    for _ in range(2):
        if isinstance(error, InconclusiveError):
            assert not prove(tmp_path, program).computed
        else:
            with pytest.raises(UnusableError) as caught:
                prove(tmp_path, program)
            assert not caught.value.lasting
    assert tests.trials == ["m", "m"]
    tests.outcome = lambda model: Proof(gpu=None)
    assert prove(tmp_path, program).computed


def test_a_broken_model_is_not_the_engine_s_fault(tmp_path: Path, program: Path, tests: Counted) -> None:
    tests.outcome = lambda model: ServerError("it cannot be loaded", code="MODEL_UNUSABLE")
    with pytest.raises(ServerError):
        prove(tmp_path, program)
    tests.outcome = lambda model: Proof(gpu=None)
    assert prove(tmp_path, program).computed


def test_two_trials_are_not_made_at_once(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = most = 0

    async def slowly(engine: Engine, trial: Trial) -> Proof:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return Proof(gpu=None)

    monkeypatch.setattr(proof, "try_engine", slowly)

    async def both() -> None:
        trials = asyncio.Lock()
        provers = [Prover(Verdicts(tmp_path), drivers, tmp_path / "run", trials) for drivers in ("a", "b")]
        look = look_at(program)
        tested = (p.prove(look, trial_of("m"), again=False, tell=nothing, begin=nothing) for p in provers)
        await asyncio.gather(*tested)
        async with trials:  # who asks for no trial waits for none
            await provers[0].prove(look, None, again=True, tell=nothing, begin=nothing)

    asyncio.run(both())
    assert most == 1


# ---- how programs are run


@posix
def test_programs_are_run_in_a_private_folder(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text(f"#!/bin/sh\npwd > '{tmp_path}/where'\necho version: 1\n")
    monkeypatch.chdir(tmp_path)
    prove(tmp_path / "cache", program, None)
    run = tmp_path / "run"
    assert (tmp_path / "where").read_text().strip() == os.path.realpath(run)
    assert run.stat().st_mode & 0o077 == 0


def build() -> Build:
    return Build(kind="llama", platform="x", variant="cpu", tag="b1", archive=Archive("o/a.tar.gz", "0" * 64))


def test_what_was_just_unpacked_gets_more_time(tmp_path: Path, program: Path, tests: Counted) -> None:
    prover_of(tmp_path).accept(build(), look_at(program))
    assert tests.options["seconds"] == 20
    prove(tmp_path, program, None)
    assert tests.options["seconds"] == 5


def test_a_fetched_build_that_does_not_run_is_condemned_for_a_day(
    tmp_path: Path, program: Path, tests: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests.broken = "libcuda.so.1 is missing"
    with pytest.raises(UnusableError):
        prover_of(tmp_path).accept(build(), look_at(program))
    assert prover_of(tmp_path).condemned(build()) == "libcuda.so.1 is missing"
    assert prover_of(tmp_path, "other drivers").condemned(build()) is None
    with monkeypatch.context() as patch:
        later(patch, FOR_A_DAY - 60)
        assert prover_of(tmp_path).condemned(build()) is not None
        later(patch, 120)
        assert prover_of(tmp_path).condemned(build()) is None
    tests.broken = None
    prover_of(tmp_path).accept(build(), look_at(program))
    assert prover_of(tmp_path).condemned(build()) is None


def test_a_program_that_cannot_be_read(tmp_path: Path, tests: Counted) -> None:
    with pytest.raises(FileSystemError):
        Verdicts(tmp_path).identity_of(tmp_path / "nothing")
    assert tests.hashes == 0


# ---- the file

SPOILT = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"verdicts": []}',
    b'{"verdicts": {"k": {"proved": "yes"}}}',
    b'{"verdicts": {"k": {"proved": 1}}}',
    b'{"verdicts": {"k": {"failures": []}}}',
    b'{"verdicts": {"k": {"failures": {"m": null}}}}',
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "x"}}}}}',
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "x", "until": "now"}}}}}',
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "x", "until": NaN}}}}}',
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "x", "until": 1, "log": "x"}}}}}',
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "x", "until": 1, "log": [%s]}}}}}' % b",".join([b'"x"'] * 51),
    b'{"verdicts": {"k": {"failures": {"m": {"reason": "%s", "until": 1}}}}}' % (b"x" * 20_001),
    b'{"hashes": {"/x": {"size": 1}}}',
    b'{"hashes": {"/x": [1, 2, 3]}}',
    b'{"unreached": {"host": "now"}}',
    b'{"unreached": {"host": NaN}}',
]


@pytest.mark.parametrize("content", SPOILT)
def test_a_spoilt_file_is_no_misfortune(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engines.json").write_bytes(content)
    known = Verdicts(tmp_path)
    assert known.get("k") is None
    assert known.unreached("host") is None
    known.put("k", Verdict(proved=True))
    assert Verdicts(tmp_path).get("k") == Verdict(proved=True)


def test_what_an_older_version_has_written_besides_is_skipped(tmp_path: Path) -> None:
    known = {"version": "7", "proved": True, "reason": "it crashed", "model": "m", "log": "x"}
    (tmp_path / "engines.json").write_text(json.dumps({"verdicts": {"k": known}, "more": []}))
    assert Verdicts(tmp_path).get("k") == Verdict(version="7", proved=True)


def test_failures_are_kept_with_the_rest(tmp_path: Path) -> None:
    verdict = Verdict(version="7").with_failure("m", Failure("x", 1.5, ["a line"])).with_failure(None, failure_for(1))
    Verdicts(tmp_path).put("k", verdict)
    assert Verdicts(tmp_path).get("k") == verdict


def test_a_file_that_is_spoilt_later_is_forgotten(tmp_path: Path) -> None:
    known = Verdicts(tmp_path)
    known.put("k", Verdict(proved=True))
    (tmp_path / "engines.json").write_bytes(b"{")
    assert known.get("k") is None
    (tmp_path / "engines.json").unlink()
    assert known.get("k") is None


def test_a_verdict_on_another_program_proves_nothing(tmp_path: Path, program: Path, tests: Counted) -> None:
    prove(tmp_path, program)
    path = tmp_path / "engines.json"
    known = json.loads(path.read_bytes())
    known["verdicts"] = {verdict_key("0" * 64, "path", None, ""): {"proved": True}}
    path.write_text(json.dumps(known))
    prove(tmp_path, program)
    assert tests.trials == ["m", "m"]


def test_a_hash_of_another_state_of_the_file_is_none(tmp_path: Path, program: Path, tests: Counted) -> None:
    known = Verdicts(tmp_path)
    real = known.identity_of(program)
    status = program.stat()
    path = tmp_path / "engines.json"
    for stamp in ((status.st_size + 1, status.st_mtime_ns, status.st_ino), (status.st_size, 0, status.st_ino)):
        path.write_text(json.dumps({"hashes": {str(program): [*stamp, "0" * 64]}}))
        assert Verdicts(tmp_path).identity_of(program) == real


def test_the_oldest_go(tmp_path: Path) -> None:
    known = Verdicts(tmp_path)
    for number in range(KEPT + 3):
        known.put(str(number), Verdict(proved=True))
    again = Verdicts(tmp_path)
    assert [again.get(str(number)) is None for number in (0, 2, 3, KEPT + 2)] == [True, True, False, False]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    known = Verdicts(tmp_path / "cache")
    known.put("k", Verdict(proved=True))
    known.note_unreached("host")


@posix
def test_only_its_user_can_enter_the_folder(tmp_path: Path) -> None:
    Verdicts(tmp_path / "cache").put("k", Verdict())
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_two_that_write_see_each_other(tmp_path: Path) -> None:
    one, two = Verdicts(tmp_path), Verdicts(tmp_path)
    for number in range(20):
        (one, two)[number % 2].put(str(number), Verdict(version=str(number)))
    for known in (one, two, Verdicts(tmp_path)):
        assert [known.get(str(number)) for number in range(20)] == [Verdict(version=str(n)) for n in range(20)]


def test_processes_that_write_at_once_spoil_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from genai_notebook.core.engines.verdicts import Verdict, Verdicts\n"
        "known = Verdicts(Path(sys.argv[1]))\n"
        "for number in range(100): known.put(sys.argv[2] + str(number), Verdict(version=sys.argv[2]))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("a", "b")]
    known = Verdicts(tmp_path)
    while any(writer.poll() is None for writer in writers):
        for name in ("a", "b"):
            assert known.get(f"{name}99") in (None, Verdict(version=name))
    assert [writer.returncode for writer in writers] == [0, 0]
    # The last one to write has at least its own.
    assert [Verdicts(tmp_path).get(name) for name in ("a99", "b99")] != [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["engines.json"]


# ---- hosts


def test_a_host_is_left_alone_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Verdicts(tmp_path)
    assert known.unreached("host") is None
    known.note_unreached("host")
    since = Verdicts(tmp_path).unreached("host")
    assert since is not None
    assert known.unreached("other") is None
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + UNREACHED + 1)
    assert known.unreached("host") is None


def test_a_host_that_answers_again_is_forgiven(tmp_path: Path) -> None:
    known = Verdicts(tmp_path)
    known.note_unreached("host")
    known.note_unreached("host", reached=True)
    assert Verdicts(tmp_path).unreached("host") is None


def test_a_time_to_come_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text(json.dumps({"unreached": {"host": time.time() + 1e6, "other": 1e300}}))
    known = Verdicts(tmp_path)
    assert (known.unreached("host"), known.unreached("other")) == (None, None)
