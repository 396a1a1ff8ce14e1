"""What `GET /sdcpp/v1/capabilities` says of an image engine of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from genai_notebook.core.engines.embedded import sd_jobs, sd_requests

_FORMATS = ("png", "jpeg", "webp")


def capabilities(
    model_path: str,
    samplers: Iterable[str],
    schedulers: Iterable[str],
    *,
    cancel_generating: bool,
    previews: Sequence[str] = ("none",),
) -> dict[str, Any]:
    """The answer, in sd-server's form.

    Args:
        model_path: the model's file, or that of its diffusion part.
        samplers: names that a request may give as `sample_method`.
        schedulers: names that it may give as `scheduler`.
        cancel_generating: whether a job that runs can be cancelled.
        previews: names that a request may give as `preview`; `none` is one of them.
    """
    name = os.path.basename(model_path)
    features = {
        "init_image": True,
        "mask_image": True,
        "control_image": False,
        "ip_adapter_image": False,
        "ref_images": False,
        "lora": False,
        "vae_tiling": True,
        "hires": False,
        "cache": False,
        "cancel_queued": True,
        "cancel_generating": cancel_generating,
        "preview": len(previews) > 1,
    }
    return {
        "model": {"name": name, "stem": os.path.splitext(name)[0], "path": model_path},
        "current_mode": "img_gen",
        "supported_modes": ["img_gen"],
        "features": features,
        "features_by_mode": {"img_gen": features},
        "output_formats": list(_FORMATS),
        "output_formats_by_mode": {"img_gen": list(_FORMATS)},
        "limits": {
            "min_width": sd_requests.MIN_SIDE,
            "max_width": sd_requests.MAX_SIDE,
            "min_height": sd_requests.MIN_SIDE,
            "max_height": sd_requests.MAX_SIDE,
            "max_batch_count": sd_requests.MAX_BATCH,
            "max_queue_size": sd_jobs.MAX_PENDING,
        },
        "samplers": list(samplers),
        "schedulers": list(schedulers),
        "loras": [],
        "upscalers": [],
        "preview_modes": list(previews),
    }
