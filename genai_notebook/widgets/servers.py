"""The rows of a panel that show one server each: its state, a model picker, Start and Stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import msgspec

from genai_notebook.core.callbacks import deliver_on_thread
from genai_notebook.core.schema import EngineProgress
from genai_notebook.display import views
from genai_notebook.display.engines import progress_of
from genai_notebook.display.words import KINDS, describe, manager_of
from genai_notebook.errors import InvalidRequestError, ServerError
from genai_notebook.widgets.work import Worker

if TYPE_CHECKING:
    from genai_notebook.core.schema import ModelInfo

_EVENTS = ("started", "stopped", "crashed")
_COLORS = {
    "running": "var(--jp-success-color1,#2e7d32)",
    "starting": "var(--jp-warn-color1,#b26a00)",
    "stopping": "var(--jp-warn-color1,#b26a00)",
    "crashed": "var(--jp-error-color1,#b00020)",
}


class ServerRow:
    """One server of the panel.

    Args:
        server: 'llm' or 'images'.
        title: what people call it; it is part of the buttons' names.
        worker: carries out the clicks.
    """

    def __init__(self, server: str, title: str, worker: Worker) -> None:
        self._manager = manager_of(server)
        self._type = "llm" if server == "llm" else "diffusion"
        self.title = title
        #: What clicks here have begun and is not over, e.g. "starting tiny …"; the latest last.
        self._clicked: list[str] = []
        #: How far an engine is that this server's start fetches or tests, whoever has begun it.
        self._engine = ""
        self._unsubscribe: Callable[[], None] = lambda: None
        self.state = widgets.HTML()
        self.models = widgets.Dropdown(
            description=KINDS[self._type].capitalize(),
            options=[],
            style={"description_width": "9em"},
            layout=widgets.Layout(width="30em"),
        )
        name = f"{title[:1].lower()}{title[1:]}"
        self.start = widgets.Button(description=f"Start {name}", button_style="primary")
        self.stop = widgets.Button(description=f"Stop {name}")
        for button in (self.start, self.stop):
            button.layout.width = "auto"
        worker.on_click(self.start, self._start)
        worker.on_click(self.stop, self._stop)
        controls = widgets.HBox([self.models, self.start, self.stop])
        controls.layout.flex_flow = "row wrap"
        self.view = widgets.VBox([self.state, controls])

    def listen(self) -> None:
        """Follow the server's events. They arrive on the callback thread, where a status may be asked for."""
        from genai_notebook.current import current

        for event in _EVENTS:
            self._manager.on(event, self._changed)
        self._manager.on("binary-progress", self._engine_news)
        # Some changes are no events: that a start has begun, or that it has ended without a server.
        changed, name = deliver_on_thread(self._changed), self._manager.name
        self._unsubscribe = current().runtime.subscribe(
            lambda event, data: changed() if event == "status" and data["server"] == name else None
        )

    def close(self) -> None:
        self._unsubscribe()
        for event in _EVENTS:
            self._manager.off(event, self._changed)
        self._manager.off("binary-progress", self._engine_news)

    def _changed(self, *_: Any) -> None:
        self.refresh()

    def _engine_news(self, news: dict[str, Any]) -> None:
        fraction, words = progress_of(msgspec.convert(news, EngineProgress))
        self._engine = words + (f" ({100 * fraction:.0f} %)" if fraction is not None else "")
        self.refresh()

    def set_models(self, models: list[ModelInfo]) -> None:
        """Offer those of `models` that this server can load, the newest first; the choice is kept."""
        own = sorted((m for m in models if m.type == self._type), key=lambda m: m.downloaded_at, reverse=True)
        chosen = self.models.value or self._manager.get_info().model_id
        self.models.options = [(f"{views.clean(m.id)} ({views.size(m.size)})", m.id) for m in own]
        if own:
            self.models.value = chosen if any(m.id == chosen for m in own) else own[0].id
        self.refresh()

    def refresh(self) -> None:
        """Show the server's state as it is now."""
        info = self._manager.get_info()
        if info.status != "starting":
            self._engine = ""
        doing = self._clicked[-1].split()[0] if self._clicked else ""
        dot = f'<span aria-hidden="true" style="color:{_COLORS.get(doing or info.status, "#888")}">●</span>'
        self.state.value = f"{dot} <b>{views.html(self.title)}</b>: {views.html(self._words(info))}"
        self.start.disabled = bool(doing) or info.status in ("running", "starting") or not self.models.options
        # A start can be stopped: it may have a large engine to fetch.
        self.stop.disabled = doing == "stopping" or info.status == "stopped"
        self.models.disabled = self.start.disabled and bool(self.models.options)

    def words(self) -> str:
        """The server's state in one line."""
        return self._words(self._manager.get_info())

    def _words(self, info: Any) -> str:
        stopping = bool(self._clicked) and self._clicked[-1].startswith("stopping")
        if self._engine and info.status == "starting" and not stopping:
            return f"starting {info.model_id}: {self._engine}"
        return self._clicked[-1] if self._clicked else describe(info)

    async def _start(self) -> None:
        if not self.models.value:
            raise InvalidRequestError("Choose a model first.", {"field": "model"})
        try:
            model = self.models.value
            await self._doing(f"starting {model} …", self._manager.start(model_id=model))
        except ServerError as error:
            if error.code != "START_CANCELLED":  # somebody has clicked Stop, and that is no failure
                raise

    async def _stop(self) -> None:
        await self._doing("stopping …", self._manager.stop())

    async def _doing(self, words: str, work: Coroutine[Any, Any, Any]) -> None:
        self._clicked.append(words)
        await asyncio.to_thread(self.refresh)
        try:
            await work
        finally:
            self._clicked.remove(words)
            await asyncio.to_thread(self.refresh)
