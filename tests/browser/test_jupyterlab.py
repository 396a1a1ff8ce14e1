"""What a person sees in JupyterLab: an answer, a picture, a panel that can be worked."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.lab import LIMIT, Lab, NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

SYSTEM = "You answer questions correctly and briefly."
LOADED = "element => element.complete && element.naturalWidth"


def test_answer_and_picture_are_rendered(jupyterlab: Lab, page, tmp_path):
    jupyterlab.write(
        "first.ipynb",
        "%load_ext genai_notebook\n%genai system",
        "%genai start --port auto\n%genai start --images",
        f"%%genai_chat --system '{SYSTEM}' --temperature 0\nWhat is the capital of France?",
        "%%genai_image --width 128 --height 128 --steps 2 --cfg 1 --seed 7\na lighthouse at sunset",
        "%genai status",
    )
    notebook = NotebookPage(page, jupyterlab, "first.ipynb")
    notebook.run_all()
    page.screenshot(path=tmp_path / "first.png", full_page=True)

    expect(notebook.cell(0).get_by_role("rowheader", name="Memory")).to_be_visible()
    answer = notebook.cell(2).locator(".jp-RenderedMarkdown")
    expect(answer).to_contain_text("Paris", timeout=LIMIT)
    picture = notebook.cell(3).locator(".jp-OutputArea-output img")
    picture.scroll_into_view_if_needed()
    assert picture.evaluate(LOADED) == 128
    expect(notebook.cell(3)).to_contain_text("seed 7")
    expect(notebook.cell(3).locator("progress")).to_have_count(0)
    expect(notebook.cell(4)).to_contain_text("the Jupyter server")
    page.screenshot(path=tmp_path / "last.png")
    assert notebook.complaints == []

    notebook.save()
    page.wait_for_timeout(500)
    saved = jupyterlab.read("first.ipynb").cells
    assert "Paris" in saved[2].outputs[0].data["text/markdown"]
    assert saved[3].outputs[0].metadata["genai_notebook"]["seed"] == 7
    assert "image/png" in saved[3].outputs[0].data


def test_the_panel_can_be_worked(jupyterlab: Lab, page, tmp_path):
    jupyterlab.write("panel.ipynb", "%load_ext genai_notebook\n%genai stop all", "%genai panel")
    notebook = NotebookPage(page, jupyterlab, "panel.ipynb")
    notebook.run_all()
    panel = notebook.cell(1)
    for name in ("Start language model", "Start image generation", "Stop language model", "Make image", "Cancel image"):
        expect(panel.get_by_role("button", name=name, exact=True)).to_be_visible(timeout=LIMIT)
    for label in ("Prompt", "Seed", "Size", "Steps", "Guidance"):
        expect(panel.get_by_label(label, exact=True)).to_be_visible()
    assert all(text.strip() for text in panel.locator(".jupyter-button").all_inner_texts())
    page.screenshot(path=tmp_path / "panel-stopped.png")

    start = panel.get_by_role("button", name="Start image generation")
    start.click()
    expect(panel).to_contain_text("Image generation: running", timeout=LIMIT)
    expect(start).to_be_disabled()
    panel.get_by_label("Prompt").fill("a fox <b>in</b> the snow")
    panel.get_by_label("Size").select_option("256 × 256")
    panel.get_by_label("Steps").fill("1")
    panel.get_by_label("Guidance").fill("1")
    panel.get_by_label("Guidance").press("Tab")
    panel.get_by_role("button", name="Make image").click()
    expect(panel.get_by_text("seed", exact=False).last).to_be_visible(timeout=LIMIT)
    picture = panel.locator(".jp-OutputArea-output img")
    expect(picture).to_be_visible(timeout=LIMIT)
    picture.scroll_into_view_if_needed()
    assert picture.evaluate(LOADED) == 256
    page.screenshot(path=tmp_path / "panel-done.png")

    panel.get_by_label("Prompt").fill("")
    panel.get_by_role("button", name="Make image").click()
    expect(panel.get_by_role("alert")).to_contain_text("Write a prompt first.")
    page.screenshot(path=tmp_path / "panel-error.png")
    panel.get_by_role("button", name="Stop image generation").click()
    expect(panel).to_contain_text("Image generation: stopped", timeout=LIMIT)
    assert notebook.complaints == []


def test_two_notebooks_share_one_model(jupyterlab: Lab, page, browser):
    """What one notebook starts, the panel of another shows at once, and its kernel's restart unloads nothing."""
    jupyterlab.write("a.ipynb", "%load_ext genai_notebook\n%genai stop all", "%genai panel")
    jupyterlab.write("b.ipynb", "%load_ext genai_notebook\n%genai start --port auto")
    first = NotebookPage(page, jupyterlab, "a.ipynb")
    first.run_all()
    expect(first.cell(1)).to_contain_text("Language model: stopped", timeout=LIMIT)
    context = browser.new_context()
    try:
        second = NotebookPage(context.new_page(), jupyterlab, "b.ipynb")
        second.run_all()
        expect(second.cell(0)).to_contain_text("is running", timeout=LIMIT)
        expect(first.cell(1)).to_contain_text("Language model: running", timeout=LIMIT)
        pid = jupyterlab.get("genai/llama")["pid"]
        second.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        second.page.wait_for_timeout(1000)
        assert jupyterlab.get("genai/llama")["pid"] == pid
    finally:
        context.close()
    assert first.complaints == []
