"""What a client may ask `POST /sdcpp/v1/img_gen` for: the JSON body as a checked struct."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

MAX_BATCH = 8
MIN_SIDE, MAX_SIDE = 64, 4096
_MAX_PROMPT = 1 << 20

Side = Annotated[int, Meta(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]
Prompt = Annotated[str, Meta(max_length=_MAX_PROMPT)]
Guide = Annotated[float, Meta(ge=0, le=1000)]

# sd-server's own fields that this engine has no counterpart for. The values that ask for nothing are let through, so
# that a client may send its whole form; anything else is refused, because the picture would not be what was asked for.
_ABSENT = (
    "lora",
    "hires",
    "control_image",
    "ref_images",
    "ip_adapter_image",
    "cache_mode",
    "qwen_image_layers",
)
_NOTHING = ("disabled", "none")
# These say how to do what the fields above would ask for.
_IGNORED = frozenset(
    {
        "control_strength",
        "ip_adapter_strength",
        "cache_option",
        "scm_mask",
        "scm_policy_dynamic",
        "auto_resize_ref_image",
        "increase_ref_index",
        "ref_image_args",
        "image_preprocess",
    }
)
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_NAMED = re.compile(r"(?:missing required|contains unknown) field `([^`]+)`")


class RequestError(Exception):
    """The body is wrong; `field` names the place, e.g. ``sample_params.sample_steps``."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class Guidance(Struct, forbid_unknown_fields=True):
    txt_cfg: Guide = 7.0
    img_cfg: Guide | None = None
    distilled_guidance: Guide | None = None
    slg: dict[str, Any] | None = None


class SampleParams(Struct, forbid_unknown_fields=True):
    """`sample_method` and `scheduler`: None leaves the choice to the model."""

    sample_steps: Annotated[int, Meta(ge=1, le=1000)] = 20
    sample_method: str | None = None
    scheduler: str | None = None
    eta: Annotated[float, Meta(ge=0, le=100)] | None = None
    flow_shift: Annotated[float, Meta(ge=-100, le=100)] | None = None
    shifted_timestep: Annotated[int, Meta(ge=0, le=1000)] = 0
    custom_sigmas: list[float] | None = None
    guidance: Guidance = msgspec.field(default_factory=Guidance)


class Tiling(Struct):
    enabled: bool = False


class ImageRequest(Struct, forbid_unknown_fields=True):
    """One job. A negative seed means: draw one. Images are base64 or a data URL.

    `preview` names how previews are made; there is one every `preview_interval` steps.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Side = 512
    height: Side = 512
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = -1
    batch_count: Annotated[int, Meta(ge=1, le=MAX_BATCH)] = 1
    strength: Annotated[float, Meta(ge=0, le=1)] = 0.75
    clip_skip: Annotated[int, Meta(ge=-1, le=12)] = -1
    init_image: str | None = None
    mask_image: str | None = None
    embed_image_metadata: bool = True
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Meta(ge=0, le=100)] = 100
    vae_tiling_params: Tiling | None = None
    preview: str = "none"
    preview_interval: Annotated[int, Meta(ge=1, le=1000)] = 1
    sample_params: SampleParams = msgspec.field(default_factory=SampleParams)


def read_request(
    body: bytes, samplers: Sequence[str], schedulers: Sequence[str], previews: Sequence[str] = ("none",)
) -> ImageRequest:
    """Decode and check a body.

    Args:
        body: JSON.
        samplers: sample methods that may be named.
        schedulers: schedulers that may be named.
        previews: preview modes that may be named.

    Raises:
        RequestError: no JSON, an unknown field, or a wrong value; it names the field.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(None, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(None, "the body must be a JSON object")
    _drop_absent(value)
    try:
        request = msgspec.convert(value, ImageRequest)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    _check(request, samplers, schedulers, previews)
    return request


def image_bytes(field: str, text: str) -> bytes:
    """What a base64 text or data URL holds.

    Raises:
        RequestError: it is neither.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(field, "must be base64 or a data URL") from None
    if not data:
        raise RequestError(field, "must not be empty")
    return data


def _drop_absent(value: dict[str, Any]) -> None:
    for name in _ABSENT:
        if name in value:
            asked = value.pop(name)
            enabled = asked.get("enabled", True) if isinstance(asked, dict) else asked not in _NOTHING
            if asked and enabled:
                raise RequestError(name, "this engine does not do that")
    for name in _IGNORED:
        value.pop(name, None)
    if not value.get("preview") or value["preview"] == "disabled":
        value.pop("preview", None)
    if value.get("preview_interval", 1) is None:
        del value["preview_interval"]


def _check(request: ImageRequest, samplers: Sequence[str], schedulers: Sequence[str], previews: Sequence[str]) -> None:
    params = request.sample_params
    for field, word, known in (
        ("sample_params.sample_method", params.sample_method, samplers),
        ("sample_params.scheduler", params.scheduler, schedulers),
        ("preview", request.preview, previews),
    ):
        if word is not None and word not in known:
            raise RequestError(field, f"there is no {word!r}; known are " + ", ".join(known))
    if params.custom_sigmas:
        raise RequestError("sample_params.custom_sigmas", "this engine does not do that")
    if params.guidance.slg and params.guidance.slg.get("scale"):
        raise RequestError("sample_params.guidance.slg", "this engine does not do that")
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if "\0" in text:
            raise RequestError(field, "must not contain NUL")
    if request.mask_image and not request.init_image:
        raise RequestError("mask_image", "needs an init_image")


def _explain(text: str) -> RequestError:
    place = _PLACE.search(text)
    named = _NAMED.search(text)
    reason = _PLACE.sub("", text).replace("`", "")
    field = place[1] if place else ""
    if named:
        field = f"{field}.{named[1]}" if field else named[1]
        reason = "is required" if "missing" in text else "there is no such field"
    return RequestError(field or None, reason[:1].lower() + reason[1:])
