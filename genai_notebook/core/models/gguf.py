"""A bounded reader of GGUF headers.

It reads what sizing and starting a model need, and trusts nothing: every loop is bounded by the bytes that remain,
strings by 1 MiB, headers by 64 MiB, nesting by 2. Long arrays (tokens, merges, scores) are walked over, never kept: a
vocabulary of 262,144 tokens costs some 30 ms where the `gguf` package's own reader takes seconds. Of a file that is not
here yet, only the first bytes are needed: `parse_prefix` ends at the vocabulary, once the architecture's fields are in.

Layout (little endian): magic, u32 version, u64 tensor count, u64 key count, then per key: string, u32 type, value. A
string is a u64 length and bytes; an array is a u32 element type, a u64 length and the elements.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from genai_notebook.core.models.tensors import TensorSizes
from genai_notebook.core.schema import GGUFMetadata, WeightBytes

MAGIC = b"GGUF"
MAX_STRING = 1 << 20
MAX_HEADER = 64 << 20
MAX_KEYS = 1 << 14
#: The largest models have some 3000. Of more than MAX_SUMMED, sizes are not worth the time.
MAX_TENSORS, MAX_SUMMED = 1 << 14, 1 << 13
#: Arrays inside of an array. No model has any; llama.cpp refuses them.
MAX_NESTED = 1024
#: Numeric arrays up to this length are kept (per-layer head counts and the like), and so many elements in all.
MAX_KEPT_ARRAY, MAX_KEPT_ELEMENTS = 4096, 1 << 16
#: Longer strings stay out of `raw`; the chat template has a field of its own.
MAX_KEPT_STRING = 4096
_WINDOW = 1 << 20

_STRING, _ARRAY = 8, 9
_TEMPLATE = "tokenizer.chat_template"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRUCTS = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class GGUFError(ValueError):
    """The bytes are no GGUF header that an engine could load; the message says why."""


class NeedMoreError(GGUFError):
    """The header goes on behind the bytes at hand."""


def read_gguf(path: str | os.PathLike[str]) -> GGUFMetadata:
    """The whole header of a GGUF file. Blocks, briefly.

    Raises:
        GGUFError: it is none, or a broken or unsupported one, or its tensors lie past its end.
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return _parse(_Source(os.fstat(file.fileno()).st_size, file=file), whole=True)


def parse_prefix(data: bytes, file_size: int | None = None) -> GGUFMetadata:
    """What the first bytes of a file of `file_size` bytes (None: unknown) tell: the keys up to the vocabulary.

    What lies behind it (the chat template, the tensors' table and with it `weights`) stays None.

    Raises:
        NeedMoreError: `data` ends before the architecture's fields are in.
        GGUFError: it is none, or a broken or unsupported one.
    """
    return _parse(_Source(file_size, data), whole=False)


class _Source:
    """A window on the first bytes of a file that moves forwards; positions never pass the file's end or MAX_HEADER."""

    def __init__(self, size: int | None, data: bytes = b"", *, file: BinaryIO | None = None) -> None:
        #: The file's size; None: not known.
        self.size = size
        self.data = data
        #: Where the next value begins in `data`, and where `data` begins in the file.
        self.pos = 0
        self.base = 0
        #: Elements of arrays that may still be kept.
        self.keepable = MAX_KEPT_ELEMENTS
        self._file = file

    @property
    def place(self) -> int:
        """Where the next value begins in the file."""
        return self.base + self.pos

    def remaining(self) -> int:
        """Bytes that a value beginning here may have at most."""
        return (MAX_HEADER if self.size is None else min(self.size, MAX_HEADER)) - self.place

    def need(self, count: int) -> None:
        """Make sure that `count` bytes from here are in `data`."""
        if len(self.data) - self.pos >= count:
            return
        self._promised(count)
        if self._file is None:
            raise NeedMoreError(f"the header goes on behind its first {self.base + len(self.data)} bytes")
        rest = self.data[self.pos :]
        more = self._file.read(max(_WINDOW, count - len(rest)))
        self.data, self.base, self.pos = rest + (more or b""), self.place, 0
        if len(self.data) < count:
            raise GGUFError(f"the file ends at {self.base + len(self.data)}, inside of its header")

    def _promised(self, count: int) -> None:
        if count > self.remaining():
            raise GGUFError(
                f"the header is cut off: {count} bytes are promised at {self.place}, {self.remaining()} remain"
            )

    def scalar(self, kind: int) -> Any:
        packed = _STRUCTS[kind]
        self.need(packed.size)
        value = packed.unpack_from(self.data, self.pos)[0]
        self.pos += packed.size
        return value

    def string(self) -> str:
        length = self.scalar(10)
        if length > MAX_STRING:
            raise GGUFError(f"a string of {length} bytes at {self.place} is past the limit of {MAX_STRING}")
        self.need(length)
        text = self.data[self.pos : self.pos + length].decode("utf-8", "replace")
        self.pos += length
        return text

    def skip(self, count: int) -> None:
        self._promised(count)
        inside = len(self.data) - self.pos
        if count <= inside:
            self.pos += count
        elif self._file is None:
            raise NeedMoreError(f"the header goes on behind its first {self.base + len(self.data)} bytes")
        else:
            self.base, self.data, self.pos = self.place + count, b"", 0
            self._file.seek(self.base)


def _parse(source: _Source, *, whole: bool) -> GGUFMetadata:
    """Read version, counts and keys; with `whole` also what lies behind the vocabulary."""
    version, tensors, keys = _preamble(source)
    values: dict[str, Any] = {}
    vocabulary: int | None = None
    for _ in range(keys):
        name = source.string()
        if name in values:
            raise GGUFError(f"the key {name[:80]!r} stands in it twice")
        kind = source.scalar(4)
        if kind == _ARRAY:
            element, count = source.scalar(4), source.scalar(10)
            if name == "tokenizer.ggml.tokens":
                vocabulary = count
                if not whole and _has_architecture(values):
                    break
            values[name] = _array(source, element, count, depth=1)
        elif kind == _STRING:
            value = source.string()
            values[name] = value if len(value) <= MAX_KEPT_STRING or name == _TEMPLATE else None
        elif kind in _STRUCTS:
            value = source.scalar(kind)
            values[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        else:
            raise GGUFError(f"the key {name[:80]!r} has the unknown type {kind}")
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 16:
        raise GGUFError(f"the alignment {alignment!r} is not a power of two")
    header, weights = _tensor_infos(source, tensors, alignment) if whole else (None, None)
    return _metadata(values, version, tensors, keys, vocabulary, header, weights)


def _preamble(source: _Source) -> tuple[int, int, int]:
    if source.remaining() < 4 or not _begins_with_magic(source):
        raise GGUFError("it does not begin with GGUF")
    version = source.scalar(4)
    if version & 0xFFFF == 0 and version:
        raise GGUFError("it is written for big-endian machines")
    if version not in (2, 3):
        raise GGUFError(f"its GGUF version {version} is not supported (2 and 3 are)")
    tensors, keys = source.scalar(10), source.scalar(10)
    # The shortest key takes 13 bytes, the shortest tensor 24.
    if keys > MAX_KEYS or keys * 13 > source.remaining():
        raise GGUFError(f"it promises {keys} keys")
    if tensors > MAX_TENSORS or (source.size is not None and tensors * 24 > source.size):
        raise GGUFError(f"it promises {tensors} tensors")
    return version, tensors, keys


def _begins_with_magic(source: _Source) -> bool:
    source.need(4)
    source.pos = 4
    return source.data[:4] == MAGIC


def _array(source: _Source, element: int, count: int, depth: int) -> list[Any] | None:
    """Read a short numeric array, skip any other."""
    if element in _STRUCTS:
        packed = _STRUCTS[element]
        if count * packed.size > source.remaining():
            raise GGUFError(f"an array of {count} elements at {source.place} is longer than the file")
        if count > min(MAX_KEPT_ARRAY, source.keepable):
            source.skip(count * packed.size)
            return None
        source.keepable -= count
        return [source.scalar(element) for _ in range(count)]
    if count * 8 > source.remaining():  # a string and a nested array take at least 8 bytes
        raise GGUFError(f"an array of {count} elements at {source.place} is longer than the file")
    if element == _STRING:
        _skip_strings(source, count)
    elif element == _ARRAY and depth < 2 and count <= MAX_NESTED:
        for _ in range(count):
            _array(source, source.scalar(4), source.scalar(10), depth + 1)
    elif element == _ARRAY:
        raise GGUFError("its arrays are nested too deeply, or too often")
    else:
        raise GGUFError(f"an array has the unknown element type {element}")
    return None


def _skip_strings(source: _Source, count: int) -> None:
    """Walk over strings. The inner loop stays in the window: a vocabulary has hundreds of thousands of them."""
    unpack = _STRUCTS[10].unpack_from
    left = count
    while left:
        source.need(8)
        length = unpack(source.data, source.pos)[0]
        if length > MAX_STRING:
            raise GGUFError(f"a string of {length} bytes at {source.place} is past the limit of {MAX_STRING}")
        source.need(8 + length)
        data, pos = source.data, source.pos
        size = len(data)
        passed = 0
        # The window ends inside of a string, of its length or of its text.
        with contextlib.suppress(struct.error):
            for passed in range(left):  # noqa: B007 - counts the strings that are wholly in the window
                end = pos + 8 + unpack(data, pos)[0]
                if end > size:
                    break
                pos = end
            else:
                passed = left
        source.pos = pos
        left -= passed


def _has_architecture(values: dict[str, Any]) -> bool:
    architecture = values.get("general.architecture")
    return isinstance(architecture, str) and f"{architecture}.block_count" in values


def _tensor_infos(source: _Source, tensors: int, alignment: int) -> tuple[int, WeightBytes | None]:
    """Check the table of tensors; returns where the data begins, and what lies there."""
    sizes, highest = TensorSizes(), 0
    read_dimensions, read_offset = _STRUCTS[4].unpack_from, _STRUCTS[10].unpack_from
    for _ in range(tensors):
        length = source.scalar(10)
        if length > MAX_STRING:
            raise GGUFError(f"a tensor's name of {length} bytes is past the limit")
        source.need(length + 4)
        name = source.data[source.pos : source.pos + length]
        dimensions = read_dimensions(source.data, source.pos + length)[0]
        if dimensions > 8:
            raise GGUFError(f"a tensor has {dimensions} dimensions")
        source.pos += length + 4
        source.need(8 * dimensions + 12)
        source.pos += 8 * dimensions + 12
        offset = read_offset(source.data, source.pos - 8)[0]
        highest = max(highest, offset)
        if tensors <= MAX_SUMMED:
            sizes.add(name, offset)
    start = -(-source.place // alignment) * alignment
    if tensors and source.size is not None and start + highest >= source.size:
        raise GGUFError("its tensors lie past its end: the file is cut off")
    return start, sizes.total(source.size - start) if source.size is not None else None


def _metadata(
    values: dict[str, Any],
    version: int,
    tensors: int,
    keys: int,
    vocabulary: int | None,
    header: int | None,
    weights: WeightBytes | None,
) -> GGUFMetadata:
    architecture, template = values.get("general.architecture"), values.get(_TEMPLATE)
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        architecture = None

    def field(name: str, accept: Callable[[Any], Any]) -> Any:
        return accept(values.get(f"{architecture}.{name}")) if architecture else None

    return GGUFMetadata(
        version=version,
        tensor_count=tensors,
        kv_count=keys,
        architecture=architecture,
        general_name=_text(values.get("general.name")),
        file_type=_count(values.get("general.file_type")),
        block_count=field("block_count", _count),
        context_length=field("context_length", _count),
        attention_head_count=field("attention.head_count", _counts),
        attention_head_count_kv=field("attention.head_count_kv", _counts),
        attention_key_length=field("attention.key_length", _count),
        attention_value_length=field("attention.value_length", _count),
        attention_sliding_window=field("attention.sliding_window", _count),
        embedding_length=field("embedding_length", _count),
        feed_forward_length=field("feed_forward_length", _counts),
        vocab_size=vocabulary if vocabulary is not None else field("vocab_size", _count),
        expert_count=field("expert_count", _count),
        expert_used_count=field("expert_used_count", _count),
        rope_dimension_count=field("rope.dimension_count", _count),
        rope_freq_base=field("rope.freq_base", _number),
        attention_layer_norm_rms_epsilon=field("attention.layer_norm_rms_epsilon", _number),
        chat_template=template if isinstance(template, str) else None,
        header_size=header,
        weights=weights,
        raw=_raw(values, architecture),
    )


def _raw(values: dict[str, Any], architecture: str | None) -> dict[str, Any]:
    """What may rest in our metadata: scalars, short strings, and the architecture's own per-layer lists."""
    kept = {}
    for name, value in values.items():
        if name == _TEMPLATE or len(name) > 200:
            continue
        if isinstance(value, list):
            if architecture and name.startswith(architecture + ".") and len(value) <= 1024 and _finite(value):
                kept[name] = value
        elif value is not None:
            kept[name] = value
    return kept


def _finite(values: list[Any]) -> bool:
    return all(not isinstance(value, float) or math.isfinite(value) for value in values)


def _text(value: Any) -> str | None:
    return value[:1000] if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    """A count that can be one: no flag, not negative, below 2^62."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None


def _counts(value: Any) -> int | list[int] | None:
    if isinstance(value, list):
        counts = [_count(item) for item in value]
        return [item for item in counts if item is not None] if counts and None not in counts else None
    return _count(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
