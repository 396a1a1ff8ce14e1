"""What this machine can hold: probe, estimate, recommendations, and SystemInfo over all of it."""

from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.system.probe import Probe

__all__ = ["Probe", "SystemInfo"]
