"""%genai panel in a kernel: its bundle, its buttons, its errors, and that it follows what others do."""

from __future__ import annotations

from pathlib import Path

from tests.fakes import eventually
from tests.notebook.conftest import FakeKernel

VIEW = "application/vnd.jupyter.widget-view+json"


def opened(kernel: FakeKernel):
    return kernel.ok("%genai panel --into panel")


def shows(kernel: FakeKernel, part: str, words: str) -> None:
    eventually(lambda: words in kernel.value(f"panel.{part}.value"), f"{words!r} in panel.{part}")


def test_it_is_alive_in_a_notebook_and_readable_in_a_saved_one(fake_kernel: FakeKernel):
    result = opened(fake_kernel)
    data = result.outputs[0]["data"]
    assert set(data) == {VIEW, "text/html", "text/plain"}
    for text in (data["text/html"], data["text/plain"]):
        assert "stopped" in text
        assert "tiny-llm" in text
        assert "tiny-picture" in text
    assert not result.stdout
    assert not result.stderr


def test_names_in_it_are_escaped(fake_kernel: FakeKernel, tmp_path: Path):
    evil = tmp_path / "files" / "tiny.gguf"
    fake_kernel.ok("%genai delete tiny-llm")
    fake_kernel.ok(f"%genai import {evil} --name 'x'")
    fake_kernel.ok(
        "import genai_notebook.widgets.panel as p\nfrom msgspec.structs import replace\n"
        "from genai_notebook.current import model_manager\n"
    )
    opened(fake_kernel)
    fake_kernel.ok(
        "panel._models = [replace(m, id='<img src=x onerror=alert(1)>') for m in await model_manager.list_models()]\n"
        "html = panel._models_table()['text/html']"
    )
    assert fake_kernel.value("'<img' in html") == "False"
    assert fake_kernel.value("'&lt;img' in html") == "True"


def test_buttons_start_and_stop(fake_kernel: FakeKernel):
    opened(fake_kernel)
    assert fake_kernel.value("panel.llm.models.value") == "'tiny-llm'"
    fake_kernel.ok("from genai_notebook import llama_server, diffusion_server, run")
    fake_kernel.ok("panel.images.start.click()")
    shows(fake_kernel, "images.state", "running")
    assert fake_kernel.value("diffusion_server.get_status()") == "'running'"
    eventually(lambda: fake_kernel.value("panel.images.start.disabled, panel.images.stop.disabled") == "(True, False)")
    fake_kernel.ok("panel.images.stop.click()")
    shows(fake_kernel, "images.state", "stopped")
    assert fake_kernel.value("diffusion_server.get_status()") == "'stopped'"


def test_it_follows_what_happens_elsewhere(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("%genai start tiny-llm --port auto")
    shows(fake_kernel, "llm.state", "running")
    fake_kernel.llama.set(die={"signal": "SIGKILL"})
    shows(fake_kernel, "llm.state", "crashed")
    fake_kernel.llama.reset()
    fake_kernel.ok("%genai start tiny-llm --port auto")
    shows(fake_kernel, "llm.state", "running")
    fake_kernel.ok("%genai stop")
    shows(fake_kernel, "llm.state", "stopped")


def test_an_error_is_shown_in_it_and_goes_away_with_the_next_click(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.llama.set(exit_at_start=3, start_log=["error: <b>no</b> such tensor"])
    fake_kernel.ok("panel.llm.start.click()")
    shows(fake_kernel, "_worker.message", 'role="alert"')
    message = fake_kernel.value("panel._worker.message.value")
    assert "<b>no" not in message
    fake_kernel.llama.reset()
    fake_kernel.ok("panel.images.start.click()")
    shows(fake_kernel, "images.state", "running")
    assert fake_kernel.value("panel._worker.message.value") == "''"


def test_it_makes_a_picture_as_an_ordinary_output(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("%genai start --images --port auto")
    fake_kernel.ok(
        "panel.pictures.prompt.value = 'a fox'\npanel.pictures.steps.value = 3\npanel.pictures.seed.value = '7'"
    )
    done = fake_kernel.run(
        "import time\npanel.pictures.make.click()\n"
        "end = time.time() + 60\n"
        "while not panel.pictures.words.value.startswith('done') and time.time() < end:\n    time.sleep(0.05)\n"
        "time.sleep(0.3)"
    )
    assert done.status == "ok"
    assert "seed 7" in fake_kernel.value("panel.pictures.words.value")
    pictures = [update for update in done.updates if "image/png" in update["data"]]
    assert len(pictures) == 1
    assert pictures[0]["metadata"]["genai_notebook"]["seed"] == 7
    assert fake_kernel.value("panel.pictures.make.disabled, panel.pictures.cancel.disabled") == "(False, True)"


def test_cancel_ends_the_picture(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("%genai start --images --port auto")
    fake_kernel.images.set(step_seconds=0.5)
    fake_kernel.ok("panel.pictures.prompt.value = 'a fox'\npanel.pictures.make.click()")
    shows(fake_kernel, "pictures.words", "step 2 of 20")
    fake_kernel.ok("panel.pictures.cancel.click()")
    shows(fake_kernel, "pictures.words", "cancelled")
    assert fake_kernel.value("panel._worker.message.value") == "''"
    fake_kernel.ok("from genai_notebook import diffusion_server")
    eventually(lambda: fake_kernel.value("diffusion_server.get_info().busy") == "False", "an idle engine")


def test_wrong_fields_are_named(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("panel.pictures.make.click()")
    shows(fake_kernel, "_worker.message", "Write a prompt first.")
    fake_kernel.ok(
        "panel.pictures.prompt.value = 'a fox'\npanel.pictures.seed.value = 'abc'\npanel.pictures.make.click()"
    )
    shows(fake_kernel, "_worker.message", "The seed is a whole number")
    fake_kernel.ok("panel.pictures.seed.value = ''\npanel.pictures.make.click()")
    shows(fake_kernel, "_worker.message", "%genai start --images")


def test_unload_closes_it(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("%unload_ext genai_notebook")
    assert fake_kernel.value("panel.view.comm is None") == "True"
    assert fake_kernel.value("sorted(panel._repr_mimebundle_())") == "['text/html', 'text/plain']"
    fake_kernel.ok("%load_ext genai_notebook")
    fake_kernel.ok("%genai start tiny-llm --port auto")
    assert "stopped" in fake_kernel.value("panel.llm.state.value")
