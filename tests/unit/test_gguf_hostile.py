"""Hostile and mutated GGUF headers: only our errors, and little memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.core.models.gguf import GGUFError, parse_prefix, read_gguf
from genai_notebook.core.schema import ModelInfo, ModelSource
from genai_notebook.core.system.estimate import Load, estimate
from tests.soak import rounds
from tests.unit.test_gguf import HUGE, LLAMA, array, header, key, text

MIB = 1 << 20
WORDS = [b"token-%d" % number for number in range(300)]
GOOD = header(
    *LLAMA,
    key("general.name", 8, text("A name")),
    key("llama.context_length", 4, struct.pack("<I", 4096)),
    key("llama.embedding_length", 4, struct.pack("<I", 256)),
    key("llama.attention.head_count", 4, struct.pack("<I", 8)),
    key("llama.attention.head_count_kv", 9, array(4, 4, struct.pack("<4I", 8, 8, 0, 8))),
    key("llama.rope.freq_base", 6, struct.pack("<f", 10_000.0)),
    key("a.nested", 9, array(9, 2, array(4, 1, bytes(4)) + array(8, 1, text("b")))),
    key("tokenizer.ggml.tokens", 9, array(8, len(WORDS), b"".join(map(text, WORDS)))),
    key("tokenizer.ggml.scores", 9, array(6, len(WORDS), bytes(4 * len(WORDS)))),
    key("tokenizer.chat_template", 8, text("{{ messages }}")),
    tensors=2,
    rest=text("a") + struct.pack("<IQIQ", 1, 4, 0, 0) + text("b") + struct.pack("<IQIQ", 1, 4, 0, 32) + bytes(128),
)

HOSTILE = {
    "keys of one byte": header(count=60_000, rest=(text("k") + struct.pack("<IB", 0, 1)) * 60_000),
    "many keys": header(*(key(b"k%d" % number, 0, b"\1") for number in range(65_000))),
    "many short arrays": header(*(key(b"k%d" % number, 9, array(0, 4000, bytes(4000))) for number in range(400))),
    "many long strings": header(*(key(b"k%d" % number, 8, text(b"x" * 60_000)) for number in range(40))),
    "a million empty tokens": header(
        *LLAMA, key("tokenizer.ggml.tokens", 9, array(8, 100_000, bytes(800_000))), tensors=HUGE
    ),
    "layers without end": header(LLAMA[0], key("llama.block_count", 4, struct.pack("<I", 2**31))),
    "tensors without end": header(*LLAMA, tensors=200_000, rest=bytes(24) * 1000),
    "many tensors in disorder": header(
        *LLAMA,
        tensors=8000,
        rest=b"".join(
            text(b"blk.%d.x%d" % (number % 1000, number)) + struct.pack("<IIQ", 0, 0, number * 7919 % 8000)
            for number in range(8000)
        )
        + bytes(20_000),
    ),
    "more tensors than a model has": header(
        *LLAMA, tensors=16_000, rest=(text(b"blk.0.x") + struct.pack("<IIQ", 0, 0, 0)) * 16_000 + bytes(64)
    ),
    "a string of a gigabyte": header(key("a", 8, struct.pack("<Q", 2**30)), rest=bytes(1000)),
    "an array of arrays of arrays": header(key("a", 9, array(9, 2**20, array(9, 2**20)))),
    "nested empty arrays": header(key("a", 9, array(9, 80_000, array(4, 0) * 80_000))),
    "a name of a megabyte": header(key(b"x" * MIB, 0, b"\1")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        outcome(lambda: read_gguf(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * MIB


def test_the_good_one_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GOOD)
    assert read_gguf(tmp_path / "a.gguf").attention_head_count_kv == [8, 8, 0, 8]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_mutated_headers_raise_only_our_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for seed in range(rounds(2_000, 100_000)):
        data = mutated(GOOD, random.Random(seed))
        path.write_bytes(data)
        for read in (lambda: read_gguf(path), lambda data=data: parse_prefix(data)):  # type: ignore[misc]
            try:
                outcome(read)
            except Exception as error:
                pytest.fail(f"seed {seed}: {error!r}")


def outcome(read: Any) -> None:
    """Read; what comes out can be kept, and sizing it neither fails nor loops."""
    try:
        found = read()
    except GGUFError:
        return
    msgspec.json.encode(found)
    source = ModelSource(type="local")
    model = ModelInfo(
        id="a", name="a", type="llm", size=2**30, path="/a", downloaded_at="", source=source, gguf_metadata=found
    )
    assert estimate(model, Load()).ram >= 0


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A header with flipped bits, wild lengths, spliced, repeated or missing pieces."""
    blob = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(4, len(blob))
        match chance.randrange(6):
            case 0:
                blob[at] ^= 1 << chance.randrange(8)
            case 1:
                blob[at] = chance.randrange(256)
            case 2:
                wild = chance.choice([0, 1, 2**16, 2**31, 2**32 - 1, HUGE, 2**64 - 1, len(blob)])
                blob[at : at + 8] = struct.pack("<Q", wild)
            case 3:
                del blob[at : at + chance.randrange(1, 40)]
            case 4:
                begin = chance.randrange(4, len(blob))
                blob[at:at] = blob[begin : begin + chance.randrange(1, 60)]
            case 5:
                del blob[at + chance.randrange(1, 400) :]
        if len(blob) < 24:
            blob += bytes(24)
    return bytes(blob)
