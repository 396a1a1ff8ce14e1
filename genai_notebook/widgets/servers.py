"""The rows of a panel that show one server each: its state, a model picker, Start and Stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from genai_notebook.display import views
from genai_notebook.display.words import KINDS, describe, manager_of
from genai_notebook.errors import InvalidRequestError
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
        self._busy = ""
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
        for event in _EVENTS:
            self._manager.on(event, self._changed)

    def close(self) -> None:
        for event in _EVENTS:
            self._manager.off(event, self._changed)

    def _changed(self, *_: Any) -> None:
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
        state = self._busy or info.status
        dot = f'<span aria-hidden="true" style="color:{_COLORS.get(state.split()[0], "#888")}">●</span>'
        self.state.value = f"{dot} <b>{views.html(self.title)}</b>: {views.html(self.words())}"
        self.start.disabled = bool(self._busy) or info.status in ("running", "starting") or not self.models.options
        self.stop.disabled = bool(self._busy) or info.status == "stopped"
        self.models.disabled = self.start.disabled and bool(self.models.options)

    def words(self) -> str:
        """The server's state in one line."""
        return self._busy or describe(self._manager.get_info())

    async def _start(self) -> None:
        if not self.models.value:
            raise InvalidRequestError("Choose a model first.", {"field": "model"})
        await self._doing(f"starting {self.models.value} …", self._manager.start(model_id=self.models.value))

    async def _stop(self) -> None:
        await self._doing("stopping …", self._manager.stop())

    async def _doing(self, words: str, work: Any) -> None:
        self._busy = words
        await asyncio.to_thread(self.refresh)
        try:
            await work
        finally:
            self._busy = ""
            await asyncio.to_thread(self.refresh)
