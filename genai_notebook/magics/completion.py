"""Completion inside the magics' lines: commands, options, fixed values, model ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

if TYPE_CHECKING:
    from genai_notebook.magics.arguments import Parser

_OURS = ("%genai", "genai", "%%genai_chat", "%%genai_image")
#: How long a completion may wait for the list of models, in seconds.
_WAIT = 1.5


@context_matcher(identifier="genai_notebook")  # type: ignore[untyped-decorator]
def matcher(context: Any) -> dict[str, Any]:
    """A v2 matcher of IPython's completer. Outside our magics it has nothing to say."""
    before = context.text_until_cursor
    token: str = re.split(r"\s", before)[-1]
    found = [text for text in candidates(before[: len(before) - len(token)], token) if text.startswith(token)]
    return {
        "completions": [SimpleCompletion(text, type="magic") for text in found],
        "matched_fragment": token,
        "suppress": bool(found),
        "ordered": True,
    }


def candidates(before: str, token: str) -> list[str]:
    """What may stand after the words in `before`; `token` is the word that has been begun."""
    words = before.split()
    if not words or words[0] not in _OURS:
        return []
    from genai_notebook.magics import chat_cell, commands, download_commands, image_cell

    if words[0] == "%%genai_chat":
        return _of_parser(chat_cell.parser(), words[1:], token)
    if words[0] == "%%genai_image":
        return _of_parser(image_cell.parser(), words[1:], token)
    subcommands = commands.parser().subcommands()
    if len(words) == 1:
        return list(subcommands)
    if words[1] == "help":
        return list(subcommands) if len(words) == 2 else []
    if words[1] not in subcommands:
        return []
    parser = subcommands[words[1]]
    found = _of_parser(parser, words[2:], token)
    if not token.startswith("-") and not _awaits_value(parser, words[2:]) and _is_first(words[2:]):
        if words[1] in ("start", "info", "verify", "delete", "fit"):
            found = [*_model_ids(), *found]
        elif words[1] == "download":
            found = [*download_commands.STARTERS, *found]
    return found


def _of_parser(parser: Parser, words: list[str], token: str) -> list[str]:
    if _awaits_value(parser, words):
        return parser.choices_of(words[-1])
    unused = [option for option in parser.options() if option not in words]
    if token.startswith("-"):
        return unused
    return (parser.choices_of(None) if _is_first(words) else []) + unused


def _awaits_value(parser: Parser, words: list[str]) -> bool:
    return bool(words) and words[-1].startswith("-") and parser.takes_value(words[-1])


def _is_first(words: list[str]) -> bool:
    """Whether only options stand before the cursor."""
    return all(word.startswith("-") for word in words)


def _model_ids() -> list[str]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    try:
        return [model.id for model in run(model_manager.list_models(), timeout=_WAIT)]
    except Exception:  # a completion that fails must not disturb typing
        return []
