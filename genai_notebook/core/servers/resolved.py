"""A start of an LLM with nothing left open, and what becomes of it when it does not fit after all."""

from __future__ import annotations

import msgspec

from genai_notebook.core.engines.load_report import LoadReport
from genai_notebook.core.schema import LlamaServerConfig
from genai_notebook.core.system.plan import SMALLEST_CONTEXT, Plan


class Resolved(msgspec.Struct, frozen=True):
    """A configuration with nothing left open: what a restart repeats, and what an offload saves.

    `visible`: UUIDs of the NVIDIA cards to use; empty: all there are. `fit`: our numbers were too large once, so the
    engine works out the layers on the GPU itself.
    """

    asked: LlamaServerConfig
    config: LlamaServerConfig
    port: int
    api_key: str | None
    visible: tuple[str, ...] = ()
    fit: bool = False


def resolved_by(plan: Plan, config: LlamaServerConfig, threads: int) -> LlamaServerConfig:
    """The configuration with what it left open filled in."""
    return msgspec.structs.replace(
        config,
        threads=threads,
        gpu_layers=plan.gpu_layers,
        context_size=plan.context_size,
        cache_type_k=plan.cache_type_k,
        cache_type_v=plan.cache_type_v,
    )


def made_smaller(resolved: Resolved) -> Resolved | None:
    """What did not fit, with what the caller has left open made smaller: half the context, and the layers on the GPU
    worked out by the engine. None where nothing was left open, or is small already.
    """
    asked, config = resolved.asked, resolved.config
    context = config.context_size or 0
    shrink = asked.context_size is None and context // 2 >= SMALLEST_CONTEXT
    fit = asked.gpu_layers is None and bool(config.gpu_layers) and not resolved.fit
    if not shrink and not fit:
        return None
    smaller = msgspec.structs.replace(config, context_size=context // 2) if shrink else config
    return msgspec.structs.replace(resolved, config=smaller, fit=fit)


def as_loaded(resolved: Resolved, report: LoadReport) -> Resolved:
    """With the layers that really are on a GPU: none where the engine is a build without one."""
    if report.gpu_layers is None:
        return resolved
    config = msgspec.structs.replace(resolved.config, gpu_layers=report.gpu_layers)
    return msgspec.structs.replace(resolved, config=config, fit=False)


def in_words(resolved: Resolved) -> str:
    """Context and layers, for people."""
    layers = "as many GPU layers as fit" if resolved.fit else f"{resolved.config.gpu_layers or 0} GPU layers"
    return f"with a context of {resolved.config.context_size} and {layers}"
