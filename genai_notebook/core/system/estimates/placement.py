"""Which layer goes where, as llama.cpp's `--split-mode layer` has it, and what the weights take there.

The last layers go to the GPUs first, and the output layer counts as one more behind them. Several GPUs get consecutive
layers, in proportion to what is free on each. The token embedding stays in RAM; an output layer that is tied to it has
a copy of it on its GPU. `--cpu-moe` and `--n-cpu-moe` keep experts in RAM.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct

from genai_notebook.core.schema import WeightBytes
from genai_notebook.core.system.estimates.load import Load, clamp

#: The place that is no GPU.
RAM = -1


class Placement(Struct, frozen=True):
    """Where each layer is, the output layer last: the index of a GPU, or RAM."""

    places: list[int]
    gpus: int
    #: Experts of so many first layers stay in RAM; of all where that is the number of layers.
    experts_in_ram: int

    @property
    def output(self) -> int:
        return self.places[-1]

    @property
    def whole(self) -> bool:
        """Whether every layer is on a GPU."""
        return self.places[0] != RAM

    @property
    def used_gpus(self) -> list[int]:
        """GPUs that have a layer, in order."""
        return sorted(set(self.places) - {RAM})

    def share(self, numbers: Sequence[int], count: int | None = None) -> tuple[int, list[int]]:
        """Sums of one number a layer (of the first `count`): in RAM, and on each GPU."""
        ram, gpus = 0, [0] * self.gpus
        for place, number in zip(self.places, numbers[:count], strict=False):
            if place == RAM:
                ram += number
            else:
                gpus[place] += number
        return ram, gpus


def place(layers: int, load: Load, devices: Sequence[int]) -> Placement:
    """`devices`: bytes free on each GPU; by them layers are divided (equally where nothing is free anywhere)."""
    offloaded = clamp(load.gpu_layers, 0, layers + 1) if devices else 0
    first = layers + 1 - offloaded
    free = [max(0, each) for each in devices]
    bounds = list(accumulate(free if any(free) else [1] * len(free)))
    places = [RAM] * first
    for index in range(offloaded):
        # A layer is on the first GPU whose share ends behind it.
        places.append(bisect_right(bounds, index * bounds[-1] / offloaded))
    experts = layers if load.cpu_moe else clamp(load.n_cpu_moe, 0, layers)
    return Placement(places, len(devices), experts)


def place_weights(weights: WeightBytes, used: int, placement: Placement) -> tuple[int, list[int]]:
    """Bytes of the weights in RAM and on each GPU; of the layers, only the first `used` are loaded."""
    ram, gpus = placement.share(weights.layers, used)
    expert_ram, expert_gpus = placement.share(
        [0 if index < placement.experts_in_ram else each for index, each in enumerate(weights.experts)], used
    )
    ram += expert_ram + sum(weights.experts[: min(placement.experts_in_ram, used)])
    gpus = [sum(pair) for pair in zip(gpus, expert_gpus, strict=True)]
    ram += weights.token_embedding + weights.other
    if placement.output == RAM:
        ram += weights.output
    else:
        gpus[placement.output] += weights.output or weights.token_embedding
    return ram, gpus


def place_evenly(size: int, placement: Placement) -> tuple[int, list[int]]:
    """As `place_weights`, where only the size of all tensors is known: every layer is taken for the same."""
    count = len(placement.places)
    gpus = [size * placement.places.count(gpu) // count for gpu in range(placement.gpus)]
    return size - sum(gpus), gpus
