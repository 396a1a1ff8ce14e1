"""The magics in plain IPython, without a kernel: text instead of bars, the same answers and pictures."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import home_with_models
from tests.notebook.kernels import environment

SCRIPT = """
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
def cell(text):
    result = ip.run_cell(text)
    print("OK" if result.success else "FAILED", flush=True)
cell("%load_ext genai_notebook")
cell("%genai system")
cell("%genai start --port auto")
system = "'You answer questions correctly and briefly.'"
cell(f"%%genai_chat --system {system} --temperature 0\\nWhat is the capital of France?")
cell("%genai start --images --port auto")
cell("%%genai_image --width 64 --height 64 --steps 2 --cfg 1 --save fox.png\\na fox")
cell("%genai status")
cell("%genai stop")
cell("%genai nonsense")
"""


def run(tmp_path: Path, *, terminal: bool) -> str:
    home = home_with_models(tmp_path).settings.home
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    environ = {**environment(tmp_path, home), "COLUMNS": "100"}
    if not terminal:
        done = subprocess.run(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0
        return done.stdout.decode()
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=theirs, stderr=theirs):
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 65536):
                output += data
        except OSError:  # Linux says EIO where the other end has closed
            pass
    os.close(ours)
    return output.decode()


@pytest.mark.engines
@pytest.mark.parametrize("terminal", [True, False])
def test_everything_works_as_text(tmp_path: Path, terminal: bool, no_process_left: None):
    output = run(tmp_path, terminal=terminal)
    assert output.count("OK") == 8, output
    assert output.count("FAILED") == 1
    assert "there is no command 'nonsense'" in output
    assert "The capital of France is Paris" in output
    assert (tmp_path / "fox.png").read_bytes().startswith(b"\x89PNG")
    assert "seed" in output
    assert "<div" not in output
    assert ("\r\x1b[K" in output) == terminal
    assert ("step 1 of 2" in output or "step 2 of 2" in output or "loading the model" in output) == terminal
