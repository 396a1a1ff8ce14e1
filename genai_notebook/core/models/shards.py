"""Models that are split into numbered files: ``name-00001-of-00003.gguf``. Any of them stands for all."""

from __future__ import annotations

import re

from genai_notebook.core.models.ids import safe_file_name

#: llama.cpp's own limit is 65535; more than this is no model but a mistake.
MAX_SHARDS = 1000
_SHARD = re.compile(
    r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})(?P<ending>\.gguf)", re.IGNORECASE | re.DOTALL
)
#: The longest stem to which a number can be added: longer names are cut by `safe_file_name`.
_LONGEST_STEM = 120 - len("-00001-of-00001")


def shard_names(name: str) -> list[str] | None:
    """All names of the set that `name` (with its folders, if any) belongs to, in order; None if it is no shard."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    number, total = int(match["number"]), int(match["total"])
    if not 1 <= number <= total <= MAX_SHARDS:
        return None
    return [f"{match['stem']}-{index:05d}-of-{total:05d}{match['ending']}" for index in range(1, total + 1)]


def safe_shard_names(name: str) -> list[str] | None:
    """As `shard_names`, but as file names that are harmless everywhere, with the numbering that llama.cpp looks for."""
    names = shard_names(name)
    if names is None:
        return None
    stem = safe_file_name(without_number(name)).rpartition(".")[0][:_LONGEST_STEM].rstrip("-. ") or "model"
    return [f"{stem}-{index:05d}-of-{len(names):05d}.gguf" for index in range(1, len(names) + 1)]


def without_number(name: str) -> str:
    """The name of the whole set: ``model-00002-of-00003.gguf`` → ``model.gguf``; any other name stays."""
    match = _SHARD.fullmatch(name)
    return name if match is None or shard_names(name) is None else match["stem"] + match["ending"]
