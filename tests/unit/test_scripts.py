"""The scripts' own judgement: which skips are allowed, and what an executed notebook says."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def report(path: Path, inside: str) -> str:
    case = f'<testcase classname="c" name="n">{inside}</testcase>'
    path.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    return str(path)


@pytest.mark.parametrize(
    ("inside", "status"),
    [
        ("", 0),
        ('<skipped type="pytest.skip" message="other platform: no cgroups here"/>', 0),
        ('<skipped type="pytest.skip" message="could not import playwright"/>', 1),
        ('<skipped message="collection skipped">no module</skipped>', 1),
    ],
)
def test_skips(tmp_path: Path, inside: str, status: int) -> None:
    assert call("check_skips.py", report(tmp_path / "r.xml", inside)).returncode == status


def test_a_report_that_is_missing_or_empty_fails(tmp_path: Path) -> None:
    assert call("check_skips.py", str(tmp_path / "none.xml")).returncode == 1
    (tmp_path / "empty.xml").write_text("<testsuites></testsuites>")
    assert call("check_skips.py", str(tmp_path / "empty.xml")).returncode == 1


def test_processes_that_are_left_fail(tmp_path: Path) -> None:
    assert call("check_processes.py", str(tmp_path)).returncode == 0
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path)
    try:
        result = call("check_processes.py", str(tmp_path), "0.5")
        assert result.returncode == 1
        assert str(sleeper.pid) in result.stderr
    finally:
        sleeper.kill()
        sleeper.wait(10)


PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR" + struct.pack(">II", 384, 256)


def cell(source: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


CHAT = cell("%%genai_chat --temperature 0\nWho?", {"data": {"text/plain": "\x1b[1mNobody.\x1b[0m"}})
IMAGE = cell("%%genai_image\na fox", {"data": {"image/png": base64.b64encode(PNG).decode()}})


def test_an_executed_notebook_is_told(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [CHAT, IMAGE]}))
    result = call("show_notebook.py", str(path))
    assert result.returncode == 0
    assert "Answer:   Nobody." in result.stdout
    assert "384 x 256" in result.stdout


def test_a_notebook_without_results_fails(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [CHAT, cell("%%genai_image\na fox")]}))
    result = call("show_notebook.py", str(path))
    assert result.returncode == 1
    assert "%%genai_image" in result.stderr


@pytest.mark.skipif(shutil.which("sh") is None, reason="other platform: no sh")
@pytest.mark.parametrize("name", ["demo", "native", "soak", "test", "environment.sh"])
def test_shell_scripts_parse(name: str) -> None:
    assert subprocess.run(["sh", "-n", str(SCRIPTS / name)], timeout=60, check=False).returncode == 0
