"""Models with real shapes and no weights: a GGUF header and, behind it, a hole of the right size.

A file of 20 GB takes some kilobytes of disk. llama.cpp's `llama-fit-params` reads header and tensor table only, so it
lays such a model out in memory as it would the real one. There is no vocabulary but its size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.fakes.gguf_files import gguf_text, gguf_value, padded

#: ggml's number of a type, elements in a block, bytes of a block.
F32, F16, Q8_0, Q4_K, Q6_K, MXFP4 = (0, 1, 4), (1, 1, 2), (8, 32, 34), (12, 256, 144), (14, 256, 210), (39, 32, 17)

Tensor = tuple[str, tuple[int, ...], tuple[int, int, int]]
Keys = dict[str, Any]


def write_model(path: Path, name: str) -> Path:
    """Write the model called `name` (see MODELS)."""
    keys, tensors = MODELS[name]()
    return write(path, keys, tensors)


def write(path: Path, keys: Keys, tensors: Iterable[Tensor]) -> Path:
    """Write a GGUF 3 file: keys and tensor table for real, the tensors as a hole."""
    table, offset, count = b"", 0, 0
    for label, shape, (kind, _, _) in (listed := list(tensors)):
        table += gguf_text(label) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += padded(tensor_bytes(listed[count]))
        count += 1
    head = struct.pack("<4sIQQ", b"GGUF", 3, count, len(keys))
    head += b"".join(gguf_text(key) + gguf_value(value) for key, value in keys.items()) + table
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(padded(len(head)) + offset)
    return path


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of one tensor's data."""
    _, shape, (_, elements, size) = tensor
    result = size
    for length in shape:
        result *= length
    return result // elements


# ---- parts of models


def _matrix(name: str, *shape: int, kind: tuple[int, int, int] = Q4_K) -> Tensor:
    """A quantised tensor; rows that its blocks do not divide get a type with smaller ones, as llama.cpp does."""
    kinds = [kind, Q8_0, F16]
    return name, shape, next(each for each in kinds if shape[0] % each[1] == 0)


def _vector(name: str, *shape: int) -> Tensor:
    return name, shape, F32


def _keys(architecture: str, vocabulary: int, **own: Any) -> Keys:
    keys = {f"{architecture}.{name.replace('__', '.')}": value for name, value in own.items()}
    general = {"general.architecture": architecture, "general.name": "A shape", "tokenizer.ggml.model": "none"}
    epsilon = {f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5}
    return {**general, f"{architecture}.context_length": 131_072, f"{architecture}.vocab_size": vocabulary,
            **epsilon, **keys}  # fmt: skip


def _ends(width: int, vocabulary: int, *, tied: bool = False, norm: str = "output_norm") -> list[Tensor]:
    """Embedding and output; a tied output is the embedding itself."""
    kind = Q6_K if tied else Q4_K
    ends = [_matrix("token_embd.weight", width, vocabulary, kind=kind), _vector(f"{norm}.weight", width)]
    return ends if tied else [*ends, _matrix("output.weight", width, vocabulary, kind=Q6_K)]


def _attention(layer: int, width: int, queries: int, keys: int, values: int | None = None) -> list[Tensor]:
    """Projections of one layer: widths of the residual stream and of all heads' queries, keys and values."""
    values = keys if values is None else values
    at = f"blk.{layer}.attn"
    return [
        _vector(f"{at}_norm.weight", width),
        _matrix(f"{at}_q.weight", width, queries),
        _matrix(f"{at}_k.weight", width, keys),
        _matrix(f"{at}_v.weight", width, values, kind=Q6_K),
        _matrix(f"{at}_output.weight", queries, width),
    ]


def _gated(layer: int, width: int, inner: int, suffix: str = "") -> list[Tensor]:
    """A feed-forward network with a gate."""
    at = f"blk.{layer}.ffn"
    return [
        _matrix(f"{at}_gate{suffix}.weight", width, inner),
        _matrix(f"{at}_up{suffix}.weight", width, inner),
        _matrix(f"{at}_down{suffix}.weight", inner, width, kind=Q6_K),
    ]


def _experts(layer: int, width: int, inner: int, count: int, kind: tuple[int, int, int] = Q4_K) -> list[Tensor]:
    at = f"blk.{layer}.ffn"
    return [
        _vector(f"{at}_gate_inp.weight", width, count),
        _matrix(f"{at}_gate_exps.weight", width, inner, count, kind=kind),
        _matrix(f"{at}_up_exps.weight", width, inner, count, kind=kind),
        _matrix(f"{at}_down_exps.weight", inner, width, count, kind=kind),
    ]


def _norms(layer: int, *named: tuple[str, int]) -> list[Tensor]:
    return [_vector(f"blk.{layer}.{name}", length) for name, length in named]


# ---- whole models


def _llama(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int,
           experts: int = 0, tied: bool = False) -> Callable[[], tuple[Keys, list[Tensor]]]:  # fmt: skip
    def make() -> tuple[Keys, list[Tensor]]:
        more = {"expert_count": experts, "expert_used_count": 2} if experts else {}
        keys = _keys("llama", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                     attention__head_count=heads, attention__head_count_kv=kv_heads,
                     rope__dimension_count=width // heads, **more)  # fmt: skip
        tensors = _ends(width, vocabulary, tied=tied)
        for layer in range(layers):
            tensors += _attention(layer, width, width, width * kv_heads // heads)
            tensors += _norms(layer, ("ffn_norm.weight", width))
            tensors += _experts(layer, width, inner, experts) if experts else _gated(layer, width, inner)
        return keys, tensors

    return make


def _qwen2(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int,
           tied: bool = False) -> Callable[[], tuple[Keys, list[Tensor]]]:  # fmt: skip
    def make() -> tuple[Keys, list[Tensor]]:
        keys = _keys("qwen2", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                     attention__head_count=heads, attention__head_count_kv=kv_heads)  # fmt: skip
        tensors, kv_width = _ends(width, vocabulary, tied=tied), width * kv_heads // heads
        for layer in range(layers):
            tensors += _attention(layer, width, width, kv_width) + _gated(layer, width, inner)
            tensors += _norms(layer, ("ffn_norm.weight", width), ("attn_q.bias", width), ("attn_k.bias", kv_width),
                              ("attn_v.bias", kv_width))  # fmt: skip
        return keys, tensors

    return make


def _qwen3(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int,
           experts: int = 0, tied: bool = False) -> Callable[[], tuple[Keys, list[Tensor]]]:  # fmt: skip
    """With experts, `inner` is theirs."""

    def make() -> tuple[Keys, list[Tensor]]:
        name = "qwen3moe" if experts else "qwen3"
        more = {"expert_count": experts, "expert_used_count": 8, "expert_feed_forward_length": inner} if experts else {}
        keys = _keys(name, vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                     attention__head_count=heads, attention__head_count_kv=kv_heads, attention__key_length=128,
                     attention__value_length=128, **more)  # fmt: skip
        tensors = _ends(width, vocabulary, tied=tied)
        for layer in range(layers):
            tensors += _attention(layer, width, 128 * heads, 128 * kv_heads)
            tensors += _norms(layer, ("ffn_norm.weight", width), ("attn_q_norm.weight", 128),
                              ("attn_k_norm.weight", 128))  # fmt: skip
            tensors += _experts(layer, width, inner, experts) if experts else _gated(layer, width, inner)
        return keys, tensors

    return make


def _gemma(name: str, layers: int, width: int, heads: int, kv_heads: int, head: int, inner: int, vocabulary: int,
           window: int, **more: Any) -> Callable[[], tuple[Keys, list[Tensor]]]:  # fmt: skip
    def make() -> tuple[Keys, list[Tensor]]:
        keys = _keys(name, vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                     attention__head_count=heads, attention__head_count_kv=kv_heads, attention__key_length=head,
                     attention__value_length=head, attention__sliding_window=window, **more)  # fmt: skip
        tensors = _ends(width, vocabulary, tied=True)
        for layer in range(layers):
            tensors += _attention(layer, width, head * heads, head * kv_heads) + _gated(layer, width, inner)
            tensors += _norms(layer, ("ffn_norm.weight", width), ("post_attention_norm.weight", width),
                              ("post_ffw_norm.weight", width))  # fmt: skip
            if name == "gemma3":
                tensors += _norms(layer, ("attn_q_norm.weight", head), ("attn_k_norm.weight", head))
        return keys, tensors

    return make


def _gpt_oss() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, experts, vocabulary = 24, 2880, 2880, 32, 201_088
    keys = _keys("gpt-oss", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=64, attention__head_count_kv=8, attention__key_length=64,
                 attention__value_length=64, attention__sliding_window=128, expert_count=experts, expert_used_count=4,
                 expert_feed_forward_length=inner)  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += _attention(layer, width, 4096, 512) + _experts(layer, width, inner, experts, MXFP4)
        tensors += _norms(layer, ("post_attention_norm.weight", width), ("attn_q.bias", 4096), ("attn_k.bias", 512),
                          ("attn_v.bias", 512), ("attn_output.bias", width), ("attn_sinks.weight", 64),
                          ("ffn_gate_inp.bias", experts))  # fmt: skip
        tensors += [_vector(f"{at}.ffn_{part}_exps.bias", inner, experts) for part in ("gate", "up", "down")]
    return keys, tensors


def _llama4() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, experts, vocabulary = 48, 5120, 8192, 16, 202_048
    keys = _keys("llama4", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=16_384,
                 attention__head_count=40, attention__head_count_kv=8, attention__key_length=128,
                 attention__value_length=128, rope__dimension_count=128, expert_count=experts, expert_used_count=1,
                 expert_feed_forward_length=inner, interleave_moe_layer_step=1)  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        tensors += _attention(layer, width, 5120, 1024) + _experts(layer, width, inner, experts)
        tensors += _gated(layer, width, inner, "_shexp") + _norms(layer, ("ffn_norm.weight", width))
    return keys, tensors


def _deepseek2_lite() -> tuple[Keys, list[Tensor]]:
    layers, width, heads, rank, rope, vocabulary = 27, 2048, 16, 512, 64, 102_400
    keys = _keys("deepseek2", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=10_944,
                 attention__head_count=heads, attention__head_count_kv=1, attention__kv_lora_rank=rank,
                 attention__key_length=rank + rope, attention__value_length=rank, attention__key_length_mla=192,
                 attention__value_length_mla=128, rope__dimension_count=rope, leading_dense_block_count=1,
                 expert_count=64, expert_used_count=6, expert_shared_count=2,
                 expert_feed_forward_length=1408)  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        at = f"blk.{layer}.attn"
        tensors += _norms(layer, ("attn_norm.weight", width), ("attn_kv_a_norm.weight", rank),
                          ("ffn_norm.weight", width))  # fmt: skip
        tensors += [
            _matrix(f"{at}_q.weight", width, heads * 192),
            _matrix(f"{at}_kv_a_mqa.weight", width, rank + rope),
            _matrix(f"{at}_k_b.weight", 128, rank, heads),
            _matrix(f"{at}_v_b.weight", rank, 128, heads),
            _matrix(f"{at}_output.weight", heads * 128, width),
        ]
        if layer == 0:
            tensors += _gated(layer, width, 10_944)
        else:
            tensors += _experts(layer, width, 1408, 64) + _gated(layer, width, 2816, "_shexp")
    return keys, tensors


def _phi3() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, vocabulary = 32, 3072, 8192, 32_064
    keys = _keys("phi3", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=32, attention__head_count_kv=32, attention__sliding_window=2047,
                 rope__dimension_count=96)  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += _norms(layer, ("attn_norm.weight", width), ("ffn_norm.weight", width))
        tensors += [
            _matrix(f"{at}.attn_qkv.weight", width, 3 * width),
            _matrix(f"{at}.attn_output.weight", width, width),
            _matrix(f"{at}.ffn_up.weight", width, 2 * inner),
            _matrix(f"{at}.ffn_down.weight", inner, width, kind=Q6_K),
        ]
    return keys, tensors


def _starcoder2() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, kv_width, vocabulary = 32, 4608, 18_432, 512, 49_152
    keys = _keys("starcoder2", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=36, attention__head_count_kv=4,
                 attention__layer_norm_epsilon=1e-5)  # fmt: skip
    tensors = [*_ends(width, vocabulary, tied=True), _vector("output_norm.bias", width)]
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += _attention(layer, width, width, kv_width)
        tensors += [
            _matrix(f"{at}.ffn_up.weight", width, inner),
            _matrix(f"{at}.ffn_down.weight", inner, width, kind=Q6_K),
        ]
        tensors += _norms(layer, ("attn_norm.bias", width), ("ffn_norm.weight", width), ("ffn_norm.bias", width),
                          ("attn_q.bias", width), ("attn_k.bias", kv_width), ("attn_v.bias", kv_width),
                          ("attn_output.bias", width), ("ffn_up.bias", inner), ("ffn_down.bias", width))  # fmt: skip
    return keys, tensors


def _command_r() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, vocabulary = 40, 8192, 22_528, 256_000
    keys = _keys("command-r", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=64, attention__head_count_kv=64, attention__layer_norm_epsilon=1e-5,
                 logit_scale=0.0625)  # fmt: skip
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        tensors += _attention(layer, width, width, width) + _gated(layer, width, inner)
    return keys, tensors


def _mamba_mixer(layer: int, width: int, inner: int, state: int, rank: int) -> list[Tensor]:
    at = f"blk.{layer}.ssm"
    return [
        _matrix(f"{at}_in.weight", width, 2 * inner),
        _vector(f"{at}_conv1d.weight", 4, inner),
        _vector(f"{at}_conv1d.bias", inner),
        _matrix(f"{at}_x.weight", inner, rank + 2 * state),
        _vector(f"{at}_dt.weight", rank, inner),
        _vector(f"{at}_dt.bias", inner),
        _vector(f"{at}_a", state, inner),
        _vector(f"{at}_d", inner),
        _matrix(f"{at}_out.weight", inner, width),
    ]


def _mamba2_mixer(layer: int, width: int, inner: int, state: int, heads: int, groups: int = 1) -> list[Tensor]:
    at, convolved = f"blk.{layer}.ssm", inner + 2 * groups * state
    return [
        _matrix(f"{at}_in.weight", width, inner + convolved + heads),
        _vector(f"{at}_conv1d.weight", 4, convolved),
        _vector(f"{at}_conv1d.bias", convolved),
        _vector(f"{at}_dt.bias", heads),
        _vector(f"{at}_a", 1, heads),
        _vector(f"{at}_d", 1, heads),
        _vector(f"{at}_norm.weight", inner // groups, groups),
        _matrix(f"{at}_out.weight", inner, width),
    ]


def _ssm_keys(inner: int, state: int, rank: int, groups: int = 0) -> dict[str, int]:
    keys = {"ssm__conv_kernel": 4, "ssm__inner_size": inner, "ssm__state_size": state, "ssm__time_step_rank": rank}
    return {**keys, "ssm__group_count": groups} if groups else keys


def _mamba() -> tuple[Keys, list[Tensor]]:
    layers, width, vocabulary = 64, 2560, 50_280
    keys = _keys("mamba", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=0,
                 attention__head_count=0, **_ssm_keys(5120, 16, 160))  # fmt: skip
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        tensors += _norms(layer, ("attn_norm.weight", width)) + _mamba_mixer(layer, width, 5120, 16, 160)
    return keys, tensors


def _mamba2() -> tuple[Keys, list[Tensor]]:
    layers, width, vocabulary = 64, 2560, 50_288
    keys = _keys("mamba2", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=0,
                 attention__head_count=0, **_ssm_keys(5120, 128, 80, 1))  # fmt: skip
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        tensors += _norms(layer, ("attn_norm.weight", width)) + _mamba2_mixer(layer, width, 5120, 128, 80)
    return keys, tensors


def _jamba() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, vocabulary = 32, 4096, 14_336, 65_536
    kv_heads = [8 if layer % 8 == 4 else 0 for layer in range(layers)]
    keys = _keys("jamba", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=32, attention__head_count_kv=kv_heads, expert_count=16, expert_used_count=2,
                 **_ssm_keys(8192, 16, 256))  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        if kv_heads[layer]:
            tensors += _attention(layer, width, width, 1024)
        else:
            tensors += _norms(layer, ("attn_norm.weight", width), ("ssm_dt_norm.weight", 256),
                              ("ssm_b_norm.weight", 16), ("ssm_c_norm.weight", 16))  # fmt: skip
            tensors += _mamba_mixer(layer, width, 8192, 16, 256)
        tensors += _norms(layer, ("ffn_norm.weight", width))
        tensors += _experts(layer, width, inner, 16) if layer % 2 else _gated(layer, width, inner)
    return keys, tensors


def _granite_hybrid() -> tuple[Keys, list[Tensor]]:
    layers, width, vocabulary = 40, 1536, 100_352
    kv_heads = [4 if layer % 10 == 5 else 0 for layer in range(layers)]
    keys = _keys("granitehybrid", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=512,
                 attention__head_count=12, attention__head_count_kv=kv_heads, expert_count=64, expert_used_count=6,
                 expert_shared_feed_forward_length=1024, **_ssm_keys(3072, 128, 48, 1))  # fmt: skip
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        if kv_heads[layer]:
            tensors += _attention(layer, width, width, 512)
        else:
            tensors += _norms(layer, ("attn_norm.weight", width)) + _mamba2_mixer(layer, width, 3072, 128, 48)
        tensors += _norms(layer, ("ffn_norm.weight", width)) + _experts(layer, width, 512, 64)
        tensors += _gated(layer, width, 1024, "_shexp")
    return keys, tensors


def _qwen3_next() -> tuple[Keys, list[Tensor]]:
    layers, width, vocabulary, inner = 48, 2048, 151_936, 512
    keys = _keys("qwen3next", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=5120,
                 attention__head_count=16, attention__head_count_kv=2, attention__key_length=256,
                 attention__value_length=256, rope__dimension_count=64, expert_count=512, expert_used_count=10,
                 expert_feed_forward_length=inner, expert_shared_feed_forward_length=inner,
                 **_ssm_keys(4096, 128, 32, 16))  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        at = f"blk.{layer}"
        tensors += _norms(layer, ("post_attention_norm.weight", width), ("ffn_gate_inp_shexp.weight", width))
        if layer % 4 == 3:
            tensors += [("".join((at, ".attn_q.weight")), (width, 8192), Q4_K),
                        *(each for each in _attention(layer, width, 4096, 512) if "attn_q" not in each[0])]  # fmt: skip
            tensors += _norms(layer, ("attn_q_norm.weight", 256), ("attn_k_norm.weight", 256))
        else:
            tensors += _norms(layer, ("attn_norm.weight", width), ("ssm_dt.bias", 32), ("ssm_a", 32),
                              ("ssm_norm.weight", 128))  # fmt: skip
            tensors += [
                _matrix(f"{at}.attn_qkv.weight", width, 8192),
                _matrix(f"{at}.attn_gate.weight", width, 4096),
                _vector(f"{at}.ssm_conv1d.weight", 4, 8192),
                _matrix(f"{at}.ssm_ba.weight", width, 64),
                _matrix(f"{at}.ssm_out.weight", 4096, width),
            ]
        tensors += _experts(layer, width, inner, 512) + _gated(layer, width, inner, "_shexp")
    return keys, tensors


def _falcon_h1() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, vocabulary = 44, 3072, 12_288, 130_048
    keys = _keys("falcon-h1", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=12, attention__head_count_kv=2, attention__key_length=128,
                 attention__value_length=128, **_ssm_keys(3072, 256, 24, 1))  # fmt: skip
    tensors = _ends(width, vocabulary)
    for layer in range(layers):
        tensors += _attention(layer, width, 1536, 256) + _mamba2_mixer(layer, width, 3072, 256, 24)
        tensors += _norms(layer, ("ffn_norm", width)) + _gated(layer, width, inner)
    return keys, tensors


def _lfm2() -> tuple[Keys, list[Tensor]]:
    layers, width, inner, vocabulary = 16, 2048, 8192, 65_536
    kv_heads = [8 if layer in (2, 5, 8, 10, 12, 14) else 0 for layer in range(layers)]
    keys = _keys("lfm2", vocabulary, block_count=layers, embedding_length=width, feed_forward_length=inner,
                 attention__head_count=32, attention__head_count_kv=kv_heads, shortconv__l_cache=3)  # fmt: skip
    tensors = _ends(width, vocabulary, tied=True, norm="token_embd_norm")
    for layer in range(layers):
        at = f"blk.{layer}"
        if kv_heads[layer]:
            tensors += _attention(layer, width, width, 512)
            tensors += _norms(layer, ("attn_q_norm.weight", 64), ("attn_k_norm.weight", 64))
        else:
            tensors += _norms(layer, ("attn_norm.weight", width))
            tensors += [
                _vector(f"{at}.shortconv.conv.weight", 3, width),
                _matrix(f"{at}.shortconv.in_proj.weight", width, 3 * width),
                _matrix(f"{at}.shortconv.out_proj.weight", width, width),
            ]
        tensors += _norms(layer, ("ffn_norm.weight", width)) + _gated(layer, width, inner)
    return keys, tensors


#: What can be written, by name: keys and tensors of the real models of that name (Q4_K_M, near enough).
MODELS: dict[str, Callable[[], tuple[Keys, list[Tensor]]]] = {
    "llama-2-7b": _llama(32, 4096, 32, 32, 11_008, 32_000),
    "llama-3.1-8b": _llama(32, 4096, 32, 8, 14_336, 128_256),
    "smollm2-135m": _llama(30, 576, 9, 3, 1536, 49_152, tied=True),
    "mixtral-8x7b": _llama(32, 4096, 32, 8, 14_336, 32_000, experts=8),
    "qwen2.5-7b": _qwen2(28, 3584, 28, 4, 18_944, 152_064),
    "qwen2.5-0.5b": _qwen2(24, 896, 14, 2, 4864, 151_936, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 32, 8, 9728, 151_936, tied=True),
    "qwen3-30b-a3b": _qwen3(48, 2048, 32, 4, 768, 151_936, experts=128),
    "gemma-2-9b": _gemma("gemma2", 42, 3584, 16, 8, 256, 14_336, 256_000, 4096),
    "gemma-3-12b": _gemma("gemma3", 48, 3840, 16, 8, 256, 15_360, 262_208, 1024),
    "gemma-3-27b": _gemma("gemma3", 62, 5376, 32, 16, 128, 21_504, 262_208, 1024),
    "gemma-3-pattern": _gemma("gemma3", 26, 1152, 4, 1, 256, 6912, 262_144, 512,
                              attention__sliding_window_pattern=4),
    "gpt-oss-20b": _gpt_oss,
    "llama-4-scout": _llama4,
    "deepseek-v2-lite": _deepseek2_lite,
    "phi-3-mini": _phi3,
    "starcoder2-7b": _starcoder2,
    "command-r-35b": _command_r,
    "mamba-2.8b": _mamba,
    "mamba2-2.7b": _mamba2,
    "jamba-mini": _jamba,
    "granite-4-h-tiny": _granite_hybrid,
    "qwen3-next-80b": _qwen3_next,
    "falcon-h1-7b": _falcon_h1,
    "lfm2-1.2b": _lfm2,
}  # fmt: skip
