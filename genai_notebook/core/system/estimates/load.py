"""How an LLM is to be run: what decides about its memory beside the model itself."""

from __future__ import annotations

from msgspec import Struct

DEFAULT_CONTEXT = 4096
#: llama.cpp's logical batch: a physical one is not larger.
_LOGICAL_BATCH = 2048
_MAX_CELLS, _MAX_SLOTS = 1 << 32, 4096


class Load(Struct, frozen=True, kw_only=True):
    """How an LLM is to be run; what `estimate` needs beside the model. Names are llama-server's.

    `batch_size` is the physical batch (`--ubatch-size`). `cpu_moe` keeps the experts of all layers in RAM, `n_cpu_moe`
    those of the first so many. `swa_full` keeps the whole context of sliding-window layers. `outputs`: of how many
    tokens of a batch the logits are kept at once; None: of all, as `llama-fit-params` and older servers do, while a
    newer llama-server keeps those of one token per slot.
    """

    context_size: int = DEFAULT_CONTEXT
    parallel_requests: int = 1
    gpu_layers: int = 0
    kv_unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch_size: int = 512
    flash_attention: bool = True
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    swa_full: bool = False
    outputs: int | None = None

    @property
    def slots(self) -> int:
        return clamp(self.parallel_requests, 1, _MAX_SLOTS)

    @property
    def streams(self) -> int:
        """How many caches there are: slots share one, or have one each."""
        return 1 if self.kv_unified else self.slots

    @property
    def cells(self) -> int:
        """Tokens that the cache of one slot holds (`n_ctx_seq`)."""
        context = padded(clamp(self.context_size, 1, _MAX_CELLS), 256)
        return context if self.kv_unified else padded(context // self.slots, 256)

    @property
    def tokens(self) -> int:
        """Tokens that are computed at once."""
        return min(clamp(self.batch_size, 1, _LOGICAL_BATCH), self.cells * self.streams)

    @property
    def logits(self) -> int:
        """Tokens of them whose logits are kept."""
        return self.tokens if self.outputs is None else clamp(self.outputs, 1, self.tokens)


def padded(value: int, unit: int) -> int:
    """`value`, rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
