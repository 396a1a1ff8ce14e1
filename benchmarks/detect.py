"""How long it takes to find out what this machine is: the first time in a process, and from then on.

    python benchmarks/detect.py

Cold is the first `detect` of a fresh process, after the import of its module: with what it imports itself, and with
every question to drivers. Warm is an `await` on what is kept for a minute. The limit for cold holds on machines
without GPU programs (nvidia-smi, rocm-smi); what those take, they take.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from side_by_side import in_turns, line, verdict

ROUNDS = 9

DETECT = """
import asyncio, time
from pathlib import Path
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
system = SystemInfo(Settings(home=Path("/nonexistent")))

async def main():
    began = time.perf_counter()
    first = await system.detect()
    cold = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(1000):
        again = await system.detect()
    warm = (time.perf_counter() - began) / 1000
    assert again is first
    print(1000 * cold, 1000 * warm)

asyncio.run(main())
"""


def main() -> int:
    warm: list[float] = []

    def cold() -> float:
        first, again = measure()
        warm.append(again)
        return first

    (first,) = in_turns([cold], ROUNDS)
    print("What this machine is:")
    line("detect, the first in a process", first)
    line("detect, from then on", [1000 * value for value in warm], "µs")
    good = [
        verdict("cold, ms", statistics.median(first), 150),
        verdict("warm, ms", statistics.median(warm), 0.1),
    ]
    return 0 if all(good) else 1


def measure() -> tuple[float, float]:
    """Milliseconds of the first call and of later ones, as a child of its own measured them."""
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", DETECT], check=True, capture_output=True, text=True, cwd=root)
    first, again = result.stdout.split()
    return float(first), float(again)


if __name__ == "__main__":
    raise SystemExit(main())
