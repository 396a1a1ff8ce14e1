"""Completion inside the magics' lines: commands, options, fixed values, model ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

if TYPE_CHECKING:
    from genai_notebook.core.schema import EngineCandidate
    from genai_notebook.magics.arguments import Parser

_OURS = ("%genai", "genai", "%%genai_chat", "%%genai_image")
#: The word that has been begun: what stands behind the last space, or behind a quote that is still open.
_TOKEN = re.compile(r"""(?:^|(?<=\s))(?:"[^"]*|'[^']*|\S*)$""")
#: How long a completion may wait for a list of models or engines, in seconds.
_WAIT = 1.5


@context_matcher(identifier="genai_notebook")  # type: ignore[untyped-decorator]
def matcher(context: Any) -> dict[str, Any]:
    """A v2 matcher of IPython's completer. Outside our magics it has nothing to say."""
    before = context.text_until_cursor
    match = _TOKEN.search(before)
    token: str = match[0] if match else ""
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
    if token.startswith("-") or _awaits_value(parser, words[2:]):
        return found
    if words[1] == "engines":
        return [*_engine_words(_positional(parser, words[2:]), token), *found]
    if _is_first(words[2:]):
        if words[1] in ("start", "info", "verify", "delete", "fit"):
            return [*_model_ids(), *found]
        if words[1] == "download":
            return [*download_commands.STARTERS, *found]
    return found


def _engine_words(before: list[str], token: str) -> list[str]:
    """What may follow `%genai engines` and the words in `before`: the kind of engine, then which one."""
    from genai_notebook.magics.engine_commands import ACTIONS, KINDS

    if len(before) == 1 and before[0] in ACTIONS:
        return list(KINDS)
    if len(before) != 2 or before[0] not in ACTIONS[1:] or before[1] not in KINDS:
        return []
    action, kind = before[0], KINDS[before[1]]
    engines = [each for each in _engines() if each.kind == kind and _is_for(action, each)]
    if token[:1] in ("'", '"'):
        return [f"{token[0]}{each.name}{token[0]}" for each in engines]
    return [*dict.fromkeys(each.variant for each in engines), *(["auto"] if action == "use" else [])]


def _is_for(action: str, engine: EngineCandidate) -> bool:
    """Whether `%genai engines` can do that with this engine, as far as the list tells."""
    here = engine.state in ("works", "usable", "failed")
    built = engine.variant not in ("explicit", "embedded", "path")
    if action == "install":
        return built and engine.state != "unsupported"
    if action == "remove":
        return built and here and engine.path is not None
    return here or (action == "use" and engine.state == "available")


def _of_parser(parser: Parser, words: list[str], token: str) -> list[str]:
    if _awaits_value(parser, words):
        return parser.choices_of(words[-1])
    unused = [option for option in parser.options() if option not in words]
    if token.startswith("-"):
        return unused
    return (parser.choices_of(None) if _is_first(words) else []) + unused


def _awaits_value(parser: Parser, words: list[str]) -> bool:
    return bool(words) and words[-1].startswith("-") and parser.takes_value(words[-1])


def _positional(parser: Parser, words: list[str]) -> list[str]:
    """The words that are neither options nor their values."""
    pairs = zip(["", *words], words, strict=False)
    return [word for last, word in pairs if not word.startswith("-") and not _awaits_value(parser, [last])]


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


def _engines() -> list[EngineCandidate]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import engine_manager

    try:
        return run(engine_manager.list(), timeout=_WAIT)
    except Exception:  # as above
        return []
