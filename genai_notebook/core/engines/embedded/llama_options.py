"""The flags of the embedded `llama-server`, as a table: names, where the value goes, what it must look like.

A setting that CommonParams of the wheel lacks has no flag here (`--rpc`, `--override-kv`, `--device`,
`--control-vector`, `--grammar`, log files), so that it is refused instead of being ignored.
"""

from __future__ import annotations

from typing import Any

from genai_notebook.core.engines.embedded.flags import (
    Convert,
    Flag,
    choice,
    integer,
    json_object,
    number,
    numbers,
    positive,
    scaled,
    text,
    words,
)

_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_POOLING = ("none", "mean", "cls", "last", "rank")
_REASONING = ("none", "auto", "deepseek", "deepseek-legacy")
_SPLIT = ("none", "layer", "row", "tensor")
_ROPE = ("none", "linear", "yarn")
_NUMA = ("distribute", "isolate", "numactl")
_SPECULATIVE = "none draft-simple draft-eagle3 draft-mtp ngram-simple ngram-map-k ngram-map-k4v ngram-mod ngram-cache"
_ON_OFF_AUTO = {"on": "enabled", "off": "disabled", "auto": "auto", "1": "enabled", "0": "disabled", "-1": "auto"}
_ON_OFF_AUTO_NUMBER = {"on": 1, "off": 0, "auto": -1, "1": 1, "0": 0, "-1": -1}
_ON_OFF = {"on": True, "off": False, "1": True, "0": False}


_DRAFT = "speculative.draft."


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
    _flag("-v", "--verbose", "--log-verbose", key="verbosity", value=5, help="log everything"),
    _flag("-lv", "--verbosity", "--log-verbosity", key="verbosity", convert=integer(0, 10), help="log level"),
    # -- where the model lies
    _flag("-sm", "--split-mode", key="SPLIT", convert=choice(_SPLIT), help="over several GPUs: " + ", ".join(_SPLIT)),
    _flag("-ts", "--tensor-split", key="TENSOR_SPLIT", convert=numbers(0), help="each GPU's share, e.g. 3,1"),
    _flag("-cmoe", "--cpu-moe", key="CPU_MOE", help="all experts' weights stay in RAM"),
    _flag("-ncmoe", "--n-cpu-moe", key="N_CPU_MOE", convert=integer(0, 4096), help="those of the first N layers do"),
    _flag("-ncffn", "--n-cpu-ffn", key="N_CPU_FFN", convert=integer(0, 4096), help="dense FFN weights of N layers do"),
    _flag(
        "-ot", "--override-tensor", key="OVERRIDE", convert=text, help="PATTERN=BUFFER,… where tensors go, e.g. to CPU"
    ),
    _flag("-kvo", "--kv-offload", key="no_kv_offload", value=False, help="the KV cache goes to the GPU (default)"),
    _flag("--op-offload", key="no_op_offload", value=False, help="big operations on RAM go to the GPU (default)"),
    _flag("--no-op-offload", key="no_op_offload", help="they do not"),
    _flag("--repack", key="no_extra_bufts", value=False, help="weights laid out for this CPU (default)"),
    _flag("-nr", "--no-repack", key="no_extra_bufts", help="weights as they are in the file"),
    _flag("--no-host", key="no_host", help="no host buffers"),
    _flag("--numa", key="NUMA", convert=choice(_NUMA), help=", ".join(_NUMA)),
    _flag("--check-tensors", key="check_tensors", help="look for invalid values while loading"),
    _flag(
        "-fitt", "--fit-target", key="FIT_TARGET", convert=numbers(0), help="MiB to leave free on each GPU, for --fit"
    ),
    _flag("-fitc", "--fit-ctx", key="fit_params_min_ctx", convert=integer(0), help="least context --fit may set"),
    # -- what is loaded beside it
    _flag("--mmproj-offload", key="mmproj_use_gpu", help="the multimodal projector on the GPU (default)"),
    _flag("--no-mmproj-offload", key="mmproj_use_gpu", value=False, help="the multimodal projector stays in RAM"),
    _flag("--image-min-tokens", key="image_min_tokens", convert=integer(1), help="tokens a picture takes at least"),
    _flag("--image-max-tokens", key="image_max_tokens", convert=integer(1), help="tokens a picture takes at most"),
    _flag("--lora", key="LORA", convert=text, help="LoRA adapter(s), comma-separated"),
    _flag("--lora-scaled", key="LORA_SCALED", convert=scaled, help="FILE:SCALE,… LoRA adapters with their strength"),
    _flag(
        "--lora-init-without-apply", key="lora_init_without_apply", help="applied only when POST /lora-adapters says so"
    ),
    # -- speculative decoding
    _flag("-md", "--model-draft", "--spec-draft-model", key=_DRAFT + "mparams.path", convert=text, help="draft model"),
    _flag(
        "-ngld",
        "--gpu-layers-draft",
        "--n-gpu-layers-draft",
        "--spec-draft-ngl",
        key=_DRAFT + "n_gpu_layers",
        convert=_layers,
        help="its layers on the GPU",
    ),
    _flag(
        "-td",
        "--threads-draft",
        "--spec-draft-threads",
        key=_DRAFT + "cpuparams.n_threads",
        convert=integer(-1, 512),
        help="its threads",
    ),
    _flag(
        "-ctkd",
        "--cache-type-k-draft",
        "--spec-draft-type-k",
        key="CACHE_K_DRAFT",
        convert=choice(_CACHE_TYPES),
        help="its KV cache, as -ctk",
    ),
    _flag(
        "-ctvd",
        "--cache-type-v-draft",
        "--spec-draft-type-v",
        key="CACHE_V_DRAFT",
        convert=choice(_CACHE_TYPES),
        help="as for K",
    ),
    _flag(
        "--draft",
        "--draft-n",
        "--draft-max",
        "--spec-draft-n-max",
        key=_DRAFT + "n_max",
        convert=integer(1, 1024),
        help="tokens to draft at most",
    ),
    _flag(
        "--draft-min",
        "--draft-n-min",
        "--spec-draft-n-min",
        key=_DRAFT + "n_min",
        convert=integer(0, 1024),
        help="tokens to draft at least",
    ),
    _flag(
        "--draft-p-min",
        "--spec-draft-p-min",
        key=_DRAFT + "p_min",
        convert=number(0),
        help="least probability of a drafted token",
    ),
    _flag(
        "--spec-type",
        key="SPECULATIVE",
        convert=words(_SPECULATIVE.split()),
        help="comma-separated: " + ", ".join(_SPECULATIVE.split()),
    ),
    # -- context
    _flag("--rope-scaling", key="ROPE", convert=choice(_ROPE), help=", ".join(_ROPE)),
    _flag("--rope-scale", key="ROPE_SCALE", convert=positive, help="the context is that many times the trained one"),
    _flag("--rope-freq-base", key="rope_freq_base", convert=number(0), help="base frequency, 0: the model's (default)"),
    _flag("--rope-freq-scale", key="rope_freq_scale", convert=number(0), help="1 / --rope-scale"),
    _flag("--yarn-orig-ctx", key="yarn_orig_ctx", convert=integer(0), help="YaRN: the context it was trained with"),
    _flag("--yarn-ext-factor", key="yarn_ext_factor", convert=number(-1), help="YaRN: extrapolation mix"),
    _flag("--yarn-attn-factor", key="yarn_attn_factor", convert=number(-1), help="YaRN: attention magnitude"),
    _flag("--yarn-beta-slow", key="yarn_beta_slow", convert=number(-1), help="YaRN: high correction dimension"),
    _flag("--yarn-beta-fast", key="yarn_beta_fast", convert=number(-1), help="YaRN: low correction dimension"),
    _flag("--keep", key="n_keep", convert=integer(-1), help="tokens of the prompt a context shift keeps, -1: all"),
    _flag("--context-shift", key="ctx_shift", help="a full context loses its beginning instead of ending the answer"),
    _flag("--no-context-shift", key="ctx_shift", value=False, help="it ends the answer (default)"),
    _flag("--swa-full", key="swa_full", help="a full cache for sliding-window attention"),
    _flag(
        "-ctxcp",
        "--ctx-checkpoints",
        "--swa-checkpoints",
        key="n_ctx_checkpoints",
        convert=integer(0),
        help="checkpoints a slot keeps",
    ),
    _flag("--cache-prompt", key="cache_prompt", help="a prompt's beginning is reused (default)"),
    _flag("--no-cache-prompt", key="cache_prompt", value=False, help="every prompt is read from its start"),
    _flag("--cache-reuse", key="n_cache_reuse", convert=integer(0), help="least tokens to reuse by shifting, 0: none"),
    _flag("--cache-idle-slots", key="cache_idle_slots", help="idle slots go to the prompt cache (default)"),
    _flag("--no-cache-idle-slots", key="cache_idle_slots", value=False, help="they stay where they are"),
    _flag("-cb", "--cont-batching", key="cont_batching", help="slots share batches (default)"),
    _flag("-nocb", "--no-cont-batching", key="cont_batching", value=False, help="one slot after the other"),
    _flag(
        "-sps", "--slot-prompt-similarity", key="slot_prompt_similarity", convert=number(0), help="to take a slot again"
    ),
    _flag("--slot-save-path", key="SLOT_FOLDER", convert=text, help="a folder for POST /slots/N?action=save"),
    # -- sampling, where a request does not say
    _flag("--temp", "--temperature", key="sampling.temp", convert=number(0), help="temperature (default: 0.8)"),
    _flag("--top-k", key="sampling.top_k", convert=integer(0), help="0: off (default: 40)"),
    _flag("--top-p", key="sampling.top_p", convert=number(0), help="1: off (default: 0.95)"),
    _flag("--min-p", key="sampling.min_p", convert=number(0), help="0: off (default: 0.05)"),
    _flag("--typical", "--typical-p", key="sampling.typ_p", convert=number(0), help="1: off (default)"),
    _flag("--xtc-probability", key="sampling.xtc_probability", convert=number(0), help="0: off (default)"),
    _flag("--xtc-threshold", key="sampling.xtc_threshold", convert=number(0), help="1: off (default: 0.1)"),
    _flag(
        "--repeat-last-n", key="sampling.penalty_last_n", convert=integer(-1), help="tokens to look back (default: 64)"
    ),
    _flag("--repeat-penalty", key="sampling.penalty_repeat", convert=number(0), help="1: off (default)"),
    _flag("--presence-penalty", key="sampling.penalty_present", convert=number(-100), help="0: off (default)"),
    _flag("--frequency-penalty", key="sampling.penalty_freq", convert=number(-100), help="0: off (default)"),
    _flag("--dry-multiplier", key="sampling.dry_multiplier", convert=number(0), help="0: off (default)"),
    _flag("--dry-base", key="sampling.dry_base", convert=number(0), help="(default: 1.75)"),
    _flag("--dry-allowed-length", key="sampling.dry_allowed_length", convert=integer(0), help="(default: 2)"),
    _flag("--dry-penalty-last-n", key="sampling.dry_penalty_last_n", convert=integer(-1), help="(default: 64)"),
    _flag("--dynatemp-range", key="sampling.dynatemp_range", convert=number(0), help="0: off (default)"),
    _flag("--dynatemp-exp", key="sampling.dynatemp_exponent", convert=number(0), help="(default: 1)"),
    _flag("--mirostat", key="sampling.mirostat", convert=integer(0, 2), help="0: off (default)"),
    _flag("--mirostat-lr", key="sampling.mirostat_eta", convert=number(0), help="(default: 0.1)"),
    _flag("--mirostat-ent", key="sampling.mirostat_tau", convert=number(0), help="(default: 5)"),
    _flag("--ignore-eos", key="sampling.ignore_eos", help="go on past the end of an answer"),
    _flag(
        "--reasoning-budget",
        key="sampling.reasoning_budget_tokens",
        convert=integer(-1),
        help="tokens to think at most",
    ),
    # -- chat and API
    _flag(
        "-rea",
        "--reasoning",
        key="THINK",
        convert=choice(_ON_OFF_AUTO_NUMBER),
        help="thinking: on, off or auto (default)",
    ),
    _flag("--chat-template-kwargs", key="TEMPLATE_VALUES", convert=json_object, help="a JSON object for the template"),
    _flag("--prefill-assistant", key="prefill_assistant", help="go on with a last assistant message (default)"),
    _flag("--no-prefill-assistant", key="prefill_assistant", value=False, help="take it for a whole message"),
    _flag("--embd-normalize", key="embd_normalize", convert=integer(-1), help="-1: none, 2: Euclidean (default)"),
    _flag("--api-prefix", key="api_prefix", convert=text, help="path before all of the API's"),
    _flag("--ssl-key-file", key="ssl_file_key", convert=text, help="PEM key for HTTPS"),
    _flag("--ssl-cert-file", key="ssl_file_cert", convert=text, help="PEM certificate for HTTPS"),
    _flag("--perf", key="no_perf", value=False, help="timings inside the library"),
    _flag("--no-perf", key="no_perf", help="none"),
)
