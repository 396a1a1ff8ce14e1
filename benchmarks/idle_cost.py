"""What a kernel costs that owns an LLM and an image model and shows a panel, while nobody does anything.

Measured in two real kernels side by side over the same seconds: a bare one, and one of ours.

    python benchmarks/idle_cost.py [SECONDS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil
from side_by_side import verdict

from tests.models import IMAGE_ID, LLM_ID, home_with_models
from tests.notebook.kernels import Kernel, kernel


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def process_of(one: Kernel) -> psutil.Process:
    return psutil.Process(int(one.value("__import__('os').getpid()")))


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = home_with_models(folder).settings.home
        with kernel(folder / "bare", folder / "none") as bare, kernel(folder / "ours", home) as ours:
            bare.ok("import ipywidgets; ipywidgets.Button(description='idle')")
            ours.ok("%load_ext genai_notebook")
            ours.ok(f"%genai start {LLM_ID} --port auto")
            ours.ok(f"%genai start {IMAGE_ID} --images --port auto")
            ours.ok("%%genai_image --width 64 --height 64 --steps 1 --cfg 1\nx")
            ours.ok("%genai panel")
            time.sleep(3)
            ours_process = process_of(ours)
            children = ours_process.children(recursive=True)
            watched = [process_of(bare), ours_process, *children]
            before = [spent(process) for process in watched]
            time.sleep(seconds)
            shares = [(spent(p) - b) / seconds * 100 for p, b in zip(watched, before, strict=True)]
            print(f"idle for {seconds:g} s: both models loaded, a panel open (percent of one core)")
            print(f"  bare kernel                                    {shares[0]:9.2f} %")
            print(f"  kernel that owns the engines                   {shares[1]:9.2f} %")
            for process, share in zip(children, shares[2:], strict=True):
                role = "guard" if any(word.endswith("guard.py") for word in process.cmdline()) else "engine"
                print(f"  {role + ' ' + str(process.pid):<46} {share:9.2f} %")
            good = verdict("owner and guards over the bare kernel", _ours(children, shares), 1.0, "%")
            ours.ok("%genai stop all")
    return 0 if good else 1


def _ours(children: list[psutil.Process], shares: list[float]) -> float:
    """The owner's share beyond the bare kernel's, and the guards'. Engines idle as their makers made them."""
    guards = [
        share
        for process, share in zip(children, shares[2:], strict=True)
        if any(word.endswith("guard.py") for word in process.cmdline())
    ]
    return shares[1] - shares[0] + sum(guards)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))
