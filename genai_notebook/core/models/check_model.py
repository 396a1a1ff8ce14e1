"""The check model: the smallest checkpoint stable-diffusion.cpp runs, with random weights, written on the spot.

It proves the whole image pipeline (text encoder, denoising, decoding, PNG) on a machine that reaches no model hub. Its
pictures are noise. The architecture is SDXS-512: an SD 1 U-Net without a middle block, and a tiny autoencoder.

One small random block per matrix width is repeated over the rows: the file is made in about two seconds, and it is the
same file every time.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from genai_notebook.errors import FileSystemError

CHECK_MODEL_NAME = "Random-weight check model"

_SEED = 20_512
_TEXT = "cond_stage_model.transformer.text_model."
_UNET = "model.diffusion_model."
_VOCABULARY, _POSITIONS, _WIDTH, _LAYERS = 49_408, 77, 768, 12
_TIME = 1280
_LEVELS = (320, 640, 1280)
#: Random layers damp what passes through them. The last one makes up for it, or the pictures would be all but black.
_LOUDNESS = 12.0


class Tensor(NamedTuple):
    """One tensor to write. `kind`: 'matrix' (Q4_0), 'conv' or 'loud conv' (F16), 'zeros', 'halves' or 'ones' (F32)."""

    name: str
    kind: str
    shape: tuple[int, ...]


def write_check_model(path: Path) -> None:
    """Write the check model (GGUF, about 520 MB) to `path`: under a temporary name first, then renamed.

    Blocks for about two seconds: call it in a thread.

    Raises:
        FileSystemError: the disk refused it; nothing is left behind.
    """
    path = Path(path)
    # The suffix keeps half a file from being taken for a model.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise FileSystemError(
            "write the check model to", str(path), error, hint="It needs about 520 MB of free disk space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "sd1")
    try:
        writer.add_name(CHECK_MODEL_NAME)
        writer.add_description("Random weights: its pictures are noise. For checking an installation only.")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        for tensor in check_model_tensors():
            raw_dtype = gguf.GGMLQuantizationType.Q4_0 if tensor.kind == "matrix" else None
            writer.add_tensor(tensor.name, _data(tensor), raw_dtype=raw_dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# ---- weights --------------------------------------------------------------------------------------------------------


def _data(tensor: Tensor) -> Any:
    import numpy as np

    if tensor.kind == "zeros":
        return np.zeros(tensor.shape, np.float32)
    if tensor.kind in ("halves", "ones"):
        return np.full(tensor.shape, 0.5 if tensor.kind == "halves" else 1.0, np.float32)
    if tensor.kind == "matrix":
        rows, columns = tensor.shape
        return np.resize(_matrix_rows(columns), (rows, columns // 32 * 18))
    noise = np.resize(_convolution_noise(math.prod(tensor.shape[1:])), tensor.shape)
    return noise * np.float16(_LOUDNESS) if tensor.kind == "loud conv" else noise


@functools.lru_cache(maxsize=16)
def _matrix_rows(columns: int) -> Any:
    """61 random rows in Q4_0. An odd number, so that the repeats do not line up with heads or channels."""
    import gguf
    import numpy as np

    noise = np.random.default_rng(_SEED + columns).standard_normal((61, columns), np.float32)
    return gguf.quants.quantize(noise * (0.5 / math.sqrt(columns)), gguf.GGMLQuantizationType.Q4_0)


@functools.lru_cache(maxsize=16)
def _convolution_noise(fan_in: int) -> Any:
    import numpy as np

    noise = np.random.default_rng(_SEED + fan_in).standard_normal(100_003, np.float32)
    return (noise * (0.7 / math.sqrt(fan_in))).astype(np.float16)


# ---- names and shapes -----------------------------------------------------------------------------------------------


def check_model_tensors() -> Iterator[Tensor]:
    """Every tensor of the check model."""
    yield from _text_encoder()
    yield from _unet()
    yield from _autoencoder()


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", "ones", (width,))
    yield Tensor(name + ".bias", "zeros", (width,))


def _linear(name: str, out: int, into: int, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", "matrix", (out, into))
    if bias:
        yield Tensor(name + ".bias", "zeros", (out,))


def _conv(name: str, out: int, into: int, kernel: int = 3, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", "conv", (out, into, kernel, kernel))
    if bias:
        yield Tensor(name + ".bias", "zeros", (out,))


def _text_encoder() -> Iterator[Tensor]:
    yield Tensor(_TEXT + "embeddings.token_embedding.weight", "matrix", (_VOCABULARY, _WIDTH))
    yield Tensor(_TEXT + "embeddings.position_embedding.weight", "matrix", (_POSITIONS, _WIDTH))
    for number in range(_LAYERS):
        layer = f"{_TEXT}encoder.layers.{number}."
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}self_attn.{projection}", _WIDTH, _WIDTH)
        yield from _norm(layer + "layer_norm1", _WIDTH)
        yield from _norm(layer + "layer_norm2", _WIDTH)
        yield from _linear(layer + "mlp.fc1", 4 * _WIDTH, _WIDTH)
        yield from _linear(layer + "mlp.fc2", _WIDTH, 4 * _WIDTH)
    yield from _norm(_TEXT + "final_layer_norm", _WIDTH)


def _unet() -> Iterator[Tensor]:
    base = _LEVELS[0]
    yield from _linear(_UNET + "time_embed.0", _TIME, base)
    yield from _linear(_UNET + "time_embed.2", _TIME, _TIME)
    yield from _conv(_UNET + "input_blocks.0.0", base, 4)
    skips = [base]
    width = base
    for level, channels in enumerate(_LEVELS):
        block = f"{_UNET}input_blocks.{3 * level + 1}."
        yield from _residual(block + "0.", width, channels)
        if level > 0:
            yield from _transformer(block + "1.", channels)
        width = channels
        skips.append(width)
        if level < len(_LEVELS) - 1:
            yield from _conv(f"{_UNET}input_blocks.{3 * level + 3}.0.op", width, width)
            skips.append(width)
    for level in reversed(range(len(_LEVELS))):
        channels = _LEVELS[level]
        first = 3 * (len(_LEVELS) - 1 - level)
        for number in (first, first + 1):
            block = f"{_UNET}output_blocks.{number}."
            yield from _residual(block + "0.", width + skips.pop(), channels)
            width = channels
            if level > 0:
                yield from _transformer(block + "1.", channels)
        if level > 0:
            # The last residual block of a level shares its number with nothing; upsampling follows where it stands.
            place = "2.1" if first == 0 else f"{first + 2}.2"
            yield from _conv(f"{_UNET}output_blocks.{place}.conv", width, width)
    yield from _norm(_UNET + "out.0", base)
    yield from _conv(_UNET + "out.2", 4, base)


def _residual(block: str, into: int, out: int) -> Iterator[Tensor]:
    yield from _norm(block + "in_layers.0", into)
    yield from _conv(block + "in_layers.2", out, into)
    yield from _linear(block + "emb_layers.1", out, _TIME)
    yield from _norm(block + "out_layers.0", out)
    yield from _conv(block + "out_layers.3", out, out)
    if into != out:
        yield from _conv(block + "skip_connection", out, into, 1)


def _transformer(block: str, width: int) -> Iterator[Tensor]:
    yield from _norm(block + "norm", width)
    yield from _conv(block + "proj_in", width, width, 1)
    inner = block + "transformer_blocks.0."
    for attention, context in (("attn1", width), ("attn2", _WIDTH)):
        yield from _linear(f"{inner}{attention}.to_q", width, width, bias=False)
        yield from _linear(f"{inner}{attention}.to_k", width, context, bias=False)
        yield from _linear(f"{inner}{attention}.to_v", width, context, bias=False)
        yield from _linear(f"{inner}{attention}.to_out.0", width, width)
    yield from _linear(inner + "ff.net.0.proj", 8 * width, width)
    yield from _linear(inner + "ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        yield from _norm(f"{inner}norm{number}", width)
    yield from _conv(block + "proj_out", width, width, 1)


def _autoencoder() -> Iterator[Tensor]:
    decoder, encoder = "tae.decoder.layers.", "tae.encoder.layers."
    yield from _conv(decoder + "0", 64, 4)
    yield from _tiny_blocks(decoder, 2, 3, 4, 7, 8, 9, 12, 13, 14, 17)
    for number in (6, 11, 16):
        yield from _conv(f"{decoder}{number}", 64, 64, bias=False)
    yield Tensor(decoder + "18.weight", "loud conv", (3, 64, 3, 3))
    yield Tensor(decoder + "18.bias", "halves", (3,))
    yield from _conv(encoder + "0", 64, 3)
    yield from _tiny_blocks(encoder, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13)
    for number in (2, 6, 10):
        yield from _conv(f"{encoder}{number}", 64, 64, bias=False)
    yield from _conv(encoder + "14", 4, 64)


def _tiny_blocks(prefix: str, *numbers: int) -> Iterator[Tensor]:
    for number in numbers:
        for part in (0, 2, 4):
            yield from _conv(f"{prefix}{number}.conv.{part}", 64, 64)
