"""What a person sees of the machine's memory: the bars under a cell and in a panel, in both themes and when saved."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import LIMIT, Lab, NotebookPage
from tests.models import LLM_ID

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def set_theme(notebook: NotebookPage, name: str) -> None:
    notebook.page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached", timeout=LIMIT)


def test_memory_under_a_cell_and_in_a_panel(jupyterlab: Lab, page, tmp_path):
    jupyterlab.write(
        "system.ipynb",
        # What another test has left running is another's.
        f"%load_ext genai_notebook\n%genai stop all\n%genai start {LLM_ID} --port auto",
        "%genai system",
        f"%genai fit {LLM_ID}",
        "%genai panel system --into panel",
    )
    notebook = NotebookPage(page, jupyterlab, "system.ipynb")
    notebook.run_all()
    bar = notebook.cell(1).get_by_role("img", name=re.compile(r"^Memory: .* in use"))
    expect(bar).to_be_visible(timeout=LIMIT)
    label = bar.get_attribute("aria-label") or ""
    for name in (LLM_ID, "this kernel", "Jupyter server", "other programs", "free"):
        assert name in label
        expect(notebook.cell(1)).to_contain_text(re.compile(rf"[■□] {name} [\d.]+ [MG]B"))
    expect(notebook.cell(2).get_by_role("row", name="4,096 CPU")).to_contain_text("yes")

    panel = notebook.cell(3)
    live = panel.get_by_role("img", name=re.compile("^Memory: "))
    expect(live).to_be_visible(timeout=LIMIT)
    expect(panel).to_contain_text(f"running · {LLM_ID}")
    expect(panel).to_contain_text("the Jupyter server")
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        set_theme(notebook, theme)
        for number in (1, 3):
            notebook.cell(number).scroll_into_view_if_needed()
            page.wait_for_timeout(300)
            page.screenshot(path=tmp_path / f"{theme.split()[1].lower()}-{number}.png")

    pause = panel.get_by_role("button", name="Pause updates")
    pause.click()
    expect(panel.get_by_role("button", name="Resume updates")).to_be_visible()
    panel.get_by_role("button", name="Resume updates").press("Enter")
    jupyterlab.write("stop.ipynb", "%load_ext genai_notebook\n%genai stop all")
    context = page.context.browser.new_context()
    try:
        other = NotebookPage(context.new_page(), jupyterlab, "stop.ipynb")
        other.run_all()
        expect(panel).to_contain_text("stopped", timeout=LIMIT)
        expect(live).not_to_have_attribute("aria-label", re.compile(LLM_ID), timeout=LIMIT)
    finally:
        context.close()
    assert notebook.complaints == []

    notebook.save()
    page.wait_for_timeout(500)
    saved = jupyterlab.read("system.ipynb").cells
    for cell in (saved[1], saved[3]):
        assert 'role="img"' in cell.outputs[0].data["text/html"]
        assert LLM_ID in cell.outputs[0].data["text/plain"]
