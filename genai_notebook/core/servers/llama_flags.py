"""llama-server's command line for a configuration, and what a configuration must not say."""

from __future__ import annotations

from genai_notebook.core.processes.ports import LOOPBACK
from genai_notebook.core.schema import LlamaServerConfig, ModelInfo
from genai_notebook.core.servers.manager import refuse_flags
from genai_notebook.core.servers.resolved import Resolved
from genai_notebook.core.system.estimates.shape import writes

_VERBOSE = frozenset({"-v", "--verbose", "--log-verbose", "-lv", "--verbosity", "--log-verbosity"})
#: Tokens of context that an engine is tried with.
TRIAL_CONTEXT = 512
#: Flags whose values are the manager's business: a second one would open another door.
_OURS = frozenset(
    """-m --model --host --port --api-key --api-key-file -a --alias --ssl-key-file --ssl-cert-file --path --api-prefix
    -mu --model-url -hf --hf-repo --models-dir --log-file --reuse-port""".split()  # noqa: SIM905
)


def arguments(resolved: Resolved, model: ModelInfo) -> list[str]:
    """llama-server's flags for a resolved configuration."""
    config = resolved.config
    flags = _where(model, resolved.port)
    flags += ["--ctx-size", str(config.context_size), "--parallel", str(config.parallel_requests), "--kv-unified"]
    if not resolved.fit:  # always said, 0 included: newer builds default to "auto"
        flags += ["--n-gpu-layers", str(config.gpu_layers or 0)]
    flags += _memory_flags(config)
    # The numbers are ours: the engine's own fitting would load everything twice, and its prompt cache would take up to
    # 8 GiB of RAM that no estimate counts.
    flags += ["--fit", "on" if resolved.fit else "off", "--cache-ram", "0"]
    # The engine says where its buffers are from this level on. What it is asked it writes down at the debug level only,
    # which older ones call 4 too: such lines never reach our log.
    flags += ["--verbosity", "4"]
    if model.supports_reasoning:
        flags += ["--jinja", "--reasoning-format", "deepseek"]
    return flags + config.extra_args


def trial_arguments(resolved: Resolved, model: ModelInfo, port: int) -> list[str]:
    """Those for trying an engine: one layer on the GPU, a small context, and the same choices about memory."""
    flags = [*_where(model, port), "--ctx-size", str(TRIAL_CONTEXT), "--parallel", "1", "--n-gpu-layers", "1"]
    flags += [*_memory_flags(resolved.config), "--fit", "off", "--cache-ram", "0", "--verbosity", "4", "--no-warmup"]
    return flags + ([] if can_write(model) else ["--embeddings"]) + resolved.config.extra_args


def can_write(model: ModelInfo) -> bool:
    """Whether a model writes; others only make vectors of what they read."""
    metadata = model.gguf_metadata
    return metadata is None or writes(metadata.architecture)


def _where(model: ModelInfo, port: int) -> list[str]:
    return ["--model", model.path, "--alias", model.id, "--host", LOOPBACK, "--port", str(port)]


def _memory_flags(config: LlamaServerConfig) -> list[str]:
    flags = ["--flash-attn", _flash_attention(config)]
    if config.threads:
        flags += ["--threads", str(config.threads)]
    for flag, kind in (("--cache-type-k", config.cache_type_k), ("--cache-type-v", config.cache_type_v)):
        if kind not in (None, "f16"):
            flags += [flag, str(kind)]
    return flags


def _flash_attention(config: LlamaServerConfig) -> str:
    asked = config.flash_attention
    if asked == "auto" and config.cache_type_v not in (None, "f32", "f16", "bf16"):
        return "on"  # left to itself the engine might turn it off, and then refuse the quantised values
    return asked if isinstance(asked, str) else "on" if asked else "off"


def environment_of(resolved: Resolved) -> dict[str, str]:
    """Environment variables for the engine, on top of the usual ones."""
    # The key is here because a process list is readable by everybody.
    env = {"LLAMA_API_KEY": resolved.api_key} if resolved.api_key else {}
    if resolved.visible:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(resolved.visible)
    return env


def asks_for_debug(config: LlamaServerConfig) -> bool:
    """Whether the further flags set how much the engine prints."""
    return not _VERBOSE.isdisjoint(config.extra_args)


def check(config: LlamaServerConfig) -> LlamaServerConfig:
    """Raises:
    InvalidRequestError: one of the further flags is the manager's.
    """
    refuse_flags(config.extra_args, _OURS)
    return config
