"""%genai panel system in a kernel: what it shows, when it looks, and that it ends."""

from __future__ import annotations

from tests.fakes import eventually
from tests.notebook.conftest import FakeKernel
from tests.notebook.kernels import Kernel

VIEW = "application/vnd.jupyter.widget-view+json"


def opened(kernel: Kernel):
    return kernel.ok("%genai panel system --into panel")


def follows(kernel: Kernel, expected: bool) -> None:
    eventually(lambda: kernel.value("panel._following") == str(expected), f"following: {expected}")


def test_it_is_alive_in_a_notebook_and_readable_in_a_saved_one(shared_kernel: Kernel):
    result = opened(shared_kernel)
    data = result.outputs[0]["data"]
    assert set(data) == {VIEW, "text/html", "text/plain"}
    for text in (data["text/html"], data["text/plain"]):
        for words in ("this kernel", "other programs", "Processor", "stopped"):
            assert words in text
    assert 'role="img"' in data["text/html"]
    assert not result.stdout
    assert not result.stderr
    shared_kernel.ok("panel.close()")


def test_the_panel_without_a_word_is_the_servers(shared_kernel: Kernel):
    shared_kernel.ok("%genai panel --into one\n%genai panel servers --into two")
    assert shared_kernel.value("type(one).__name__, type(two).__name__") == "('Panel', 'Panel')"
    shared_kernel.ok("one.close()\ntwo.close()")


def test_it_looks_only_while_it_is_shown_and_not_paused(shared_kernel: Kernel):
    opened(shared_kernel)
    follows(shared_kernel, False)
    shared_kernel.ok("panel.view._view_count = 1")  # as a frontend does that shows it
    follows(shared_kernel, True)
    shared_kernel.ok("panel.memory.value = 'old'")
    eventually(lambda: "role=" in shared_kernel.value("panel.memory.value"), "a fresh look")
    shared_kernel.ok("panel.pause.click()")
    follows(shared_kernel, False)
    assert shared_kernel.value("panel.pause.description") == "'Resume updates'"
    shared_kernel.ok("panel.pause.click()")
    follows(shared_kernel, True)
    shared_kernel.ok("panel.view._view_count = 0")
    follows(shared_kernel, False)
    shared_kernel.ok("panel.view._view_count = 2")
    follows(shared_kernel, True)
    shared_kernel.ok("panel.close()")
    follows(shared_kernel, False)
    assert shared_kernel.value("sorted(panel._repr_mimebundle_())") == "['text/html', 'text/plain']"


def test_an_error_is_shown_and_goes_away_when_it_is_over(shared_kernel: Kernel):
    opened(shared_kernel)
    shared_kernel.ok(
        "from genai_notebook import ServerError\nlook = panel._look\nlooks = []\n"
        "async def away():\n    looks.append(1)\n    raise ServerError('<b>away</b>')\n"
        "panel._look = away\npanel.view._view_count = 1"
    )
    eventually(lambda: 'role="alert"' in shared_kernel.value("panel._worker.message.value"), "the error")
    assert "<b>away" not in shared_kernel.value("panel._worker.message.value")
    eventually(lambda: int(shared_kernel.value("len(looks)")) > 1, "a second try")
    shared_kernel.ok("panel._look = look")
    eventually(lambda: shared_kernel.value("panel._worker.message.value") == "''", "no error")
    shared_kernel.ok("panel.close()")


def test_it_shows_who_runs_and_follows_what_happens_elsewhere(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("panel.view._view_count = 1")
    fake_kernel.ok("%genai start tiny-llm --port auto")
    eventually(lambda: "tiny-llm" in fake_kernel.value("panel.memory.value"), "the engine's share")
    eventually(lambda: "running · tiny-llm" in fake_kernel.value("panel.engines.value"), "the engine's state")
    assert "since 2" in fake_kernel.value("panel.engines.value")
    fake_kernel.ok("%genai stop")
    eventually(lambda: "tiny-llm" not in fake_kernel.value("panel.memory.value"), "the end of its share")


def test_unload_closes_it(fake_kernel: FakeKernel):
    opened(fake_kernel)
    fake_kernel.ok("panel.view._view_count = 1")
    follows(fake_kernel, True)
    fake_kernel.ok("%unload_ext genai_notebook")
    follows(fake_kernel, False)
    assert fake_kernel.value("panel.view.comm is None") == "True"
