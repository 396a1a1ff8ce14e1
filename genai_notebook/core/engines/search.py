"""Going through the places in their order until an engine passes its tests, and saying what was tried."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from genai_notebook.core.engines import places
from genai_notebook.core.engines.arrivals import Arrivals, NotNowError, OnProgress
from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.engine import PROGRAMS, PROJECTS, Engine, Kind
from genai_notebook.core.engines.places import Look
from genai_notebook.core.engines.proof import Proven, Prover, Tell, UnusableError
from genai_notebook.core.engines.releases import Installed, Releases
from genai_notebook.core.engines.trial import Trial
from genai_notebook.core.schema import EngineProgress
from genai_notebook.core.settings import PREFIX
from genai_notebook.errors import BinaryError, GenaiNotebookError, InvalidRequestError

HINT = "pip install genai-notebook[embedded]"
#: What the magics call the kinds.
WORDS: dict[Kind, str] = {"llama": "llm", "diffusion": "images"}
VARIABLES: dict[Kind, str] = {"llama": PREFIX + "LLAMA_SERVER", "diffusion": PREFIX + "SD_SERVER"}


class Tried(Struct, frozen=True):
    """A place that gave no engine, and why. `postponed`: another time it may, `model_only`: with another model."""

    look: Look
    reason: str
    log: list[str] = []
    postponed: bool = False
    model_only: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.look.name,
            "state": "failed" if self.look.state == "found" else self.look.state,
            "path": self.look.path,
            "reason": self.reason,
            "log": self.log,
        }


class Found(Struct, frozen=True):
    """What a search ended with.

    Attributes:
        look: where the engine was.
        computed: whether it has passed phase 2.
        tried: what was tried before it.
        model: what it was to load and compute with.
        unfit: the models that it is known to fail with.
    """

    look: Look
    engine: Engine
    computed: bool
    tried: list[Tried]
    model: str | None = None
    unfit: frozenset[str] = frozenset()

    def is_for(self, model: str) -> bool:
        """Whether it is the one to use for this model, as far as is known: what failed with another model, or for want
        of memory, may be better now.
        """
        only = [each for each in self.tried if each.model_only]
        return self.can_run(model) and not any(each.postponed or self.model != model for each in only)

    def can_run(self, model: str) -> bool:
        """Whether it computes, and is not known to fail with this model."""
        return self.computed and model not in self.unfit

    @property
    def postponed(self) -> bool:
        """Whether a better one may be had later."""
        return any(each.postponed for each in self.tried)


class Search:
    """One search for an engine of one kind.

    Args:
        trial: what the engine must be able to compute; None: it must only run.
        again: make tests although they were made before, and fetch what has just failed.
        tell: called with (message, level).
        progress: told how far downloads and tests are.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        prover: Prover,
        arrivals: Arrivals,
        releases: Releases,
        trial: Trial | None,
        again: bool,
        tell: Tell,
        progress: OnProgress,
    ) -> None:
        self._kind = kind
        self._prover = prover
        self._arrivals = arrivals
        self._releases = releases
        self._trial = trial
        self._again = again
        self.tell = tell
        self._progress = progress

    async def run(self, looks: Sequence[Look], chosen: str | None, before: Found | None = None) -> Found:
        """The first of `looks` that passes; with a `chosen` variant only those count.

        Args:
            before: what a search for an engine that only runs has just found: this one goes on from there.

        Raises:
            BinaryError: none does, or one that the user named does not.
            ServerError: the model of the trial cannot be loaded.
        """
        tried = [each for each in before.tried if not each.model_only] if before is not None else []
        strange: Exception | None = None
        skipped = {each.look.name for each in tried}
        for number, look in enumerate(looks):
            if look.name in skipped:
                continue
            if chosen is not None and look.variant not in ("explicit", chosen):
                continue
            has_fallback = chosen is None and any(other.state == "found" for other in looks[number + 1 :])
            try:
                found, proven = await self._attempt(look, patient=not has_fallback)
            except (NotNowError, UnusableError, GenaiNotebookError) as error:
                if _is_about_the_request(error):
                    # Another engine may know a model or a flag that this one does not; a broken file stays broken.
                    if look.variant == "explicit" or not _may_be_known_elsewhere(error):
                        raise
                    strange = strange or error
                tried.append(_tried(look, error))
                # What nobody asked for and is not there is no news.
                quiet = look.state in ("missing", "unsupported") or getattr(error, "wished", False)
                self.tell(f"engine: {look.name}: {error}", "debug" if quiet else "warn")
                if look.variant == "explicit":
                    raise _explicit_error(self._kind, tried[-1]) from error
            else:
                model = self._trial.model_id if self._trial else None
                return Found(found, proven.engine, proven.computed, tried, model, proven.unfit)
        raise strange or _none_error(self._kind, tried, chosen)

    async def _attempt(self, look: Look, *, patient: bool) -> tuple[Look, Proven]:
        """The place as it is now, and its engine, which has passed.

        Raises:
            NotNowError, UnusableError, GenaiNotebookError: it cannot be had, or does not pass.
        """
        if look.state == "available":
            assert look.build is not None
            # Where there is nothing else, what has failed a moment ago is worth another try.
            insist = self._again or patient
            if not self._again and (reason := self._prover.condemned(look.build)) is not None:
                raise UnusableError(f"{reason} (in an earlier test)")
            self._arrivals.require_allowed(look.build, insist)
            self.tell(f"fetching {look.name}", "info")
            installed = await bring(
                look.build, self._prover, self._arrivals, self._progress, patient=patient, insist=insist
            )
            look = places.installed_look(installed, look.build)
        elif look.state != "found":
            raise UnusableError(look.reason or look.state)
        testing = EngineProgress(kind=look.kind, engine=look.name, stage="testing")
        begun = False

        def begin() -> None:
            nonlocal begun
            begun = True
            self._progress(testing)

        try:
            proven = await self._prover.prove(look, self._trial, again=self._again, tell=self.tell, begin=begin)
        finally:
            if begun:
                self._progress(msgspec.structs.replace(testing, stage="done"))
        if proven.computed and look.build is not None and look.installed is not None:
            await asyncio.to_thread(self._releases.retire, look.installed)
        return look, proven


async def bring(
    build: Build, prover: Prover, arrivals: Arrivals, progress: OnProgress, *, patient: bool, insist: bool
) -> Installed:
    """Fetch a build that runs here.

    Raises:
        UnusableError: it does not run here.
        NotNowError, GenaiNotebookError: as `Arrivals.bring`.
    """

    def accept(installed: Installed) -> None:
        prover.accept(build, places.installed_look(installed, build))

    return await arrivals.bring(build, accept, progress, patient=patient, insist=insist)


def _is_about_the_request(error: Exception) -> bool:
    """Whether it is not the engine that is to blame, but the model or the caller's flags."""
    return isinstance(error, InvalidRequestError) or getattr(error, "code", None) == "MODEL_UNUSABLE"


def _may_be_known_elsewhere(error: Exception) -> bool:
    return isinstance(error, InvalidRequestError) or bool((getattr(error, "details", None) or {}).get("unknown_kind"))


def _tried(look: Look, error: Exception) -> Tried:
    reason = str(error).rstrip(".")
    if isinstance(error, UnusableError):
        if look.state == "available":  # it was fetched, now or before
            look = msgspec.structs.replace(look, state="failed")
        return Tried(look, reason, error.log, postponed=not error.lasting, model_only=error.model_only)
    if _is_about_the_request(error):
        # The flags may be others the next time.
        return Tried(look, reason, postponed=isinstance(error, InvalidRequestError), model_only=True)
    # It could not be brought here.
    return Tried(look, reason, postponed=not getattr(error, "wished", False))


def unusable(look: Look, error: UnusableError) -> BinaryError:
    """The error for an engine that somebody named."""
    return BinaryError(
        f"{look.name} cannot be used: {error}.",
        {"kind": look.kind, "path": look.path, "reason": str(error), "log": error.log},
        hint="%genai engines lists the others.",
    )


def _explicit_error(kind: Kind, tried: Tried) -> BinaryError:
    variable = VARIABLES[kind]
    return BinaryError(
        f"The {PROGRAMS[kind][0]} that {variable} names does not work: {tried.reason}.",
        {"kind": kind, "path": tried.look.path, "candidates": [tried.as_dict()]},
        hint=f"Correct {variable}, or unset it to use another engine.",
    )


def _none_error(kind: Kind, tried: Sequence[Tried], chosen: str | None) -> BinaryError:
    details = {"kind": kind, "candidates": [each.as_dict() for each in tried]}
    reasons = "; ".join(f"{each.look.name}: {each.reason}" for each in tried)
    if chosen is not None:
        return BinaryError(
            f"The {PROJECTS[kind]} engine that was chosen ({chosen}) does not work: {reasons or 'it is not here'}.",
            details,
            hint=f"%genai engines use {WORDS[kind]} auto leaves the choice to genai-notebook.",
        )
    embedded = any(each.look.variant == "embedded" and each.look.state == "missing" for each in tried)
    return BinaryError(
        f"No {PROJECTS[kind]} engine works here. {reasons}.",
        details,
        hint=HINT if embedded else "%genai engines shows each with the end of its log.",
    )
