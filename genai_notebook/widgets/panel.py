"""`%genai panel`: both servers, the models, and a prompt that makes an image, in one panel.

The panel is kept fresh by the servers' events; it polls nothing. Pictures are ordinary outputs below it, so that they
are saved with the notebook, which widgets are not.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ipywidgets as widgets

from genai_notebook.client.bridge import run
from genai_notebook.display import views
from genai_notebook.display.live import show
from genai_notebook.display.words import KINDS
from genai_notebook.widgets.base import BasePanel, framed
from genai_notebook.widgets.pictures import PictureForm
from genai_notebook.widgets.servers import ServerRow


class Panel(BasePanel):
    """Status of both servers with Start and Stop, the models, and a prompt that makes an image. Shows itself."""

    def __init__(self) -> None:
        from genai_notebook.current import current

        super().__init__()
        self._output: Any = None
        self.llm = ServerRow("llm", "Language model", self._worker)
        self.images = ServerRow("images", "Image generation", self._worker)
        self.pictures = PictureForm(self._worker, self._show_picture)
        self.models = widgets.HTML()
        self._models: list[Any] = []
        refresh = widgets.Button(
            description="Refresh models", layout=widgets.Layout(width="auto", align_self="flex-start")
        )
        self._worker.on_click(refresh, self._load_models)
        self.view = framed(
            [
                widgets.HTML("<b>genai-notebook</b>"),
                self._worker.message,
                self.llm.view,
                self.images.view,
                _section("Models"),
                self.models,
                refresh,
                _section("New image"),
                self.pictures.view,
                widgets.HTML(views.caption(current().reason)["text/html"]),
            ]
        )
        run(self._open())
        self._register()

    async def _open(self) -> None:
        for row in (self.llm, self.images):
            await asyncio.to_thread(row.listen)  # from a thread without a loop: events then come on the callback thread
        await self._load_models()

    async def _load_models(self) -> None:
        from genai_notebook.current import model_manager

        self._models = await model_manager.list_models()
        self.models.value = f'<div style="line-height:1.5">{self._models_table()["text/html"]}</div>'
        for row in (self.llm, self.images):
            await asyncio.to_thread(row.set_models, self._models)

    def _models_table(self) -> views.Bundle:
        rows = [(m.id, KINDS.get(m.type, m.type), views.size(m.size)) for m in self._models]
        empty = "No models yet. Run %genai download starter, or %genai download starter-image, then Refresh models."
        return views.table(("Id", "Type", "Size"), rows, empty=empty)

    def _show_picture(self, bundle: views.Bundle, metadata: dict[str, Any]) -> None:
        if self._output is not None:
            self._output.update(bundle, metadata=metadata, raw=True)

    def _ipython_display_(self) -> None:
        super()._ipython_display_()
        self._output = show(views.caption("The picture appears here."), display_id=True)

    def _fallback(self) -> views.Bundle:
        """What the panel showed at first."""
        models = self._models_table()
        status = views.facts("genai-notebook", [(row.title, row.words()) for row in (self.llm, self.images)])
        return {
            "text/plain": f"{status['text/plain']}\n\n{models['text/plain']}",
            "text/html": status["text/html"] + models["text/html"],
        }

    def _stop(self) -> None:
        self.llm.close()
        self.images.close()


def _section(title: str) -> Any:
    return widgets.HTML(f"<b>{views.html(title)}</b>", layout=widgets.Layout(margin="8px 0 0 0"))
