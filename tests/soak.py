"""How often a test repeats what chance decides: a little every day, thoroughly under `scripts/soak`."""

from __future__ import annotations

import os


def rounds(usual: int, soak: int) -> int:
    """`soak` when GENAI_NOTEBOOK_SOAK is set, else `usual`."""
    return soak if os.environ.get("GENAI_NOTEBOOK_SOAK") else usual
