"""Quantisations, by file name: which one a file has, and which file of several is the best for a machine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from genai_notebook.core.schema import FoundFile

_NAME = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(Q4_0_[48]_[48]|I?Q[1-8](?:_(?:0|1|K|NL|XXS|XS|S|M|XL|L))+|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
#: From so many bits per weight on, a model has lost next to nothing.
_GOOD = 4
#: More bits than this cost memory and time, and nobody sees a difference.
_ENOUGH = 8


def quantization_of(file: str) -> str | None:
    """``Q4_K_M`` for ``model-q4_k_m-00001-of-00002.gguf``; None where the name does not tell."""
    found: list[str] = _NAME.findall(file)
    return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32") if found else None


def bits_of(quantization: str | None) -> int | None:
    """Bits per weight, the nominal ones: 4 for ``Q4_K_M``, 16 for ``BF16``; None where it is not known."""
    match = re.search(r"\d+", quantization or "")
    return int(match[0]) if match else None


def best_fit(files: Sequence[FoundFile]) -> FoundFile | None:
    """The best of the files that fit; None where none does.

    Four to eight bits per weight go before more, which nobody notices, and those before fewer, which everybody does. In
    each of these classes a file that fits into VRAM goes before one that only fits into RAM. Then the larger one is the
    better one, up to eight bits.
    """
    classes = ((_GOOD, _ENOUGH, max), (_ENOUGH, 64, min), (0, _GOOD, max))
    for (least, most, pick), place in itertools.product(classes, ("vram", "ram")):
        fit = [file for file in files if file.fits == place and least <= (bits_of(file.quantization) or 0) <= most]
        if fit:
            return pick(fit, key=lambda file: file.size)
    return None
