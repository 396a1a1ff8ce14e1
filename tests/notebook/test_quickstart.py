"""notebooks/quickstart.ipynb, executed from top to bottom: real downloads, engines, answer and picture."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.notebook.kernels import environment
from tests.processes import assert_none_left

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def texts(cell) -> str:
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_the_quickstart_runs_and_tells_the_truth(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Hugging Face is put out of reach, so that the test is the same everywhere: the check model stands in.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name, value in environment(tmp_path, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert_none_left(tmp_path)

    cells = {cell.source.splitlines()[0].split(" --")[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert "Memory" in texts(cells["%genai system"])
    assert "verified" in texts(cells["%genai download starter"])
    assert "is running" in texts(cells["%genai start"]) or "is running" in texts(cells["%genai start --images"])
    answer = cells["%%genai_chat"].outputs
    assert len(answer) == 1
    assert "Paris" in answer[0]["data"]["text/markdown"]
    assert "random" in texts(cells["%genai download starter-image"])
    assert "noise" in texts(cells["%genai download starter-image"])
    picture = next(output for output in cells["%%genai_image"].outputs if "image/png" in output["data"])
    width, height = Image.open(io.BytesIO(base64.b64decode(picture["data"]["image/png"]))).size
    assert (width, height) == (
        picture["metadata"]["genai_notebook"]["width"],
        picture["metadata"]["genai_notebook"]["height"],
    )
    assert picture["metadata"]["genai_notebook"]["seed"] == 7
    assert "this is noise" in texts(cells["%%genai_image"])
    status = texts(cells["%genai status"])
    assert status.count("running") == 2
    assert "this kernel" in status
    assert texts(cells["%genai stop all"]).count("stopped") == 2
    nbformat.validate(notebook)
    nbformat.write(notebook, tmp_path / "executed.ipynb")
