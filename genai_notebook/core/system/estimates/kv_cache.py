"""Bytes of the KV cache and of recurrent states, layer by layer.

As llama.cpp's `llama-kv-cache*.cpp` and `llama-memory-recurrent.cpp` allocate them: a full-attention layer has a cell
for each token of a slot's context, a sliding-window layer one for each token of the window and of a batch, both rounded
up to 256 cells. Caches that slots share hold all of their windows. States are kept in f32, one per slot.
"""

from __future__ import annotations

from genai_notebook.core.system.estimates.load import Load, padded
from genai_notebook.core.system.estimates.shape import Shape

#: Bytes per element.
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


def window_cells(shape: Shape, load: Load) -> int:
    """Cells of a sliding-window layer; 0 where no layer slides."""
    if not shape.slides:
        return 0
    if load.swa_full:
        return load.cells
    windows = shape.window * (load.slots if load.kv_unified else 1)
    return padded(min(load.cells, windows + load.tokens), 256)


def kv_cache(shape: Shape, load: Load) -> list[int]:
    """Bytes of each layer, over all slots."""
    keys, values = (CACHE_BYTES.get(kind, 2.0) for kind in (load.cache_type_k, load.cache_type_v))
    if shape.latent:
        values = 0.0
    full = load.streams * load.cells * (shape.key_length * keys + shape.value_length * values)
    cells = load.streams * window_cells(shape, load)
    sliding = cells * (shape.key_length_sliding * keys + shape.value_length_sliding * values)
    if not load.flash_attention and not shape.latent:
        full, sliding = _transposed(shape, load, keys, values, full, sliding)
    state = 4 * load.slots * shape.state
    return [
        int(layer.kv_heads * (sliding if layer.sliding else full)) + (state if layer.recurrent else 0)
        for layer in shape.layers
    ]


def _transposed(
    shape: Shape, load: Load, keys: float, values: float, full: float, sliding: float
) -> tuple[float, float]:
    """Without flash attention, values lie transposed, and all layers' rows are as wide as the widest layer's."""
    widest = max(shape.value_length, shape.value_length_sliding if shape.slides else 0)
    full += load.streams * load.cells * (widest - shape.value_length) * values
    sliding += load.streams * window_cells(shape, load) * (widest - shape.value_length_sliding) * values
    return full, sliding
