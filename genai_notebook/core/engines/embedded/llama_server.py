"""`llama-server` from the wheel `xllamacpp`: the same flags, the same HTTP API (it is llama.cpp's own server code).

    python -m genai_notebook.core.engines.embedded.llama_server -m model.gguf --port 0

What differs from the native program: no web UI, no CORS (a foreign Origin is never reflected), and a flag that is not
in the table below is refused. The log goes to stderr, as there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from genai_notebook.core.engines.embedded.flags import (
    Convert,
    Flag,
    FlagError,
    choice,
    help_text,
    integer,
    parse,
    refuse,
    text,
    version_text,
)

PROGRAM = "python -m genai_notebook.core.engines.embedded.llama_server"
ABOUT = "llama.cpp's HTTP server, from the Python package xllamacpp. LLAMA_API_KEY in the environment is a key too."

_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_POOLING = ("none", "mean", "cls", "last", "rank")
_REASONING = ("none", "auto", "deepseek", "deepseek-legacy")
_ON_OFF_AUTO = {"on": "enabled", "off": "disabled", "auto": "auto", "1": "enabled", "0": "disabled", "-1": "auto"}
_ON_OFF = {"on": True, "off": False, "1": True, "0": False}


def _layers(value: str) -> int:
    """`-ngl`: a number, `auto` (-1) or `all` (-2)."""
    words = {"auto": -1, "all": -2}
    return words[value] if value in words else int(integer(-2)(value))


def _flag(*names: str, key: str, convert: Convert | None = None, value: Any = True, help: str = "") -> Flag:
    return Flag(names, key, convert, value, help)


# A lower-case key is an attribute of CommonParams and set as it is; keys in capitals are handled further down.
FLAGS: tuple[Flag, ...] = (
    _flag("-h", "--help", "--usage", key="HELP", help="print this and exit"),
    _flag("--version", key="VERSION", help="print the version and exit"),
    _flag("-m", "--model", key="model.path", convert=text, help="the GGUF file"),
    _flag("--mmproj", "-mm", key="mmproj.path", convert=text, help="the multimodal projector"),
    _flag("-a", "--alias", key="ALIAS", convert=text, help="the name(s) the API gives the model, comma-separated"),
    _flag("--host", key="HOST", convert=text, help="address to listen on (default: 127.0.0.1)"),
    _flag("--port", key="port", convert=integer(0, 65535), help="port to listen on, 0 for a free one (default: 8080)"),
    _flag("-c", "--ctx-size", key="n_ctx", convert=integer(0), help="context in tokens, 0: the model's own (default)"),
    _flag("-n", "--predict", "--n-predict", key="n_predict", convert=integer(-1), help="tokens to generate at most"),
    _flag("-t", "--threads", key="cpuparams.n_threads", convert=integer(-1, 512), help="threads for generation"),
    _flag("-tb", "--threads-batch", key="cpuparams_batch.n_threads", convert=integer(-1, 512), help="for prompts"),
    _flag("--threads-http", key="n_threads_http", convert=integer(-1, 512), help="threads for HTTP"),
    _flag("-ngl", "--gpu-layers", "--n-gpu-layers", key="n_gpu_layers", convert=_layers, help="layers on the GPU"),
    _flag("-np", "--parallel", key="n_parallel", convert=integer(-1, 256), help="slots, -1: four (default: -1)"),
    _flag("-kvu", "--kv-unified", key="kv_unified", help="slots share one KV cache, each may use all of it"),
    _flag("-no-kvu", "--no-kv-unified", key="kv_unified", value=False, help="each slot has its part of the KV cache"),
    _flag("-fa", "--flash-attn", key="FLASH", convert=choice(_ON_OFF_AUTO), help="on, off or auto (default: auto)"),
    _flag("-b", "--batch-size", key="n_batch", convert=integer(1), help="logical batch in tokens"),
    _flag("-ub", "--ubatch-size", key="n_ubatch", convert=integer(1), help="physical batch in tokens"),
    _flag("-ctk", "--cache-type-k", key="CACHE_K", convert=choice(_CACHE_TYPES), help=", ".join(_CACHE_TYPES)),
    _flag("-ctv", "--cache-type-v", key="CACHE_V", convert=choice(_CACHE_TYPES), help="as for K"),
    _flag("-cram", "--cache-ram", key="cache_ram_mib", convert=integer(-1), help="MiB for the prompt cache, 0: none"),
    _flag("-nkvo", "--no-kv-offload", key="no_kv_offload", help="the KV cache stays in RAM"),
    _flag("-mg", "--main-gpu", key="main_gpu", convert=integer(0), help="the GPU to use"),
    _flag("--jinja", key="use_jinja", help="the model's own chat template (default)"),
    _flag("--no-jinja", key="use_jinja", value=False, help="built-in chat templates only"),
    _flag("--chat-template", key="chat_template", convert=text, help="name or text of a chat template"),
    _flag("--chat-template-file", key="TEMPLATE_FILE", convert=text, help="a file with a chat template"),
    _flag("--reasoning-format", key="REASONING", convert=choice(_REASONING), help=", ".join(_REASONING)),
    _flag("-fit", "--fit", key="fit_params", convert=choice(_ON_OFF), help="fit unset numbers to the memory"),
    _flag("--api-key", key="API_KEY", convert=text, help="key(s) that requests must carry, comma-separated"),
    _flag("--api-key-file", key="API_KEY_FILE", convert=text, help="a file with one key a line"),
    _flag("--embedding", "--embeddings", key="embedding", help="embeddings only"),
    _flag("--rerank", "--reranking", key="RERANK", help="the reranking endpoint"),
    _flag("--pooling", key="POOLING", convert=choice(_POOLING), help=", ".join(_POOLING)),
    _flag("--slots", key="endpoint_slots", help="the /slots endpoint (default)"),
    _flag("--no-slots", key="endpoint_slots", value=False, help="no /slots endpoint"),
    _flag("--metrics", key="endpoint_metrics", help="the /metrics endpoint"),
    _flag("--props", key="endpoint_props", help="POST /props may change things"),
    _flag("--no-webui", "--no-ui", key="NO_UI", help="accepted: there is no web UI here"),
    _flag("--mlock", key="MLOCK", help="keep the model in RAM"),
    _flag("--mmap", key="MMAP", help="map the file into memory (default)"),
    _flag("--no-mmap", key="MMAP", value=False, help="read the file instead of mapping it"),
    _flag("--warmup", key="warmup", help="an empty run before the first request (default)"),
    _flag("--no-warmup", key="warmup", value=False, help="no warm-up"),
    _flag("--sleep-idle-seconds", key="sleep_idle_seconds", convert=integer(-1), help="unload when idle that long"),
    _flag("-to", "--timeout", key="TIMEOUT", convert=integer(1), help="seconds to wait for a client"),
    _flag("-s", "--seed", key="sampling.seed", convert=integer(-1, 2**32 - 1), help="seed of the sampler, -1: random"),
    _flag("-v", "--verbose", key="verbosity", value=5, help="log everything"),
    _flag("-lv", "--verbosity", "--log-verbosity", key="verbosity", convert=integer(0, 10), help="log level"),
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT."""
    try:
        options = parse(FLAGS, sys.argv[1:] if argv is None else argv)
    except FlagError as error:
        refuse(PROGRAM, error)
    if options.get("HELP"):
        print(help_text(PROGRAM, ABOUT, FLAGS))
        sys.exit(0)
    try:
        if options.get("VERSION"):
            print(version_text("xllamacpp", "xllamacpp"))
            sys.exit(0)
        model = _model_file(options)
        import xllamacpp

        params = _configure(xllamacpp, options, model)
    except (FlagError, ImportError) as error:
        refuse(PROGRAM, error)
    _serve(xllamacpp, params)


def _model_file(options: dict[str, Any]) -> str:
    path = options.get("model.path")
    if not path:
        raise FlagError("-m is required: the model's GGUF file")
    for key in ("model.path", "mmproj.path", "TEMPLATE_FILE"):
        file = options.get(key)
        if file and not os.path.isfile(file):
            raise FlagError(f"no such file: {file}")
    return str(path)


def _serve(engine: Any, params: Any) -> NoReturn:
    # The constructor loads the model without letting Python run, so a handler of ours could not act meanwhile: until
    # it returns, SIGTERM has its default action and ends the process at once.
    try:
        server = engine.Server(params)
    except (RuntimeError, ValueError) as error:
        # The log above this line says why; leaving the usual way lets the engine's log thread write it out.
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        # Not by way of the server's destructor: that waits for the answers that are still being written.
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not asked.wait(3600.0):
        pass
    del server
    sys.exit(0)


# ---- flags to settings ----------------------------------------------------------------------------------------------


def _configure(engine: Any, options: dict[str, Any], model: str) -> Any:
    params = engine.CommonParams()
    _defaults(params)
    _set(params, "model.path", model)
    for flag in FLAGS:
        if flag.key in options and not flag.key.isupper():
            value = options[flag.key]
            _set(params, flag.key, value if flag.key != "sampling.seed" else value % 2**32, flag)
    _set_enums(engine, params, options)
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
        raise FlagError("xllamacpp 2026.7.10068 or newer is needed: older ones let every web page in")
    params.cors_origins = ""
    params.cors_origins_explicit = True
    params.cors_credentials = False
    params.ui = False


def _physical_cores() -> int:
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def _set(params: Any, path: str, value: Any, flag: Flag | None = None) -> None:
    *parents, name = path.split(".")
    target = params
    for parent in parents:
        target = getattr(target, parent)
    if not hasattr(target, name):
        raise FlagError(f"{flag.names[0] if flag else path}: this version of xllamacpp has no such setting")
    setattr(target, name, value)


def _set_enums(engine: Any, params: Any, options: dict[str, Any]) -> None:
    if "FLASH" in options:
        params.flash_attn_type = _member(engine, "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE", options["FLASH"])
    for key, attribute in (("CACHE_K", "cache_type_k"), ("CACHE_V", "cache_type_v")):
        if key in options:
            setattr(params, attribute, _member(engine, "ggml_type", "GGML_TYPE", options[key]))
    if "REASONING" in options:
        params.reasoning_format = _member(
            engine, "common_reasoning_format", "COMMON_REASONING_FORMAT", options["REASONING"].replace("-", "_")
        )
    if "POOLING" in options:
        params.pooling_type = _member(engine, "llama_pooling_type", "LLAMA_POOLING_TYPE", options["POOLING"])
    if options.get("RERANK"):
        params.embedding = True
        params.pooling_type = _member(engine, "llama_pooling_type", "LLAMA_POOLING_TYPE", "rank")
    if "TEMPLATE_FILE" in options:
        try:
            with open(options["TEMPLATE_FILE"], encoding="utf-8") as file:
                params.chat_template = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise FlagError(f"--chat-template-file: {error}") from None
    if "TIMEOUT" in options:
        params.timeout_read = params.timeout_write = options["TIMEOUT"]
    if "ALIAS" in options:
        names = {name.strip() for name in options["ALIAS"].split(",") if name.strip()}
        params.model_alias = names if isinstance(params.model_alias, set) else ",".join(sorted(names))


def _member(engine: Any, enum: str, prefix: str, word: str) -> Any:
    member = getattr(getattr(engine, enum, None), f"{prefix}_{word.upper()}", None)
    if member is None:
        raise FlagError(f"this version of xllamacpp does not know {word!r} ({enum})")
    return member


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


if __name__ == "__main__":
    main()
