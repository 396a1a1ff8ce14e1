"""Figures from files and programs that may say anything: a sane number of bytes, or nothing."""

from __future__ import annotations

import re

#: No machine has more memory; what is larger is a counter that ran over, or a "no limit".
MOST_BYTES = 1 << 50

# Long digit strings are cut off before int() sees them: they are no sizes, and it would raise for very long ones.
_DIGITS = re.compile(r"\s*(\d{1,20})\s*", re.ASCII)


def whole_number(text: object) -> int | None:
    """The number that `text` (or an int) is, when it is a whole one, not negative and of at most 20 digits."""
    if isinstance(text, bool):
        return None
    match = _DIGITS.fullmatch(str(text)) if isinstance(text, (str, int)) and _short(text) else None
    return int(match[1]) if match else None


def amount(text: object) -> int | None:
    """Bytes of memory: more than none, and no more than any machine has."""
    number = whole_number(text)
    return number if number is not None and 0 < number <= MOST_BYTES else None


def free_of(total: int | None, used: int | None) -> int | None:
    """What is left of `total`; None where either is not known. More used than there is leaves nothing."""
    return None if total is None or used is None else max(0, total - used)


def _short(value: str | int) -> bool:
    return value.bit_length() <= 70 if isinstance(value, int) else len(value) <= 100
