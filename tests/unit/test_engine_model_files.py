"""Whole or cut short: what the header of a model file says about its size."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_notebook.core.engines.embedded.model_files import CutShortError, check_whole


def gguf(path: Path) -> bytes:
    """A small real file, with an array of strings, an odd alignment and two tensors."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(str(path), "sd1")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "bc", "def"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_name("small")
    writer.add_tensor("one", np.zeros((4, 18), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("two", np.ones((3, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_gguf_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    whole = gguf(path)
    check_whole(str(path))
    # The writer pads the last tensor, which is 60 bytes.
    needed = len(whole) - (-60 % 64)
    path.write_bytes(whole[:needed])
    check_whole(str(path))
    for length in range(8, needed):
        path.write_bytes(whole[:length])
        with pytest.raises(CutShortError, match=r"model\.gguf is cut short"):
            check_whole(str(path))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(8)
    path.write_bytes(whole)
    check_whole(str(path))
    for length in (0, 4, 8, len(text), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CutShortError):
            check_whole(str(path))


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\x03\x04" + bytes(100), b"no model at all"])
def test_other_files_are_for_the_engine_to_judge(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    check_whole(str(path))


@pytest.mark.parametrize("broken", [b"{", b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": ["x", "y"]}}', b"[" * 50_000])
def test_nonsense_headers_are_too(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(broken)) + broken)
    check_whole(str(path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(8, 400), junk=st.binary(min_size=1, max_size=16))
def test_damaged_headers_end_soon_and_in_one_of_two_ways(tmp_path: Path, place: int, junk: bytes) -> None:
    path = tmp_path / "model.gguf"
    if not path.exists():
        (tmp_path / "whole").write_bytes(gguf(path))
    whole = (tmp_path / "whole").read_bytes()
    path.write_bytes(whole[:place] + junk + whole[place + len(junk) :])
    with contextlib.suppress(CutShortError):
        check_whole(str(path))


@pytest.mark.parametrize("counts", [(2**63, 0), (0, 2**63), (2**64 - 1, 2**64 - 1)])
def test_absurd_counts_end_with_the_file(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(1000))
    with pytest.raises(CutShortError):
        check_whole(str(path))
