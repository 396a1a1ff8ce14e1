"""`%genai panel system`: the machine's memory and who holds it, live, and the engines in use.

One coroutine looks once a second, and only while a frontend shows the panel and nobody has paused it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from genai_notebook.client.bridge import run
from genai_notebook.display import memory, views
from genai_notebook.display.words import manager_of
from genai_notebook.errors import GenaiNotebookError
from genai_notebook.widgets.base import BasePanel, framed

if TYPE_CHECKING:
    from genai_notebook.core.schema import MemoryUse

#: Seconds between two looks.
EVERY = 1.0
_PAUSE, _RESUME = "Pause updates", "Resume updates"


class SystemPanel(BasePanel):
    """Bars of RAM and VRAM with who holds them, the engines in use, and what the machine is. Shows itself."""

    def __init__(self) -> None:
        super().__init__()
        self._following = self._paused = False
        self.memory, self.engines, self.facts = (widgets.HTML() for _ in range(3))
        # What moves by itself must be possible to stop, for whoever reads slowly or has it read out.
        self.pause = widgets.Button(description=_PAUSE, layout=widgets.Layout(width="auto", align_self="flex-start"))
        self.pause.on_click(self._toggle)
        self.view = framed([self._worker.message, self.memory, self.engines, self.facts, self.pause])
        self.view._view_count = 0  # from now on frontends count their views in it
        run(self._look())
        self.view.observe(self._wake, "_view_count")
        self._register()

    @property
    def is_live(self) -> bool:
        """Whether it is being refreshed: shown somewhere, not paused, not closed."""
        return not self._closed and not self._paused and bool(self.view._view_count)

    def _wake(self, *_: Any) -> None:
        if self.is_live:
            self._worker.start(self._follow)

    def _toggle(self, _: Any) -> None:
        self._paused = not self._paused
        self.pause.description = _RESUME if self._paused else _PAUSE
        self._wake()

    async def _follow(self) -> None:
        if self._following:
            return
        self._following = True
        try:
            while self.is_live:
                try:
                    await self._look()
                    self._worker.hide()
                except GenaiNotebookError as error:  # a server that is away may come back
                    self._worker.show(error)
                await asyncio.sleep(EVERY)
        finally:
            self._following = False

    async def _look(self) -> None:
        from genai_notebook.current import system_info

        found = await system_info.detect()
        use = await system_info.memory_use(os.getpid())
        self._memory = memory.bars(use)
        self._engines = await asyncio.to_thread(_engines, use)  # a status may have to be asked for
        self._facts = memory.machine(found, use.memory, use.gpus)
        for widget, bundle in ((self.memory, self._memory), (self.engines, self._engines), (self.facts, self._facts)):
            widget.value = f'<div style="line-height:1.5">{bundle["text/html"]}</div>'

    def _fallback(self) -> views.Bundle:
        """What was seen last."""
        return memory.stack([self._memory, self._engines, self._facts])


def _engines(use: MemoryUse) -> views.Bundle:
    return memory.engines(use, manager_of("llm").get_info(), manager_of("images").get_info())
