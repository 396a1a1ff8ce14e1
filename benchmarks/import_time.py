"""What importing the package and loading the extension cost, over bare Python and bare IPython.

python benchmarks/import_time.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

from side_by_side import in_turns, line, verdict

WORDS = "tornado httpx httpx2 huggingface_hub ipywidgets gguf numpy platformdirs pynvml PIL jupyter_server"
HEAVY = WORDS.split()
SHELL = "from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance()\n"
LOAD = "s.run_line_magic('load_ext', 'genai_notebook')\n"
# Measured inside, so that starting the interpreter itself does not blur the figure.
CLOCK = "import time; begin = time.perf_counter()\n"
TELL = """
import sys, resource
spent = (time.perf_counter() - begin) * 1000
scale = 1024 if sys.platform == "darwin" else 1
print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale / 1024, *[n for n in HEAVY if n in sys.modules])
"""


def measure(code: str) -> tuple[float, float, set[str]]:
    """Milliseconds, MiB at the peak, and which heavy modules are in after running `code` in a new interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code + f"HEAVY = {HEAVY!r}" + TELL]
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    time, memory, *modules = output.splitlines()[-1].split()
    return float(time), float(memory), set(modules)


def compare(bare: str, ours: str, rounds: int) -> tuple[float, float, set[str]]:
    """Median extra milliseconds, extra MiB, and the heavy modules that only `ours` brings in."""
    memory: dict[str, list[float]] = {bare: [], ours: []}
    modules: dict[str, set[str]] = {bare: set(), ours: set()}

    def side(code: str) -> float:
        time, peak, found = measure(code)
        memory[code].append(peak)
        modules[code] |= found
        return time

    times = in_turns([lambda: side(bare), lambda: side(ours)], rounds)
    line("bare", times[0])
    line("with genai_notebook", times[1])
    extra = statistics.median(times[1]) - statistics.median(times[0])
    room = statistics.median(memory[ours]) - statistics.median(memory[bare])
    return extra, room, modules[ours] - modules[bare]


def main(rounds: int) -> int:
    good = []
    print("import genai_notebook")
    extra, _, heavy = compare(CLOCK, CLOCK + "import genai_notebook\n", rounds)
    good.append(verdict("over bare Python", extra, 60, "ms"))
    print(f"  heavy modules it brings in: {', '.join(sorted(heavy)) or 'none'}")
    print("%load_ext genai_notebook")
    extra, room, heavy = compare(SHELL + CLOCK, SHELL + CLOCK + LOAD, rounds)
    good.append(verdict("over bare IPython", extra, 150, "ms"))
    good.append(verdict("memory over bare IPython", room, 10, "MiB"))
    print(f"  heavy modules it brings in: {', '.join(sorted(heavy)) or 'none'}")
    return 0 if all(good) and not heavy else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
