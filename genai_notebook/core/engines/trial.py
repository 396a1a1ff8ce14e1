"""The second test of an engine: it loads the model that it is wanted for, and computes with it.

llama-server writes four tokens with one layer on the GPU (or makes a vector, if the model does not write); sd-server
makes one step of a 64×64 picture. The flags that decide about memory are those that the model will really be run with.
Whether a GPU took part is read from the engine's own log: that nothing went wrong proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from genai_notebook.core.engines import sdcpp
from genai_notebook.core.engines.engine import GPU_VARIANTS, Engine, Kind
from genai_notebook.core.engines.load_report import LoadReport
from genai_notebook.core.engines.session import EngineSession, stop_quietly
from genai_notebook.core.processes.ports import free_port
from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.core.waiting import within
from genai_notebook.errors import BinaryError, InvalidRequestError, ServerError

#: Seconds for the load and for the first result, and how many bytes of model a slow disk gives in a further one.
PATIENCE, BYTES_A_SECOND = 120.0, 20 << 20
TOKENS = 4
_PICTURE = ImageGenerationConfig(prompt="a grey square", width=64, height=64, steps=1, cfg_scale=1.0, seed=1)
READY: Mapping[Kind, str] = {"llama": "/health", "diffusion": "/sdcpp/v1/capabilities"}

OnLine = Callable[[str, bool], None]


class Trial(Struct, frozen=True, kw_only=True):
    """What an engine is tried with.

    Attributes:
        model_id: the model's id.
        size: its bytes.
        session: makes the session for an engine, a port, and what is to read its lines.
        flags: the engine's flags for a port.
        env: further environment variables.
        writes: whether the language model writes; else it makes vectors.
        further_flags: the caller's own among `flags`. A model may need them; but one that fails may fail for them.
    """

    kind: Kind
    model_id: str
    size: int
    session: Callable[[Engine, int, OnLine], EngineSession]
    flags: Callable[[int], list[str]]
    env: dict[str, str] = {}
    writes: bool = True
    further_flags: list[str] = []


class Proof(Struct, frozen=True):
    """What a trial that went well has shown. `gpu`: whether a GPU took part; None: the engine does not tell."""

    gpu: bool | None


class TrialFailedError(Exception):
    """The engine is of no use.

    Attributes:
        log: the last lines it printed.
        model_only: whether it is only known to be of no use for this model.
        lasting: whether that is worth remembering; what was short of memory may work tomorrow.
    """

    def __init__(self, reason: str, log: list[str], *, model_only: bool = False, lasting: bool = True) -> None:
        super().__init__(reason.rstrip("."))
        self.log = log
        self.model_only = model_only
        self.lasting = lasting


class InconclusiveError(Exception):
    """There was too little memory for the trial; that says nothing about an engine that computes on the CPU."""


async def try_engine(engine: Engine, trial: Trial) -> Proof:
    """Run the trial.

    Raises:
        TrialFailedError: the engine is of no use.
        InconclusiveError: the machine has too little memory right now.
        ServerError: it is the model that cannot be loaded (code MODEL_UNUSABLE), or the engine does not end.
        InvalidRequestError: it does not know one of the caller's flags.
    """
    report = LoadReport()
    port = free_port()
    session = trial.session(engine, port, report.feed)
    limit = PATIENCE + trial.size / BYTES_A_SECOND
    try:
        await session.launch(trial.flags(port), trial.env)
        await within(limit, _compute(session, trial))
    except asyncio.TimeoutError:
        reason = f"it came to no result within {limit:.0f} s"
        raise TrialFailedError(report.gpu_error or reason, session.log_tail(), model_only=True) from None
    except BinaryError as error:
        raise TrialFailedError(error.message, session.log_tail()) from error
    except ServerError as error:
        raise _judged(engine, trial, report, session, error) from error
    finally:
        await stop_quietly(session)
    if report.gpu_error is not None:
        raise TrialFailedError(report.gpu_error, session.log_tail())
    if engine.variant in GPU_VARIANTS and report.used_gpu is False:
        reason = report.no_gpu or "it found no GPU that it can use"
        raise TrialFailedError(f"it ran, but on the CPU: {reason}", session.log_tail())
    return Proof(report.used_gpu)


def _judged(engine: Engine, trial: Trial, report: LoadReport, session: EngineSession, error: ServerError) -> Exception:
    """Who is to blame. A load that fails for want of memory or by a GPU's error ends with the same words as one of a
    broken model, so those are looked for first.
    """
    tail = session.log_tail()
    if report.out_of_memory is not None:
        if engine.variant in GPU_VARIANTS:
            return TrialFailedError(report.out_of_memory, tail, model_only=True, lasting=False)
        return InconclusiveError(report.out_of_memory)
    if report.gpu_error is not None:
        return TrialFailedError(report.gpu_error, tail)
    if report.model_error is not None:
        return ServerError(
            f"{trial.model_id} cannot be loaded: {report.model_error}",
            {**(error.details or {}), "model_id": trial.model_id, "unknown_kind": "architecture" in report.model_error},
            code="MODEL_UNUSABLE",
            hint=_way_out(report.model_error, trial.model_id),
        )
    if (flag := report.unknown_flag) is not None and flag in trial.further_flags:
        return InvalidRequestError(
            f"extra_args: {engine.name} does not know {flag}.",
            {"field": "extra_args", "flag": flag},
            hint="Leave it out, or use an engine that knows it.",
        )
    # Nor is it to blame for another program's port, for what the system has killed for want of memory, or for flags.
    killed = (error.details or {}).get("signal") == "SIGKILL"
    lasting = not session.lost_its_port() and not killed and not trial.further_flags
    return TrialFailedError(error.message, tail, model_only=True, lasting=lasting)


def _way_out(reason: str, model_id: str) -> str:
    if "architecture" in reason:
        return "This engine does not know that kind of model: a newer engine, or another model, may help."
    return f"Its file may be damaged: %genai verify {model_id}"


async def _compute(session: EngineSession, trial: Trial) -> None:
    """Wait until the engine is ready, and have it compute something.

    Raises:
        ServerError: it ends, refuses, or gives back nothing.
    """
    await session.wait_until_ready(READY[trial.kind])
    task = _paint if trial.kind == "diffusion" else _write if trial.writes else _embed
    work = asyncio.ensure_future(task(session))
    assert session.exit is not None
    try:
        await asyncio.wait({work, session.exit}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() or (work.exception() is not None and await session.has_ended()):
            raise session.ended("while it was tried")
        work.result()
    finally:
        work.cancel()
        await asyncio.wait({work})


async def _write(session: EngineSession) -> None:
    body = {"prompt": "One, two, three,", "n_predict": TOKENS, "temperature": 0, "cache_prompt": False}
    answer = await _ask(session, "/completion", body)
    if not isinstance(answer, dict) or not answer.get("tokens_predicted"):
        raise session.error(f"{session.engine.name} writes nothing.")


async def _embed(session: EngineSession) -> None:
    answer = await _ask(session, "/embeddings", {"content": "One, two, three"})
    if not isinstance(answer, list) or not answer:
        raise session.error(f"{session.engine.name} makes no vectors.")


async def _ask(session: EngineSession, path: str, body: dict[str, Any]) -> Any:
    import httpx

    try:
        reply = await session.client.post(path, json=body, timeout=None)
        if reply.is_success:
            return reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise session.error(f"{session.engine.name} does not answer: {error!r}") from error
    raise session.error(f"{session.engine.name} computes nothing: HTTP {reply.status_code}, {reply.text[:200]}")


async def _paint(session: EngineSession) -> None:
    job = await sdcpp.post_job(session.client, _PICTURE, 1)
    while (state := await sdcpp.job_state(session.client, job)).get("status") in ("queued", "generating"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if state.get("status") != "completed":
        raise session.error(f"{session.engine.name} does not paint: {sdcpp.failure_of(state)}")
    sdcpp.job_image(state, _PICTURE)
