"""validation: every wrong argument is refused with the field's name as the caller wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.schema import (
    DiffusionServerConfig,
    DownloadConfig,
    ImageGenerationConfig,
    LlamaServerConfig,
)
from genai_notebook.core.validation import from_json, from_keywords, from_wire
from genai_notebook.errors import InvalidRequestError


def refused(call: Any, *args: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        call(*args)
    return caught.value


def test_keywords_become_a_struct() -> None:
    config = from_keywords(LlamaServerConfig, None, {"model_id": "m", "context_size": 512})
    assert config == LlamaServerConfig(model_id="m", context_size=512)


def test_a_struct_or_a_dict_may_stand_in_and_keywords_win() -> None:
    base = LlamaServerConfig(model_id="m", port=9000)
    assert from_keywords(LlamaServerConfig, base) == base
    assert from_keywords(LlamaServerConfig, {"model_id": "m", "port": 9000}) == base
    assert from_keywords(LlamaServerConfig, base, {"port": "auto"}).port == "auto"


def test_ellipsis_means_not_given() -> None:
    assert from_keywords(LlamaServerConfig, {"model_id": "m"}, {"model_id": ...}).model_id == "m"
    error = refused(from_keywords, LlamaServerConfig, None, {"model_id": ...})
    assert (str(error), error.details) == ("model_id: is required.", {"field": "model_id"})


def test_a_given_dict_is_not_changed() -> None:
    given_dict = {"model_id": "m"}
    from_keywords(LlamaServerConfig, given_dict, {"port": 1})
    assert given_dict == {"model_id": "m"}


def test_an_unknown_keyword_lists_the_valid_ones() -> None:
    error = refused(from_keywords, LlamaServerConfig, None, {"model_id": "m", "contextsize": 1})
    assert "'contextsize'" in str(error)
    assert error.details is not None
    assert error.details["field"] == "contextsize"
    assert "context_size" in error.details["valid"]
    assert "context_size" in (error.hint or "")


@pytest.mark.parametrize("config", [[], "m", 3, object()], ids=lambda value: type(value).__name__)
def test_another_kind_of_config_is_refused(config: Any) -> None:
    error = refused(from_keywords, LlamaServerConfig, config)
    assert "LlamaServerConfig" in str(error)
    assert error.details == {"field": "config"}


@pytest.mark.parametrize(
    ("cls", "keywords", "field"),
    [
        (LlamaServerConfig, {"port": 0}, "port"),
        (LlamaServerConfig, {"port": "any"}, "port"),
        (LlamaServerConfig, {"port": 8080.5}, "port"),
        (LlamaServerConfig, {"threads": 0}, "threads"),
        (LlamaServerConfig, {"context_size": -1}, "context_size"),
        (LlamaServerConfig, {"context_size": "4096"}, "context_size"),
        (LlamaServerConfig, {"gpu_layers": True}, "gpu_layers"),
        (LlamaServerConfig, {"gpu_layers": 2**70}, "gpu_layers"),
        (LlamaServerConfig, {"parallel_requests": math.nan}, "parallel_requests"),
        (LlamaServerConfig, {"flash_attention": "maybe"}, "flash_attention"),
        (LlamaServerConfig, {"model_id": None}, "model_id"),
        (LlamaServerConfig, {"model_id": "a\0b"}, "model_id"),
        (LlamaServerConfig, {"extra_args": ["--port", 1]}, "extra_args"),
        (LlamaServerConfig, {"extra_args": ["a\0b"]}, "extra_args"),
        (LlamaServerConfig, {"api_key": True}, "api_key"),
        (DiffusionServerConfig, {"vram_budget": 0}, "vram_budget"),
        (DiffusionServerConfig, {"port": 70000}, "port"),
        (ImageGenerationConfig, {"cfg_scale": math.inf}, "cfg_scale"),
        (ImageGenerationConfig, {"cfg_scale": -1}, "cfg_scale"),
        (ImageGenerationConfig, {"negative_prompt": 1}, "negative_prompt"),
        (ImageGenerationConfig, {"prompt": "\ud800"}, "prompt"),
        (ImageGenerationConfig, {"width": 100}, "width"),
        (DownloadConfig, {"source": "ftp"}, "source"),
        (DownloadConfig, {"name": "n" * 301}, "name"),
        (DownloadConfig, {"components": {"vae": 1}}, "components"),
        (DownloadConfig, {"components": {"vae": "a\0b"}}, "components"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or ascii(value)[:50],
)
def test_the_wrong_field_is_named(cls: type[msgspec.Struct], keywords: dict[str, Any], field: str) -> None:
    required = {LlamaServerConfig: {"model_id": "m"}, DiffusionServerConfig: {"model_id": "m"}}
    required |= {ImageGenerationConfig: {"prompt": "x"}, DownloadConfig: {"source": "url"}}
    error = refused(from_keywords, cls, None, {**required[cls], **keywords})
    assert error.details == {"field": field}
    assert str(error).startswith(f"{field}: ")
    assert "`" not in str(error)
    assert "$" not in str(error)


def test_json_is_camel_case() -> None:
    config = from_json(ImageGenerationConfig, b'{"prompt": "x", "cfgScale": 1, "negativePrompt": null}')
    assert config == ImageGenerationConfig(prompt="x", cfg_scale=1.0)
    error = refused(from_json, ImageGenerationConfig, b'{"prompt": "x", "cfgScale": "much"}')
    assert error.details == {"field": "cfgScale"}
    error = refused(from_json, ImageGenerationConfig, b'{"prompt": "x", "cfg_scale": 1}')
    assert error.details is not None
    assert error.details["field"] == "cfg_scale"


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", b"'x'"], ids=lambda body: repr(body[:8]))
def test_a_body_that_is_no_json(body: bytes) -> None:
    assert "not JSON" in str(refused(from_json, ImageGenerationConfig, body))


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    assert "must be a JSON object" in str(refused(from_json, ImageGenerationConfig, body))


def test_an_empty_body_is_an_empty_object() -> None:
    assert refused(from_json, ImageGenerationConfig, b"").details == {"field": "prompt"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["prompt", "width", "steps", "cfgScale", "seed", "sampler", "count", "negativePrompt", "x"])


def accepted(build: Callable[[], msgspec.Struct], names: set[str]) -> None:
    """Either a struct that can be sent on, or a refusal that names one of `names`; nothing else."""
    try:
        config = build()
    except InvalidRequestError as caught:
        error = caught
    else:
        msgspec.json.encode(config)
        return
    assert error.details is not None
    assert error.details["field"] in names
    json.dumps(error.details)


@given(st.dictionaries(fields, json_values))
def test_wild_objects_are_a_config_or_an_invalid_request(body: dict[str, Any]) -> None:
    accepted(lambda: from_wire(ImageGenerationConfig, body), {*body, "prompt"})


@given(st.dictionaries(st.sampled_from([f.name for f in msgspec.structs.fields(LlamaServerConfig)]), json_values))
def test_wild_keywords_are_a_config_or_an_invalid_request(keywords: dict[str, Any]) -> None:
    accepted(lambda: from_keywords(LlamaServerConfig, None, keywords), {*keywords, "model_id"})
