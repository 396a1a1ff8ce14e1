"""schema: camelCase outside, snake_case inside, absent is missing, and what the structs refuse."""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core import schema
from genai_notebook.core.schema import (
    DiffusionServerInfo,
    EngineRecord,
    GenerationFailure,
    GenerationOutput,
    GenerationState,
    GGUFMetadata,
    GPUInfo,
    ImageBatchResult,
    ImageGenerationConfig,
    ImageGenerationProgress,
    ImageGenerationResult,
    LlamaServerConfig,
    ModelInfo,
    ModelSource,
    SavedLLMState,
    ServerInfo,
)

PNG = b"\x89PNG\r\n\x1a\n\x00\xff"
RESULT = ImageGenerationResult(image=PNG, format="png", time_taken=5, seed=7, width=64, height=32, id="abc")
STRUCTS = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == schema.__name__
]
STRUCTS.remove(schema.Wire)


def as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@pytest.mark.parametrize("cls", STRUCTS, ids=lambda cls: cls.__name__)
def test_names_are_camel_case_outside(cls: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(cls):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)
        if cls is GGUFMetadata:
            assert field.encode_name == field.name
        else:
            head, *tail = field.name.split("_")
            assert field.encode_name == head + "".join(word.capitalize() for word in tail)


@pytest.mark.parametrize("cls", STRUCTS, ids=lambda cls: cls.__name__)
def test_structs_are_values(cls: type[msgspec.Struct]) -> None:
    """Frozen: a snapshot that was handed out stays what it was."""
    assert cls.__struct_config__.frozen


@pytest.mark.parametrize("cls", STRUCTS, ids=lambda cls: cls.__name__)
def test_only_what_may_be_none_is_left_out(cls: type[msgspec.Struct]) -> None:
    if not cls.__struct_config__.omit_defaults or cls.__name__.endswith("Config"):
        return
    for field in msgspec.structs.fields(cls):
        assert field.default in (None, msgspec.NODEFAULT), f"{cls.__name__}.{field.name} could vanish from the wire"


EXAMPLES = [
    GPUInfo(available=False),
    ModelInfo(
        id="m",
        name="M",
        type="llm",
        size=1,
        path="/m.gguf",
        downloaded_at="2026-01-01T00:00:00.000Z",
        source=ModelSource(type="pypi", package="p", file="m.gguf"),
        checksum="sha256:00",
        supports_reasoning=False,
        gguf_metadata=GGUFMetadata(architecture="llama", attention_head_count_kv=[1, 2], raw={"a.b": 1}),
        shards=["a", "b"],
    ),
    ServerInfo(status="running", health="ok", owner="kernel", pid=1, port=8080, api_key="k"),
    DiffusionServerInfo(status="running", health="ok", owner="kernel", busy=False),
    ImageGenerationConfig(prompt="x", seed=-1),
    RESULT,
    ImageBatchResult(images=[RESULT, RESULT], time_taken=9, id="abc"),
    GenerationState(
        id="g",
        status="error",
        created_at=1,
        updated_at=2,
        config=ImageGenerationConfig(prompt="x"),
        progress=ImageGenerationProgress(current_step=0, total_steps=4, stage="loading", percentage=0.0),
        result=GenerationOutput(images=[], format="png", time_taken=0),
        error=GenerationFailure(message="m", code="C"),
    ),
    SavedLLMState(config={"model_id": "m"}, was_running=False, saved_at=3),
    EngineRecord(
        name="llama",
        pid=1,
        pid_created=1.5,
        owner_pid=2,
        owner_created=1.25,
        owner="kernel",
        engine="e",
        started_at="t",
    ),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_round_trip_through_json(value: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


def test_a_false_busy_and_a_zero_stay_on_the_wire() -> None:
    assert as_json(EXAMPLES[3])["busy"] is False
    progress = as_json(ImageGenerationProgress(current_step=0, total_steps=0, stage="loading", percentage=0.0))
    assert progress == {"currentStep": 0, "totalSteps": 0, "stage": "loading", "percentage": 0.0}


def test_absent_is_missing_outside() -> None:
    wire = as_json(ServerInfo(status="stopped", health="unknown", owner="kernel"))
    assert wire == {"status": "stopped", "health": "unknown", "owner": "kernel"}


def test_metadata_keeps_the_names_of_the_format() -> None:
    wire = as_json(EXAMPLES[1])
    assert wire["ggufMetadata"]["attention_head_count_kv"] == [1, 2]
    assert wire["downloadedAt"].endswith("Z")


def test_image_defaults_are_explicit_on_the_wire() -> None:
    wire = as_json(ImageGenerationConfig(prompt="x"))
    expected = {"width": 512, "height": 512, "steps": 20, "cfgScale": 7.5, "sampler": "euler_a", "count": 1}
    assert {name: wire[name] for name in expected} == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 10**9},
        {"width": 0},
        {"width": 65},
        {"height": "512"},
        {"steps": 0},
        {"steps": 2.5},
        {"seed": 2**70},
        {"count": 0},
        {"count": 6},
        {"count": "3"},
        {"count": True},
        {"cfgScale": -1},
        {"sampler": "euler; rm -rf /"},
        {"prompt": None},
        {"prompt": "x" * (1 << 20) + "x"},
        {"frobnicate": 1},
    ],
    ids=str,
)
def test_wild_images_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prompt": "x", **wrong}, ImageGenerationConfig)


@pytest.mark.parametrize("port", [0, -1, 65536, "8080", "any", None, True])
def test_wild_ports_are_refused(port: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"modelId": "m", "port": port}, LlamaServerConfig)


@given(st.integers(64, 4096).filter(lambda n: n % 64 == 0), st.integers(1, 5), st.integers(-(2**31), 2**31 - 1))
def test_sensible_images_are_taken(width: int, count: int, seed: int) -> None:
    value = ImageGenerationConfig(prompt="x", width=width, count=count, seed=seed)
    assert msgspec.json.decode(msgspec.json.encode(value), type=ImageGenerationConfig) == value


def test_a_result_shows_itself_as_png() -> None:
    data, metadata = RESULT._repr_png_()
    assert data == PNG
    assert metadata["genai_notebook"]["seed"] == 7
    assert (metadata["width"], metadata["height"]) == (64, 32)


def test_a_result_does_not_print_its_bytes() -> None:
    assert "seed=7" in repr(RESULT)
    assert len(repr(ImageBatchResult(images=[RESULT] * 5, time_taken=1, id="x"))) < 1000


def test_a_batch_is_a_sequence_that_shows_itself() -> None:
    batch = ImageBatchResult(images=[RESULT, RESULT], time_taken=1, id="x")
    assert (len(batch), list(batch), batch[1]) == (2, [RESULT, RESULT], RESULT)
    html = batch._repr_html_()
    assert html.count("<img") == 2
    assert base64.b64encode(PNG).decode() in html
    assert "seed 7" in html
