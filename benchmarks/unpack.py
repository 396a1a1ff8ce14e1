"""How an engine's archive is unpacked: what the event loop of the same process notices, and how long it takes.

    python benchmarks/unpack.py

500 MB, half of it random and half text, and 9,500 small files, each as tar.gz and as zip. Needs 1 GB below the
temporary folder; `tar` and `unzip` are compared with where they are.
"""

from __future__ import annotations

import asyncio
import gc
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from side_by_side import in_turns, line, verdict

MB = 1_000_000
LARGE, LARGEST = 40, 12_500_000
SMALL = 9500
ROUNDS = 5
TICK = 0.001


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        good = [one(Path(folder), kind, ROUNDS) for kind in ("tar.gz", "zip")]
    return 0 if all(good) else 1


def one(folder: Path, kind: str, rounds: int) -> bool:
    large, small = folder / f"large.{kind}", folder / f"small.{kind}"
    make(large, large_files())
    make(small, ((f"{number % 100}/{number}", b"x" * 100) for number in range(SMALL)))
    where = folder / "there"
    sides: dict[str, Callable[[], float]] = {
        "unpack": lambda: timed(lambda: ours(large, where), where),
        "extractall": lambda: timed(lambda: extractall(large, where), where),
    }
    tool = ["tar", "xzf"] if kind == "tar.gz" else ["unzip", "-q"]
    if shutil.which(tool[0]):
        command = [*tool, str(large), "-C" if kind == "tar.gz" else "-d", str(where)]
        sides[" ".join(tool)] = lambda: timed(lambda: subprocess.run(command, check=True), where)
    print(f"{kind}, {LARGE * LARGEST // MB} MB from {large.stat().st_size // MB} MB:")
    times = dict(zip(sides, in_turns(list(sides.values()), rounds), strict=True))
    for name, values in times.items():
        line(name, values)
    delays = {
        f"{LARGE} large files": delays_of(lambda: ours(large, where), where, rounds),
        f"{SMALL} small files": delays_of(lambda: ours(small, where), where, rounds),
    }
    for name, (beside, apart) in delays.items():
        line(f"worst delay of a loop beside {name}", beside)
        line("… and in a process of its own, meanwhile", apart)
    large.unlink()
    mine = statistics.median(times.pop("unpack"))
    good = [verdict(f"unpack ÷ {name}", mine / statistics.median(values), 1.2) for name, values in times.items()]
    good += [
        verdict(f"worst delay, {name}", statistics.median(beside) - statistics.median(apart), 20, "ms")
        for name, (beside, apart) in delays.items()
    ]
    return all(good)


def ours(archive: Path, where: Path) -> None:
    from genai_notebook.core.downloads.work import Work
    from genai_notebook.core.engines.archives import unpack

    unpack(archive, where, Work())


def extractall(archive: Path, where: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            file.extractall(where)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(where, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def timed(work: Callable[[], object], where: Path) -> float:
    """Milliseconds, into an empty folder that is gone afterwards, with no writing left over from before."""
    fresh(where)
    os.sync()
    began = time.perf_counter()
    work()
    took = 1000 * (time.perf_counter() - began)
    shutil.rmtree(where)
    return took


def fresh(where: Path) -> None:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(0o700)


def delays_of(work: Callable[[], object], where: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Of each round the longest time, in milliseconds, that a loop was late for a tick while `work` ran beside it; and
    a loop in another process, which tells how much of that is the machine's doing."""
    results: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        fresh(where)
        gc.collect()
        apart = subprocess.Popen(
            [sys.executable, __file__, "--tick"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert apart.stdout is not None
        apart.stdout.readline()  # it ticks
        results[0].append(1000 * asyncio.run(worst_beside(work)))
        results[1].append(1000 * float(apart.communicate("enough\n")[0]))
    shutil.rmtree(where)
    return results


def tick() -> int:
    """The other process: it ticks until it is told something, and says how late it was at most."""
    print("ready", flush=True)
    print(asyncio.run(worst_beside(sys.stdin.readline)))
    return 0


async def worst_beside(work: Callable[[], object]) -> float:
    """Seconds."""
    thread = threading.Thread(target=work)
    thread.start()
    worst, last = 0.0, time.perf_counter()
    while thread.is_alive():
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        worst, last = max(worst, now - last - TICK), now
    return worst


def large_files() -> Iterator[tuple[str, bytes]]:
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnop", k=chance.randint(1, 14))) for _ in range(5000)]
    for number in range(LARGE):
        text = b" ".join(chance.choices(words, k=LARGEST // 16)) if number % 2 else b""
        yield f"lib{number}.so", (text * 3)[:LARGEST] if text else chance.randbytes(LARGEST)


def make(archive: Path, files: Iterator[tuple[str, bytes]]) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for name, data in files:
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name, data in files:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    raise SystemExit(tick() if sys.argv[1:] == ["--tick"] else main())
