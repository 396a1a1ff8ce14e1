"""GGUF headers: what is read from good ones, and that hostile ones cost nothing and break nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.models.gguf import MAX_KEYS, GGUFError, NeedMoreError, parse_prefix, read_gguf
from genai_notebook.core.models.tensors import combined
from genai_notebook.core.schema import GGUFMetadata, WeightBytes
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm, write_gguf

HUGE = 2**63 - 1


def text(value: bytes | str) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(element: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + body


def header(*keys: bytes, tensors: int = 0, count: int | None = None, version: int = 3, rest: bytes = b"") -> bytes:
    counts = struct.pack("<IQQ", version, tensors, len(keys) if count is None else count)
    return b"GGUF" + counts + b"".join(keys) + rest


LLAMA = (key("general.architecture", 8, text("llama")), key("llama.block_count", 4, struct.pack("<I", 4)))


def test_reads_the_fields_of_a_file(tmp_path: Path) -> None:
    found = read_gguf(tiny_llm(tmp_path / "a.gguf", **{"tokenizer.chat_template": "{{ x }}<think>"}))
    assert (found.version, found.tensor_count, found.kv_count) == (3, 1, 13)
    assert (found.architecture, found.general_name, found.file_type) == ("llama", "Tiny", 0)
    assert (found.block_count, found.context_length, found.embedding_length) == (4, 2048, 32)
    assert (found.attention_head_count, found.attention_head_count_kv) == (4, 2)
    assert found.vocab_size == 3
    assert found.chat_template == "{{ x }}<think>"
    assert found.raw is not None
    assert found.raw["llama.rope.dimension_count"] == 8
    assert not any(name.endswith(".tokens") for name in found.raw)


def test_reads_to_the_end_where_there_is_no_vocabulary(tmp_path: Path) -> None:
    path = tiny_diffusion(tmp_path / "a.gguf")
    found = read_gguf(path)
    assert (found.architecture, found.tensor_count, found.vocab_size) == ("sd1", 2, None)
    assert found.header_size is not None
    assert 0 < found.header_size < path.stat().st_size


def test_stops_at_the_vocabulary() -> None:
    # What stands behind the array's own header is not there, and is not missed.
    data = header(*LLAMA, key("tokenizer.ggml.tokens", 9, array(8, 262_144)), count=30, tensors=200)
    found = parse_prefix(data)
    assert (found.vocab_size, found.block_count, found.header_size) == (262_144, 4, None)


def test_a_vocabulary_before_the_architecture_is_walked_over() -> None:
    words = [b"a" * (n % 7) for n in range(1000)]
    tokens = key("tokenizer.ggml.tokens", 9, array(8, len(words), b"".join(map(text, words))))
    assert parse_prefix(header(tokens, *LLAMA)).block_count == 4
    assert parse_prefix(header(tokens, *LLAMA)).vocab_size == 1000


def test_per_layer_lists_are_kept_and_long_ones_are_not() -> None:
    heads = key("llama.attention.head_count_kv", 9, array(4, 4, struct.pack("<4I", 8, 0, 8, 0)))
    pattern = key("llama.attention.sliding_window_pattern", 9, array(7, 4, b"\1\0\1\0"))
    scores = key("tokenizer.ggml.scores", 9, array(6, 9000, bytes(36_000)))
    found = parse_prefix(header(*LLAMA, heads, pattern, scores))
    assert found.attention_head_count_kv == [8, 0, 8, 0]
    assert found.raw is not None
    assert found.raw["llama.attention.sliding_window_pattern"] == [True, False, True, False]
    assert "tokenizer.ggml.scores" not in found.raw


@pytest.mark.parametrize("longest", [3, 5000])
def test_a_file_is_read_to_its_end_whatever_its_vocabulary(tmp_path: Path, longest: int) -> None:
    """Strings and arrays lie across the reader's window in many ways; what stands behind them is still found."""
    path = tmp_path / "a.gguf"
    words = [b"x" * (number * 7919 % longest) for number in range(2000)]
    tokens = key("tokenizer.ggml.tokens", 9, array(8, len(words), b"".join(map(text, words))))
    scores = key("tokenizer.ggml.scores", 9, array(6, 600_000, bytes(2_400_000)))
    behind = (key("tokenizer.chat_template", 8, text("found")), key("general.file_type", 4, struct.pack("<I", 15)))
    tensor = text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)
    path.write_bytes(header(*LLAMA, tokens, scores, *behind, tensors=1, rest=tensor) + bytes(128))
    found = read_gguf(path)
    assert (found.chat_template, found.file_type, found.vocab_size) == ("found", 15, 2000)
    assert found.header_size is not None
    assert 0 <= path.stat().st_size - found.header_size - 128 + 32 <= 64


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "GGUF"),
        (b"<!doctype html>", "GGUF"),
        (header(version=1), "version 1"),
        (header(version=4), "version 4"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian"),
        (header(count=2**63), "keys"),
        (header(count=MAX_KEYS + 1, rest=bytes(2_000_000)), "keys"),
        (header(tensors=HUGE), "tensors"),
        (header(key(b"x" * 10, 8, struct.pack("<Q", HUGE))), "limit"),
        (header(struct.pack("<Q", 2**40), rest=bytes(64)), "limit"),
        (header(key("a", 99, b"")), "unknown type"),
        (header(key("a", 9, array(99, 3, bytes(64)))), "unknown element"),
        (header(key("a", 9, array(4, HUGE))), "longer"),
        (header(key("a", 9, array(8, HUGE))), "longer"),
        (header(key("a", 9, array(9, 1, array(9, 1, array(4, 0))))), "nested"),
        (header(key("a", 0, b"\1"), key("a", 0, b"\1")), "twice"),
        (header(key("general.alignment", 4, struct.pack("<I", 0))), "alignment"),
        (header(key("general.alignment", 4, struct.pack("<I", 33))), "alignment"),
        (header(key("general.alignment", 8, text("32"))), "alignment"),
        (header(*LLAMA, tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 4, 0, 2**62) + bytes(64)), "past its end"),
        (header(*LLAMA, tensors=1, rest=text("t") + struct.pack("<I", 2**31) + bytes(64)), "dimensions"),
    ],
)
def test_refuses_what_no_engine_loads(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=why):
        read_gguf(path)


def test_a_cut_off_header_is_told_from_a_short_prefix(tmp_path: Path) -> None:
    whole = tiny_llm(tmp_path / "a.gguf").read_bytes()
    with pytest.raises(NeedMoreError):
        parse_prefix(whole[:100])
    (tmp_path / "b.gguf").write_bytes(whole[:100])
    with pytest.raises(GGUFError) as caught:
        read_gguf(tmp_path / "b.gguf")
    assert not isinstance(caught.value, NeedMoreError)


@pytest.mark.parametrize("name", ["../../etc", "<b>x</b>", "", "a" * 65, "x\ny"])
def test_an_architecture_that_is_no_name_is_none(name: str) -> None:
    assert parse_prefix(header(key("general.architecture", 8, text(name)))).architecture is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (6, struct.pack("<f", float("nan"))),
        (5, struct.pack("<i", -1)),
        (10, struct.pack("<Q", 2**64 - 1)),
        (8, text("9")),
    ],
)
def test_numbers_that_make_no_sense_are_absent(kind: int, value: bytes) -> None:
    found = parse_prefix(header(LLAMA[0], key("llama.block_count", kind, value), key("llama.x", kind, value)))
    assert found.block_count is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=GGUFMetadata) == found


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert parse_prefix(header(key("general.name", 8, text(b"\xff\xfe")))).general_name == "��"


MUTABLE = header(
    *LLAMA,
    key("llama.attention.head_count_kv", 9, array(4, 4, struct.pack("<4I", 8, 8, 8, 8))),
    key("a.nested", 9, array(9, 2, array(4, 1, bytes(4)) + array(8, 1, text("b")))),
    key("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("b") + text("c"))),
    key("tokenizer.chat_template", 8, text("{{ }}")),
    tensors=1,
    rest=text("t") + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(64),
)


def survives(data: bytes) -> None:
    for parse in (parse_prefix, lambda d: parse_prefix(d, len(d))):
        try:
            found: Any = parse(data)
        except GGUFError:
            continue
        msgspec.json.encode(found)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_headers_break_nothing(data: st.DataObject) -> None:
    blob = bytearray(MUTABLE)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(4, len(blob) - 1))
        piece = data.draw(st.sampled_from([b"\xff", b"\0", b"\x80", b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**31)]))
        blob[at : at + len(piece)] = piece
    cut = data.draw(st.integers(0, len(blob)))
    survives(bytes(blob[:cut] if data.draw(st.booleans()) else blob))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_break_nothing(tail: bytes) -> None:
    survives(b"GGUF\3\0\0\0" + tail)


def test_a_real_writer_is_understood(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "real.gguf"
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_block_count(6)
    writer.add_sliding_window(512)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", numpy.zeros((2, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    assert (found.architecture, found.block_count, found.attention_sliding_window) == ("gemma3", 6, 512)
    assert (found.vocab_size, found.tensor_count) == (2, 1)


def test_a_folder_full_of_keys_is_read_in_one_pass(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "many.gguf", {f"key.{n}": n for n in range(5000)})
    assert read_gguf(path).kv_count == 5000


def with_tensors(path: Path, tensors: list[tuple[str, int]], size: int) -> Path:
    """A Llama whose tensors have these names and offsets, and so many bytes of data."""
    table = b"".join(text(name) + struct.pack("<IQIQ", 1, 4, 0, offset) for name, offset in tensors)
    head = header(*LLAMA, tensors=len(tensors), rest=table)
    path.write_bytes(head + bytes(-len(head) % 32 + size))
    return path


def test_tensors_are_added_up_by_where_they_go(tmp_path: Path) -> None:
    tensors = [
        ("blk.0.attn_q.weight", 96),
        ("token_embd.weight", 0),
        ("output.weight", 64),
        ("blk.2.ffn_up_exps.weight", 128),
        ("blk.2.ffn_down_shexp.weight", 256),
        ("blk.2.ffn_gate_up_exps.weight", 192),
        ("output_norm.weight", 320),
        ("blk.7000.x", 352),
    ]
    found = read_gguf(with_tensors(tmp_path / "a.gguf", tensors, 400)).weights
    assert found is not None
    assert (found.layers, found.experts) == ([32, 0, 64], [0, 0, 128])
    assert (found.token_embedding, found.output, found.other) == (64, 32, 32 + 48)


def test_tensors_in_one_place_and_none_of_a_block(tmp_path: Path) -> None:
    same = read_gguf(with_tensors(tmp_path / "a.gguf", [("blk.0.a", 0), ("blk.1.b", 0)], 64)).weights
    assert same is not None
    assert sum(same.layers) == 64
    assert read_gguf(with_tensors(tmp_path / "b.gguf", [("first_stage_model.x", 0)], 64)).weights is None


def test_the_beginning_of_a_file_tells_no_weights(tmp_path: Path) -> None:
    data = with_tensors(tmp_path / "a.gguf", [("blk.0.a", 0)], 64).read_bytes()
    assert parse_prefix(data, len(data)).weights is None


def test_weights_of_numbered_files_are_summed() -> None:
    def part(layers: list[int], **more: int) -> GGUFMetadata:
        sums: dict[str, int] = {"token_embedding": 0, "output": 0, "other": 0, **more}
        return GGUFMetadata(block_count=3, weights=WeightBytes(layers=layers, experts=[1] * len(layers), **sums))

    whole = combined([part([5], token_embedding=7), part([1, 2, 3], output=9, other=4), GGUFMetadata(), None])
    assert whole is not None
    assert whole.weights == WeightBytes(layers=[6, 2, 3], experts=[2, 1, 1], token_embedding=7, output=9, other=4)
    assert combined([None, part([1])]) is None
    assert combined([part([1])]) == part([1])
