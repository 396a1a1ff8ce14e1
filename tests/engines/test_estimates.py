"""Our estimates against what the embedded llama.cpp says of its buffers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genai_notebook.core.system.estimate import MIB, Load, estimate
from tests.engines.running import LLAMA, Running
from tests.models import starter_llm
from tests.native.referee import model_at

pytestmark = pytest.mark.engines

_BUFFER = re.compile(r" (KV|compute) buffer size = +([0-9.]+) MiB")


@pytest.mark.parametrize("context", [1024, 8192])
def test_buffers(tmp_path: Path, context: int) -> None:
    arguments = ("-m", str(starter_llm()), "--port", "0", "-c", str(context), "-t", "2", "-np", "4", "--kv-unified")
    with Running(LLAMA, *arguments, "-fit", "off", "-ngl", "0", "-lv", "4", cwd=tmp_path) as engine:
        engine.ready()
        said = {match[1]: float(match[2]) for match in _BUFFER.finditer(engine.output)}
    print(said)
    found = estimate(
        model_at(starter_llm()), Load(context_size=context, parallel_requests=4, kv_unified=True, outputs=4)
    )
    assert found.kv_cache / MIB == pytest.approx(said["KV"], abs=0.02)
    assert found.compute / MIB == pytest.approx(said["compute"], rel=0.05)
