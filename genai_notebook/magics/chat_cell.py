"""%%genai_chat: ask the running LLM; the answer grows in the cell and stays there."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.views import Bundle
from genai_notebook.magics.arguments import HelpShown, Parser, add_into, given, split
from genai_notebook.magics.shell import Interrupted, Shell

if TYPE_CHECKING:
    from genai_notebook._chat import ChatAnswer

_DESCRIPTION = """\
Ask the running language model (%genai start); the answer appears in the cell.

  %%genai_chat --temperature 0
  What is the capital of France?

The cell's text is sent as it is. The conversation goes on from cell to cell.
"""


@functools.lru_cache(maxsize=1)
def parser() -> Parser:
    parser = Parser(prog="%%genai_chat", description=_DESCRIPTION)
    parser.add_argument("--system", metavar="TEXT", help="instructions for the model, kept for the conversation")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest word")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--new", action="store_true", help="begin a new conversation")
    add_into(parser, "the answer")
    return parser


def run_cell(shell: Shell, line: str, cell: str) -> None:
    """Carry out one `%%genai_chat` cell.

    Raises:
        UsageError: the line is wrong, or the cell is empty.
        GenaiNotebookError: no LLM runs, or it failed.
        Interrupted: the user interrupted; the request has ended in the engine too.
    """
    try:
        arguments = parser().parse_args(split(line))
    except HelpShown:
        return
    prompt = cell.strip()
    if not prompt:
        raise UsageError("%%genai_chat: the cell is empty; write the question below the first line.")
    answer = _ask(shell, prompt, arguments)
    shell.store(arguments.into, answer)


def _ask(shell: Shell, prompt: str, arguments: argparse.Namespace) -> ChatAnswer:
    from genai_notebook._chat import ChatAnswer, ChatOptions, ask, find_endpoint
    from genai_notebook.client.bridge import run
    from genai_notebook.core.validation import from_keywords

    system = arguments.system if arguments.system is not None or arguments.new else shell.system
    messages = [] if arguments.new else shell.messages
    options = from_keywords(
        ChatOptions, {"system": system, "history": messages, **given(arguments, "temperature", "max_tokens")}
    )
    so_far = ChatAnswer()
    live = None
    try:
        run(find_endpoint())  # before the output is made: an error needs none
        live = shell.live_text(_bundle(so_far))

        def draw(_: str, answer: ChatAnswer) -> None:
            nonlocal so_far
            so_far = answer
            live.update(_bundle(answer))

        answer = run(ask(prompt, options, draw))
    except KeyboardInterrupt:
        if live:
            live.finish(_bundle(so_far, "interrupted"))
        raise Interrupted("Interrupted: the answer was cut off and is not part of the conversation.") from None
    except BaseException:
        if live:
            live.finish(_bundle(so_far, "failed" if so_far.text else ""))
        raise
    ending = "cut off by --max-tokens or the end of the context" if answer.finish_reason == "length" else ""
    live.finish(_bundle(answer, ending), _metadata(answer))
    shell.system = system
    shell.messages = [
        *messages,
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer.text},
    ]
    return answer


def _bundle(answer: ChatAnswer, ending: str = "") -> Bundle:
    """The answer as Markdown and as text, the thoughts of a reasoning model folded away above it."""
    text = views.clean(answer.text)
    plain, markdown = text, text
    if answer.reasoning:
        thoughts = views.html(answer.reasoning.strip()).replace("\n", "<br>")
        state = "" if answer.text else " open"
        markdown = f"<details{state}><summary>Thoughts</summary>{thoughts}</details>\n\n{text}"
    if ending:
        plain, markdown = f"{plain} [{ending}]".strip(), f"{markdown} *[{ending}]*".strip()
    return {"text/markdown": markdown, "text/plain": plain}


def _metadata(answer: ChatAnswer) -> dict[str, Any]:
    """What is saved beside the answer: who said it, how many tokens, how fast."""
    facts = {
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "timings": answer.timings,
    }
    return {"genai_notebook": {name: value for name, value in facts.items() if value}}
