"""Tests against programs of llama.cpp that `scripts/native` builds. Without them they are skipped, which CI fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.referee import Referee, native_folder, stand_in_gpus


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.native)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the native programs."""
    folder = native_folder()
    if not (folder / "llama-fit-params").exists():
        pytest.skip("no native llama.cpp: run `sh scripts/native`")
    return folder


@pytest.fixture(scope="session")
def referee(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Referee]:
    """llama.cpp as the judge, with three GPUs that are none."""
    with stand_in_gpus(programs, 3, tmp_path_factory.mktemp("rpc")) as servers:
        yield Referee(programs, tmp_path_factory.mktemp("shapes"), servers)
