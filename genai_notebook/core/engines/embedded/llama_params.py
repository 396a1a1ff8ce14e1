"""From the values of llama-server's flags to the wheel's CommonParams."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from typing import Any, NamedTuple

from genai_notebook.core.engines.embedded.flags import FlagError
from genai_notebook.core.engines.embedded.llama_options import FLAGS

_DRAFT_MODEL = "speculative.draft.mparams.path"
_FILES = ("model.path", "mmproj.path", "TEMPLATE_FILE", _DRAFT_MODEL, "ssl_file_key", "ssl_file_cert")
_OVERRIDES_SINCE = (2026, 8, 10229)
# llama.cpp's own patterns for the weights of a mixture of experts, and of a plain feed-forward layer.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_DENSE = r"\.ffn_(up|down|gate)\."


class _Enum(NamedTuple):
    """A flag whose word is the end of the name of an enum's member."""

    key: str
    path: str
    enum: str
    prefix: str


_ENUMS = (
    _Enum("FLASH", "flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE"),
    _Enum("CACHE_K", "cache_type_k", "ggml_type", "GGML_TYPE"),
    _Enum("CACHE_V", "cache_type_v", "ggml_type", "GGML_TYPE"),
    _Enum("CACHE_K_DRAFT", "speculative.draft.cache_type_k", "ggml_type", "GGML_TYPE"),
    _Enum("CACHE_V_DRAFT", "speculative.draft.cache_type_v", "ggml_type", "GGML_TYPE"),
    _Enum("REASONING", "reasoning_format", "common_reasoning_format", "COMMON_REASONING_FORMAT"),
    _Enum("POOLING", "pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE"),
    _Enum("SPLIT", "split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE"),
    _Enum("ROPE", "rope_scaling_type", "llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE"),
    _Enum("NUMA", "numa", "ggml_numa_strategy", "GGML_NUMA_STRATEGY"),
)
_NAMES = {flag.key: flag.names[0] for flag in FLAGS}


def check_files(options: dict[str, Any]) -> None:
    """Raises:
    FlagError: no model is named, or a file that is named is not there.
    """
    if not options.get("model.path"):
        raise FlagError("-m is required: the model's GGUF file")
    named = [options[key] for key in _FILES if options.get(key)]
    for file in [*named, *(path for path, _ in _adapters(options))]:
        if not os.path.isfile(file):
            raise FlagError(f"no such file: {file}")


def configure(engine: Any, options: dict[str, Any]) -> Any:
    """The CommonParams for `options`.

    Args:
        engine: the module xllamacpp.
        options: what `parse` made of the command line.

    Raises:
        FlagError: this version of the wheel lacks a setting, or a file cannot be read.
    """
    params = engine.CommonParams()
    _defaults(params)
    for key, value in options.items():
        if not key.isupper():
            _set(params, key, value % 2**32 if key == "sampling.seed" else value)
    for key, path, enum, prefix in _ENUMS:
        if key in options:
            _set(params, path, _member(engine, enum, prefix, options[key]), key)
    _set_placement(params, options)
    _set_adapters(engine, params, options)
    _set_speculation(engine, params, options)
    _set_sampling(engine, params, options)
    _set_chat(params, options)
    _set_rest(engine, params, options)
    _set_memory_mode(engine, params, options)
    _set_access(params, options)
    return params


def _defaults(params: Any) -> None:
    """Where CommonParams starts from other values than llama-server's command line."""
    params.port = 8080
    params.n_parallel = -1
    threads = _physical_cores()
    params.cpuparams.n_threads = threads
    if not hasattr(params, "cors_origins"):
        raise FlagError("xllamacpp 2026.8.10566 or newer is needed: older ones let web pages and others in")
    params.cors_origins = ""
    params.cors_origins_explicit = True
    params.cors_credentials = False
    params.ui = False


def _physical_cores() -> int:
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def _set(params: Any, path: str, value: Any, key: str | None = None) -> None:
    """Set an attribute, or say that the flag `key` (or the one of that path) is not for this version."""
    *parents, name = path.split(".")
    target = params
    for parent in parents:
        target = getattr(target, parent, None)
    if not hasattr(target, name):
        raise FlagError(f"{_NAMES.get(key or path, path)}: this version of xllamacpp has no such setting")
    setattr(target, name, value)


def _member(engine: Any, enum: str, prefix: str, word: str) -> Any:
    member = getattr(getattr(engine, enum, None), f"{prefix}_{word.upper().replace('-', '_')}", None)
    if member is None:
        raise FlagError(f"this version of xllamacpp does not know {word!r} ({enum})")
    return member


# ---- groups of flags ------------------------------------------------------------------------------------------------


def _set_placement(params: Any, options: dict[str, Any]) -> None:
    places = [options["OVERRIDE"]] if "OVERRIDE" in options else []
    if options.get("CPU_MOE"):
        places.append(f"{_EXPERTS}=CPU")
    for key, pattern in (("N_CPU_MOE", _EXPERTS), ("N_CPU_FFN", _DENSE)):
        places += [rf"blk\.{layer}{pattern}=CPU" for layer in range(options.get(key, 0))]
    if places:
        if _wheel_version() < _OVERRIDES_SINCE:
            raise FlagError("weights in other places need xllamacpp 2026.8.10229 or newer: older ones abort on them")
        try:
            _set(params, "tensor_buft_overrides", ",".join(places), "OVERRIDE")
        except ValueError as error:
            raise FlagError(f"--override-tensor: {error}") from None
    if "TENSOR_SPLIT" in options:
        _set_per_device(params, "tensor_split", options["TENSOR_SPLIT"], "TENSOR_SPLIT")
    if "FIT_TARGET" in options:
        sizes = [int(mebibytes * (1 << 20)) for mebibytes in options["FIT_TARGET"]]
        everywhere = sizes * (len(getattr(params, "fit_params_target", ())) if len(sizes) == 1 else 1)
        _set_per_device(params, "fit_params_target", everywhere, "FIT_TARGET")


def _wheel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", metadata.version("xllamacpp"))[:3])


def _set_per_device(params: Any, name: str, values: list[Any], key: str) -> None:
    """Set the first places of a list that has one for every device there may be."""
    places = list(getattr(params, name, ()))
    if places and len(values) > len(places):
        raise FlagError(f"{_NAMES[key]}: {len(values)} values, but this engine knows {len(places)} devices at most")
    _set(params, name, values + places[len(values) :], key)


def _adapters(options: dict[str, Any]) -> list[tuple[str, float]]:
    plain = [(name, 1.0) for name in options.get("LORA", "").split(",") if name]
    return plain + list(options.get("LORA_SCALED", []))


def _set_adapters(engine: Any, params: Any, options: dict[str, Any]) -> None:
    if adapters := _adapters(options):
        params.lora_adapters = [engine.CommonAdapterLoraInfo(path, scale) for path, scale in adapters]


def _set_speculation(engine: Any, params: Any, options: dict[str, Any]) -> None:
    words = options.get("SPECULATIVE") or (["draft-simple"] if _DRAFT_MODEL in options else [])
    if words:
        types = [_member(engine, "common_speculative_type", "COMMON_SPECULATIVE_TYPE", word) for word in words]
        _set(params, "speculative.types", types, "SPECULATIVE")


def _set_sampling(engine: Any, params: Any, options: dict[str, Any]) -> None:
    """What is said on the command line goes before what a model recommends for itself."""
    known = getattr(engine, "common_params_sampling_config", None)
    words = [key.partition(".")[2].upper() for key in options if key.startswith("sampling.")]
    given = 0
    for word in words:
        given |= int(getattr(known, f"COMMON_PARAMS_SAMPLING_CONFIG_{word}", 0))
    if given:
        params.sampling.user_sampling_config |= given


def _set_chat(params: Any, options: dict[str, Any]) -> None:
    values = {name: json.dumps(value) for name, value in options.get("TEMPLATE_VALUES", {}).items()}
    if "THINK" in options:
        _set(params, "enable_reasoning", options["THINK"], "THINK")
        if options["THINK"] >= 0:
            values["enable_thinking"] = json.dumps(bool(options["THINK"]))
    if values:
        _set(params, "default_template_kwargs", values, "TEMPLATE_VALUES")
    if "TEMPLATE_FILE" in options:
        try:
            with open(options["TEMPLATE_FILE"], encoding="utf-8") as file:
                params.chat_template = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise FlagError(f"--chat-template-file: {error}") from None


def _set_rest(engine: Any, params: Any, options: dict[str, Any]) -> None:
    if options.get("RERANK"):
        params.embedding = True
        params.pooling_type = _member(engine, "llama_pooling_type", "LLAMA_POOLING_TYPE", "rank")
    if "ROPE_SCALE" in options:
        params.rope_freq_scale = 1.0 / options["ROPE_SCALE"]
    if "TIMEOUT" in options:
        params.timeout_read = params.timeout_write = options["TIMEOUT"]
    if folder := options.get("SLOT_FOLDER"):
        if not os.path.isdir(folder):
            raise FlagError(f"--slot-save-path: not a directory: {folder}")
        params.slot_save_path = os.path.join(folder, "")
    if "ALIAS" in options:
        names = {name.strip() for name in options["ALIAS"].split(",") if name.strip()}
        params.model_alias = names if isinstance(params.model_alias, set) else ",".join(sorted(names))


def _set_memory_mode(engine: Any, params: Any, options: dict[str, Any]) -> None:
    if "MLOCK" not in options and "MMAP" not in options:
        return
    lock, mapped = bool(options.get("MLOCK")), bool(options.get("MMAP", True))
    if hasattr(params, "load_mode"):
        word = {(False, False): "none", (False, True): "mmap", (True, False): "mlock", (True, True): "mmap_mlock"}
        params.load_mode = _member(engine, "llama_load_mode", "LLAMA_LOAD_MODE", word[lock, mapped])
    else:
        params.use_mlock, params.use_mmap = lock, mapped


def _set_access(params: Any, options: dict[str, Any]) -> None:
    host = options.get("HOST", "127.0.0.1")
    if hasattr(params, "hostnames"):
        params.hostnames = [host]
    else:
        params.hostname = host
    given = (options.get("API_KEY", ""), os.environ.pop("LLAMA_API_KEY", ""))
    keys = [key.strip() for text in given for key in text.split(",")]
    if file := options.get("API_KEY_FILE"):
        try:
            with open(file, encoding="utf-8") as lines:
                keys += [line.strip() for line in lines]
        except (OSError, UnicodeDecodeError) as error:
            raise FlagError(f"--api-key-file: {error}") from None
        if not any(keys):
            raise FlagError(f"--api-key-file: no key in {file}")
    params.api_keys = [key for key in keys if key]
