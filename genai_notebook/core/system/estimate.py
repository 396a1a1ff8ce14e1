"""How much memory a model takes, worked out from its GGUF header.

Weights, KV cache and compute buffer as llama.cpp lays them out: dense models, grouped and latent attention, sliding
windows and recurrent layers. Without a usable header the file's size × 1.2 stands in (`exact` False). Headers are
foreign data: every number is checked for sense before it is used, and nothing loops over a number from a file.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from genai_notebook.core.schema import GGUFMetadata, MemoryEstimate, ModelInfo

MIB = 1 << 20
GIB = 1 << 30
#: Bytes per element of a KV cache.
CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
#: What a GPU driver takes for itself as soon as anything is offloaded.
DRIVER_CONTEXT = 512 * MIB
DEFAULT_CONTEXT = 4096
SIZE_FACTOR = 1.2
#: Past these a header is nonsense, and the size stands in.
_MAX_LAYERS, _MAX_HEADS, _MAX_WIDTH, _MAX_VOCABULARY = 4096, 1 << 16, 1 << 24, 1 << 28
_MAX_CELLS = 1 << 32
#: Every how many layers one has full attention, where the header does not say.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}


class Load(Struct, frozen=True, kw_only=True):
    """How an LLM is to be run; what `estimate` needs beside the model."""

    context_size: int = DEFAULT_CONTEXT
    parallel_requests: int = 1
    gpu_layers: int = 0
    kv_unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch_size: int = 512
    flash_attention: bool = True


class _Shape(Struct, frozen=True):
    """The numbers of a header that passed for sane."""

    layers: int
    kv_heads: list[int]
    heads: int
    key_length: int
    value_length: int
    width: int
    vocabulary: int
    window: int
    full: list[bool]
    recurrent_floats: int


def estimate(model: ModelInfo, load: Load) -> MemoryEstimate:
    """Bytes a model takes in RAM and VRAM under that load."""
    size = max(0, model.size)
    shape = _shape(model.gguf_metadata) if model.type == "llm" and model.gguf_metadata is not None else None
    if shape is None:
        return _by_size(model, size, load.gpu_layers)
    header = (model.gguf_metadata.header_size if model.gguf_metadata is not None else None) or 0
    weights = size - header if 0 <= header <= size else size
    kv_cache, slot, window_cells = _kv_cache(shape, load)
    compute = _compute(shape, load, slot, window_cells)
    ram, vram = _shares(shape, load.gpu_layers, weights, kv_cache, compute)
    return MemoryEstimate(weights=weights, kv_cache=kv_cache, compute=compute, ram=ram, vram=vram, exact=True)


def layer_count_of(model: ModelInfo) -> int:
    """Layers by the header; without a sane one, one per 150 MiB of file, between 24 and 120."""
    known = model.gguf_metadata.block_count if model.gguf_metadata is not None else None
    if known is not None and 0 < known <= _MAX_LAYERS:
        return known
    return min(120, max(24, model.size // (150 * MIB)))


def context_length_of(model: ModelInfo) -> int:
    """Tokens the model was trained for, by the header; without a sane one 4096."""
    known = model.gguf_metadata.context_length if model.gguf_metadata is not None else None
    return known if known is not None and 0 < known <= 1 << 30 else DEFAULT_CONTEXT


def architecture_of(model: ModelInfo) -> str:
    """'llama', 'qwen3', …, by the header; without one 'llama', or 'stable-diffusion' for an image model."""
    known = model.gguf_metadata.architecture if model.gguf_metadata is not None else None
    return known or ("llama" if model.type == "llm" else "stable-diffusion")


def _by_size(model: ModelInfo, size: int, gpu_layers: int) -> MemoryEstimate:
    total = int(size * SIZE_FACTOR)
    layers = layer_count_of(model)
    share = min(max(gpu_layers, 0), layers) / layers
    vram = int(total * share)
    return MemoryEstimate(weights=size, kv_cache=0, compute=total - size, ram=total - vram, vram=vram, exact=False)


def _shares(shape: _Shape, gpu_layers: int, weights: int, kv_cache: int, compute: int) -> tuple[int, int]:
    """RAM and VRAM. Layers go to the GPU from the last one up; the output layer counts as one more."""
    offloaded = min(max(gpu_layers, 0), shape.layers + 1)
    if offloaded == 0:
        return weights + kv_cache + compute, 0
    weights_there = weights * offloaded // (shape.layers + 1)
    kv_there = kv_cache * min(offloaded, shape.layers) // shape.layers
    vram = weights_there + kv_there + compute + DRIVER_CONTEXT
    compute_here = compute if offloaded <= shape.layers else 0
    return weights - weights_there + kv_cache - kv_there + compute_here, vram


def _kv_cache(shape: _Shape, load: Load) -> tuple[int, int, int]:
    """Bytes of the cache, the cells of a full-attention layer, and those of a sliding-window one (0: there is none)."""
    context = _pad(_clamp(load.context_size, 1, _MAX_CELLS), 256)
    parallel = _clamp(load.parallel_requests, 1, 4096)
    batch = _clamp(load.batch_size, 1, 1 << 20)
    slot = context if load.kv_unified else _pad(-(-context // parallel), 256)
    streams = 1 if load.kv_unified else parallel
    window_cells = 0
    if shape.window and not all(shape.full):
        window_cells = _pad(min(slot, shape.window * (parallel if load.kv_unified else 1) + batch), 256)
    per_cell = shape.key_length * CACHE_BYTES.get(load.cache_type_k, 2.0)
    per_cell += shape.value_length * CACHE_BYTES.get(load.cache_type_v, 2.0)
    cells = sum(
        heads * (slot if full or not window_cells else window_cells)
        for heads, full in zip(shape.kv_heads, shape.full, strict=True)
    )
    return int(streams * cells * per_cell) + 4 * parallel * shape.recurrent_floats, slot, window_cells


def _compute(shape: _Shape, load: Load, slot: int, window_cells: int) -> int:
    batch = min(_clamp(load.batch_size, 1, 1 << 20), max(slot, 1))
    masks = 2 * batch * (slot + window_cells)
    buffer = 4 * batch * (shape.vocabulary + 5 * shape.width) + masks
    if not load.flash_attention:
        buffer = max(buffer, 4 * batch * (shape.heads * slot + 5 * shape.width) + masks)
    return buffer


def _shape(metadata: GGUFMetadata) -> _Shape | None:
    """The header's numbers, or None where one that matters is missing or makes no sense."""
    raw = _Raw(metadata)
    layers = metadata.block_count or 0
    width = metadata.embedding_length or 0
    vocabulary = metadata.vocab_size or 0
    if not (0 < layers <= _MAX_LAYERS and 0 < width <= _MAX_WIDTH and 0 < vocabulary <= _MAX_VOCABULARY):
        return None
    all_heads = _per_layer(metadata.attention_head_count, layers)
    kv_heads = (
        _per_layer(metadata.attention_head_count_kv, layers)
        if metadata.attention_head_count_kv is not None
        else all_heads
    )
    if all_heads is None or kv_heads is None:
        return None
    heads = max(all_heads)
    recurrent = raw.recurrent_floats()
    if heads == 0 and recurrent == 0:
        return None
    default = width // heads if heads else 0
    key = metadata.attention_key_length if metadata.attention_key_length is not None else default
    value = metadata.attention_value_length if metadata.attention_value_length is not None else default
    if not (0 <= key <= _MAX_HEADS and 0 <= value <= _MAX_HEADS):
        return None
    if raw.number("attention.key_length_mla"):
        value = 0  # latent attention: the values are read out of the keys
    window = metadata.attention_sliding_window or 0
    window = window if 0 < window <= _MAX_CELLS else 0
    without_cache = sum(1 for count in kv_heads if count == 0) if heads else layers
    return _Shape(
        layers=layers,
        kv_heads=kv_heads if heads else [0] * layers,
        heads=heads,
        key_length=key,
        value_length=value,
        width=width,
        vocabulary=vocabulary,
        window=window,
        full=_full_attention(raw, metadata.architecture, layers) if window else [True] * layers,
        recurrent_floats=recurrent * without_cache,
    )


class _Raw:
    """The architecture's fields that have no name of their own in the metadata."""

    def __init__(self, metadata: GGUFMetadata) -> None:
        self.values = metadata.raw or {}
        self.architecture = metadata.architecture

    def get(self, name: str) -> Any:
        return self.values.get(f"{self.architecture}.{name}")

    def number(self, name: str) -> int:
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_WIDTH else 0

    def recurrent_floats(self) -> int:
        """Floats of state that one recurrent layer keeps per sequence; 0 where the model has none."""
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        if not inner or not state:
            return 0
        kernel, groups = self.number("ssm.conv_kernel"), self.number("ssm.group_count")
        return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner


def _full_attention(raw: _Raw, architecture: str | None, layers: int) -> list[bool]:
    """Per layer, whether it sees the whole context in a model with a sliding window."""
    pattern = raw.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        return [not sliding for sliding in pattern[:layers]]
    period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else None
    period = period if period is not None else _WINDOW_PATTERNS.get(architecture or "", 0)
    if period < 1:
        # A window without a pattern: which layers it is for is not known, so none is taken for bounded.
        return [True] * layers
    return [(layer + 1) % period == 0 for layer in range(layers)]


def _per_layer(value: int | list[int] | None, layers: int) -> list[int] | None:
    if value is None:
        return [0] * layers
    if isinstance(value, list):
        counts = value[:layers]
        return counts if len(counts) == layers and all(0 <= count <= _MAX_HEADS for count in counts) else None
    return [value] * layers if 0 <= value <= _MAX_HEADS else None


def _pad(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
