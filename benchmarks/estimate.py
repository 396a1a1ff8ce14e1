"""How long an estimate takes, and how far estimates are from llama.cpp's own layout.

    python benchmarks/estimate.py

The second part needs the programs that `scripts/native` builds, in its cache or where `GENAI_NOTEBOOK_NATIVE` says.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from side_by_side import line, verdict

sys.path.insert(0, str(Path(__file__).parent.parent))

from genai_notebook.core.system.estimate import Load, estimate, estimate_on
from tests.native.referee import CONTEXTS, OPTIONS, Case, Referee, Verdict, native_folder, stand_in_gpus, table_of
from tests.native.shapes import MODELS

ROUNDS = 200


def main() -> int:
    programs = native_folder()
    with tempfile.TemporaryDirectory() as name:
        good = times(Referee(programs, Path(name)))
        if (programs / "llama-fit-params").exists():
            with stand_in_gpus(programs, 2, Path(name)) as servers:
                good += errors(Referee(programs, Path(name), servers))
        else:
            print("No llama-fit-params: run `sh scripts/native` to see how far estimates are from it.")
    return 0 if all(good) else 1


def times(referee: Referee) -> list[bool]:
    """Milliseconds per estimate: of each model its median."""
    alone, several = [], []
    for name in MODELS:
        model, load = referee.model(name), Load(context_size=8192, gpu_layers=20)
        alone.append(timed(lambda model=model, load=load: estimate(model, load)))  # type: ignore[misc]
        several.append(timed(lambda model=model, load=load: estimate_on(model, load, [1 << 34, 1 << 33])))  # type: ignore[misc]
    print("An estimate:")
    line("of one model", alone)
    line("on two GPUs", several)
    return [verdict("the slowest model, ms", max(alone), 1), verdict("on two GPUs, ms", max(several), 1)]


def timed(work: object) -> float:
    assert callable(work)
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def errors(referee: Referee) -> list[bool]:
    """Percent of the total: all models, contexts and options in RAM, then on GPUs."""
    loads = [msgspec.structs.replace(load, context_size=size) for size in CONTEXTS for load in OPTIONS.values()]
    good = held("In RAM", referee.judge_all([Case(name, load) for name in MODELS for load in loads]))
    loads = [Load(context_size=8192, gpu_layers=layers) for layers in (999, 20, 1)]
    shares = ((1,), (1, 1), (3, 1))
    return good + held(
        "On GPUs", referee.judge_all([Case(name, load, each) for name in MODELS for load in loads for each in shares])
    )


def held(title: str, verdicts: list[Verdict]) -> list[bool]:
    print(f"{title}, against llama-fit-params:\n{table_of(verdicts)}")
    found = [100 * abs(each.error) for each in verdicts]
    return [verdict("the mean error, %", statistics.mean(found), 0.5), verdict("the worst error, %", max(found), 3)]


if __name__ == "__main__":
    raise SystemExit(main())
