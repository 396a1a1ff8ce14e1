"""sd-server's command line for a configuration, and what a configuration must not say."""

from __future__ import annotations

from genai_notebook.core.processes.ports import LOOPBACK
from genai_notebook.core.schema import DiffusionServerConfig, ModelInfo
from genai_notebook.core.servers.manager import refuse_flags
from genai_notebook.errors import InvalidRequestError

#: Flags whose values are the manager's business: a second one would open another door.
_OURS = frozenset({"-m", "--model", "--listen-ip", "--listen-port", "-l"})
_ROLE_FLAGS = {"clip_l": "--clip_l", "clip_g": "--clip_g", "llm_vision": "--llm_vision"}


def arguments(config: DiffusionServerConfig, model: ModelInfo, port: int, threads: int) -> list[str]:
    """sd-server's flags for a configuration."""
    flags = ["--listen-ip", LOOPBACK, "--listen-port", str(port), "--threads", str(threads)]
    for role, path in (model.components or {"model": model.path}).items():
        flags += [_ROLE_FLAGS.get(role, f"--{role.replace('_', '-')}"), path]
    return flags + memory_flags(config)


def memory_flags(config: DiffusionServerConfig) -> list[str]:
    """Those that decide how much memory a model takes, and where."""
    flags = ["--clip-on-cpu", "--vae-on-cpu"] if config.gpu_layers == 0 else []
    if config.vram_budget:
        flags += ["--max-vram", f"{config.vram_budget / 1024:g}"]
    return flags + config.extra_args


def asks_for_debug(config: DiffusionServerConfig) -> bool:
    """Whether the further flags make the engine print more."""
    return not {"-v", "--verbose"}.isdisjoint(config.extra_args)


def check(config: DiffusionServerConfig) -> DiffusionServerConfig:
    """Raises:
    InvalidRequestError: a number of GPU layers, or a flag that is the manager's.
    """
    if config.gpu_layers not in (None, 0):
        raise InvalidRequestError(
            "gpu_layers: image engines do not split by layers.",
            {"field": "gpu_layers"},
            hint="Use gpu_layers=0 for the CPU only, or vram_budget to bound the VRAM.",
        )
    refuse_flags(config.extra_args, _OURS)
    return config
