"""The engines' command lines for a configuration."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from genai_notebook.core.schema import DiffusionServerConfig, LlamaServerConfig
from genai_notebook.core.servers import llama_flags, sd_flags
from genai_notebook.core.servers.resolved import Resolved, made_smaller
from genai_notebook.errors import InvalidRequestError
from tests.unit.test_system_estimate import model

ASKED = LlamaServerConfig(model_id="m")
FULL = LlamaServerConfig(
    model_id="m", threads=2, context_size=4096, gpu_layers=33, cache_type_k="f16", cache_type_v="f16"
)


def resolved(asked: LlamaServerConfig = ASKED, fit: bool = False, **changes: Any) -> Resolved:
    return Resolved(asked, msgspec.structs.replace(FULL, **changes), 8080, "key", fit=fit)


def flags(start: Resolved) -> dict[str, str]:
    words = llama_flags.arguments(start, model(1))
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_our_numbers_are_meant() -> None:
    found = flags(resolved())
    assert (found["--fit"], found["--n-gpu-layers"], found["--ctx-size"]) == ("off", "33", "4096")
    assert flags(resolved(gpu_layers=0))["--n-gpu-layers"] == "0"
    assert "key" not in found.values()


def test_an_engine_is_tried_small_and_with_the_caller_s_flags() -> None:
    start = resolved(extra_args=["--no-mmap", "--override-kv", "a=int:1"])
    words = llama_flags.trial_arguments(start, model(1), 1234)
    assert words[-4:] == ["--no-warmup", "--no-mmap", "--override-kv", "a=int:1"]
    found = dict(zip(words, [*words[1:], ""], strict=True))
    assert (found["--port"], found["--n-gpu-layers"], found["--fit"]) == ("1234", "1", "off")


def test_an_engine_for_images_is_tried_with_the_flags_it_is_run_with() -> None:
    config = DiffusionServerConfig(model_id="m", gpu_layers=0, vram_budget=512, extra_args=["--diffusion-fa"])
    words = sd_flags.arguments(config, model(1), 1234, 2)
    assert words[-5:] == ["--clip-on-cpu", "--vae-on-cpu", "--max-vram", "0.5", "--diffusion-fa"]
    assert sd_flags.memory_flags(config) == words[-5:]


def test_the_environment_holds_the_key_and_the_cards() -> None:
    assert llama_flags.environment_of(resolved()) == {"LLAMA_API_KEY": "key"}
    two = msgspec.structs.replace(resolved(), visible=("GPU-1", "GPU-2"), api_key=None)
    assert llama_flags.environment_of(two) == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}


def test_the_engine_fits_the_layers_when_ours_were_too_many() -> None:
    found = flags(resolved(fit=True))
    assert found["--fit"] == "on"
    assert "--n-gpu-layers" not in found


@pytest.mark.parametrize(
    ("asked", "values", "said"),
    [
        ("auto", "f16", "auto"),
        ("auto", "q8_0", "on"),
        ("off", "f16", "off"),
        (True, "q8_0", "on"),
        (False, "f16", "off"),
    ],
)
def test_quantised_values_need_flash_attention(asked: Any, values: str, said: str) -> None:
    found = flags(resolved(flash_attention=asked, cache_type_v=values))
    assert found["--flash-attn"] == said
    assert found.get("--cache-type-v", "f16") == values


def test_what_was_left_open_is_made_smaller() -> None:
    smaller = made_smaller(resolved())
    assert smaller is not None
    assert (smaller.config.context_size, smaller.fit) == (2048, True)
    assert made_smaller(resolved(gpu_layers=0, context_size=1024)) is None
    own = msgspec.structs.replace(ASKED, context_size=4096)
    smaller = made_smaller(resolved(own))
    assert smaller is not None
    assert (smaller.config.context_size, smaller.fit) == (4096, True)
    assert made_smaller(resolved(msgspec.structs.replace(own, gpu_layers=33))) is None


def test_who_asks_for_more_words_gets_the_debug_lines() -> None:
    assert not llama_flags.asks_for_debug(ASKED)
    assert llama_flags.asks_for_debug(msgspec.structs.replace(ASKED, extra_args=["-lv", "5"]))
    image = DiffusionServerConfig(model_id="m")
    assert not sd_flags.asks_for_debug(image)
    assert sd_flags.asks_for_debug(msgspec.structs.replace(image, extra_args=["-v"]))


def test_the_manager_s_flags_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--port"):
        llama_flags.check(msgspec.structs.replace(ASKED, extra_args=["--port=1"]))
    with pytest.raises(InvalidRequestError, match="--listen-port"):
        sd_flags.check(DiffusionServerConfig(model_id="m", extra_args=["--listen-port", "1"]))
