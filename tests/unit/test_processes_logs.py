from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from genai_notebook.core.processes import logs
from genai_notebook.core.processes.logs import ServerLog, parse_line, split_level


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0.03.031.589 I srv  llama_server: model loaded", ("info", "srv  llama_server: model loaded")),
        ("12.03.031.589 W load: strange", ("warn", "load: strange")),
        ("0.03.031.589 E srv  load_model: failed", ("error", "srv  load_model: failed")),
        ("[INFO ] model.cpp:993  - loading tensors", ("info", "model.cpp:993  - loading tensors")),
        ("[ERROR] main.cpp:1 - no", ("error", "main.cpp:1 - no")),
        ("error: invalid argument: --nope", ("error", "error: invalid argument: --nope")),
        ("plain text", ("info", "plain text")),
    ],
)
def test_levels_come_from_the_engines_own_prefixes(line: str, expected: tuple[str, str]) -> None:
    assert split_level(line) == expected


def test_lines_have_time_level_and_message(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "logs", "llama")
    log.engine_line("0.03.031.589 D srv  request: a secret prompt")
    log.engine_line("0.03.031.589 W srv  hot")
    [line] = log.read(None)
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[warn\] srv  hot", line)
    assert parse_line(line)["level"] == "warn"
    assert parse_line(line)["message"] == "srv  hot"
    assert parse_line("foreign")["message"] == "foreign"


def test_secrets_are_never_written(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "llama")
    log.hide("sk-123")
    log.append("info", "key is sk-123, really sk-123")
    assert log.read(None)[0].endswith("key is ***, really ***")
    assert log.tail() == ["key is ***, really ***"]
    assert "sk-123" not in log.path.read_text()


def test_read_counts_from_the_end_and_clear_empties(tmp_path: Path) -> None:
    log = ServerLog(tmp_path, "llama")
    for number in range(30):
        log.append("info", str(number))
    assert [parse_line(line)["message"] for line in log.read(3)] == ["27", "28", "29"]
    assert log.read(0) == []
    assert log.tail() == [str(n) for n in range(10, 30)]
    log.clear()
    assert log.read(None) == []
    log.append("info", "again")
    assert len(log.read(None)) == 1


def test_the_file_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 2000)
    log = ServerLog(tmp_path / "logs", "llama")
    for number in range(200):
        log.append("info", f"line {number}")
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["llama.log", "llama.log.1"]
    assert all(path.stat().st_size < 2200 for path in (tmp_path / "logs").iterdir())
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "logs").iterdir())
    assert log.read(None)[-1].endswith("line 199")
