"""utilities: the small public functions, with the figures of the contract."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core import utilities
from genai_notebook.core.utilities import (
    REASONING_MODEL_PATTERNS,
    calculate_checksum,
    detect_reasoning_support,
    format_bytes,
    generate_id,
    get_arch_field,
    get_architecture,
    get_platform,
    get_platform_key,
    now_iso,
    now_ms,
)
from genai_notebook.errors import FileSystemError


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 Bytes"),
        (1, "1 Bytes"),
        (1023, "1023 Bytes"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (1 << 20, "1 MB"),
        (4368769024, "4.07 GB"),
        (1 << 40, "1 TB"),
        (1 << 60, "1024 PB"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**70))
def test_any_size_has_a_text(size: int) -> None:
    assert re.fullmatch(r"\d+(\.\d{1,2})? (Bytes|[KMGTP]B)", format_bytes(size))


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-8B-Q4_K_M.gguf",
        "qwen_3_30b.gguf",
        "Qwen 3.gguf",
        "DeepSeek-R1-Distill-Llama-8B.gguf",
        "deepseek_r1.gguf",
        "DeepSeekR1.gguf",
        "gpt-oss-20b-mxfp4.gguf",
        "GPT_OSS.gguf",
    ],
)
def test_reasoning_models_are_known_by_name(name: str) -> None:
    assert detect_reasoning_support(name)


@pytest.mark.parametrize(
    "name", ["", "llama-2-7b.gguf", "Qwen2.5-3B.gguf", "Qwen-32B.gguf", "deepseek-v3.gguf", "gpt2", "deep/seek-r1"]
)
def test_others_are_not(name: str) -> None:
    assert not detect_reasoning_support(name)


def test_the_patterns_are_the_contracts() -> None:
    assert REASONING_MODEL_PATTERNS == ("qwen3", "deepseek-r1", "gpt-oss")


def test_arch_fields_follow_the_architecture() -> None:
    metadata = {"general.architecture": "gemma3", "gemma3.block_count": 26, "gemma3.attention.head_count": 4}
    assert get_arch_field(metadata, "block_count") == 26
    assert get_arch_field(metadata, "attention.head_count") == 4
    assert get_arch_field(metadata, "nothing") is None
    assert get_arch_field({"block_count": 1}, "block_count") is None
    assert get_arch_field({"general.architecture": 3}, "block_count") is None


def test_ids_are_short_random_and_distinct() -> None:
    ids = {generate_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[a-z0-9]{12}", identifier) for identifier in ids)


def test_a_checksum_is_the_files_sha256(tmp_path: Path) -> None:
    data = b"abc" * 1_000_000
    (tmp_path / "f").write_bytes(data)
    assert asyncio.run(calculate_checksum(str(tmp_path / "f"))) == hashlib.sha256(data).hexdigest()


def test_a_missing_file_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileSystemError) as caught:
        asyncio.run(calculate_checksum(str(tmp_path / "none")))
    assert caught.value.operation == "read"
    assert isinstance(caught.value.original_error, FileNotFoundError)


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x64"), ("AMD64", "x64"), ("aarch64", "arm64"), ("arm64", "arm64"), ("riscv64", "riscv64")],
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    monkeypatch.setattr(utilities.platform, "machine", lambda: machine)
    assert get_architecture() == name


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "linux"), ("linux2", "linux"), ("darwin", "darwin"), ("win32", "win32")]
)
def test_platforms(monkeypatch: pytest.MonkeyPatch, platform: str, name: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(utilities.platform, "machine", lambda: "x86_64")
    assert get_platform() == name
    assert get_platform_key() == f"{name}-x64"


def test_times() -> None:
    assert abs(now_ms() - time.time() * 1000) < 60_000
    text = now_iso()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert abs(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() - time.time()) < 60
