"""Names become ids, and foreign names become file names that are safe on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath

MAX_ID = 64
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Device names on Windows, whatever their ending.
_RESERVED = frozenset({"con", "prn", "aux", "nul"} | {f"{name}{n}" for name in ("com", "lpt") for n in range(10)})


def model_id(name: str | None, file: str | None = None) -> str:
    """The id of a model of that name: a slug of the name, else of the file's, else a hash.

    ``SmolLM2 135M Instruct`` becomes ``smollm2-135m-instruct``.
    """
    for text in (name, PurePosixPath(file).stem if file else None):
        if text and (slug := slugify(text)):
            return slug
    digest = hashlib.sha256(f"{name}\0{file}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"model-{digest[:10]}"


def slugify(text: str) -> str:
    """Lowercase ASCII letters and digits, joined by single hyphens; empty where nothing of that is in the text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9]+", plain))[:MAX_ID].strip("-")
    return f"{slug}-model" if slug in _RESERVED else slug


def numbered(base: str, number: int) -> str:
    """`base` for the first, ``base-2`` for the second, …"""
    return base if number < 2 else f"{base[: MAX_ID - 8].rstrip('-')}-{number}"


def is_model_id(text: object) -> bool:
    """Whether that could be an id of ours: then it is safe as a folder's name."""
    return isinstance(text, str) and len(text) <= MAX_ID + 8 and _ID.fullmatch(text) is not None


def safe_file_name(name: str, fallback: str = "model.gguf") -> str:
    """The last part of a foreign path, as a file name that is harmless on every system."""
    last = re.split(r"[/\\]", name)[-1]
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-. ")
    plain = re.sub(r"-*\.-*", ".", plain)
    stem, dot, ending = plain.rpartition(".") if "." in plain else (plain, "", "")
    first, more, rest = stem.partition(".")
    if first.lower() in _RESERVED:
        stem = f"{first}-model{more}{rest}"
    return f"{stem[:120].rstrip('-. ')}{dot}{ending[:16].rstrip('-')}" or fallback
