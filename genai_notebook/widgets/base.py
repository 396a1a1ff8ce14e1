"""What all panels have in common: a view, a worker, how they show themselves, and how they are closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import ipywidgets as widgets

from genai_notebook.display import views
from genai_notebook.display.live import show
from genai_notebook.widgets.work import Worker

_panels: WeakSet[BasePanel] = WeakSet()


def close_panels() -> None:
    """Close every panel of this process."""
    for panel in list(_panels):
        panel.close()


class BasePanel:
    """A panel that shows itself.

    Attributes:
        view: the widget; a subclass makes it.
    """

    view: Any

    def __init__(self) -> None:
        self._closed = False
        self._worker = Worker()

    def _register(self) -> None:
        """Let `close_panels` know of it; the last thing that making a panel does."""
        _panels.add(self)

    def _fallback(self) -> views.Bundle:
        """What is shown where widgets are not alive: in a saved or exported notebook."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Let go of what a subclass listens to."""

    def _ipython_display_(self) -> None:
        show(self._repr_mimebundle_())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> views.Bundle:
        """The live panel and its fallback; once closed, the fallback only."""
        fallback = self._fallback()
        return fallback if self._closed else {**(self.view._repr_mimebundle_() or {}), **fallback}

    def close(self) -> None:
        """Take the panel out of the notebook and stop listening. Engines that run go on running."""
        if self._closed:
            return
        self._closed = True
        self._worker.close()
        self._stop()
        self.view.close()
        _panels.discard(self)


def framed(children: Sequence[Any]) -> Any:
    """The widgets one under the other, in the frame that all panels have."""
    return widgets.VBox(
        list(children),
        layout=widgets.Layout(border="1px solid var(--jp-border-color2,#ccc)", padding="8px 12px", max_width="66em"),
    )
