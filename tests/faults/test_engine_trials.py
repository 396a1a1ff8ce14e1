"""The second test of engines, with engines that crash, hang, lie, run out of memory, or get a model that is broken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines import session, trial
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import BinaryError, InsufficientResourcesError, InvalidRequestError, ServerError
from tests.faults.trying import House, start, trial_flag
from tests.processes import assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")

KINDS = ["llm", "images"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield House(tmp_path)
    assert_none_left(tmp_path)


# ---- passing


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_passed_is_remembered(house: House, kind: str) -> None:
    for _ in range(2):
        assert house.works(kind).endswith("(explicit)")
        assert len(house.trials(kind)) == 1
    assert house.works(kind, force_validation=True)
    assert len(house.trials(kind)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_in_one_session_too(house: House, kind: str) -> None:
    async def scenario(runtime: Runtime) -> None:
        server: Any = runtime.llama_server if kind == "llm" else runtime.diffusion_server
        for _ in range(2):
            await start(runtime, kind)
            await server.stop()

    house.run(scenario)
    assert len(house.trials(kind)) == 1


def test_how_a_language_model_is_tried(house: House) -> None:
    options = {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "gpu_layers": 0, "extra_args": ["--mlock"]}
    house.works("llm", context_size=2048, **options)
    tried, real = house.fakes["llm"].starts
    assert trial_flag(tried, "--ctx-size") == "512"
    assert trial_flag(tried, "--n-gpu-layers") == "1"
    assert trial_flag(real, "--ctx-size") == "2048"
    for flag, value in (("--cache-type-k", "q8_0"), ("--cache-type-v", "q8_0"), ("--flash-attn", "on")):
        assert trial_flag(tried, flag) == trial_flag(real, flag) == value
    assert "--mlock" in real["argv"]
    assert {"--mlock", "--no-warmup"} <= set(tried["argv"])
    assert tried["env"]["LLAMA_API_KEY"] == real["env"]["LLAMA_API_KEY"]
    assert [each["path"] for each in house.fakes["llm"].journal("request")].count("/completion") == 1


@pytest.mark.parametrize(("asked", "said"), [("off", "off"), ("on", "on"), ("auto", "auto"), (True, "on")])
def test_flash_attention_as_it_was_asked_for(house: House, asked: Any, said: str) -> None:
    house.works("llm", flash_attention=asked)
    assert [trial_flag(each, "--flash-attn") for each in house.fakes["llm"].starts] == [said, said]


def test_how_an_image_model_is_tried(house: House) -> None:
    house.works("images", gpu_layers=0, vram_budget=1024, extra_args=["--diffusion-fa"])
    (tried,) = house.fakes["images"].starts
    assert "--clip-on-cpu" in tried["argv"]
    assert trial_flag(tried, "--max-vram") == "1"
    assert "--diffusion-fa" in tried["argv"]
    (job,) = house.fakes["images"].journal("job")
    assert (job["body"]["width"], job["body"]["height"]) == (64, 64)
    assert job["body"]["sample_params"]["sample_steps"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_listeners_hear_of_it(house: House, kind: str) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    async def scenario(runtime: Runtime) -> None:
        runtime.subscribe(lambda name, data: heard.append((name, data)))
        await start(runtime, kind)

    house.run(scenario)
    server = "llama" if kind == "llm" else "diffusion"
    progress = [data for name, data in heard if name == "binary-progress"]
    assert {data["server"] for data in progress} == {server}
    assert {data["kind"] for data in progress} == {server}
    assert {data["stage"] for data in progress} == {"testing", "done"}
    messages = [data["message"] for name, data in heard if name == "binary-log"]
    assert any(message.startswith("testing ") for message in messages)
    assert any(" works" in message for message in messages)


# ---- failing


def crashes(kind: str) -> dict[str, tuple[dict[str, Any], str]]:
    """What an engine is told to do, and the reason that is given."""
    last = ["the last words"]
    dies = "completion" if kind == "llm" else "die_in_job"
    return {
        "signal in the load": ({"start_log": last, "die": {"signal": "SIGSEGV"}, "load_seconds": 60}, "SIGSEGV"),
        "exit code in the load": ({"start_log": last, "exit_at_start": 9}, "exited with code 9"),
        "exit code 0 in the load": ({"start_log": last, "exit_at_start": 0}, "exited with code 0"),
        "signal at work": ({dies: {"signal": "SIGABRT"}, "die_log": last}, "SIGABRT"),
        "exit code at work": ({dies: {"exit": 3}, "die_log": last}, "exited with code 3"),
        "killed": ({dies: {"signal": "SIGKILL"}, "die_log": last}, "SIGKILL"),
        "garbage": ({"start_log": last, "garbage": True}, "does not answer" if kind == "llm" else "not JSON"),
        "a GPU's error": (
            {dies: {"signal": "SIGABRT"}, "die_log": ["0.00.100.000 E CUDA error: unspecified launch failure", *last]},
            "CUDA error: unspecified launch failure",
        ),
        "a GPU's error and a result": (
            {"start_log": ["CUDA error: an illegal memory access was encountered", *last]},
            "CUDA error: an illegal memory access was encountered",
        ),
        "no result": (
            {"start_log": last, **({"completion": "nothing"} if kind == "llm" else {"no_result": True})},
            "writes nothing" if kind == "llm" else "without a picture",
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", list(crashes("llm")))
def test_an_engine_that_fails_is_refused_with_its_last_words(house: House, kind: str, how: str) -> None:
    behaviour, reason = crashes(kind)[how]
    house.fakes[kind].set(**behaviour)
    error = house.refused(kind)
    assert isinstance(error, BinaryError)
    assert reason in error.message
    (candidate,) = (error.details or {})["candidates"]
    assert candidate["state"] == "failed"
    assert reason in candidate["reason"]
    assert "the last words" in candidate["log"]
    assert ".." not in error.message
    starts = len(house.fakes[kind].starts)
    again = house.refused(kind)
    # Nothing stands in for what the user has set: each start asks it anew.
    assert len(house.fakes[kind].starts) == starts + 1
    assert reason in again.message
    assert "(in an earlier test)" not in again.message
    house.fakes[kind].reset()
    assert house.works(kind)


def test_a_picture_that_fails(house: House) -> None:
    house.fakes["images"].set(fail_job="generate_image returned no results")
    assert "generate_image returned no results" in house.refused("images").message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["load", "work"])
def test_an_engine_that_hangs_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch, kind: str, when: str) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 2.0)
    at_work = {"completion": "hang"} if kind == "llm" else {"hang_job": True}
    house.fakes[kind].set(**({"never_listen": True} if when == "load" else at_work))
    error = house.refused(kind)
    assert isinstance(error, BinaryError)
    assert "it came to no result within" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_says_nothing_is_given_up_sooner(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(session, "SILENCE", 0.5)
    house.fakes[kind].set(hang_health=True)
    assert "neither answered nor printed" in house.refused(kind).message


def test_a_failure_with_one_model_leaves_the_others(house: House) -> None:
    house.fakes["llm"].set(exit_at_start=3)
    house.refused("llm", "tiny-llm")
    house.fakes["llm"].reset()
    assert house.works("llm", "other-llm")


# ---- the caller's own flags


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", ["--no-such-flag", "--no-such-flag=3"])
def test_a_flag_that_the_engine_does_not_know_is_the_caller_s(house: House, kind: str, flag: str) -> None:
    for _ in range(2):
        error = house.refused(kind, extra_args=[flag])
        assert isinstance(error, InvalidRequestError)
        assert "extra_args" in error.message
        assert flag in error.message
        assert (error.details or {})["field"] == "extra_args"
    starts = len(house.fakes[kind].starts)
    assert starts == 2
    assert house.works(kind)


# ---- models

SPOILT: dict[str, dict[str, Any]] = {
    "llm": {"model_error": "unknown model architecture: 'xxxxx'"},
    "images": {"load_errors": ["[ERROR] model.cpp:876  - read tensor data failed: '/m'"]},
}
REASONS = {"llm": "unknown model architecture: 'xxxxx'", "images": "read tensor data failed: '/m'"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_loaded_is_not_the_engine_s_fault(house: House, kind: str) -> None:
    house.fakes[kind].set(**SPOILT[kind])
    for _ in range(2):
        error = house.refused(kind)
        assert isinstance(error, ServerError)
        assert error.code == "MODEL_UNUSABLE"
        assert REASONS[kind] in error.message
        assert (error.details or {})["model_id"] == ("tiny-llm" if kind == "llm" else "tiny-picture")
        assert (error.details or {})["log"]
        assert error.hint
    assert len(house.fakes[kind].starts) == 2
    house.fakes[kind].reset()
    assert house.works(kind, "other-llm" if kind == "llm" else "other-picture")
    assert len(house.trials(kind)) == 1


def test_a_file_that_is_no_model_says_so(house: House) -> None:
    (house.folder / "files" / "tiny-llm.gguf").write_bytes(b"GGUX" + bytes(100))
    error = house.refused("llm")
    assert error.code == "MODEL_UNUSABLE"
    assert "%genai verify tiny-llm" in (error.hint or "")


# ---- memory


def test_too_little_memory_on_the_processor_proves_nothing(house: House) -> None:
    house.fakes["llm"].set(most_context=100)

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(InsufficientResourcesError, match="ran out of memory"):
            await start(runtime, "llm", context_size=2048)
        assert any("could not be tested" in line for line in await runtime.llama_server.get_logs())

    house.run(scenario)
    assert len(house.trials("llm")) == 1
    house.fakes["llm"].reset()
    assert house.works("llm")
    assert len(house.trials("llm")) == 1


def test_a_real_load_that_needs_more_is_made_smaller_after_the_trial(house: House) -> None:
    house.fakes["llm"].set(most_context=1200)
    assert house.works("llm")
    contexts = [trial_flag(each, "--ctx-size") for each in house.fakes["llm"].starts]
    assert contexts[0] == "512"
    assert len(contexts) == 3
    assert int(contexts[2] or 0) <= 1200


# ---- tested again


def test_a_test_that_was_asked_for_is_not_made_at_every_restart(house: House) -> None:
    async def scenario(runtime: Runtime) -> None:
        llm = runtime.llama_server
        await start(runtime, "llm", force_validation=True)
        await llm.restart()
        assert await llm.step_aside()
        await llm.resume()
        assert llm.get_status() == "running"

    assert house.works("llm")
    house.run(scenario)
    assert len(house.trials("llm")) == 2
    assert len(house.fakes["llm"].starts) == 6


def test_nor_at_a_restart_of_images(house: House) -> None:
    async def scenario(runtime: Runtime) -> None:
        await start(runtime, "images", force_validation=True)
        await runtime.diffusion_server.restart()
        await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)

    assert house.works("images")
    house.run(scenario)
    assert len(house.trials("images")) == 2
