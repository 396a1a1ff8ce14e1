"""How long a GGUF header takes: the first 64 KiB of a file elsewhere, the whole header of a file here, hostile files.

    python benchmarks/gguf_header.py

The file is made on the spot: the keys of Gemma 3 with its 262,144 tokens, their scores and types, and 340 tensors.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from side_by_side import line, verdict

TOKENS = 262_144
ROUNDS = 15


def main() -> int:
    from genai_notebook.core.models.gguf import parse_prefix, read_gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemma-like.gguf"
        path.write_bytes(gemma_like())
        prefix = path.read_bytes()[: 64 << 10]
        head = [timed(lambda: parse_prefix(prefix)) for _ in range(ROUNDS)]
        whole = [timed(lambda: read_gguf(path)) for _ in range(ROUNDS)]
        memory = [peak(path, read_gguf)]
        reader = timed(lambda: run(path, "from gguf import GGUFReader as read"))
        start = timed(lambda: run(path, "from gguf import GGUFReader as read\nread = len"))
        name, hostile = slowest_hostile(Path(folder))
    print(f"A header of {TOKENS} tokens:")
    line("the first 64 KiB", head)
    line("all of it", whole)
    line("memory that reading all of it adds", memory, "MB")
    print(f"  {'gguf.GGUFReader, a child of its own, once':<46} {reader - start:9.1f} ms")
    good = [
        verdict("64 KiB, ms", statistics.median(head), 5),
        verdict("all of it, ms", statistics.median(whole), 50),
        verdict("memory, MB", statistics.median(memory), 15),
        verdict(f"the slowest hostile file ({name}), ms", hostile, 50),
        verdict("1000 × all of it ÷ GGUFReader", 1000 * statistics.median(whole) / (reader - start), 4),
    ]
    return 0 if all(good) else 1


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    gc.collect()
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def slowest_hostile(folder: Path) -> tuple[str, float]:
    """Which of the files that the tests keep for this takes longest to refuse, and how long."""
    from genai_notebook.core.models.gguf import GGUFError, read_gguf
    from tests.unit.test_gguf_hostile import HOSTILE

    times = {}
    for name, data in HOSTILE.items():
        path = folder / "hostile.gguf"
        path.write_bytes(data)

        def refuse(path: Path = path) -> None:
            with contextlib.suppress(GGUFError):
                read_gguf(path)

        times[name] = statistics.median(timed(refuse) for _ in range(5))
    worst = max(times, key=lambda name: times[name])
    return worst, times[worst]


def run(path: Path, setup: str) -> None:
    code = f"{setup}\nimport sys\nread(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def peak(path: Path, read: Callable[[Path], object]) -> float:
    """Megabytes that Python holds at most while reading, over what it held before."""
    tracemalloc.start()
    read(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


def gemma_like() -> bytes:
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnop", k=chance.randint(1, 14))) for _ in range(TOKENS)]
    number = {"block_count": 18, "context_length": 32768, "embedding_length": 640, "feed_forward_length": 2048}
    number |= {"attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256}
    number |= {"attention.value_length": 256, "attention.sliding_window": 512}
    keys = [key("general.architecture", 8, text(b"gemma3")), key("general.name", 8, text(b"Like Gemma"))]
    keys += [key(f"gemma3.{name}", 4, struct.pack("<I", value)) for name, value in number.items()]
    keys += [
        key("tokenizer.ggml.model", 8, text(b"llama")),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, TOKENS) + b"".join(map(text, words))),
        key("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, TOKENS) + bytes(4 * TOKENS)),
        key("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, TOKENS) + struct.pack("<i", 1) * TOKENS),
        key("tokenizer.chat_template", 8, text(b"{{ messages }}" * 100)),
        key("general.file_type", 4, struct.pack("<I", 15)),
    ]
    tensors = b"".join(
        text(f"blk.{index}.weight".encode()) + struct.pack("<IQIQ", 1, 8, 0, 32 * index) for index in range(340)
    )
    out = b"GGUF" + struct.pack("<IQQ", 3, 340, len(keys)) + b"".join(keys) + tensors
    return out + bytes(-len(out) % 32 + 32 * 340)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value


if __name__ == "__main__":
    raise SystemExit(main())
