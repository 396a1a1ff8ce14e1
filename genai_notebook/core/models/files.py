"""Is that file a model, and of what kind? GGUF and safetensors, told by their content, never by their ending."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Literal

import msgspec

from genai_notebook.core.models.gguf import MAGIC, GGUFError, NeedMoreError, parse_prefix, read_gguf
from genai_notebook.core.schema import GGUFMetadata
from genai_notebook.core.utilities import detect_reasoning_support

#: What a file should be: a language model, an image model or a part of one, or a numbered file behind the first (whose
#: header names no architecture).
Expect = Literal["llm", "diffusion", "shard"]
#: The format's own limit is 100 MB; real headers have less than one.
MAX_SAFETENSORS_HEADER = 16 << 20


class NotAModelError(ValueError):
    """The file is no model, or none of the wanted type; the message says why."""


def inspect_model(path: Path, expect: Expect) -> GGUFMetadata | None:
    """What a model file says of itself; None for safetensors. Blocks, briefly.

    Raises:
        NotAModelError: it is none.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotAModelError("it is not a regular file")
    with open(path, "rb") as file:
        begin = file.read(9)
    if begin[:4] == MAGIC:
        try:
            return _suitable(read_gguf(path), expect)
        except GGUFError as error:
            raise NotAModelError(f"its GGUF header cannot be read: {error}") from None
    if not begin:
        raise NotAModelError("it is empty")
    _safetensors(path, status.st_size, expect)
    return None


def inspect_beginning(data: bytes, expect: Expect) -> bool:
    """Judge a download by its first bytes: True once they are those of a model, False while more are needed.

    Raises:
        NotAModelError: they are not.
    """
    if len(data) < 9:
        raise NotAModelError(f"it has {len(data)} bytes")
    if data[:4] == MAGIC:
        try:
            _suitable(parse_prefix(data), expect)
        except NeedMoreError:
            return False
        except GGUFError as error:
            raise NotAModelError(f"its GGUF header cannot be read: {error}") from None
        return True
    _looks_like_safetensors(data[:9], None, expect)
    return True


def supports_reasoning(type: str, file: str, metadata: GGUFMetadata | None) -> bool | None:
    """Whether an LLM thinks before it answers: by its file's name, or by its chat template. None for image models."""
    if type != "llm":
        return None
    template = metadata.chat_template if metadata is not None else None
    return detect_reasoning_support(file) or (template is not None and "<think>" in template)


def _suitable(metadata: GGUFMetadata, expect: Expect) -> GGUFMetadata:
    if expect == "llm" and (metadata.architecture is None or not metadata.block_count):
        raise NotAModelError(
            "it is a GGUF file, but not of a language model (its header names no architecture with layers)"
        )
    return metadata


def _looks_like_safetensors(begin: bytes, size: int | None, expect: Expect) -> int:
    length: int = struct.unpack("<Q", begin[:8].ljust(8, b"\0"))[0]
    if len(begin) < 9 or begin[8:9] != b"{" or length < 2 or (size is not None and length + 8 > size):
        raise NotAModelError("it is neither GGUF nor safetensors" + _guess(begin))
    if length > MAX_SAFETENSORS_HEADER:
        raise NotAModelError(f"its safetensors header claims {length} bytes")
    if expect != "diffusion":
        raise NotAModelError("it is a safetensors file; llama.cpp needs a language model as GGUF")
    return length


def _safetensors(path: Path, size: int, expect: Expect) -> None:
    with open(path, "rb") as file:
        length = _looks_like_safetensors(file.read(9), size, expect)
        file.seek(8)
        try:
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise NotAModelError("its safetensors header is no JSON") from None
    if not any(name != "__metadata__" for name in header):
        raise NotAModelError("it is a safetensors file without tensors")


def _guess(begin: bytes) -> str:
    known = {
        b"<": "a web page?",
        b"version ": "a Git LFS pointer?",
        b"PK\x03\x04": "a zip archive",
        b"\x80": "a pickle?",
    }
    return next((f" ({what})" for mark, what in known.items() if begin.lstrip().startswith(mark)), "")
