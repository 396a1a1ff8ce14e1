"""The numbers of a GGUF header that decide about memory, and that passed for sane.

What an architecture does that its header does not say (which layers slide, which are recurrent) stands in the tables
below, as llama.cpp b11434 has it in `src/models/`. Headers are foreign data: counts are checked before anything loops.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from genai_notebook.core.schema import GGUFMetadata, WeightBytes

#: Past these a header is nonsense.
MAX_LAYERS = 4096
_MAX_HEADS, _MAX_WIDTH, _MAX_VOCABULARY, _MAX_WINDOW = 1 << 16, 1 << 24, 1 << 28, 1 << 32
#: Every how many layers one has full attention, where the header does not say; and those where it is the first of them.
_WINDOW_PATTERNS = {
    "afmoe": 4,
    "cohere2": 4,
    "cohere2moe": 4,
    "exaone-moe": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "laguna": 4,
    "llama4": 4,
    "mellum": 4,
    "muse-glimmer": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}
_FULL_FIRST = {"cohere2moe", "laguna", "smallthinker"}
#: Windows that are the architecture's, whatever the header says, and those that stand in for a missing one.
_OWN_WINDOWS = {"exaone4": 4096, "llama4": 8192, "smallthinker": 4096}
_DEFAULT_WINDOWS = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192}
#: Layers that see all of the context although the header names a window: llama.cpp has no use for it there.
_WINDOW_UNUSED = {"llama", "mistral3", "phi3", "phimoe", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2"}
_RECURRENT = {"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"}
#: Hybrids: a layer without KV heads is recurrent.
_HYBRID_BY_HEADS = {"granitehybrid", "jamba", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "plamo2"}
#: Hybrids: every so many layers one has attention.
_HYBRID_BY_INTERVAL = {"qwen35", "qwen35moe", "qwen3next"}
#: Their caches or buffers are of kinds that are not worked out here.
_INEXACT = {
    "bailingmoe3", "deepseek32", "deepseek4", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "kimi-k3", "kimi-linear",
    "minimax-01", "minimax-m3", "plamo2", "qwen4exp", "t5",
}  # fmt: skip
_WITHOUT_CACHE = {
    "bert", "clef", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe",
    "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
}  # fmt: skip
#: Their feed-forward networks have no gate.
_UNGATED = {"bloom", "codeshell", "falcon", "gpt2", "gptneox", "mpt", "nemotron", "phi2", "starcoder", "starcoder2"}


def writes(architecture: str | None) -> bool:
    """Whether models of an architecture write token after token; others only make vectors of what they read."""
    return architecture not in _WITHOUT_CACHE | {"t5encoder", "wavtokenizer-dec"}


class Layer(Struct, frozen=True):
    """One layer's memory of the past: KV heads (0: no attention, or another layer's cache), and a recurrent state."""

    kv_heads: int
    sliding: bool = False
    recurrent: bool = False


class Shape(Struct, frozen=True, kw_only=True):
    """An LLM, as far as memory goes. Widths in elements; `inner` is the widest a token gets in a layer, in floats."""

    layers: list[Layer]
    #: Layers that are used: the others predict further tokens (MTP), and are left in the file.
    used: int
    heads: int
    key_length: int
    value_length: int
    key_length_sliding: int
    value_length_sliding: int
    #: Latent attention: values are read out of the keys, and have no cache.
    latent: bool
    window: int
    state: int
    width: int
    vocabulary: int
    inner: int
    #: Floats a token has in all of its experts' outputs; 0: there are no experts.
    expert_outputs: int
    weights: WeightBytes | None
    exact: bool

    @property
    def attends(self) -> bool:
        return any(layer.kv_heads for layer in self.layers)

    @property
    def slides(self) -> bool:
        return any(layer.sliding and layer.kv_heads for layer in self.layers)


def shape_of(metadata: GGUFMetadata) -> Shape | None:
    """The header's numbers, or None where one that matters is missing or makes no sense."""
    raw, architecture = _Raw(metadata), metadata.architecture or ""
    blocks, width, vocabulary = metadata.block_count or 0, metadata.embedding_length or 0, metadata.vocab_size or 0
    if not (0 < blocks <= MAX_LAYERS and 0 < width <= _MAX_WIDTH and 0 < vocabulary <= _MAX_VOCABULARY):
        return None
    all_heads = _per_layer(metadata.attention_head_count, blocks)
    if all_heads is None:
        return None
    given = metadata.attention_head_count_kv
    kv_heads = _per_layer(given, blocks) if given is not None else all_heads
    if kv_heads is None:
        return None
    heads, state = max(all_heads), _state(raw, width)
    if heads == 0 and state == 0:
        return None
    lengths = _head_lengths(metadata, raw, width // (all_heads[0] or heads) if heads else 0)
    if lengths is None:
        return None
    window = _window(metadata, raw, blocks)
    inner, outputs = _inner(metadata, raw, blocks, width)
    used = max(blocks - raw.number("nextn_predict_layers"), 1)
    return Shape(
        layers=_layers(metadata, raw, used, kv_heads if heads else [0] * blocks, window, state),
        used=used,
        heads=heads,
        key_length=lengths[0],
        value_length=lengths[1],
        key_length_sliding=lengths[2],
        value_length_sliding=lengths[3],
        latent=raw.number("attention.key_length_mla") > 0,
        window=window,
        state=state,
        width=width,
        vocabulary=vocabulary,
        inner=inner,
        expert_outputs=outputs,
        weights=_weights(metadata.weights, blocks),
        exact=architecture not in _INEXACT,
    )


class _Raw:
    """The architecture's fields that have no name of their own in the metadata."""

    def __init__(self, metadata: GGUFMetadata) -> None:
        self.values = metadata.raw or {}
        self.architecture = metadata.architecture or ""

    def get(self, name: str) -> Any:
        return self.values.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: int = 0) -> int:
        """A positive number that is not absurd; `default` where there is none."""
        value = self.get(name)
        sane = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_WIDTH
        return int(value) if sane else default

    def largest(self, name: str) -> int:
        """As `number`, of a field that may be one per layer."""
        value = self.get(name)
        if not isinstance(value, list):
            return self.number(name)
        return max((each for each in value if isinstance(each, int) and 0 < each <= _MAX_WIDTH), default=0)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list of so many flags (or numbers that stand for them)."""
        value = self.get(name)
        return [bool(each) for each in value[:count]] if isinstance(value, list) and len(value) >= count else None


def _head_lengths(metadata: GGUFMetadata, raw: _Raw, default: int) -> tuple[int, int, int, int] | None:
    """Elements of a head's key and value; of full and of sliding layers."""
    key = metadata.attention_key_length if metadata.attention_key_length is not None else default
    value = metadata.attention_value_length if metadata.attention_value_length is not None else default
    if not (0 <= key <= _MAX_HEADS and 0 <= value <= _MAX_HEADS):
        return None
    sliding = raw.number("attention.key_length_swa", key), raw.number("attention.value_length_swa", value)
    return key, value, *sliding


def _layers(metadata: GGUFMetadata, raw: _Raw, used: int, kv_heads: list[int], window: int, state: int) -> list[Layer]:
    architecture, blocks, own = raw.architecture, len(kv_heads), used
    if architecture == "gemma3n":
        own = 20
    elif architecture == "gemma4":
        own = blocks - raw.number("attention.shared_kv_layers")
    if architecture in _WITHOUT_CACHE:
        own = 0
    recurrent = _recurrent(metadata, raw, blocks, kv_heads) if state else [False] * blocks
    sliding = _sliding(raw, blocks, recurrent) if window else [False] * blocks
    both = architecture == "falcon-h1"
    return [
        Layer(
            kv_heads=kv_heads[index] if index < own and (both or not recurrent[index]) else 0,
            sliding=sliding[index],
            recurrent=index < used and recurrent[index],
        )
        for index in range(blocks)
    ]


def _recurrent(metadata: GGUFMetadata, raw: _Raw, blocks: int, kv_heads: list[int]) -> list[bool]:
    architecture = raw.architecture
    if architecture in _RECURRENT or architecture == "falcon-h1":
        return [True] * blocks
    if architecture in _HYBRID_BY_INTERVAL:
        known = raw.flags("attention.recurrent_layers", blocks)
        interval = raw.number("full_attention_interval", 4)
        return known or [(index + 1) % interval != 0 for index in range(blocks)]
    if architecture.startswith("nemotron_h"):
        inner = _per_layer(metadata.feed_forward_length, blocks) or [0] * blocks
        return [heads == 0 and width == 0 for heads, width in zip(kv_heads, inner, strict=True)]
    # Of an architecture that is not known here, a layer that has a state but no KV heads will be recurrent.
    return [heads == 0 for heads in kv_heads]


def _state(raw: _Raw, width: int) -> int:
    """Floats of state that one recurrent layer keeps per sequence; 0 where the model has none."""
    if cached := raw.number("shortconv.l_cache"):
        return width * (cached - 1)
    if head := raw.number("wkv.head_size"):
        return width * (raw.number("token_shift_count", 2) + head)
    inner, state = raw.number("ssm.inner_size"), raw.number("ssm.state_size")
    if not inner or not state:
        return 0
    kernel, groups = raw.number("ssm.conv_kernel"), raw.number("ssm.group_count")
    return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner


def _window(metadata: GGUFMetadata, raw: _Raw, blocks: int) -> int:
    """Tokens that sliding layers see; 0: no layer slides."""
    architecture, window = raw.architecture, metadata.attention_sliding_window
    if architecture in _WINDOW_UNUSED or window == 0 or (architecture == "exaone4" and blocks != 64):
        return 0
    if window is None:
        return _DEFAULT_WINDOWS.get(architecture, 0)
    return _OWN_WINDOWS.get(architecture, window) if 0 < window <= _MAX_WINDOW else 0


def _sliding(raw: _Raw, blocks: int, recurrent: list[bool]) -> list[bool]:
    """Per layer, whether it sees a window only."""
    if raw.architecture in ("lfm2", "lfm2moe"):
        return [not each for each in recurrent]
    name = "attention.sliding_window_pattern"
    if (known := raw.flags(name, blocks)) is not None:
        return known
    pattern = raw.get(name)
    given = isinstance(pattern, int) and not isinstance(pattern, bool)
    period = pattern if given else _WINDOW_PATTERNS.get(raw.architecture, 0)
    if period < 1:
        # A window without a pattern: which layers it is for is not known, so none is taken for bounded.
        return [False] * blocks
    full = 0 if raw.architecture in _FULL_FIRST else period - 1
    return [index % period != full for index in range(blocks)]


def _inner(metadata: GGUFMetadata, raw: _Raw, blocks: int, width: int) -> tuple[int, int]:
    """Floats per token that a feed-forward network takes on its way, and those of its experts' outputs.

    A gated one holds gate, value and their product. Experts hold these for each of the chosen, then two copies of what
    comes out.
    """
    dense = max((n for n in _per_layer(metadata.feed_forward_length, blocks) or [0] if n <= _MAX_WIDTH), default=0)
    used = raw.largest("expert_used_count")
    if not used or used > _MAX_HEADS:
        recurrent = 5 * raw.number("ssm.inner_size") if raw.architecture in _RECURRENT else 0
        return max((1 if raw.architecture in _UNGATED else 3) * dense, recurrent), 0
    own = raw.largest("expert_feed_forward_length")
    mixed = raw.number("leading_dense_block_count") or raw.number("interleave_moe_layer_step") > 1
    chosen = 3 * used * (own or dense)
    return max(chosen, 2 * used * width, 3 * dense if mixed and own else 0), used * width


def _weights(found: WeightBytes | None, blocks: int) -> WeightBytes | None:
    """The tensors' bytes, brought to one number a block; None where they make no sense."""
    if found is None or min(found.token_embedding, found.output, found.other) < 0:
        return None
    if min([*found.layers, *found.experts, 0]) < 0 or len(found.experts) > len(found.layers) or not any(found.layers):
        return None
    if len(found.layers) > blocks:
        return None
    fill = [0] * blocks
    return WeightBytes(
        layers=(found.layers + fill)[:blocks],
        experts=(found.experts + fill)[:blocks],
        token_embedding=found.token_embedding,
        output=found.output,
        other=found.other,
    )


def _per_layer(value: int | list[int] | None, blocks: int) -> list[int] | None:
    """A field that is one number, or one per layer."""
    if value is None:
        return [0] * blocks
    if isinstance(value, list):
        counts = value[:blocks]
        return counts if len(counts) == blocks and all(0 <= count <= _MAX_WIDTH for count in counts) else None
    return [value] * blocks if 0 <= value <= _MAX_WIDTH else None
