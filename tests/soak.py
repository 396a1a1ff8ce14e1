"""How often a test repeats what chance decides: a little every day, thoroughly under `scripts/soak`."""

from __future__ import annotations

import os

# Read now: our variables are taken out of the environment of every test.
_SOAK = bool(os.environ.get("GENAI_NOTEBOOK_SOAK"))


def rounds(usual: int, soak: int) -> int:
    """`soak` when GENAI_NOTEBOOK_SOAK was set, else `usual`."""
    return soak if _SOAK else usual
