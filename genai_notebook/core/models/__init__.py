"""Model files: the GGUF header, where files come from, where they lie, and ModelManager over all of it."""

from genai_notebook.core.models.manager import ModelManager

__all__ = ["ModelManager"]
