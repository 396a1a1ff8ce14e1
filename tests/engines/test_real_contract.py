"""The managers' behaviour once more, local and remote, with real llama.cpp and stable-diffusion.cpp on real files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.engines.real import Contract, Real
from tests.jupyter import JupyterServer
from tests.models import ahome_with_models
from tests.processes import assert_none_left

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module", params=["local", "remote"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp(f"real-{request.param}")
    loop = asyncio.new_event_loop()
    home = loop.run_until_complete(ahome_with_models(folder))
    server = None
    if request.param == "remote":
        server = JupyterServer(folder / "jupyter", {"GENAI_NOTEBOOK_HOME": str(home.settings.home)})
    subject = Real.open(loop, home.settings, server)
    yield subject
    subject.close()
    if server is not None:
        server.stop()
    assert_none_left(folder)


class TestEmbedded(Contract):
    """With the engines from Python wheels."""
