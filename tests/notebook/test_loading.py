"""Loading and unloading the extension in a real kernel."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.notebook.kernels import Kernel, environment, kernel


def test_load_registers_the_magics_and_only_them(tmp_path):
    with kernel(tmp_path / "kernel", tmp_path / "home") as fresh:
        found = "sorted(n for n in get_ipython().magics_manager.magics[kind] if 'genai' in n)"
        magics = "{kind: %s for kind in ('line', 'cell')}" % found  # noqa: UP031 - braces are Python's here
        assert fresh.value(magics) == "{'line': [], 'cell': []}"
        loaded = fresh.ok("%load_ext genai_notebook")
        assert not loaded.outputs
        assert loaded.stdout == loaded.stderr == ""
        assert fresh.value(magics) == "{'line': ['genai'], 'cell': ['genai_chat', 'genai_image']}"
        fresh.ok("%unload_ext genai_notebook")
        assert fresh.value(magics) == "{'line': [], 'cell': []}"
        assert fresh.value("[m for m in get_ipython().Completer.custom_matchers]") == "[]"
        assert fresh.run("%genai status").status == "error"
        fresh.ok("%load_ext genai_notebook")
        assert "commands" in fresh.ok("%genai -h").stdout


def test_loading_twice_and_reloading_are_harmless(bare_kernel: Kernel):
    bare_kernel.ok("%load_ext genai_notebook")
    bare_kernel.ok("import genai_notebook; genai_notebook.load_ipython_extension(get_ipython())")
    bare_kernel.ok("%reload_ext genai_notebook")
    assert bare_kernel.value("len(get_ipython().Completer.custom_matchers)") == "1"
    assert "No models yet" in bare_kernel.ok("%genai models").text


def test_unload_without_load_is_harmless(tmp_path):
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "import genai_notebook as g\n"
        "g.unload_ipython_extension(S.instance())\n"
        "print('ok')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "ok"


def test_loading_imports_nothing_heavy(tmp_path):
    """In plain IPython, where tornado is not there anyway."""
    code = (
        "import json, sys\n"
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "ip = S.instance()\n"
        "before = set(sys.modules)\n"
        "ip.run_line_magic('load_ext', 'genai_notebook')\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, tmp_path), capture_output=True, text=True, check=True
    )
    added = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    heavy = {"tornado", "httpx", "huggingface_hub", "ipywidgets", "gguf", "numpy", "psutil", "platformdirs", "pynvml"}
    assert "genai_notebook" in added
    assert not added & heavy


def test_help_is_the_same_by_every_way(shared_kernel: Kernel):
    by_option = shared_kernel.ok("%genai -h").stdout
    assert by_option.startswith("usage: %genai")
    commands = """system models download import info delete start stop restart status logs engines panel help"""
    for command in commands.split():
        assert f"\n    {command} " in by_option
    assert shared_kernel.ok("%genai help").stdout.strip() == by_option.strip()
    assert shared_kernel.ok("%genai").stdout.strip() == by_option.strip()
    page = shared_kernel.ok("%genai?").reply["payload"][0]["data"]["text/plain"]
    for line in by_option.splitlines():
        assert line.strip() in page


def test_help_of_one_command_and_of_the_cells(shared_kernel: Kernel):
    assert "--context-size" in shared_kernel.ok("%genai start -h").stdout
    assert shared_kernel.ok("%genai help start").stdout.strip() == shared_kernel.ok("%genai start -h").stdout.strip()
    for name, option in (("genai_chat", "--temperature"), ("genai_image", "--negative")):
        assert option in shared_kernel.ok(f"%%{name} -h\nnothing").stdout
        assert option in shared_kernel.ok(f"%%{name}?").reply["payload"][0]["data"]["text/plain"]
