"""Testing what was found: that it runs (phase 1), and that it computes (phase 2). What that shows is remembered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.check import CheckFailedError, check_runs, version_in
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.places import Look, named, wheels_identity
from genai_notebook.core.engines.trial import InconclusiveError, Trial, TrialFailedError, try_engine
from genai_notebook.core.engines.verdicts import BRIEFLY, FOR_A_DAY, Failure, Verdict, Verdicts, verdict_key
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import FileSystemError

#: Seconds that a program gets for showing that it runs; and one that has just been unpacked, which virus scanners look
#: at first.
RUN, FIRST_RUN = 5.0, 20.0

Tell = Callable[[str, str], None]


class UnusableError(Exception):
    """An engine that must not be used.

    Attributes:
        log: the last lines it printed.
        model_only: whether that holds for this model only.
        lasting: whether it would be the same another time.
    """

    def __init__(
        self, reason: str, log: list[str] | None = None, *, model_only: bool = False, lasting: bool = True
    ) -> None:
        super().__init__(reason.rstrip("."))
        self.log = log or []
        self.model_only = model_only
        self.lasting = lasting


class Proven(Struct, frozen=True):
    """An engine that passed. `computed`: whether it has passed phase 2 too, now or before; `unfit`: the models that it
    is known to fail with all the same.
    """

    engine: Engine
    computed: bool
    unfit: frozenset[str] = frozenset()


class Prover:
    """Makes the tests.

    Args:
        verdicts: where what they show is kept.
        drivers: the GPU drivers of this machine, in a word: with others the tests are made again.
        folder: where programs are run.
        trials: entered for each trial: two at once would both count on the same free memory.
    """

    def __init__(
        self, verdicts: Verdicts, drivers: str, folder: Path, trials: AbstractAsyncContextManager[Any]
    ) -> None:
        self._verdicts = verdicts
        self._drivers = drivers
        self._folder = folder
        self._trials = trials

    # ---- what is known

    def identify(self, look: Look) -> tuple[str, Verdict | None]:
        """The identity of what was found, and the verdict there is on it. Blocks.

        Raises:
            UnusableError: its file cannot be read.
        """
        try:
            if look.variant == "embedded":
                identity = wheels_identity(look.kind)
            else:
                identity = self._verdicts.identity_of(str(look.path))
        except FileSystemError as error:
            raise UnusableError(error.message) from error
        return identity, self._verdicts.get(self._key(look, identity))

    def known(self, look: Look) -> tuple[Engine, Verdict]:
        """The engine that was found, and what is known of it. A program has to run once for that, and again when what
        spoke against it is over; wheels have their version written on them. Blocks.

        Raises:
            UnusableError: it does not run.
        """
        identity, verdict = self.identify(look)
        unclear = verdict is None or ("" in verdict.failures and verdict.failure_with(None) is None)
        if unclear and look.variant != "embedded":
            verdict = self._phase_1(look, identity, verdict or Verdict())
        return _engine(look, identity, verdict or Verdict()), verdict or Verdict()

    def condemned(self, build: Build) -> str | None:
        """Why a build does not run here, if it was fetched before and found so."""
        verdict = self._verdicts.get(self._build_key(build))
        failure = verdict.failure_with(None) if verdict is not None else None
        return failure.reason if failure is not None else None

    # ---- tests

    def accept(self, build: Build, look: Look) -> None:
        """Phase 1 for a build that has just been unpacked. Blocks.

        Raises:
            UnusableError: it does not run here; that is remembered, or it would be fetched again and again.
        """
        try:
            self._check(look, FIRST_RUN)
        except UnusableError as error:
            self._verdicts.put(self._build_key(build), Verdict().with_failure(None, _failure(error, FOR_A_DAY)))
            raise
        if self.condemned(build) is not None:  # it is here because somebody has insisted
            self._verdicts.put(self._build_key(build), Verdict())

    async def prove(
        self, look: Look, trial: Trial | None, *, again: bool, tell: Tell, begin: Callable[[], None]
    ) -> Proven:
        """Have the engine show what was not shown before.

        Args:
            trial: what phase 2 is made with; None: phase 1 only.
            again: make the tests although they were passed, or failed, before.
            begin: called when there is something to test.

        Raises:
            UnusableError: it does not run, or does not compute.
            ServerError: as `try_engine`.
        """
        identity, verdict = await asyncio.to_thread(self.identify, look)
        model = trial.model_id if trial is not None else None
        # What the user has named is meant: nothing stands in for it, so each start asks it anew.
        if verdict is not None and not again and look.variant != "explicit":
            _raise_known_failure(verdict, model)
        if again or verdict is None or "" in verdict.failures:
            begin()
            verdict = await asyncio.to_thread(self._phase_1, look, identity, verdict or Verdict())
        engine = _engine(look, identity, verdict)
        if trial is None or (verdict.proved and trial.model_id not in verdict.failures and not again):
            return Proven(engine, verdict.proved, verdict.unfit)
        begin()
        async with self._trials:
            # Another trial may have shown something while this one waited.
            verdict = self._verdicts.get(self._key(look, identity)) or verdict
            tell(f"testing {engine.name} with {trial.model_id}", "info")
            return await self._phase_2(look, engine, verdict, trial, tell)

    def _phase_1(self, look: Look, identity: str, before: Verdict) -> Verdict:
        """See that it runs; what is known of phase 2 stays as it is."""
        try:
            version = self._check(look, RUN)
        except UnusableError as error:
            self._keep(look, identity, before.with_failure(None, _failure(error, BRIEFLY)))
            raise
        verdict = msgspec.structs.replace(before.without_failure(), version=version)
        self._keep(look, identity, verdict)
        return verdict

    def _check(self, look: Look, seconds: float) -> str | None:
        """See that it runs, and return its version."""
        assert look.engine is not None
        argv, env = look.program or look.engine.argv, look.engine.env
        try:
            # In a folder of ours: programs look for libraries, and Python for modules, where they are started.
            output = check_runs(argv, flags=look.checks, env=env, seconds=seconds, cwd=private_folder(self._folder))
        except CheckFailedError as error:
            raise UnusableError(str(error)) from error
        return look.engine.version or version_in(output)

    async def _phase_2(self, look: Look, engine: Engine, verdict: Verdict, trial: Trial, tell: Tell) -> Proven:
        try:
            proof = await try_engine(engine, trial)
        except TrialFailedError as failed:
            model = trial.model_id if failed.model_only else None
            error = UnusableError(str(failed), failed.log, model_only=failed.model_only, lasting=failed.lasting)
            if failed.lasting:
                self._keep(look, engine.identity, verdict.with_failure(model, _failure(error, FOR_A_DAY)))
            raise error from failed
        except InconclusiveError as error:
            tell(f"{engine.name} could not be tested, for want of memory: {error}", "warn")
            return Proven(engine, computed=False)
        gpu = proof.gpu if proof.gpu is not None else engine.gpu
        proved = msgspec.structs.replace(verdict.without_failure(trial.model_id), proved=True, gpu=gpu)
        self._keep(look, engine.identity, proved)
        where = "" if gpu is None else " on the GPU" if gpu else " on the CPU"
        tell(f"{engine.name} works{where}", "info")
        return Proven(_engine(look, engine.identity, proved), computed=True, unfit=proved.unfit)

    def _keep(self, look: Look, identity: str, verdict: Verdict) -> None:
        self._verdicts.put(self._key(look, identity), verdict)

    def _build_key(self, build: Build) -> str:
        return verdict_key(f"archive {build.archive.sha256}", build.variant, build.tag, self._drivers)

    def _key(self, look: Look, identity: str) -> str:
        return verdict_key(identity, look.variant, look.release, self._drivers)


def _failure(error: UnusableError, seconds: float) -> Failure:
    return Failure(str(error), time.time() + seconds, error.log[-50:])


def _raise_known_failure(verdict: Verdict, model: str | None) -> None:
    if (failure := verdict.failure_with(model)) is not None:
        model_only = failure is not verdict.failures.get("")
        raise UnusableError(f"{failure.reason} (in an earlier test)", failure.log, model_only=model_only)


def _engine(look: Look, identity: str, verdict: Verdict) -> Engine:
    """The engine, with what is known of it."""
    engine = named(look, verdict.version)
    gpu = engine.gpu if verdict.gpu is None else verdict.gpu
    return msgspec.structs.replace(engine, gpu=gpu, identity=identity)
