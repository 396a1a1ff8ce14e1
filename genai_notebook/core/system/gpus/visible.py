"""Which cards an engine will see: CUDA_VISIBLE_DEVICES and its kin, read as CUDA reads them.

Engines inherit these variables, so what they hide must not be planned with.

An index counts in PCI order here, as NVML does. CUDA counts so with CUDA_DEVICE_ORDER=PCI_BUS_ID; by default it puts
the fastest card first, by a measure of its own. Both are the same where all cards are alike; elsewhere only a UUID
names a card without doubt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from genai_notebook.core.schema import GPUInfo

# CUDA reads numbers like C's strtoul: what follows the digits is ignored.
_INDEX = re.compile(r"\+?(\d{1,9})", re.ASCII)
_NAMED = ("GPU-", "MIG-")


class Card(Struct, frozen=True):
    """A GPU, and what a variable may call it.

    `index` is its number among the physical cards (None: no number leads to it, as for all but the first MIG device
    of a card); `names` are UUIDs, of which a part from the start is enough.
    """

    index: int | None
    names: tuple[str, ...]
    gpu: GPUInfo


def visible(cards: Sequence[Card], variable: str | None) -> list[GPUInfo]:
    """The GPUs that `variable` leaves, in its order; all of them where it is None (not set).

    The first entry that names no card ends the list; an entry given twice leaves nothing; names and numbers do not
    mix: the first entry's kind is that of all.
    """
    if variable is None:
        return [card.gpu for card in cards]
    entries = [entry.strip() for entry in variable.split(",")]
    by_name = entries[0].upper().startswith(_NAMED)
    chosen: list[Card] = []
    for entry in entries:
        card = _named(cards, entry) if by_name else _numbered(cards, entry)
        if card is None:
            break
        if card in chosen:
            return []
        chosen.append(card)
    return [card.gpu for card in chosen]


def _numbered(cards: Sequence[Card], entry: str) -> Card | None:
    match = _INDEX.match(entry)
    return next((card for card in cards if match and card.index == int(match[1])), None)


def _named(cards: Sequence[Card], entry: str) -> Card | None:
    """The one card whose name starts so; None too where several do."""
    start = entry.lower()
    if not start.upper().startswith(_NAMED):
        return None
    found = [card for card in cards if any(name.lower().startswith(start) for name in card.names)]
    return found[0] if len(found) == 1 else None
