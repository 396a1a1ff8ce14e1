from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Lab, lab
from tests.fakes.hub import FakeHub, fake_hub
from tests.models import home_with_models

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium. Missing is a failure, never a skip: what a person sees is part of what is promised."""
    if not CHROMIUM.exists():
        pytest.fail(
            f"{CHROMIUM} is missing. Install it: apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def hub() -> Iterator[FakeHub]:
    """JupyterLab's Hugging Face."""
    with fake_hub() as running:
        yield running


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Lab]:
    """One JupyterLab for all browser tests, with the starter LLM and the check model registered."""
    folder = tmp_path_factory.mktemp("lab")
    home = home_with_models(folder).settings.home
    environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": ""}
    with lab(folder / "server", home, **environ) as server:
        yield server
