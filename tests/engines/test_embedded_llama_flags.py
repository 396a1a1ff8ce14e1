"""Flags of the embedded llama-server that people reach for next: placement, adapters, drafts, vectors, sampling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines.embedded.llama_options import FLAGS
from tests.engines.running import LLAMA, Running, run_to_end
from tests.models import starter_llm

pytestmark = pytest.mark.engines

SMALL = ("--port", "0", "-c", "512", "-t", "2", "-np", "1", "-fit", "off", "-ngl", "0")
QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


def start(folder: Path, *flags: str) -> Running:
    engine = Running(LLAMA, "-m", str(starter_llm()), *SMALL, *flags, cwd=folder)
    try:
        engine.ready()
    except BaseException:
        engine.__exit__(None, None, None)
        raise
    return engine


def answer(engine: Running) -> dict[str, Any]:
    body = {"messages": QUESTION, "max_tokens": 32, "temperature": 0}
    status, reply, _ = engine.ask("POST", "/v1/chat/completions", body)
    assert status == 200, reply
    assert "Paris" in reply["choices"][0]["message"]["content"]
    return dict(reply)


def test_every_flag_names_a_setting_of_the_wheel() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    missing = []
    for flag in FLAGS:
        target: Any = params
        for name in flag.key.split(".") if not flag.key.isupper() else ():
            target = getattr(target, name, missing)
        if target is missing:
            missing.append(flag.names[0])
    assert not missing


def test_placement_of_weights(tmp_path: Path) -> None:
    """Patterns for experts find nothing in a model without experts, and are no error there."""
    flags = (
        "-ot",
        r"blk\.0\.ffn_up.*=CPU",
        "-cmoe",
        "-ncmoe",
        "2",
        "-ncffn",
        "1",
        "-ts",
        "3,1",
        "-sm",
        "row",
        "-mg",
        "0",
    )
    with start(tmp_path, *flags, "-lv", "5") as engine:
        answer(engine)
        moved = re.findall(r"tensor (blk\.\d+\.\S+) .* buffer type overridden to CPU", engine.output)
    assert {"blk.0.ffn_up.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"} <= set(moved)
    assert not any(name.startswith("blk.1.") for name in moved)


def test_a_draft_model(tmp_path: Path) -> None:
    """The model drafts for itself."""
    flags = ("--model-draft", str(starter_llm()), "--spec-draft-n-max", "8", "--draft-min", "1", "-ngld", "0")
    with start(tmp_path, *flags, "-ctkd", "f16", "-ctvd", "f16", "-td", "2", "--draft-p-min", "0.1") as engine:
        timings = answer(engine)["timings"]
    assert timings["draft_n"] > 0
    assert timings["draft_n_accepted"] > 0


def test_drafts_without_a_model(tmp_path: Path) -> None:
    with start(tmp_path, "--spec-type", "ngram-simple") as engine:
        answer(engine)


def test_vectors(tmp_path: Path) -> None:
    with start(tmp_path, "--embeddings", "--pooling", "mean", "--embd-normalize", "2") as engine:
        status, reply, _ = engine.ask("POST", "/v1/embeddings", {"input": ["a cat", "a car"]})
    assert status == 200
    vectors = [entry["embedding"] for entry in reply["data"]]
    assert [len(vector) for vector in vectors] == [576, 576]
    assert [round(sum(value * value for value in vector), 3) for vector in vectors] == [1.0, 1.0]


def test_ranks(tmp_path: Path) -> None:
    with start(tmp_path, "--rerank") as engine:
        body = {"query": "pets", "documents": ["a cat", "a car"]}
        status, reply, _ = engine.ask("POST", "/v1/rerank", body)
    assert status == 200
    assert {entry["index"] for entry in reply["results"]} == {0, 1}


def test_defaults_of_sampling_and_the_rest(tmp_path: Path) -> None:
    flags = """
        --temp 0.25 --top-k 7 --top-p 0.5 --min-p 0.125 --typical 0.75 --xtc-probability 0.5 --xtc-threshold 0.25
        --repeat-last-n 32 --repeat-penalty 1.5 --presence-penalty 0.5 --frequency-penalty 0.25 --dry-multiplier 0.5
        --dry-base 1.5 --dry-allowed-length 3 --dry-penalty-last-n 16 --dynatemp-range 0.5 --dynatemp-exp 1.5
        --mirostat 1 --mirostat-lr 0.25 --mirostat-ent 4 --reasoning-budget 100 --keep 4 --no-context-shift
        --rope-scaling yarn --rope-scale 2 --rope-freq-base 10000 --yarn-orig-ctx 2048 --yarn-ext-factor 1
        --yarn-attn-factor 1 --yarn-beta-slow 1 --yarn-beta-fast 32 --swa-full --ctx-checkpoints 4
        --no-cache-prompt --cache-reuse 0 --no-cache-idle-slots --no-cont-batching -sps 0.5 -kvo --no-op-offload
        --no-repack --no-host --numa distribute --check-tensors -fitt 512 -fitc 256 --no-mmproj-offload
        --image-min-tokens 16 --image-max-tokens 64 -rea off --no-prefill-assistant --embd-normalize 2
        --api-prefix /llm --no-perf --lora-init-without-apply
    """
    kwargs = ("--chat-template-kwargs", '{"name": "x", "number": 3}', "--slot-save-path", str(tmp_path))
    with start(tmp_path, *flags.split(), *kwargs) as engine:
        status, props, _ = engine.ask("GET", "/llm/props")
        assert status == 200
        found = props["default_generation_settings"]["params"]
        wanted = {"temperature": 0.25, "top_k": 7, "top_p": 0.5, "min_p": 0.125, "typical_p": 0.75, "mirostat": 1}
        wanted |= {"repeat_penalty": 1.5, "presence_penalty": 0.5, "dry_multiplier": 0.5, "dynatemp_range": 0.5}
        assert {name: found[name] for name in wanted} == wanted
        assert engine.ask("POST", "/llm/completion", {"prompt": "One, two,", "n_predict": 4})[0] == 200
        saved = engine.ask("POST", "/llm/slots/0?action=save", {"filename": "slot.bin"})
        assert saved[0] == 200, saved
    assert (tmp_path / "slot.bin").stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lora", "/nonexistent/a.gguf"), "error: no such file: /nonexistent/a.gguf"),
        (("--lora-scaled", "/nonexistent/a.gguf:0.5"), "error: no such file: /nonexistent/a.gguf"),
        (("--lora-scaled", "a.gguf"), "error: --lora-scaled: invalid value 'a.gguf': must be FILE:SCALE"),
        (("-md", "/nonexistent/d.gguf"), "error: no such file: /nonexistent/d.gguf"),
        (("--mmproj", "/nonexistent/p.gguf"), "error: no such file: /nonexistent/p.gguf"),
        (("-ts", "3,x"), "error: -ts: invalid value '3,x': a number is needed"),
        (("-ts", ",".join("1" * 300)), "error: -ts: 300 values, but this engine knows"),
        (("-sm", "diagonal"), "error: -sm: invalid value 'diagonal': must be one of none, layer, row"),
        (("-ot", "x=Nonsense"), "error: --override-tensor: unknown buffer type"),
        (("--n-cpu-moe", "-1"), "error: --n-cpu-moe: invalid value '-1'"),
        (("--spec-type", "magic"), "error: --spec-type: invalid value 'magic'"),
        (("--chat-template-kwargs", "[]"), "error: --chat-template-kwargs: invalid value '[]': must be a JSON object"),
        (("--rope-scale", "0"), "error: --rope-scale: invalid value '0': must be more than 0"),
        (("--slot-save-path", "/nonexistent"), "error: --slot-save-path: not a directory: /nonexistent"),
        # Settings that the wheel does not have are refused and not ignored.
        (("--rpc", "127.0.0.1:50052"), "error: invalid argument: --rpc"),
        (("--override-kv", "a=int:1"), "error: invalid argument: --override-kv"),
        (("--device", "none"), "error: invalid argument: --device"),
    ],
)
def test_what_it_refuses(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    program = run_to_end(LLAMA, "-m", str(starter_llm()), *SMALL, *flags, cwd=tmp_path)
    assert program.process.returncode == 1
    assert said in program.stderr.decode()
    assert "Traceback" not in program.output


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    program = run_to_end(LLAMA, "-m", str(starter_llm()), *SMALL, "--lora", str(starter_llm()), cwd=tmp_path)
    assert program.process.returncode == 1
    assert "lora" in program.output.lower()
