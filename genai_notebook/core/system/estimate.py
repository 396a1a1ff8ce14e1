"""How much memory a model takes, worked out from its GGUF header.

Weights, KV cache and compute buffers as llama.cpp lays them out, in RAM and on GPUs: see `estimates/`. Without a
usable header the file's size × 1.2 stands in (`exact` False). Headers are foreign data: every number is checked for
sense before it is used, and nothing loops over a number from a file that was not.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from genai_notebook.core.schema import GGUFMetadata, MemoryEstimate, ModelInfo, WeightBytes
from genai_notebook.core.system.estimates.compute import compute_buffers
from genai_notebook.core.system.estimates.kv_cache import CACHE_BYTES, kv_cache
from genai_notebook.core.system.estimates.load import DEFAULT_CONTEXT, Load
from genai_notebook.core.system.estimates.placement import Placement, place, place_evenly, place_weights
from genai_notebook.core.system.estimates.shape import MAX_LAYERS, Shape, shape_of

__all__ = [
    "CACHE_BYTES",
    "DEFAULT_CONTEXT",
    "DRIVER_CONTEXT",
    "GIB",
    "MIB",
    "SIZE_FACTOR",
    "Load",
    "Placed",
    "architecture_of",
    "context_length_of",
    "estimate",
    "estimate_on",
    "layer_count_of",
]

MIB = 1 << 20
GIB = 1 << 30
#: What a GPU driver takes for itself as soon as anything is offloaded.
DRIVER_CONTEXT = 512 * MIB
SIZE_FACTOR = 1.2
#: How far the table of tensors may be from the size of all files, as a share of it: one that tells of less is of one
#: file of several, and equal shares for all layers are nearer to the truth.
_TABLE_TOLERANCE = 0.1


class Placed(Struct, frozen=True):
    """Bytes that a model takes in RAM, and on each GPU."""

    ram: int
    vram: list[int]


class _Parts(Struct, frozen=True):
    """Weights, KV cache and compute buffers: bytes in RAM, and on each GPU."""

    weights: tuple[int, list[int]]
    kv_cache: tuple[int, list[int]]
    compute: tuple[int, list[int]]
    exact: bool

    def ram(self) -> int:
        return self.weights[0] + self.kv_cache[0] + self.compute[0]

    def vram(self) -> list[int]:
        """With what the driver takes, wherever there is anything."""
        sums = [sum(parts) for parts in zip(self.weights[1], self.kv_cache[1], self.compute[1], strict=True)]
        return [total + DRIVER_CONTEXT if total else 0 for total in sums]


def estimate(model: ModelInfo, load: Load) -> MemoryEstimate:
    """Bytes a model takes in RAM and VRAM under that load, with one GPU (of any size) if `gpu_layers` says so.

    `weights` counts what is in both twice: a token embedding that is the output layer, too.
    """
    parts = _parts(model, load, [1])
    if parts is None:
        return _by_size(model, load.gpu_layers)
    return MemoryEstimate(
        weights=_sum(parts.weights),
        kv_cache=_sum(parts.kv_cache),
        compute=_sum(parts.compute),
        ram=parts.ram(),
        vram=sum(parts.vram()),
        exact=parts.exact,
    )


def estimate_on(model: ModelInfo, load: Load, devices: Sequence[int]) -> Placed:
    """Bytes a model takes in RAM and on each of several GPUs.

    Args:
        devices: bytes that are free on each GPU, in llama.cpp's order; by them it divides the layers.
    """
    parts = _parts(model, load, devices)
    if parts is not None:
        return Placed(parts.ram(), parts.vram())
    found = _by_size(model, load.gpu_layers if devices else 0)
    shares = place_evenly(found.vram, place(layer_count_of(model), Load(gpu_layers=1 << 20), devices))[1]
    return Placed(found.ram, shares)


def layer_count_of(model: ModelInfo) -> int:
    """Layers by the header; without a sane one, one per 150 MiB of file, between 24 and 120."""
    known = model.gguf_metadata.block_count if model.gguf_metadata is not None else None
    if known is not None and 0 < known <= MAX_LAYERS:
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


def _parts(model: ModelInfo, load: Load, devices: Sequence[int]) -> _Parts | None:
    metadata = model.gguf_metadata if model.type == "llm" else None
    shape = shape_of(metadata) if metadata is not None else None
    if metadata is None or shape is None:
        return None
    placement = place(len(shape.layers), load, devices)
    return _Parts(
        weights=_weights(shape, _tensor_bytes(model, metadata), placement),
        kv_cache=placement.share(kv_cache(shape, load)),
        compute=compute_buffers(shape, load, placement),
        exact=shape.exact,
    )


def _tensor_bytes(model: ModelInfo, metadata: GGUFMetadata) -> int:
    size, header = max(0, model.size), metadata.header_size or 0
    return size - header if 0 <= header <= size else size


def _weights(shape: Shape, size: int, placement: Placement) -> tuple[int, list[int]]:
    table = shape.weights
    if table is None or abs(_table_sum(table) - size) > _TABLE_TOLERANCE * size:
        return place_evenly(size, placement)
    return place_weights(table, shape.used, placement)


def _table_sum(table: WeightBytes) -> int:
    return sum(table.layers) + sum(table.experts) + table.token_embedding + table.output + table.other


def _sum(parts: tuple[int, list[int]]) -> int:
    return parts[0] + sum(parts[1])


def _by_size(model: ModelInfo, gpu_layers: int) -> MemoryEstimate:
    size = max(0, model.size)
    total = int(size * SIZE_FACTOR)
    layers = layer_count_of(model)
    vram = int(total * (min(max(gpu_layers, 0), layers) / layers))
    return MemoryEstimate(weights=size, kv_cache=0, compute=total - size, ram=total - vram, vram=vram, exact=False)
