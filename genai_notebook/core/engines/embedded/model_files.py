"""Is a model file whole? Looked at before the engine gets it.

stable-diffusion.cpp in the wheel for older Pythons never ends on a GGUF file that is cut short: it reports the same
progress for ever. Only what the header promises is compared with the file's size: whether it is a model, the engine
says.
"""

from __future__ import annotations

import json
import os
import struct
from typing import BinaryIO

_MOST_HEADER = 256 << 20
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# ggml type: (elements in a block, bytes of a block). Types that are not here count as nothing.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    30: (1, 2),
}


class CutShortError(Exception):
    """The file ends before its header says."""


def check_whole(path: str) -> None:
    """Compare a .gguf or .safetensors file with its own header; other files pass.

    Raises:
        CutShortError: it is shorter than that.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        try:
            if start[:4] == b"GGUF":
                needed = _gguf_end(_Reader(file, size), start)
            elif path.lower().endswith(".safetensors"):
                needed = _safetensors_end(file, start, size)
            else:
                return
        except _UnknownError:
            return
        except CutShortError as error:
            raise CutShortError(f"{path} is cut short: {error}") from None
    if needed > size:
        raise CutShortError(f"{path} is cut short: it has {size} bytes and must have {needed}")


class _UnknownError(Exception):
    """Not a header this module understands: for the engine to judge."""


class _Reader:
    """Reads numbers and skips, never past the file's end or a sensible header."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def number(self, form: str) -> int:
        length = struct.calcsize(form)
        data = self._file.read(length)
        if len(data) < length:
            raise CutShortError("the file ends inside its header")
        return int(struct.unpack(form, data)[0])

    def text(self, length: int) -> bytes:
        return self._file.read(length)

    def skip(self, length: int) -> None:
        place = self._file.tell() + length
        if place > self._size:
            raise CutShortError("the file ends inside its header")
        if place > _MOST_HEADER:
            raise _UnknownError
        self._file.seek(place)

    def place(self) -> int:
        return self._file.tell()


def _gguf_end(reader: _Reader, start: bytes) -> int:
    if not 2 <= struct.unpack("<I", start[4:8].ljust(4, b"\0"))[0] <= 3:
        raise _UnknownError
    tensors, values = reader.number("<Q"), reader.number("<Q")
    alignment = 32
    for _ in range(values):  # ends with the file at the latest: every turn reads some of it
        key_length = reader.number("<Q")
        key = b""
        if key_length == len(b"general.alignment"):
            key = reader.text(key_length)
        else:
            reader.skip(key_length)
        kind = reader.number("<I")
        if key == b"general.alignment" and kind == 4:
            alignment = max(1, reader.number("<I"))
        else:
            _skip_value(reader, kind)
    end = 0
    for _ in range(tensors):
        reader.skip(reader.number("<Q"))
        elements = 1
        dimensions = reader.number("<I")
        if dimensions > 8:
            raise _UnknownError
        for _ in range(dimensions):
            elements *= reader.number("<Q")
        per_block, block = _BLOCKS.get(reader.number("<I"), (1, 0))
        end = max(end, reader.number("<Q") + elements // per_block * block)
    return -(-reader.place() // alignment) * alignment + end


def _skip_value(reader: _Reader, kind: int) -> None:
    if kind == _GGUF_STRING:
        reader.skip(reader.number("<Q"))
    elif kind == _GGUF_ARRAY:
        inner, count = reader.number("<I"), reader.number("<Q")
        if inner in _GGUF_SIZES:
            reader.skip(count * _GGUF_SIZES[inner])
        elif inner == _GGUF_STRING:
            for _ in range(count):
                reader.skip(reader.number("<Q"))
        else:
            raise _UnknownError
    elif kind in _GGUF_SIZES:
        reader.skip(_GGUF_SIZES[kind])
    else:
        raise _UnknownError


def _safetensors_end(file: BinaryIO, start: bytes, size: int) -> int:
    if len(start) < 8:
        raise CutShortError("the file ends inside its header")
    length = int(struct.unpack("<Q", start)[0])
    if length > _MOST_HEADER:
        raise _UnknownError
    if 8 + length > size:
        return 8 + length
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(map(int, ends), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise _UnknownError from None
