"""Our estimates against what a running llama-server says of its buffers, with the flags that ours are started with."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.system.estimate import MIB, Load, estimate
from tests.models import starter_llm
from tests.native.referee import Referee, model_at

FLAGS = ["--host", "127.0.0.1", "--port", "0", "--fit", "off", "--cache-ram", "0", "--no-warmup", "--threads", "2"]
#: It says nothing of its buffers at its own verbosity, which is 3.
FLAGS += ["--log-verbosity", "4"]
_BUFFER = re.compile(r" (KV|RS|compute) buffer size = +([0-9.]+) MiB")


def buffers(programs: Path, model: ModelInfo, load: Load, log: Path) -> tuple[float, float]:
    """MiB of the caches, and of the compute buffers, from the log of a server that is started for it."""
    command = [str(programs / "llama-server"), "-m", model.path, "-c", str(load.context_size), *FLAGS]
    command += ["-np", str(load.parallel_requests), "--kv-unified" if load.kv_unified else "--no-kv-unified"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent)
    try:
        end = time.monotonic() + 60
        while "listening on" not in (text := log.read_text(errors="replace")):
            assert server.poll() is None, text[-3000:]
            assert time.monotonic() < end, text[-3000:]
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait(10)
    found = [(match[1], float(match[2])) for match in _BUFFER.finditer(text)]
    assert found, text[-3000:]
    cache = sum(size for kind, size in found if kind != "compute")
    return cache, sum(size for kind, size in found if kind == "compute")


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", ["starter", "gemma-3-pattern", "lfm2-1.2b"])
def test_buffers(programs: Path, referee: Referee, tmp_path: Path, name: str, unified: bool) -> None:
    model = model_at(starter_llm()) if name == "starter" else referee.model(name)
    load = Load(context_size=4096, parallel_requests=4, kv_unified=unified, outputs=4)
    cache, compute = buffers(programs, model, load, tmp_path / "log")
    found = estimate(model, load)
    assert found.kv_cache / MIB == pytest.approx(cache, abs=0.02)
    assert found.compute / MIB == pytest.approx(compute, rel=0.05)
    assert found.ram / MIB == pytest.approx(found.weights / MIB + cache + compute, rel=0.005)
