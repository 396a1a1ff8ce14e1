"""Panels: what the magics do, with buttons. Importing this imports ipywidgets."""

from __future__ import annotations

from genai_notebook.widgets.panel import Panel, close_panels

__all__ = ["Panel", "close_panels"]
