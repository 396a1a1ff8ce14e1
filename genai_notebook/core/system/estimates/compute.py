"""Bytes of llama.cpp's compute buffers: what the tensors between the weights take while a batch is computed.

llama.cpp lays them out by going through the graph once, reusing what is no longer needed, so a buffer is as large as
the widest moment of the graph: inside of a layer's feed-forward network, in its attention where that is not fused, or
at the logits. Which multiples of the residual stream are alive then was read off `llama-fit-params` (llama.cpp b11434)
over the models in `tests/native/shapes.py`; the tests there hold these figures against it.
"""

from __future__ import annotations

from msgspec import Struct

from genai_notebook.core.system.estimates.kv_cache import window_cells
from genai_notebook.core.system.estimates.load import Load
from genai_notebook.core.system.estimates.placement import Placement
from genai_notebook.core.system.estimates.shape import Shape

#: Batches that several GPUs work on at once, each with inputs of its own (GGML_SCHED_MAX_COPIES).
_COPIES = 4
#: Streams alive on the first GPU, on a later one, and at the logits; of models with attention, and without.
_ALIVE_ATTENDING, _ALIVE_RECURRENT = (16, 11, 9), (23, 34, 26)


class _Sizes(Struct, frozen=True):
    """Bytes of the tensors that count, for one batch."""

    #: The residual stream, the logits, and what a feed-forward network takes beside the stream.
    stream: int
    logits: int
    inner: int
    expert_outputs: int
    #: Attention masks of both kinds of layers, and the larger one's alone.
    masks: int
    mask: int
    #: What attention takes of its own accord, beside the stream.
    scores: int

    def inside(self, streams: int, *, experts: bool = True) -> int:
        """The widest moment in a layer, where so many streams are alive (attention has one more)."""
        network = streams * self.stream + (self.inner if experts else 0)
        return max(network, (streams + 1) * self.stream + self.scores)

    def whole(self, streams: int, *, experts: bool = True) -> int:
        """The widest moment of a graph that is on one device, with masks and logits.

        Logits cost nothing where they fit into what the masks and scores of the layers leave behind.
        """
        fits = self.logits <= max(self.mask, self.scores)
        end = 0 if fits else streams * self.stream + self.logits
        return self.masks + max(self.inside(streams, experts=experts), end)


def compute_buffers(shape: Shape, load: Load, placement: Placement) -> tuple[int, list[int]]:
    """Bytes in RAM, and on each GPU."""
    sizes = _sizes(shape, load)
    gpus, used = [0] * placement.gpus, placement.used_gpus
    if not used:
        return sizes.whole(5), gpus
    in_ram = placement.experts_in_ram if shape.expert_outputs else 0
    if placement.whole and len(gpus) > 1 and not in_ram:
        return _pipelined(sizes, used, gpus, _ALIVE_ATTENDING if shape.attends else _ALIVE_RECURRENT)
    # Experts that stay in RAM are computed there; what goes in and out of them is copied.
    experts = in_ram < len(shape.layers)
    logits = sizes.logits + (1 if shape.attends else 3) * sizes.stream
    for gpu in used:
        if placement.whole and len(used) == 1:
            gpus[gpu] = sizes.whole(4, experts=experts)
        elif gpu not in placement.places[:-1]:  # it has the output layer alone
            gpus[gpu] = logits + (sizes.expert_outputs + sizes.stream if sizes.expert_outputs and not in_ram else 0)
        else:
            gpus[gpu] = sizes.masks + sizes.inside(3, experts=experts)
            if gpu == placement.output:
                gpus[gpu] = max(gpus[gpu], logits)
    if not placement.whole:
        return sizes.masks + sizes.inside(5), gpus
    return sizes.masks + (3 * sizes.stream + sizes.inner if in_ram else 4 * sizes.stream), gpus


def _pipelined(sizes: _Sizes, used: list[int], gpus: list[int], alive: tuple[int, int, int]) -> tuple[int, list[int]]:
    """All layers on several GPUs: each batch's inputs are there as often as batches are on their way."""
    masks = _COPIES * sizes.masks
    first, later, end = alive
    for gpu in used:
        gpus[gpu] = masks + sizes.inside(first if gpu == used[0] else later)
    gpus[used[-1]] = max(gpus[used[-1]], masks + end * sizes.stream + sizes.logits)
    return masks + 10 * sizes.stream, gpus


def _sizes(shape: Shape, load: Load) -> _Sizes:
    tokens, mask_bytes = load.tokens, 2 if load.flash_attention else 4
    cells, window = load.cells, window_cells(shape, load)
    full = any(layer.kv_heads and not layer.sliding for layer in shape.layers)
    # Each slot's tokens see that slot's cells.
    mask = mask_bytes * tokens * max(cells if full else 0, window)
    masks = mask_bytes * tokens * ((cells if full else 0) + window)
    if load.flash_attention:
        scores = _halved(shape, load, cells if full else window)
    else:
        scores = _scores(shape, load, cells if full else window)
    return _Sizes(
        stream=4 * tokens * shape.width,
        logits=4 * load.logits * shape.vocabulary,
        inner=4 * tokens * shape.inner,
        expert_outputs=4 * tokens * shape.expert_outputs,
        masks=masks,
        mask=mask,
        scores=scores,
    )


def _scores(shape: Shape, load: Load, cells: int) -> int:
    """Without flash attention: what each head thinks of each cell, and the values of latent attention, which are copied
    out of the keys."""
    if not shape.attends:
        return 0
    return 4 * load.tokens * shape.heads * cells + (2 * shape.value_length * cells if shape.latent else 0)


def _halved(shape: Shape, load: Load, cells: int) -> int:
    """Flash attention reads f16: of a cache in f32 it gets a copy, a layer at a time."""
    keys = shape.key_length if load.cache_type_k == "f32" else 0
    values = shape.value_length if load.cache_type_v == "f32" else 0
    heads = max(layer.kv_heads for layer in shape.layers)
    return 2 * load.streams * cells * heads * (keys + values)
