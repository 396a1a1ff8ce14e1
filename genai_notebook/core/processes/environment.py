"""The environment an engine gets: an allow-list, so that no token of the notebook or of a cloud reaches it."""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP TERM DISPLAY XDG_RUNTIME_DIR
    LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH PYTHONPATH PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT APPDATA LOCALAPPDATA USERPROFILE PROGRAMDATA NUMBER_OF_PROCESSORS
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_PATH CUDA_HOME NVIDIA_VISIBLE_DEVICES
    ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION ONEAPI_DEVICE_SELECTOR
    OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES
    """.split()  # noqa: SIM905 - five lines to read instead of forty
)
_PREFIXES = ("LC_", "GGML_", "VK_", "MESA_")


def child_environment(
    extra: Mapping[str, str] | None = None, source: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The allowed part of `source` (default: this process's environment), with `extra` on top."""
    env = os.environ if source is None else source
    allowed = {name: value for name, value in env.items() if name.upper() in _NAMES or name.startswith(_PREFIXES)}
    # `python -m` would put the working folder first on the path of a Python engine; and its log must not wait.
    allowed.update(PYTHONSAFEPATH="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    allowed.update(extra or {})
    return allowed
