"""Every GPU of this machine that an engine could use, one module for each way to ask. Start at `detect`."""

from genai_notebook.core.system.gpus.detect import find_gpus
from genai_notebook.core.system.gpus.nvidia import vram_of_processes

__all__ = ["find_gpus", "vram_of_processes"]
