"""The words for engines: what state one is in, how far it is on its way, and what it printed last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from genai_notebook.display import views
from genai_notebook.display.live import Live

if TYPE_CHECKING:
    from genai_notebook.core.schema import EngineCandidate, EngineProgress

_STATES = {
    "works": "works",
    "usable": "not tested yet",
    "available": "can be installed",
    "missing": "not here",
    "unsupported": "not for this machine",
    "failed": "failed",
}
_STAGES = {
    "queued": "another process installs it",
    "downloading": "downloading",
    "verifying": "verifying its SHA-256",
    "unpacking": "unpacking",
    "testing": "testing",
}
_LOG = "margin:2px 0 2px 1em;white-space:pre-wrap"


def state_of(engine: EngineCandidate) -> str:
    """E.g. ``in use, works on the GPU``."""
    words = _STATES[engine.state]
    if engine.state == "works" and engine.gpu is not None:
        words += " on the GPU" if engine.gpu else " on the CPU"
    return f"in use, {words}" if engine.in_use else words


def progress_of(news: EngineProgress) -> tuple[float | None, str]:
    """How far it is (None where that is not known), and what is being done, in words."""
    if news.stage == "done":
        return None, ""
    words = f"{_STAGES[news.stage]} {news.engine}" if news.stage != "queued" else f"{news.engine}: {_STAGES['queued']}"
    if news.stage in ("downloading", "unpacking") and news.done:
        of = f" of {views.size(news.total)}" if news.total else ""
        return (news.done / news.total if news.total else None), f"{words} · {views.size(news.done)}{of}"
    return None, words


def with_log(bundle: views.Bundle, engine: EngineCandidate) -> views.Bundle:
    """`bundle`, and below it the last lines that the engine printed, where there are any."""
    if not engine.log:
        return bundle
    title = f"The log of {engine.name} ends with:"
    lines = [line for text in engine.log for line in views.clean(text).splitlines()]
    body = views.html("\n".join(lines))
    return {
        "text/plain": "\n".join([bundle["text/plain"], f"  {views.clean(title)}", *(f"    {line}" for line in lines)]),
        "text/html": (
            f"{bundle['text/html']}<details open><summary>{views.html(title)}</summary>"
            f'<pre style="{_LOG}">{body}</pre></details>'
        ),
    }


class Meter:
    """Shows, at every call, how long something has been going on; and how far an engine is that it waits for."""

    def __init__(self, title: str, live: Live) -> None:
        self._title = title
        self._live = live
        self._began = time.monotonic()
        self._news: tuple[float | None, str] = (None, "")

    def __call__(self) -> None:
        fraction, words = self._news
        took = views.duration(time.monotonic() - self._began)
        self._live.update(views.progress(self._title, fraction, " · ".join(filter(None, (words, took)))))

    def hear(self, news: dict[str, Any]) -> None:
        """What an event `binary-progress` tells."""
        import msgspec

        from genai_notebook.core.schema import EngineProgress

        self._news = progress_of(msgspec.convert(news, EngineProgress))
        self()
