"""What is known of each engine, for those who want to see them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.places import Look
from genai_notebook.core.engines.proof import Prover, UnusableError
from genai_notebook.core.schema import EngineCandidate


def describe(look: Look, prover: Prover, postponed: Callable[[Build], str | None]) -> EngineCandidate:
    """One place. A program that nothing is known of is asked for its version; nothing else is run. Blocks.

    Args:
        postponed: why a build is not fetched by itself right now, if so.
    """
    if look.state == "available" and look.build is not None:
        if (condemned := prover.condemned(look.build)) is not None:
            return _candidate(look, "failed", condemned)
        return _candidate(look, "available", postponed(look.build))
    if look.state != "found":
        return _candidate(look, look.state, look.reason)
    try:
        engine, verdict = prover.known(look)
    except UnusableError as error:
        return _candidate(look, "failed", str(error), log=error.log or None)
    failed = {model: failure for model, failure in verdict.failures.items() if failure.counts}
    everywhere = failed.pop("", None)
    works = verdict.proved and everywhere is None
    failure = everywhere or next(reversed(failed.values()), None)
    reason = failure.reason if failure is not None else None
    if works and reason is not None:
        reason = f"failed with {next(reversed(failed))}: {reason}"
    return _candidate(
        look,
        "works" if works else "failed" if failure is not None else "usable",
        reason,
        name=engine.name,
        version=look.release or engine.version,
        gpu=verdict.gpu,
        log=(failure.log or None) if failure is not None else None,
    )


def _candidate(look: Look, state: Any, reason: str | None, **more: Any) -> EngineCandidate:
    fields = {"name": look.name, "version": look.release, **more}
    return EngineCandidate(kind=look.kind, variant=look.variant, state=state, path=look.path, reason=reason, **fields)


def first_usable(candidates: Iterable[EngineCandidate], chosen: str | None) -> str | None:
    """The name of the engine that would be used; None where one would be fetched first, or there is none."""
    for candidate in candidates:
        if candidate.variant == "explicit" or chosen in (None, candidate.variant):
            if candidate.state in ("works", "usable"):
                return candidate.name
            if candidate.variant == "explicit":  # a broken path of the user's own is not skipped
                return None
            if candidate.state == "available" and candidate.reason is None:
                return None
    return None
