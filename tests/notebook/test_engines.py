"""%genai engines, and engines that a start fetches and tests: what people see in a notebook, a terminal and a panel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import eventually
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.fakes.release_server import ReleaseServer
from tests.jupyter import JupyterServer
from tests.notebook.kernels import Kernel, environment, kernel
from tests.released import GPU, LLAMA_CPU, SD_CPU, Released

#: Bytes a second at which an archive arrives so slowly that it can be watched.
SLOWLY = 1 << 20


class EngineKernel(Kernel):
    """A kernel whose engines have still to be fetched, and two tiny models."""

    released: Released


@pytest.fixture
def engine_kernel(tmp_path: Path) -> Iterator[EngineKernel]:
    with ReleaseServer() as server:
        released = Released(server, tmp_path / "fakes")
        with kernel(tmp_path / "kernel", tmp_path / "home", **released.environ) as started:
            yield _prepared(EngineKernel(started.manager, started.client), released, tmp_path)


def _prepared(made: EngineKernel, released: Released, folder: Path) -> EngineKernel:
    made.released = released
    made.ok(released.pinning)
    made.ok("%load_ext genai_notebook")
    made.ok(f"%genai import {tiny_llm(folder / 'files' / 'tiny.gguf')} --name 'Tiny LLM'")
    made.ok(f"%genai import {tiny_diffusion(folder / 'files' / 'sd.gguf')} --name 'Tiny picture' --type diffusion")
    return made


def one_line(kernel: Kernel, line: str) -> str:
    """The one line that a wrong `line` gives."""
    result = kernel.run(line)
    assert result.status == "error"
    shown = result.stderr.strip() or result.traceback
    assert len(shown.splitlines()) == 1, shown
    return shown


# ---- lines ----------------------------------------------------------------------------------------------------------


def test_from_the_list_to_an_engine_that_works(engine_kernel: EngineKernel):
    listed = engine_kernel.ok("%genai engines list llm --into engines")
    (row,) = [line for line in listed.text.splitlines() if line.startswith(LLAMA_CPU)]
    assert "can be installed" in row
    assert "not for this machine" in listed.text
    assert "images" not in listed.text
    assert engine_kernel.value("{each.kind for each in engines}") == "{'llama'}"

    installed = engine_kernel.ok("%genai engines install llm --into engine")
    assert f"{LLAMA_CPU} is installed." in installed.text
    assert engine_kernel.value("engine.name, engine.state") == repr((LLAMA_CPU, "usable"))
    assert "in use, not tested yet" in engine_kernel.ok("%genai engines").text
    assert f"{LLAMA_CPU}: in use, works" in engine_kernel.ok("%genai engines test llm").text
    assert f"{LLAMA_CPU} is used from now on." in engine_kernel.ok("%genai engines use llm cpu").text
    assert f"Now that is {LLAMA_CPU}." in engine_kernel.ok("%genai engines use llm auto").text
    assert f"{LLAMA_CPU} is removed." in engine_kernel.ok("%genai engines remove llm cpu").text
    assert "can be installed" in engine_kernel.ok("%genai engines").text


@pytest.mark.parametrize("name", [LLAMA_CPU, f"'{LLAMA_CPU}'", "cpu"])
def test_a_name_is_taken_as_it_stands_in_the_list(engine_kernel: EngineKernel, name: str):
    engine_kernel.ok(f"%genai engines install llm {name}")
    engine_kernel.ok(f"%genai engines remove llm {name} --into gone")
    assert engine_kernel.value("gone.state") == "'available'"


def test_a_test_of_all_takes_those_in_use(engine_kernel: EngineKernel):
    engine_kernel.ok("%genai engines install llm")
    engine_kernel.ok("%genai engines install images cpu")
    result = engine_kernel.ok("%genai engines test --into tested")
    assert f"{LLAMA_CPU}: in use, works" in result.text
    assert f"{SD_CPU}: in use, works" in result.text
    assert engine_kernel.value("[each.state for each in tested]") == "['works', 'works']"


@pytest.mark.parametrize("action", ["install llm", "use llm cpu"])
def test_an_installation_shows_how_far_it_is(engine_kernel: EngineKernel, action: str):
    engine_kernel.released.serve(bytes_per_second=SLOWLY)
    result = engine_kernel.ok(f"%genai engines {action}")
    shown = [update["data"] for update in result.updates]
    assert any(f"downloading {LLAMA_CPU}" in data["text/plain"] and " of 1" in data["text/plain"] for data in shown)
    assert any('<progress max="100" value="' in data["text/html"] for data in shown)
    (output,) = result.outputs
    assert "<progress" not in output["data"]["text/html"]
    assert LLAMA_CPU in output["data"]["text/plain"]


def test_an_interrupt_ends_an_installation(engine_kernel: EngineKernel):
    engine_kernel.released.serve(stall_after=600_000)
    result = engine_kernel.run(
        "%genai engines install llm",
        when=lambda so_far: "downloading" in so_far.text,
        then=engine_kernel.interrupt,
    )
    assert result.error is not None
    assert result.error["ename"] == "Interrupted"
    assert len(result.error["traceback"]) == 1
    assert "interrupted" in result.text
    engine_kernel.released.serve()
    assert "is installed" in engine_kernel.ok("%genai engines install llm").text


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("instal", "there is no 'instal' here; choose from list, use, test, install, remove. Did you mean 'install'?"),
        ("llm", "there is no 'llm' here; choose from list, "),
        ("install cpu", "there is no 'cpu' here; choose from llm, images."),
        ("install", "say which kind of engine: llm or images"),
        ("use", "say which kind of engine: llm or images"),
        ("use llm", "say which one"),
        ("remove images", "say which one"),
        ("list llm cpu", "takes no name"),
        ("list --into 2x", "'2x' is not a variable name"),
    ],
)
def test_a_wrong_line_is_one_line(shared_kernel: Kernel, line: str, words: str):
    assert words in one_line(shared_kernel, f"%genai engines {line}")


@pytest.mark.parametrize(
    ("line", "name", "words", "hint"),
    [
        ("use llm quantum", "InvalidRequestError", "there is no llama.cpp engine 'quantum'", "embedded, path"),
        ("install images quantum", "InvalidRequestError", "stable-diffusion.cpp engine 'quantum'", "embedded, path"),
        ("remove llm embedded", "InvalidRequestError", "is no installed build", "Only builds that `install`"),
        ("install llm embedded", "InvalidRequestError", "nothing to install", "pip install genai-notebook[embedded]"),
    ],
)
def test_an_error_says_the_way_out(shared_kernel: Kernel, line: str, name: str, words: str, hint: str):
    result = shared_kernel.run(f"%genai engines {line}")
    assert result.error is not None
    assert result.error["ename"] == name
    assert words in result.traceback
    assert hint in result.traceback
    assert len(result.error["traceback"]) <= 2
    assert "failed" in result.text


def test_a_build_that_cannot_be_fetched_is_one_error(engine_kernel: EngineKernel):
    engine_kernel.released.serve(status=404)
    result = engine_kernel.run("%genai engines install llm")
    assert result.error is not None
    assert result.error["ename"] == "DownloadError"
    assert len(result.error["traceback"]) <= 2


def test_help_explains_it(shared_kernel: Kernel):
    shown = shared_kernel.ok("%genai engines -h").stdout
    for words in ("%genai engines install llm vulkan", "list,use,test,install,remove", "--into"):
        assert words in shown
    assert shared_kernel.ok("%genai help engines").stdout.strip() == shown.strip()


def test_what_engines_print_is_shown_as_text(engine_kernel: EngineKernel):
    evil = "E \x1b[31m<script>alert(1)</script>\x1b]0;title\x07 & more"
    engine_kernel.ok("%genai engines install llm")
    engine_kernel.released.llama.set(exit_at_start=5, start_log=["first line", evil])
    tested = engine_kernel.ok("%genai engines test llm")
    listed = engine_kernel.ok("%genai engines")
    for result in (tested, listed):
        (output,) = result.outputs
        plain, html = output["data"]["text/plain"], output["data"]["text/html"]
        assert "failed" in plain
        assert "    E <script>alert(1)</script> & more" in plain.splitlines()
        assert "E &lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
        assert "first line\n" in html
        assert "<script" not in html
        assert "\x1b" not in plain + html
        assert "title" not in plain


# ---- completion -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineKernel]:
    folder = tmp_path_factory.mktemp("completion")
    with ReleaseServer() as server:
        released = Released(server, folder / "fakes")
        with kernel(folder / "kernel", folder / "home", **released.environ) as started:
            made = _prepared(EngineKernel(started.manager, started.client), released, folder)
            made.ok("%genai engines install llm")
            yield made


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("%genai engines ", ["list", "use", "test", "install", "remove", "--help", "--into"]),
        ("%genai engines in", ["install"]),
        ("%genai engines install ", ["llm", "images", "--help", "--into"]),
        ("%genai engines list im", ["images"]),
        ("%genai engines --into e install l", ["llm"]),
        ("%genai engines use llm c", ["cpu"]),
        ("%genai engines use llm a", ["auto"]),
        ("%genai engines use llm ", ["cpu", "embedded", "auto", "--help", "--into"]),
        ("%genai engines install images ", ["cpu", "--help", "--into"]),
        ("%genai engines remove llm ", ["cpu", "--help", "--into"]),
        ("%genai engines remove images ", ["--help", "--into"]),
        ("%genai engines remove llm '", [f"'{LLAMA_CPU}'"]),
        ('%genai engines remove llm "llama.cpp b98', [f'"{LLAMA_CPU}"']),
        ("%genai engines list llm --in", ["--into"]),
    ],
)
def test_what_is_offered(some_installed: EngineKernel, code: str, expected: list[str]):
    # Whether there is a llama-server on the PATH is this machine's affair.
    assert [text for text in some_installed.complete(code) if text != "path"] == expected


@pytest.mark.parametrize("code", ["%genai engines dance ", "%genai engines list llm ", "%genai engines list --into "])
def test_nothing_of_ours_is_offered_where_nothing_fits(some_installed: EngineKernel, code: str):
    assert not set(some_installed.complete(code)) & {"llm", "images", "cpu", "auto", "embedded"}


# ---- a start --------------------------------------------------------------------------------------------------------


def test_a_start_shows_what_happens_to_the_engine_and_then_the_usual_line(engine_kernel: EngineKernel):
    engine_kernel.released.serve(bytes_per_second=SLOWLY)
    engine_kernel.released.llama.set(load_seconds=0.8)
    result = engine_kernel.ok("%genai start tiny-llm --port auto")
    shown = [update["data"] for update in result.updates]
    words = "\n".join(data["text/plain"] for data in shown)
    assert f"downloading {LLAMA_CPU}" in words
    assert f"testing {LLAMA_CPU}" in words
    assert any("downloading" in data["text/html"] and 'max="100" value="' in data["text/html"] for data in shown)
    (output,) = result.outputs
    assert "tiny-llm is running, loaded in" in output["data"]["text/plain"]
    assert LLAMA_CPU in output["data"]["text/plain"]
    again = engine_kernel.ok("%genai restart llm")
    assert "testing" not in "\n".join(update["data"]["text/plain"] for update in again.updates)
    refused = engine_kernel.run("%genai engines remove llm cpu")
    assert "is running" in refused.traceback
    assert "%genai stop" in refused.traceback


def test_where_no_engine_works_the_reasons_are_told(engine_kernel: EngineKernel):
    engine_kernel.ok("%genai engines use llm cpu")
    engine_kernel.released.llama.set(exit_at_start=5, start_log=["E <b>nothing</b> works"])
    result = engine_kernel.run("%genai start tiny-llm --port auto")
    assert result.error is not None
    assert result.error["ename"] == "BinaryError"
    assert "%genai engines use llm auto" in result.traceback
    assert "stopped" in engine_kernel.ok("%genai status").text


# ---- a panel --------------------------------------------------------------------------------------------------------


def shows(kernel: Kernel, words: str, part: str = "llm.state") -> str:
    return str(
        eventually(
            lambda: (text := kernel.value(f"panel.{part}.value")) and words in text and text,
            f"{words!r} in panel.{part}",
            60,
        )
    )


def test_a_click_on_start_shows_what_happens_to_the_engine(engine_kernel: EngineKernel):
    engine_kernel.released.serve(bytes_per_second=SLOWLY // 4)
    engine_kernel.ok("%genai panel --into panel")
    engine_kernel.ok("panel.llm.start.click()")
    assert "starting tiny-llm: downloading" in shows(engine_kernel, " %)")
    assert engine_kernel.value("panel.llm.start.disabled, panel.llm.stop.disabled") == "(True, False)"
    assert "downloading" not in shows(engine_kernel, "running")
    eventually(
        lambda: engine_kernel.value("panel.llm._clicked, panel.llm._engine") == "([], '')", "the end of the start"
    )


def test_stop_ends_a_start_that_fetches(engine_kernel: EngineKernel):
    engine_kernel.released.serve(stall_after=600_000)
    engine_kernel.ok("%genai panel --into panel")
    engine_kernel.ok("panel.llm.start.click()")
    shows(engine_kernel, "downloading")
    engine_kernel.ok("panel.llm.stop.click()")
    shows(engine_kernel, "stopped")
    eventually(lambda: engine_kernel.value("panel.llm._clicked") == "[]", "the end of the start")
    assert engine_kernel.value("panel._worker.message.value") == "''"
    assert engine_kernel.value("panel.llm.start.disabled, panel.llm.stop.disabled") == "(False, True)"


def test_a_start_that_no_click_has_begun_is_shown_and_forgotten(engine_kernel: EngineKernel):
    """It runs, it fails, it is stopped: each time the row says so, and Start and Stop are what they should be."""
    engine_kernel.released.serve(bytes_per_second=SLOWLY // 4)
    engine_kernel.ok("%genai panel --into panel")
    engine_kernel.ok("from genai_notebook import llama_server, run; import asyncio, threading")
    start = "threading.Thread(target=lambda: run(llama_server.start(model_id='tiny-llm', port='auto'))).start()"
    engine_kernel.ok(start)
    shows(engine_kernel, "starting tiny-llm: downloading")
    shows(engine_kernel, "running")
    assert engine_kernel.value("panel.llm.start.disabled, panel.llm.stop.disabled") == "(True, False)"
    engine_kernel.ok("%genai stop")
    shows(engine_kernel, "stopped")

    engine_kernel.ok("%genai engines remove llm cpu")
    engine_kernel.ok("%genai engines use llm cpu")
    engine_kernel.released.llama.set(load_seconds=2, die={"exit": 5})
    engine_kernel.run("%genai start tiny-llm --port auto --context-size 512")
    shows(engine_kernel, "crashed")  # it has passed its tests before: it is not the engine that is to blame
    assert engine_kernel.value("panel.llm.start.disabled") == "False"


def test_two_kernels_of_a_notebook_server_see_the_same(tmp_path: Path):
    with ReleaseServer() as server:
        released = Released(server, tmp_path / "fakes")
        released.pin_for_jupyter(tmp_path / "jupyter" / "jupyter_config_dir")
        environ = {"GENAI_NOTEBOOK_HOME": str(tmp_path / "home"), **released.environ}
        with JupyterServer(tmp_path / "jupyter", environ) as jupyter:
            client = {"GENAI_NOTEBOOK_RUNTIME": jupyter.url, "GENAI_NOTEBOOK_TOKEN": jupyter.token}
            with (
                kernel(tmp_path / "one", tmp_path / "home", **client) as one,
                kernel(tmp_path / "two", tmp_path / "home", **client) as two,
            ):
                for each in (one, two):
                    each.ok("%load_ext genai_notebook")
                one.ok(f"%genai import {tiny_llm(tmp_path / 'files' / 'tiny.gguf')} --name 'Tiny LLM'")
                two.ok("%genai panel --into panel")
                released.serve(bytes_per_second=SLOWLY // 4)
                starting = threading.Thread(target=one.ok, args=("%genai start tiny-llm --port auto",))
                starting.start()
                shows(two, "starting tiny-llm: downloading")
                shows(two, "running")
                starting.join()
                assert two.value("panel.llm._clicked, panel.llm._engine") == "([], '')"
                assert f"{LLAMA_CPU} is running" in one.run("%genai engines remove llm cpu").traceback
                one.ok("%genai stop")
                shows(two, "stopped")
                assert "is removed" in two.ok("%genai engines remove llm cpu").text
                shown = two.ok("%genai engines install llm").updates
                assert any("downloading" in update["data"]["text/plain"] for update in shown)


# ---- a terminal -----------------------------------------------------------------------------------------------------

SCRIPT = """
from IPython.core.interactiveshell import InteractiveShell
ip = InteractiveShell.instance()
def cell(text):
    result = ip.run_cell(text)
    print("OK" if result.success else "FAILED", flush=True)
cell("%load_ext genai_notebook")
cell("%genai engines install llm")
cell("%genai engines list llm")
cell("%genai engines use llm quantum")
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_text_in_a_terminal(tmp_path: Path, terminal: bool, no_process_left: None):
    with ReleaseServer() as server:
        released = Released(server, tmp_path / "fakes")
        released.serve(bytes_per_second=SLOWLY)
        (tmp_path / "script.py").write_text(released.pinning + SCRIPT)
        environ = {**environment(tmp_path, tmp_path / "home"), **released.environ, "COLUMNS": "160"}
        output = _output([sys.executable, str(tmp_path / "script.py")], environ, terminal=terminal)
    assert output.count("OK") == 3, output
    assert output.count("FAILED") == 1
    assert f"{LLAMA_CPU} is installed." in output
    assert "in use, not tested yet" in output
    assert f"There are: {GPU}, cpu, embedded, path." in output
    assert "<div" not in output
    assert (f"downloading {LLAMA_CPU}" in output) == terminal


def _output(command: list[str], environ: dict[str, str], *, terminal: bool) -> str:
    if not terminal:
        return subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environ, stdout=theirs, stderr=theirs):
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 65536):
                output += data
        except OSError:  # Linux says EIO where the other end has closed
            pass
    os.close(ours)
    return output.decode()
