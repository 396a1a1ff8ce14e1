"""What a person sees of engines: the list, an installation, a start that fetches and tests one, in both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.lab import LIMIT, Lab, NotebookPage, lab
from tests.browser.test_system import set_theme
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.fakes.release_server import ReleaseServer
from tests.released import GPU, GPU_REASON, LLAMA_CPU, SD_CPU, Released

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

#: Bytes a second at which an archive arrives so slowly that its bar can be looked at.
SLOWLY = 300_000
EVIL = "E \x1b[31mno <script>document.title = 'evil'</script> tensor\x1b[0m"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    with ReleaseServer() as server:
        yield Released(server, tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def engine_lab(tmp_path_factory: pytest.TempPathFactory, released: Released, jupyterlab: Lab) -> Iterator[Lab]:
    """A JupyterLab whose engines have still to be fetched, from a server of the test's own.

    The one that the other files share is made first: with a browser running it could not be made any more.
    """
    folder = tmp_path_factory.mktemp("engine-lab")
    released.pin_for_jupyter(folder / "server" / "config")
    with lab(folder / "server", folder / "home", **released.environ) as server:
        yield server


def test_engines_are_listed_installed_and_used(engine_lab: Lab, released: Released, page, tmp_path: Path):
    llm, picture = tiny_llm(tmp_path / "tiny.gguf"), tiny_diffusion(tmp_path / "picture.gguf")
    engine_lab.write(
        "engines.ipynb",
        f"%load_ext genai_notebook\n%genai stop all\n%genai import {llm} --name fox\n"
        f"%genai import {picture} --name owl --type diffusion",
        "%genai engines",
        "%genai engines install llm",
        "%genai start owl",
        "%genai start fox --port auto",
        "%genai engines",
    )
    released.serve(bytes_per_second=SLOWLY)
    notebook = NotebookPage(page, engine_lab, "engines.ipynb")
    notebook.start_all()
    before = notebook.cell(1)
    expect(before.get_by_role("columnheader", name="Engine")).to_be_visible(timeout=LIMIT)
    expect(before.get_by_role("row", name=LLAMA_CPU)).to_contain_text("can be installed")
    expect(before.get_by_role("row", name=re.compile(rf"llama\.cpp .* \({GPU}\)"))).to_contain_text(GPU_REASON)
    bar = notebook.cell(2).get_by_role("progressbar", name="Installing the engine for language models")
    expect(bar).to_have_attribute("value", re.compile(r"\d"), timeout=LIMIT)
    expect(notebook.cell(2)).to_contain_text(f"downloading {LLAMA_CPU}")
    page.screenshot(path=tmp_path / "installing.png")
    expect(notebook.cell(2)).to_contain_text(f"{LLAMA_CPU} is installed.", timeout=LIMIT)
    expect(notebook.cell(3)).to_contain_text(f"downloading {SD_CPU}", timeout=LIMIT)
    page.screenshot(path=tmp_path / "starting.png")
    expect(notebook.cell(3)).to_contain_text("Image generation with owl is running", timeout=LIMIT)
    expect(notebook.cell(4)).to_contain_text("fox is running", timeout=LIMIT)
    expect(notebook.cell(4).get_by_role("progressbar")).to_have_count(0)
    after = notebook.cell(5)
    for name in (LLAMA_CPU, SD_CPU):
        expect(after.get_by_role("row", name=name)).to_contain_text("in use, works", timeout=LIMIT)
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(notebook, theme)
        after.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        page.screenshot(path=tmp_path / f"after-{theme.split()[1].lower()}.png")
    assert notebook.complaints == []


def test_a_panel_shows_what_happens_to_an_engine(engine_lab: Lab, released: Released, page, tmp_path: Path):
    llm = tiny_llm(tmp_path / "tiny.gguf")
    engine_lab.write(
        "panel.ipynb",
        f"%load_ext genai_notebook\n%genai stop all\n%genai import {llm} --name vixen\n"
        "%genai engines install llm cpu\n%genai engines remove llm cpu",
        "%genai panel",
    )
    released.serve()
    notebook = NotebookPage(page, engine_lab, "panel.ipynb")
    notebook.run_all()
    panel = notebook.cell(1)
    released.serve(bytes_per_second=SLOWLY)
    panel.get_by_role("button", name="Start language model", exact=True).click()
    expect(panel).to_contain_text(re.compile(r"starting \S+: downloading .* \(\d+ %\)"), timeout=LIMIT)
    expect(panel.get_by_role("button", name="Stop language model", exact=True)).to_be_enabled()
    page.screenshot(path=tmp_path / "fetching.png")
    expect(panel).to_contain_text("Language model: running", timeout=LIMIT)
    page.screenshot(path=tmp_path / "running.png")
    panel.get_by_role("button", name="Stop language model", exact=True).click()
    expect(panel).to_contain_text("Language model: stopped", timeout=LIMIT)
    assert notebook.complaints == []


def test_the_log_of_an_engine_that_fails_is_text(engine_lab: Lab, released: Released, page, tmp_path: Path):
    llm = tiny_llm(tmp_path / "tiny.gguf")
    engine_lab.write(
        "failing.ipynb",
        f"%load_ext genai_notebook\n%genai stop all\n%genai import {llm} --name wolf\n%genai engines install llm cpu",
        "%genai engines test llm cpu",
        "%genai engines list llm",
    )
    released.serve()
    released.llama.set(exit_at_start=5, start_log=["first words", EVIL])
    try:
        notebook = NotebookPage(page, engine_lab, "failing.ipynb")
        notebook.run_all()
        for number in (1, 2):
            expect(notebook.cell(number)).to_contain_text("failed", timeout=LIMIT)
            log = notebook.cell(number).locator("pre", has_text="first words").last
            expect(log).to_contain_text("E no <script>document.title = 'evil'</script> tensor")
            notebook.cell(number).scroll_into_view_if_needed()
            page.screenshot(path=tmp_path / f"failed-{number}.png")
        assert page.title() != "evil"
        assert notebook.complaints == []
    finally:
        released.llama.reset()
