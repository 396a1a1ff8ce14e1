"""Bytes of a GGUF file's tensors, added up by where engines put them: layers, their experts, embedding and output.

Sizes are differences of offsets, so no table of tensor types is needed and none can be out of date: a tensor ends
where the next one begins, the last one at the file's end. Alignment (some bytes a tensor) is counted with the tensor
before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from genai_notebook.core.schema import GGUFMetadata, WeightBytes

#: llama.cpp itself loads 512 layers at most; tensors of blocks past this count as `other`.
MAX_BLOCKS = 1024
#: The names that llama.cpp's `--cpu-moe` keeps in RAM.
_BLOCK = re.compile(rb"blk\.(\d{1,4})\.(ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b)?")
_TOKEN_EMBEDDING, _OUTPUT, _OTHER = -1, -2, -3
_NAMED = {b"token_embd.weight": _TOKEN_EMBEDDING, b"output.weight": _OUTPUT, b"output.bias": _OUTPUT}


class TensorSizes:
    """Collects names and offsets of a table of tensors."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int]] = []

    def add(self, name: bytes, offset: int) -> None:
        """Note a tensor; `offset` in bytes from where the data begin."""
        match = _BLOCK.match(name)
        if match is None:
            place = _NAMED.get(name, _OTHER)
        else:
            block = int(match[1])
            place = 2 * block + (match[2] is not None) if block < MAX_BLOCKS else _OTHER
        self._found.append((offset, place))

    def total(self, data: int) -> WeightBytes | None:
        """The sums, where the data have `data` bytes; None where no tensor belongs to a block: it is no LLM."""
        highest = max((place for _, place in self._found), default=_OTHER)
        if highest < 0:
            return None
        sums = dict.fromkeys((_TOKEN_EMBEDDING, _OUTPUT, _OTHER), 0)
        blocks = [0] * (2 * (highest // 2 + 1))
        self._found.sort()
        ends = [offset for offset, _ in self._found[1:]]
        for (offset, place), end in zip(self._found, [*ends, data], strict=True):
            if place < 0:
                sums[place] += max(0, end - offset)
            else:
                blocks[place] += max(0, end - offset)
        return WeightBytes(
            layers=blocks[::2],
            experts=blocks[1::2],
            token_embedding=sums[_TOKEN_EMBEDDING],
            output=sums[_OUTPUT],
            other=sums[_OTHER],
        )


def combined(files: Sequence[GGUFMetadata | None]) -> GGUFMetadata | None:
    """What a model in several files says of itself: the first one's header, and of an LLM the tensors of all."""
    first = files[0]
    if first is None or len(files) == 1 or not first.block_count:
        return first
    parts = [file.weights for file in files if file is not None and file.weights is not None]
    if not parts:
        return first
    count = max(len(part.layers) for part in parts)
    total = WeightBytes(
        layers=[sum(part.layers[index] for part in parts if index < len(part.layers)) for index in range(count)],
        experts=[sum(part.experts[index] for part in parts if index < len(part.experts)) for index in range(count)],
        token_embedding=sum(part.token_embedding for part in parts),
        output=sum(part.output for part in parts),
        other=sum(part.other for part in parts),
    )
    return msgspec.structs.replace(first, weights=total)
