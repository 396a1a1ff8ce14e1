"""What every test gets: a home of its own, an environment without our variables, and a look at what was left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_notebook.core.engines import releases
from tests.processes import assert_none_left

# No test fetches an engine from the internet: neither here nor in the processes that tests start.
os.environ["GENAI_NOTEBOOK_MIRROR"] = "off"
releases.GITHUB = "http://127.0.0.1:9"
KEPT = ("GENAI_NOTEBOOK_TEST_CACHE", "GENAI_NOTEBOOK_MIRROR")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`GENAI_NOTEBOOK_HOME` in the test's own folder; none of our other variables leaks in from outside."""
    for name in list(os.environ):
        if name.startswith("GENAI_NOTEBOOK_") and name not in KEPT:
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    monkeypatch.setenv("GENAI_NOTEBOOK_HOME", str(path))
    return path


@pytest.fixture
def no_process_left(tmp_path: Path) -> Iterator[None]:
    """Fails a test that leaves a process behind which works below its folder."""
    yield
    assert_none_left(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_at_the_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    assert_none_left(tmp_path_factory.getbasetemp())
