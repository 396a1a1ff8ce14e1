"""How long it takes to list 500 models, and how that compares with reading their descriptions as plain JSON.

    python benchmarks/list_models.py

Each measurement is the first listing of a fresh process, after its imports; the files are in the page cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from side_by_side import in_turns, line, verdict

MODELS = 500
ROUNDS = 9

OURS = """
import sys, time
from pathlib import Path
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.settings import Settings
store = ModelStore(Settings(home=Path(sys.argv[1])))
began = time.perf_counter()
found = store.inventory()
took = time.perf_counter() - began
assert (len(found.models), found.broken) == (int(sys.argv[2]), [])
print(1000 * took)
"""
PLAIN = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
found = [json.loads(path.read_bytes()) for path in Path(sys.argv[1], "models").glob("*/model.json")]
took = time.perf_counter() - began
assert len(found) == int(sys.argv[2])
print(1000 * took)
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        fill(home)
        ours, plain = in_turns([lambda: run(OURS, home), lambda: run(PLAIN, home)], ROUNDS)
    print(f"{MODELS} models, each with a header and a chat template:")
    line("the store", ours)
    line("json.loads of every model.json", plain)
    print(f"  {'ratio':<46} {statistics.median(ours) / statistics.median(plain):9.2f}")
    return 0 if verdict("the store, ms", statistics.median(ours), 50) else 1


def fill(home: Path) -> None:
    """Models as downloads leave them, the files themselves being tiny."""
    from genai_notebook.core.models.local import register
    from genai_notebook.core.models.store import ModelStore
    from genai_notebook.core.settings import Settings
    from tests.fakes.gguf_files import tiny_llm

    store = ModelStore(Settings(home=home))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}" * 64
    file = tiny_llm(home.parent / "model.gguf", **{"tokenizer.chat_template": template})
    record = store.record(register(store, file, "model", "llm").id)
    for number in range(1, MODELS):
        store.add(msgspec.structs.replace(record, name=f"Model {number}"))


def run(code: str, home: Path) -> float:
    """Milliseconds, as a child of its own measured them."""
    command = [sys.executable, "-c", code, str(home), str(MODELS)]
    root = Path(__file__).parent.parent
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


if __name__ == "__main__":
    raise SystemExit(main())
