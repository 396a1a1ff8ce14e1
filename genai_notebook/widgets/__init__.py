"""Panels: what the magics do, with buttons. Importing this imports ipywidgets."""

from __future__ import annotations

from genai_notebook.widgets.base import close_panels
from genai_notebook.widgets.panel import Panel
from genai_notebook.widgets.system import SystemPanel

__all__ = ["Panel", "SystemPanel", "close_panels"]
