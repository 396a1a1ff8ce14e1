"""%genai's commands that start no engine: outputs, results, errors."""

from __future__ import annotations

import pytest

from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.notebook.kernels import Kernel


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%genai strat", "there is no command 'strat'. Did you mean 'start'?"),
        ("%genai models --type llam", "there is no 'llam' here; choose from llm, diffusion. Did you mean 'llm'?"),
        ("%genai models --into 2x", "'2x' is not a variable name"),
        ("%genai models --into class", "'class' is not a variable name"),
        ("%genai models --nonsense", "unrecognized arguments: --nonsense"),
        ("%genai start --port 70000", "'70000' is neither a port (1-65535) nor 'auto'"),
        ("%genai start --threads many", "invalid int value: 'many'"),
        ("%genai info", "the following arguments are required: MODEL"),
        ("%genai info 'half", "The line cannot be read: no closing quotation."),
        ("%genai stop everything", "there is no 'everything' here"),
        ("%genai help nothing", "there is no command 'nothing'"),
        ("%genai logs --lines 0", "--lines must be 1 or more"),
        ("%genai download", "what?"),
        ("%genai download startr", "'startr' is no source. Did you mean 'starter'?"),
        ("%genai download hf:owner", "'hf:owner' is no source"),
        ("%genai download /models/x.gguf", "use %genai import"),
        ("%genai download --component vea=x", "is not ROLE=WHERE; roles: diffusion_model, "),
        ("%genai search", "the following arguments are required: WORD"),
        ("%genai info x --refresh elsewhere", "there is no 'elsewhere' here"),
        ("%genai fit", "the following arguments are required: MODEL"),
        ("%genai fit x --context-size many", "invalid int value: 'many'"),
        ("%genai panel sytem", "there is no 'sytem' here; choose from servers, system. Did you mean 'system'?"),
        ("%genai download starter --name x", "takes no further options"),
        ("%genai download https://a.example/x.gguf --repo a/b", "one source at a time"),
        ("%genai download https://a.example/x.gguf --url https://b.example/y.gguf", "contradict each other"),
        ("%%genai_chat\n   ", "the cell is empty"),
        ("%%genai_chat --temperature hot\nHi", "invalid float value: 'hot'"),
        ("%%genai_image\n  \n", "the cell is empty"),
        ("%%genai_image --sampler best\na fox", "there is no 'best' here; choose from euler_a"),
        ("%%genai_image --save nowhere/fox.png\na fox", "there is no folder 'nowhere'"),
    ],
)
def test_a_wrong_line_is_one_line_and_fails_the_cell(shared_kernel: Kernel, line: str, words: str):
    result = shared_kernel.run(line)
    assert result.status == "error"
    shown = result.stderr.strip() or result.traceback
    assert words in shown
    assert len(shown.splitlines()) == 1
    assert not result.outputs


@pytest.mark.parametrize(
    ("line", "name", "words", "hint"),
    [
        ("%genai info nobody", "ModelNotFoundError", "There is no model 'nobody'.", "%genai models"),
        ("%genai delete nobody", "ModelNotFoundError", "There is no model 'nobody'.", "%genai models"),
        ("%genai start nobody", "ModelNotFoundError", "There is no model 'nobody'.", "%genai models"),
        ("%genai fit nobody", "ModelNotFoundError", "There is no model 'nobody'.", "%genai models"),
        ("%genai start", "InvalidRequestError", "No language model is installed yet.", "%genai download starter"),
        ("%genai start --images", "InvalidRequestError", "No image model is installed yet.", "starter-image"),
        ("%genai import /nowhere/x.gguf", "InvalidRequestError", "/nowhere/x.gguf", ""),
        ("%%genai_chat\nHi", "ServerError", "No LLM is running.", "%genai download starter"),
        ("%%genai_chat --temperature -1\nHi", "InvalidRequestError", "temperature", ""),
        ("%%genai_chat --max-tokens 0\nHi", "InvalidRequestError", "max_tokens", ""),
        ("%%genai_image\na fox", "ServerError", "Image generation is not running.", "starter-image"),
        ("%%genai_image --width 500\na fox", "InvalidRequestError", "width", ""),
        ("%%genai_image --steps 0\na fox", "InvalidRequestError", "steps", ""),
        ("%%genai_image --count 6\na fox", "InvalidRequestError", "count", ""),
    ],
)
def test_an_error_is_typed_short_and_says_the_way_out(
    shared_kernel: Kernel, line: str, name: str, words: str, hint: str
):
    result = shared_kernel.run(line)
    assert result.status == "error"
    assert result.error is not None
    assert result.error["ename"] == name
    assert words in result.traceback
    assert hint in result.traceback
    assert len(result.error["traceback"]) <= 2  # the message and the way out, no stack
    assert "Traceback" not in result.traceback


def test_run_all_stops_at_an_error(shared_kernel: Kernel):
    """Both kinds of errors abort what was sent behind them."""
    for line in ("%genai nonsense", "%genai info nobody"):
        shared_kernel.client.execute(line)
        after = shared_kernel.client.execute("executed = True")
        assert shared_kernel._reply(after)["status"] == "aborted"


def test_system_says_what_the_machine_can_hold(shared_kernel: Kernel):
    result = shared_kernel.ok("%genai system --into machine")
    (output,) = result.outputs
    assert "What this machine can hold" in output["data"]["text/plain"]
    assert "<table>" in output["data"]["text/html"]
    assert 'role="img" aria-label="Memory: ' in output["data"]["text/html"]
    for name in ("this kernel", "other programs", "free"):
        assert name in output["data"]["text/plain"]
    for word in ("Processor", "Memory", "GPU", "Threads"):
        assert word in output["data"]["text/plain"]
    assert int(shared_kernel.value("machine.cpu.cores")) >= 1
    assert not result.stdout


def test_system_can_be_watched_until_an_interrupt(shared_kernel: Kernel):
    result = shared_kernel.run(
        "%genai system --watch --into watched",
        when=lambda so_far: len(so_far.updates) >= 3,
        then=shared_kernel.interrupt,
    )
    assert result.status == "ok"
    (output,) = result.outputs
    assert output["data"]["text/plain"].splitlines()[-1].startswith("Watched until ")
    assert "Memory: " in output["data"]["text/plain"]
    assert int(shared_kernel.value("watched.cpu.cores")) >= 1


def test_fit_says_at_which_context_a_model_fits(shared_kernel: Kernel, tmp_path):
    shared_kernel.ok(f'%genai import "{tiny_llm(tmp_path / "fit.gguf")}" --name fits')
    shared_kernel.ok(f'%genai import "{tiny_diffusion(tmp_path / "sd.gguf")}" --name "fits a picture" --type diffusion')
    result = shared_kernel.ok("%genai fit fits --context-size 512 --cache-type-k q8_0 --parallel 2 --into rows")
    assert "%genai start fits would take: context 2,048" in result.text
    (output,) = result.outputs
    assert "<table>" in output["data"]["text/html"]
    rows = "[(row['context_size'], row['fits'], row['exact']) for row in rows if row['placement'] == 'CPU']"
    assert shared_kernel.value(rows) == "[(512, 'now', True), (2048, 'now', True)]"
    assert "By size × 1.2" in shared_kernel.ok("%genai fit fits-a-picture").text
    assert "Did you mean fits or fits-a-picture?" in shared_kernel.run("%genai fit fit").traceback
    for id in ("fits", "fits-a-picture"):
        shared_kernel.ok(f"%genai delete {id}")


def test_import_list_info_delete(shared_kernel: Kernel, tmp_path):
    file = tiny_llm(tmp_path / "my files" / "tiny.gguf")
    name = "<b>bold</b> & co"
    imported = shared_kernel.ok(f'%genai import "{file}" --name "{name}" --into model')
    assert "is registered" in imported.text
    id = shared_kernel.value("model.id").strip("'")
    shared_kernel.ok(f'%genai import "{tiny_diffusion(tmp_path / "sd.gguf")}" --name paint --type diffusion')

    listed = shared_kernel.ok("%genai models --into models")
    assert id in listed.text
    assert name in listed.text
    html = listed.outputs[0]["data"]["text/html"]
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in html
    assert "<b>" not in html
    assert shared_kernel.value("sorted(m.type for m in models)") == "['diffusion', 'llm']"
    assert "paint" not in shared_kernel.ok("%genai models --type llm").text

    shown = shared_kernel.ok(f"%genai info {id}")
    assert str(file) in shown.text
    assert "2048 tokens" in shown.text
    assert "<b>bold" not in shown.outputs[0]["data"]["text/html"]

    assert "Did you mean paint?" in shared_kernel.run("%genai start pain").traceback
    wrong = shared_kernel.run(f"%genai start {id} --images")
    assert f"{id} is a language model, not an image model." in wrong.traceback

    deleted = shared_kernel.ok(f"%genai delete {id}")
    assert "the file stays where it is" in deleted.text
    assert file.exists()
    shared_kernel.ok("%genai delete paint")
    assert "No models yet" in shared_kernel.ok("%genai models").text


def test_options_of_the_other_server_are_refused(shared_kernel: Kernel, tmp_path):
    shared_kernel.ok(f'%genai import "{tiny_diffusion(tmp_path / "sd.gguf")}" --name paint2 --type diffusion')
    result = shared_kernel.run("%genai start paint2 --context-size 4096")
    assert "--context-size is not for image models" in (result.stderr + result.traceback)
    shared_kernel.ok("%genai delete paint2")


def test_status_says_who_owns_the_engines_and_why(shared_kernel: Kernel):
    result = shared_kernel.ok("%genai status --into state")
    assert "this kernel" in result.text
    assert "Why" in result.text
    assert shared_kernel.value("state['owner']") == "'kernel'"
    assert shared_kernel.value("state['llm'].status, state['images'].status") == "('stopped', 'stopped')"
    assert len(shared_kernel.value("state['reason']")) > 10


def test_stopping_what_does_not_run_is_no_error(shared_kernel: Kernel):
    assert "Nothing is running." in shared_kernel.ok("%genai stop").text
    assert "No image generation is running." in shared_kernel.ok("%genai stop images").text
    assert "Nothing is running." in shared_kernel.ok("%genai restart all").text


def test_variables_are_expanded_in_the_line_and_never_in_a_prompt(fake_kernel):
    fake_kernel.ok("model = 'tiny-llm'")
    fake_kernel.ok("%genai start {model} --port auto")
    fake_kernel.ok("%%genai_chat\nsay {model} and $model and {1+1}")
    (sent,) = fake_kernel.llama.journal("chat")
    assert sent["body"]["messages"][-1]["content"] == "say {model} and $model and {1+1}"


def test_engines_are_listed(shared_kernel: Kernel):
    result = shared_kernel.ok("%genai engines --into engines")
    assert shared_kernel.value("{e.kind for e in engines} == {'llama', 'diffusion'}") == "True"
    assert "Engine" in result.text
