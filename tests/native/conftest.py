"""Tests against programs that `scripts/native` builds. Without them they are skipped, which CI fails."""

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
    """The folder of llama.cpp's programs."""
    return _folder_of("llama-fit-params")


@pytest.fixture(scope="session")
def painters() -> Path:
    """The folder of stable-diffusion.cpp's programs."""
    return _folder_of("sd-server")


def _folder_of(program: str) -> Path:
    folder = native_folder(program)
    if not (folder / program).exists():
        pytest.skip(f"no native {program}: run `sh scripts/native`")
    return folder


@pytest.fixture(scope="session")
def referee(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Referee]:
    """llama.cpp as the judge, with three GPUs that are none."""
    with stand_in_gpus(programs, 3, tmp_path_factory.mktemp("rpc")) as servers:
        yield Referee(programs, tmp_path_factory.mktemp("shapes"), servers)
