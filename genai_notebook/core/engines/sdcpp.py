"""A client of sd-server's job API (`/sdcpp/v1`): post a job, look at it, fetch its picture."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.errors import ServerError

if TYPE_CHECKING:
    import httpx

_PNG = b"\x89PNG\r\n\x1a\n"


def job_request(config: ImageGenerationConfig, seed: int) -> dict[str, Any]:
    """The body of POST /sdcpp/v1/img_gen for one image; nothing is left to the engine's defaults."""
    return {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt or "",
        "width": config.width,
        "height": config.height,
        "seed": seed,
        "batch_count": 1,
        "sample_params": {
            "sample_steps": config.steps,
            "sample_method": config.sampler,
            "guidance": {"txt_cfg": config.cfg_scale},
        },
    }


async def post_job(client: httpx.AsyncClient, config: ImageGenerationConfig, seed: int) -> str:
    """Queue one image and return the job's id."""
    reply = await _json(client, "POST", "/sdcpp/v1/img_gen", job_request(config, seed))
    return str(reply["id"])


async def job_state(client: httpx.AsyncClient, job: str) -> dict[str, Any]:
    """`{"status": "queued|generating|completed|failed|cancelled", …}`"""
    return await _json(client, "GET", f"/sdcpp/v1/jobs/{job}")


async def cancel_job(client: httpx.AsyncClient, job: str) -> bool:
    """Ask the engine to drop a job; False where it cannot (most engines cannot once the job runs)."""
    import httpx

    try:
        reply = await client.post(f"/sdcpp/v1/jobs/{job}/cancel", timeout=2.0)
        return bool(reply.is_success and reply.json().get("status") == "cancelled")
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def job_image(state: dict[str, Any], config: ImageGenerationConfig) -> bytes:
    """The PNG of a completed job.

    Raises:
        ServerError: BACKEND_ERROR, it is not a whole PNG of the size that was asked for.
    """
    try:
        image = base64.b64decode(state["result"]["images"][0]["b64_json"], validate=True)
    except (KeyError, IndexError, TypeError, ValueError):
        raise ServerError("The engine reported success without a picture.", code="BACKEND_ERROR") from None
    if not image.startswith(_PNG) or len(image) < 33 or b"IEND" not in image[-12:]:
        raise ServerError("The engine's picture is not a whole PNG.", code="BACKEND_ERROR")
    size = struct.unpack(">II", image[16:24])
    if size != (config.width, config.height):
        raise ServerError(
            f"The engine painted {size[0]}×{size[1]} instead of {config.width}×{config.height}.", code="BACKEND_ERROR"
        )
    return image


def failure_of(state: dict[str, Any]) -> str:
    """Why a job failed, in the engine's words."""
    error = state.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or "no reason given")


async def _json(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    import httpx

    try:
        reply = await client.request(method, path, json=body)
        value = reply.json()
    except httpx.HTTPError as error:
        raise ServerError(f"The image engine does not answer: {error!r}", code="BACKEND_ERROR") from error
    except ValueError:
        raise ServerError("The image engine answered with something that is not JSON.", code="BACKEND_ERROR") from None
    if not reply.is_success or not isinstance(value, dict):
        reason = failure_of(value) if isinstance(value, dict) else reply.text[:200]
        raise ServerError(f"The image engine refused: {reason}", {"status": reply.status_code}, code="BACKEND_ERROR")
    return value
