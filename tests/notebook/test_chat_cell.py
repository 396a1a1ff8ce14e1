"""%%genai_chat and `chat`, with the real LLM and with a fake that misbehaves."""

from __future__ import annotations

import pytest

from tests.fakes import eventually
from tests.notebook.conftest import FakeKernel
from tests.notebook.kernels import Kernel

# The starter is a very small model: this system message makes its answer a sure one.
SYSTEM = "You answer questions correctly and briefly."
QUESTION = f"%%genai_chat --new --system '{SYSTEM}' --temperature 0 --max-tokens 24\nWhat is the capital of France?"

BUSY = """
import httpx
from genai_notebook import llama_server

info = llama_server.get_info()
key = {"Authorization": f"Bearer {info.api_key}"}

def busy():
    slots = httpx.get(info.url + "/slots", headers=key, trust_env=False)
    return any(slot["is_processing"] for slot in slots.raise_for_status().json())
"""


@pytest.mark.engines
class TestRealAnswer:
    def test_a_true_answer_grows_in_one_output_and_stays(self, real_kernel: Kernel):
        result = real_kernel.ok(QUESTION)
        (output,) = result.outputs
        assert "Paris" in output["data"]["text/markdown"]
        assert "Paris" in output["data"]["text/plain"]
        assert len(result.updates) >= 2
        facts = output["metadata"]["genai_notebook"]
        assert facts["model"] == "smollm2-135m-instruct"
        assert facts["usage"]["completion_tokens"] >= 1
        assert facts["timings"]["predicted_per_second"] > 0
        assert not result.stdout
        assert not result.stderr

    def test_the_answer_is_kept_in_a_variable(self, real_kernel: Kernel):
        real_kernel.ok(QUESTION.replace("--new", "--new --into answer"))
        assert "Paris" in real_kernel.value("str(answer)")
        assert int(real_kernel.value("answer.usage['total_tokens']")) > 0

    def test_max_tokens_cuts_and_says_so(self, real_kernel: Kernel):
        result = real_kernel.ok("%%genai_chat --new --max-tokens 2 --into cut\nCount to one hundred.")
        assert "cut off" in result.text
        assert real_kernel.value("cut.finish_reason, cut.usage['completion_tokens']") == "('length', 2)"

    def test_a_prompt_past_the_context_is_an_error_with_the_way_out(self, real_kernel: Kernel):
        real_kernel.ok("words = 'word ' * 20000")
        result = real_kernel.run("import genai_notebook\ngenai_notebook.chat(words)")
        assert result.error is not None
        assert result.error["ename"] == "InvalidRequestError"
        assert "does not fit the context" in result.traceback
        assert "--new" in result.traceback

    def test_interrupt_ends_the_answer_in_the_engine_too(self, real_kernel: Kernel):
        result = real_kernel.run(
            "%%genai_chat --new --temperature 1\nWrite a very long story about the sea, of at least 5000 words.",
            when=lambda so_far: len(so_far.text) > 20,
            then=real_kernel.interrupt,
        )
        assert result.status == "error"
        assert result.error is not None
        assert result.error["ename"] == "Interrupted"
        assert len(result.error["traceback"]) == 1
        assert result.text.endswith("[interrupted]")
        real_kernel.ok(BUSY)
        eventually(lambda: real_kernel.value("busy()") == "False", "an idle engine")
        assert "Paris" in real_kernel.ok(QUESTION).text

    def test_chat_from_python(self, real_kernel: Kernel):
        real_kernel.ok("import genai_notebook as g\n")
        real_kernel.ok(f"ask = dict(system={SYSTEM!r}, temperature=0, max_tokens=24)")
        real_kernel.ok("answer = g.chat('What is the capital of France?', **ask)")
        assert "Paris" in real_kernel.value("answer.text")
        real_kernel.ok("stream = g.chat('What is the capital of France?', stream=True, **ask)\npieces = list(stream)")
        assert real_kernel.value("len(pieces) > 1 and ''.join(pieces) == stream.answer.text == answer.text") == "True"
        assert real_kernel.value("stream.answer.usage == answer.usage") == "True"
        real_kernel.ok(
            "later = await g.achat('What is the capital of France?', **ask)\n"
            "apieces = [p async for p in await g.achat('What is the capital of France?', stream=True, **ask)]"
        )
        assert real_kernel.value("later.text == ''.join(apieces) == answer.text") == "True"


class TestConversation:
    def messages(self, kernel: FakeKernel) -> list[dict[str, str]]:
        return list(kernel.llama.journal("chat")[-1]["body"]["messages"])

    def test_it_goes_on_from_cell_to_cell_until_new(self, fake_kernel: FakeKernel):
        fake_kernel.ok("%genai start tiny-llm --port auto")
        fake_kernel.ok("%%genai_chat --system 'Be brief.'\nWhere is the Louvre?")
        fake_kernel.ok("%%genai_chat\nAnd the Prado?")
        assert self.messages(fake_kernel) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is the Louvre?"},
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And the Prado?"},
        ]
        fake_kernel.ok("%%genai_chat --new\nHello")
        assert self.messages(fake_kernel) == [{"role": "user", "content": "Hello"}]

    def test_an_interrupted_answer_is_no_part_of_it(self, fake_kernel: FakeKernel):
        fake_kernel.ok("%genai start tiny-llm --port auto")
        fake_kernel.llama.set(reply="one two three four five six seven eight", token_seconds=0.5)
        cut = fake_kernel.run(
            "%%genai_chat\nCount", when=lambda so_far: "one" in so_far.text, then=fake_kernel.interrupt
        )
        assert cut.status == "error"
        fake_kernel.llama.set(reply="Paris.", token_seconds=None)
        fake_kernel.ok("%%genai_chat\nHello")
        assert self.messages(fake_kernel) == [{"role": "user", "content": "Hello"}]

    def test_an_engine_that_dies_in_the_middle(self, fake_kernel: FakeKernel):
        fake_kernel.ok("%genai start tiny-llm --port auto")
        fake_kernel.llama.set(reply="one two three four five six seven eight", token_seconds=0.3)
        result = fake_kernel.run(
            "%%genai_chat\nCount",
            when=lambda so_far: "one" in so_far.text,
            then=lambda: fake_kernel.llama.set(die={"signal": "SIGKILL"}),
        )
        assert result.error is not None
        assert result.error["ename"] == "ServerError"
        assert "connection to the LLM was lost" in result.traceback
        assert "[failed]" in result.text
        fake_kernel.llama.reset()
        eventually(lambda: "crashed" in fake_kernel.ok("%genai status").text, "the crash in the status")
        again = fake_kernel.run("%%genai_chat\nHello")
        assert "The LLM has crashed" in again.traceback
        assert "%genai logs" in again.traceback

    def test_html_and_escapes_in_an_answer_do_no_harm(self, fake_kernel: FakeKernel):
        fake_kernel.ok("%genai start tiny-llm --port auto")
        fake_kernel.llama.set(reply="\x1b]0;evil\x07 \x1b[31mred\x1b[0m {braces} $dollar")
        result = fake_kernel.ok("%%genai_chat\nHello")
        assert "\x1b" not in result.text
        assert result.text.strip().endswith("red {braces} $dollar")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("g.chat('')", "prompt: must be a text"),
        ("g.chat(7)", "prompt: must be a text"),
        ("g.chat('x', temprature=1)", "There is no option 'temprature'."),
        ("g.chat('x', temperature='warm')", "temperature"),
        ("await g.achat('x', max_tokens=-1)", "max_tokens"),
        ("g.chat('x', server='no such name!')", "cannot be the name"),
    ],
)
def test_wrong_arguments_are_named(shared_kernel: Kernel, call: str, words: str):
    result = shared_kernel.run(f"import genai_notebook as g\n{call}")
    assert result.error is not None
    assert result.error["ename"] == "InvalidRequestError"
    assert words in result.traceback


def test_embed_is_not_there_yet(shared_kernel: Kernel):
    for call in ("g.embed(['x'])", "await g.aembed(['x'])"):
        result = shared_kernel.run(f"import genai_notebook as g\n{call}")
        assert result.error is not None
        assert result.error["ename"] == "NotYetError"
