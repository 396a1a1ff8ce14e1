"""What the benchmarks share: taking turns, so that both sides meet the same machine, and printing figures."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests/ and the package, wherever this is called from


def in_turns(sides: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Call every side `rounds` times, in turns (A B, B A, …); one warm-up round is thrown away."""
    results: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for index in order:
            value = sides[index]()
            if number:
                results[index].append(value)
    return results


def line(name: str, values: Sequence[float], unit: str = "ms") -> None:
    """Name, median, smallest and largest."""
    middle = statistics.median(values)
    print(f"  {name:<46} {middle:9.1f} {unit}   ({min(values):.1f} to {max(values):.1f}, {len(values)} times)")


def verdict(what: str, value: float, limit: float, unit: str = "") -> bool:
    """One line that says whether a figure is inside its limit."""
    good = value <= limit
    print(f"  {what:<46} {value:9.2f} {unit:<3} limit {limit:.3g} {'ok' if good else 'OVER'}")
    return good
