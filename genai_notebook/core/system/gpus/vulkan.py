"""Whether programs can load Vulkan here: by the presence of its loader, without loading or starting anything."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from genai_notebook.core.utilities import get_platform

_LINUX = "/usr/lib /usr/lib64 /usr/local/lib /lib /lib64 /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu"
_MAC = "/usr/local/lib /opt/homebrew/lib"


def has_vulkan() -> bool:
    """libvulkan.so.1, vulkan-1.dll, or MoltenVK. (ctypes' find_library would start ldconfig and a compiler.)"""
    system = get_platform()
    if system == "win32":
        windows = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
        return any_of(["vulkan-1.dll"], [windows / "System32"])
    if system == "darwin":
        return any_of(
            ["libvulkan.1.dylib", "libvulkan.dylib", "libMoltenVK.dylib"], _folders("DYLD_LIBRARY_PATH", _MAC)
        )
    return in_linker_cache("libvulkan.so.1") or any_of(["libvulkan.so.1"], _folders("LD_LIBRARY_PATH", _LINUX))


def any_of(names: Iterable[str], folders: Iterable[Path]) -> bool:
    places = list(folders)
    return any(os.path.isfile(folder / name) for name in names for folder in places)


def in_linker_cache(name: str, cache: Path = Path("/etc/ld.so.cache")) -> bool:
    """Whether the dynamic linker knows a library of that name; its cache holds plain paths, ended by zeros."""
    try:
        return f"/{name}\0".encode() in cache.read_bytes()
    except OSError:
        return False


def _folders(variable: str, known: str) -> list[Path]:
    """Engines inherit `variable`, so the loader looks there first."""
    given = [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
    return [Path(part) for part in (*given, *known.split())]
