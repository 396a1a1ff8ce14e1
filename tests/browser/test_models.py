"""What a person sees of models that come from a hub: the search, the bar, the result, the list."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import expect

from tests.browser.lab import LIMIT, Lab, NotebookPage
from tests.fakes.gguf_files import write_gguf
from tests.fakes.hub import FakeHub

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

REPO = "owner/Tiny-4B-GGUF"


def test_search_download_and_list(jupyterlab: Lab, hub: FakeHub, page, tmp_path):
    header = {"general.architecture": "llama", "llama.block_count": 2}
    model = write_gguf(tmp_path / "m.gguf", header, {"w": (1 << 20,)}).read_bytes()
    hub.add(REPO, {"Tiny-Q8_0.gguf": model, "Tiny-Q4_K_M.gguf": 2 << 20, "Tiny-BF16.gguf": 1 << 42}, downloads=4321)
    go, requests = threading.Event(), []

    def hold_the_body(sha256: str) -> None:
        requests.append(sha256)
        if len(requests) > 1:  # the header comes at once, the body when we have looked at the bar
            go.wait(60)

    hub.before_body = hold_the_body
    jupyterlab.write(
        "models.ipynb", "%load_ext genai_notebook\n%genai search tiny 4b", f"%genai download {REPO}", "%genai models"
    )
    notebook = NotebookPage(page, jupyterlab, "models.ipynb")
    notebook.start_all()
    search = notebook.cell(0)
    expect(search.get_by_role("columnheader", name="Quantisation")).to_be_visible(timeout=LIMIT)
    expect(search.get_by_role("row", name="Tiny-Q8_0.gguf")).to_contain_text("in RAM, the best")
    expect(search.get_by_role("row", name="Tiny-BF16.gguf")).to_contain_text("too big")
    bar = notebook.cell(1).get_by_role("progressbar", name=f"Downloading {REPO.partition('/')[2]}")
    expect(bar).to_be_visible(timeout=LIMIT)
    expect(notebook.cell(1)).to_contain_text("of 4 MB", timeout=LIMIT)
    page.screenshot(path=tmp_path / "bar.png")
    go.set()
    expect(notebook.cell(1)).to_contain_text("tiny-q8-0 is ready", timeout=LIMIT)
    expect(notebook.cell(1)).to_contain_text("Q8_0 is the best")
    expect(notebook.cell(2).get_by_role("row", name="tiny-q8-0")).to_be_visible(timeout=LIMIT)
    page.screenshot(path=tmp_path / "models.png")
    assert notebook.complaints == []
