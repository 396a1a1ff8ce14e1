"""Reading the Windows registry below HKEY_LOCAL_MACHINE: what is missing or forbidden reads as empty."""

from __future__ import annotations

import contextlib
from typing import Any

#: No key we read has more values or sub-keys; it keeps a broken hive from holding us.
_MOST = 256


def values_of(key: str) -> dict[str, object]:
    """The values of one key by name."""
    return dict(_listed(key, "EnumValue"))


def keys_below(key: str) -> list[str]:
    """The names of its sub-keys."""
    return [str(name) for name in _listed(key, "EnumKey")]


def _listed(key: str, function: str) -> list[Any]:
    try:
        import winreg
    except ImportError:  # another system
        return []
    reader: Any = winreg
    found: list[Any] = []
    with contextlib.suppress(OSError), reader.OpenKey(reader.HKEY_LOCAL_MACHINE, key) as handle:
        for number in range(_MOST):  # ends with an OSError behind the last
            item = getattr(reader, function)(handle, number)
            found.append(item[:2] if isinstance(item, tuple) else item)
    return found
