"""Who holds the machine's memory right now: our engines, the process that asks, the one that answers, everything else.

Engines are known by their records on disk, so that those of another owner of the same home are seen too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from genai_notebook.core.schema import EngineRecord, GPUInfo, MemoryHolder, MemoryUse
from genai_notebook.core.system.engines import live_engines
from genai_notebook.core.system.probe import Probe
from genai_notebook.core.utilities import now_ms
from genai_notebook.errors import InvalidRequestError


class _Listed(msgspec.Struct, frozen=True):
    """One process that is named."""

    pid: int
    kind: Literal["llm", "images", "kernel", "owner"]
    name: str


def measure(probe: Probe, run: Path, kernel: int | None = None) -> MemoryUse:
    """The machine's memory and who holds it. Blocks for a few milliseconds.

    Args:
        probe: the machine.
        run: the folder of the engines' records.
        kernel: pid of the process that asks; None: this one. One that is not there, or not of this user, is passed
            over in silence.

    Raises:
        InvalidRequestError: `kernel` is no whole number, 0 or more.
    """
    if kernel is not None and (not isinstance(kernel, int) or isinstance(kernel, bool) or kernel < 0):
        raise InvalidRequestError("kernel: must be a process id.", {"field": "kernel"})
    listed = _listed(live_engines(run), os.getpid() if kernel is None else kernel)
    held = probe.held([process.pid for process in listed])
    holders = [
        MemoryHolder(
            kind=process.kind,
            name=process.name,
            ram=held[process.pid].ram,
            vram=held[process.pid].vram,
            pid=process.pid,
        )
        for process in listed
        if process.pid in held
    ]
    memory, gpus = probe.memory(), probe.gpus()
    others = MemoryHolder(
        kind="others",
        name="other programs",
        ram=max(0, memory.used - sum(holder.ram for holder in holders)),
        vram=_others_vram(gpus, holders),
    )
    return MemoryUse(memory=memory, gpus=gpus, holders=[*holders, others], measured_at=now_ms())


def _listed(engines: Sequence[EngineRecord], kernel: int) -> list[_Listed]:
    """LLMs, image generators, the process that asks, the one that answers; none of them twice."""
    me = os.getpid()
    found = [
        _Listed(engine.pid, "images" if engine.name == "diffusion" else "llm", engine.model_id or engine.engine)
        for engine in engines
    ]
    found.sort(key=lambda process: process.kind == "images")
    if kernel not in {me, *(process.pid for process in found)} and _is_of_this_user(kernel):
        found.append(_Listed(kernel, "kernel", "this kernel"))
    found.append(_Listed(me, "owner", "this kernel" if kernel == me else "Jupyter server"))
    return found


def _is_of_this_user(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).username() == psutil.Process().username())
    except (OSError, ValueError, OverflowError, psutil.Error):
        return False


def _others_vram(gpus: Sequence[GPUInfo], holders: Sequence[MemoryHolder]) -> int | None:
    """What is in use on the GPUs and held by none of `holders`; None where either is not known.

    Memory that a GPU shares with the processor is counted as RAM already.
    """
    used = [
        gpu.vram - gpu.vram_available
        for gpu in gpus
        if gpu.vram is not None and gpu.vram_available is not None and not gpu.unified
    ]
    known = [holder.vram for holder in holders if holder.vram is not None]
    if not used or len(known) < len(holders):
        return None
    return max(0, sum(used) - sum(known))
