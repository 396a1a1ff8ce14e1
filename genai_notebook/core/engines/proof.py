"""Testing what was found: that it runs (phase 1), and that it computes (phase 2). What that shows is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import Struct

from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.check import CheckFailedError, check_runs, version_in
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.places import Look, named, wheels_identity
from genai_notebook.core.engines.trial import InconclusiveError, Trial, TrialFailedError, try_engine
from genai_notebook.core.engines.verdicts import Verdict, Verdicts, verdict_key
from genai_notebook.errors import FileSystemError

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
    """An engine that passed. `computed`: whether it has passed phase 2 too, now or before."""

    engine: Engine
    computed: bool


class Prover:
    """Makes the tests.

    Args:
        verdicts: where what they show is kept.
        drivers: the GPU drivers of this machine, in a word: with others the tests are made again.
    """

    def __init__(self, verdicts: Verdicts, drivers: str) -> None:
        self._verdicts = verdicts
        self._drivers = drivers

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

    def known(self, look: Look) -> tuple[Engine, Verdict | None]:
        """The engine that was found, and what is known of it. A program has to run once for that; wheels have their
        version written on them. Blocks.

        Raises:
            UnusableError: it does not run.
        """
        identity, verdict = self.identify(look)
        if verdict is None and look.variant != "embedded":
            verdict = self._phase_1(look, identity)
        return _engine(look, identity, verdict or Verdict()), verdict

    def condemned(self, build: Build) -> str | None:
        """Why a build does not run here, if it was fetched before and found so."""
        verdict = self._verdicts.get(self._build_key(build))
        return verdict.reason if verdict is not None else None

    # ---- tests

    def accept(self, build: Build, look: Look) -> None:
        """Phase 1 for a build that has just been unpacked. Blocks.

        Raises:
            UnusableError: it does not run here; that is remembered, or it would be fetched again and again.
        """
        try:
            self._check(look)
        except UnusableError as error:
            self._verdicts.put(self._build_key(build), Verdict(reason=str(error)))
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
        if again or verdict is None:
            begin()
            # Who asks for phase 1 alone does not take back what phase 2 has shown.
            before = verdict if trial is None else None
            verdict = await asyncio.to_thread(self._phase_1, look, identity, before)
        elif verdict.condemns(trial.model_id if trial else None):
            reason = f"{verdict.reason} (in an earlier test)"
            raise UnusableError(reason, verdict.log, model_only=verdict.model is not None)
        engine = _engine(look, identity, verdict)
        if trial is None or (verdict.proved and not again):
            return Proven(engine, verdict.proved)
        begin()
        tell(f"testing {engine.name} with {trial.model_id}", "info")
        return await self._phase_2(look, engine, verdict, trial, tell)

    def _phase_1(self, look: Look, identity: str, before: Verdict | None = None) -> Verdict:
        try:
            version = self._check(look)
        except UnusableError as error:
            self._keep(look, identity, Verdict(reason=str(error)))
            raise
        proved = before is not None and before.proved
        verdict = Verdict(version=version, proved=proved, gpu=before.gpu if before is not None and proved else None)
        self._keep(look, identity, verdict)
        return verdict

    @staticmethod
    def _check(look: Look) -> str | None:
        """See that it runs, and return its version."""
        assert look.engine is not None
        try:
            output = check_runs(look.program or look.engine.argv, flags=look.checks, env=look.engine.env)
        except CheckFailedError as error:
            raise UnusableError(str(error)) from error
        return look.engine.version or version_in(output)

    async def _phase_2(self, look: Look, engine: Engine, verdict: Verdict, trial: Trial, tell: Tell) -> Proven:
        try:
            proof = await try_engine(engine, trial)
        except TrialFailedError as error:
            if error.lasting:
                model = trial.model_id if error.model_only else None
                failed = msgspec.structs.replace(verdict, proved=False, reason=str(error), model=model, log=error.log)
                self._keep(look, engine.identity, failed)
            raise UnusableError(str(error), error.log, model_only=error.model_only, lasting=error.lasting) from error
        except InconclusiveError as error:
            tell(f"{engine.name} could not be tested, for want of memory: {error}", "warn")
            return Proven(engine, computed=False)
        gpu = proof.gpu if proof.gpu is not None else engine.gpu
        proved = Verdict(version=verdict.version, proved=True, gpu=gpu)
        self._keep(look, engine.identity, proved)
        where = "" if gpu is None else " on the GPU" if gpu else " on the CPU"
        tell(f"{engine.name} works{where}", "info")
        return Proven(_engine(look, engine.identity, proved), computed=True)

    def _keep(self, look: Look, identity: str, verdict: Verdict) -> None:
        self._verdicts.put(self._key(look, identity), verdict)

    def _build_key(self, build: Build) -> str:
        return verdict_key(f"archive {build.archive.sha256}", build.variant, build.tag, self._drivers)

    def _key(self, look: Look, identity: str) -> str:
        return verdict_key(identity, look.variant, look.release, self._drivers)


def _engine(look: Look, identity: str, verdict: Verdict) -> Engine:
    """The engine, with what is known of it."""
    engine = named(look, verdict.version)
    gpu = engine.gpu if verdict.gpu is None else verdict.gpu
    return msgspec.structs.replace(engine, gpu=gpu, identity=identity)
