"""The words for models, servers, generations and pictures, the same in a cell and in a panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genai_notebook.display import views

if TYPE_CHECKING:
    from genai_notebook.core.schema import ImageGenerationConfig, ImageGenerationResult

KINDS = {"llm": "language model", "diffusion": "image model"}
STAGES = {"loading": "loading the model", "diffusion": "painting", "decoding": "decoding"}


def a_kind(type: str) -> str:
    """'a language model' or 'an image model'."""
    return f"{'an' if type == 'diffusion' else 'a'} {KINDS.get(type, type)}"


def manager_of(server: str) -> Any:
    """The handle behind 'llm' or 'images'."""
    from genai_notebook.current import diffusion_server, llama_server

    return llama_server if server == "llm" else diffusion_server


def describe(info: Any) -> str:
    """One line about a server: state, model, address, context, engine, pid."""
    state = "running, busy" if getattr(info, "busy", False) else info.status
    parts = [state]
    if info.status == "crashed" and info.error:
        parts.append(info.error)
    if info.status in ("running", "starting"):
        parts += [info.model_id or "", where(info), f"pid {info.pid}" if info.pid else ""]
    return " · ".join(part for part in parts if part)


def where(info: Any) -> str:
    """Address, context and engine of a server."""
    parts = [f"at {info.url}" if info.url else ""]
    if info.context_size:
        parts.append(f"context {info.context_size} tokens")
    if info.engine:
        parts.append(f"engine {info.engine}")
    return " · ".join(part for part in parts if part)


def progress_words(step: int, steps: int, stage: str) -> str:
    """What the engine does right now: 'painting · step 3 of 20'. `step` counts those that are done."""
    words = STAGES.get(stage, stage)
    return f"{words} · step {min(step + 1, steps)} of {steps}" if stage == "diffusion" and steps else words


def output_of(
    config: ImageGenerationConfig, image: ImageGenerationResult, model: str | None
) -> tuple[views.Bundle, dict[str, Any]]:
    """The picture as an ordinary output: MIME bundle, and metadata with alternative text and how it was made."""
    parameters = {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "steps": config.steps,
        "cfg_scale": config.cfg_scale,
        "sampler": config.sampler,
        "model": model,
        "time_taken": image.time_taken,
    }
    parameters = {name: value for name, value in parameters.items() if value is not None}
    text = config.prompt if len(config.prompt) <= 200 else config.prompt[:199] + "…"
    alt = f"Generated picture: {text} (seed {image.seed})"
    return views.picture(image.image, alt=alt, width=image.width, height=image.height, parameters=parameters)
