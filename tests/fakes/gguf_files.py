"""Tiny GGUF files: real headers, next to nothing behind them. Enough for managers and fake engines."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

ALIGNMENT = 32


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None) -> Path:
    """Write a GGUF 3 file with `metadata` (str, int, float, bool, list of str) and F32 tensors of zeros."""
    tensors = tensors or {"token_embd.weight": (32, 4)}
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += gguf_text(key) + gguf_value(value)
    offset = 0
    for name, shape in tensors.items():
        out += gguf_text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, offset)
        offset += padded(4 * _product(shape))
    out += b"\0" * (padded(len(out)) - len(out)) + b"\0" * offset
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def tiny_llm(path: Path, **more: Any) -> Path:
    """A file that looks like a very small Llama."""
    metadata = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.file_type": 0,
        "llama.block_count": 4,
        "llama.context_length": 2048,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    return write_gguf(path, {**metadata, **more})


def tiny_diffusion(path: Path) -> Path:
    """A file that looks like a very small Stable Diffusion 1."""
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": (3, 3, 4, 8), "first_stage_model.decoder.x": (4,)}
    return write_gguf(path, {"general.architecture": "sd1", "general.name": "Tiny picture"}, tensors)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def padded(size: int) -> int:
    """`size`, rounded up to the alignment of tensors."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def gguf_text(text: str) -> bytes:
    """A string as GGUF has it."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """A key's type and value: bool, int, float, str, or a list of bool, int or str."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    if value and not isinstance(value[0], str):
        kind, code = (7, "?") if isinstance(value[0], bool) else (5, "i")
        return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(gguf_text(item) for item in value)
