"""The managers' behaviour once more with compiled engines: `llama-server`, and `sd-server` or `sd-cli`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.engines.real import Contract, Real
from tests.models import ahome_with_models
from tests.processes import assert_none_left


@pytest.fixture(scope="module", params=["sd-server", "sd-cli"])
def real(
    request: pytest.FixtureRequest, programs: Path, painters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp(f"native-{request.param}")
    loop = asyncio.new_event_loop()
    home = loop.run_until_complete(ahome_with_models(folder))
    chosen = {"llama_server": str(programs / "llama-server"), "sd_server": str(painters / request.param)}
    subject = Real.open(loop, msgspec.structs.replace(home.settings, **chosen))
    yield subject
    subject.close()
    assert_none_left(folder)


class TestNative(Contract):
    """With what a user has built."""

    def test_these_engines_were_at_work(self, real: Real, request: pytest.FixtureRequest) -> None:
        async def scenario() -> None:
            assert (await real.llm()).engine.startswith("llama-server ")
            assert (await real.images()).engine.startswith(request.node.callspec.params["real"])

        real.run(scenario())
