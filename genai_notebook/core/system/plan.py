"""How an LLM is best run in the memory there is: layers on the GPU, context, and the type of the KV cache.

What the caller leaves open is chosen by preference, and the first choice that fits is taken: the whole model on the
GPUs, with the KV cache in f16, else in q8_0 (half of it, hardly a loss); then as many layers as fit; then a smaller
context.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from genai_notebook.core.schema import GPUInfo, MemoryEstimate, MemoryInfo, ModelInfo
from genai_notebook.core.system.estimate import (
    DEFAULT_CONTEXT,
    DRIVER_CONTEXT,
    GIB,
    Load,
    context_length_of,
    estimate,
    estimate_on,
    layer_count_of,
)

#: VRAM that stays free on each GPU, for the desktop and for what cannot be foreseen.
VRAM_RESERVE = GIB
SMALLEST_CONTEXT = 1024
DEFAULT_SLOTS = 4
#: Elements in a block of the quantised cache types; a head's length must be a multiple of it.
_CACHE_BLOCK = 32


class Room(Struct, frozen=True, kw_only=True):
    """Memory that may be used, in bytes: RAM, and what each GPU has. `unified`: the GPU's is a share of the RAM.

    `visible`: UUIDs of these GPUs, where an engine must be told to take them, in this order, and no others.
    """

    ram: int
    gpus: tuple[int, ...] = ()
    unified: bool = False
    visible: tuple[str, ...] = ()


class Wishes(Struct, frozen=True, kw_only=True):
    """What the caller has decided; None is open. `use_gpu` False: the engine has no use for one."""

    context_size: int | None = None
    gpu_layers: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    parallel_requests: int = DEFAULT_SLOTS
    flash_attention: bool = True
    use_gpu: bool = True


class Plan(Struct, frozen=True, kw_only=True):
    """A placement and what it needs.

    `lacks`: 'RAM' or 'VRAM', the bytes that are needed of it and those that are there; None: it fits. `first_choice`:
    nothing had to be made smaller than it would be with plenty of memory. `visible`: as in Room.
    """

    gpu_layers: int
    context_size: int
    cache_type_k: str
    cache_type_v: str
    needs: MemoryEstimate
    lacks: tuple[str, int, int] | None = None
    first_choice: bool = False
    visible: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.lacks is None


def room_of(memory: MemoryInfo, gpus: list[GPUInfo], *, total: bool = False) -> Room:
    """The room that is free right now or, with `total`, all there is.

    GPUs whose memory is not known do not count, nor do small or full ones beside others. Of the slices of NVIDIA cards
    (MIG) only the best counts: CUDA opens one of them in a process.
    """
    sized = [gpu for gpu in gpus if gpu.available and gpu.vram]
    # Cards and a processor's own graphics do not share one model well: the cards win.
    cards = [gpu for gpu in sized if not gpu.unified] or sized
    usable = [gpu for gpu in cards if _vram(gpu, total) > VRAM_RESERVE + DRIVER_CONTEXT] or cards
    if slices := [gpu for gpu in usable if (gpu.id or "").startswith("MIG-")]:
        usable = [max(slices, key=lambda gpu: _vram(gpu, total))]
    names = [gpu.id for gpu in usable if gpu.type == "nvidia" and gpu.id]
    return Room(
        ram=memory.total if total else memory.available,
        gpus=tuple(_vram(gpu, total) for gpu in usable),
        unified=bool(usable) and bool(usable[0].unified),
        # CUDA has an order of its own, and takes every card there is.
        visible=tuple(names) if len(sized) > 1 and len(names) == len(usable) else (),
    )


def _vram(gpu: GPUInfo, total: bool) -> int:
    whole = gpu.vram or 0
    return whole if total or gpu.vram_available is None else gpu.vram_available


def plan(model: ModelInfo, room: Room, wishes: Wishes) -> Plan:
    """The best placement that fits; where none does, the smallest one, with what it lacks."""
    last: Plan | None = None
    if not wishes.use_gpu:
        room = Room(ram=room.ram)
    for load, whole in _choices(model, room, wishes):
        found = _placed(model, room, load, wishes, whole)
        if found.fits:
            return msgspec.structs.replace(found, first_choice=last is None)
        last = found
    assert last is not None
    return last


def _choices(model: ModelInfo, room: Room, wishes: Wishes) -> Iterator[tuple[Load, bool]]:
    """Loads from the best to the smallest, and whether only a model that is wholly on the GPUs will do."""
    caches = list(_caches(model, wishes))
    contexts = list(_contexts(model, wishes))
    if room.gpus and wishes.gpu_layers is None:
        for keys, values in caches:
            yield _load(contexts[0], keys, values, wishes), True
    for context in contexts:
        for keys, values in caches:
            yield _load(context, keys, values, wishes), False


def _contexts(model: ModelInfo, wishes: Wishes) -> Iterator[int]:
    if wishes.context_size is not None:
        yield wishes.context_size
        return
    context = min(DEFAULT_CONTEXT, context_length_of(model))
    yield context
    while context // 2 >= SMALLEST_CONTEXT:
        context //= 2
        yield context


def _caches(model: ModelInfo, wishes: Wishes) -> Iterator[tuple[str, str]]:
    keys, values = wishes.cache_type_k, wishes.cache_type_v
    yield keys or "f16", values or "f16"
    if keys is None and values is None and wishes.flash_attention and _may_quantise_cache(model):
        yield "q8_0", "q8_0"


def _may_quantise_cache(model: ModelInfo) -> bool:
    """Whether a quantised KV cache is certain to work: a header that tells the heads' length, in whole blocks."""
    metadata = model.gguf_metadata
    if metadata is None or not isinstance(metadata.attention_head_count, int) or metadata.attention_head_count < 1:
        return False
    default = (metadata.embedding_length or 0) // metadata.attention_head_count
    lengths = [metadata.attention_key_length or default, metadata.attention_value_length or default]
    return all(length > 0 and length % _CACHE_BLOCK == 0 for length in lengths)


def _load(context: int, keys: str, values: str, wishes: Wishes) -> Load:
    """A server as `llama_server.start` makes it: slots that share one cache."""
    return Load(
        context_size=context,
        parallel_requests=wishes.parallel_requests,
        kv_unified=True,
        cache_type_k=keys,
        cache_type_v=values,
        flash_attention=wishes.flash_attention,
    )


def _placed(model: ModelInfo, room: Room, load: Load, wishes: Wishes, whole: bool) -> Plan:
    every = layer_count_of(model) + 1  # the output layer counts as one
    if wishes.gpu_layers is not None:
        layers = wishes.gpu_layers
    elif not room.gpus:
        layers = 0
    elif whole:
        layers = every
    else:
        layers = _layers_that_fit(model, room, load, every)
    load = msgspec.structs.replace(load, gpu_layers=layers)
    reserve = VRAM_RESERVE if wishes.gpu_layers is None else 0
    needs, lacks = _held_against(model, room, load, reserve)
    return Plan(
        gpu_layers=layers,
        context_size=load.context_size,
        cache_type_k=load.cache_type_k,
        cache_type_v=load.cache_type_v,
        needs=needs,
        lacks=lacks,
        visible=room.visible if layers else (),
    )


def _layers_that_fit(model: ModelInfo, room: Room, load: Load, every: int) -> int:
    low, high = 0, every
    while low < high:  # what is on the GPUs grows with the layers, so halving finds the last number that fits
        middle = (low + high + 1) // 2
        trial = msgspec.structs.replace(load, gpu_layers=middle)
        _, lacks = _held_against(model, room, trial, VRAM_RESERVE)
        if lacks is None or lacks[0] == "RAM":
            low = middle
        else:
            high = middle - 1
    return low


def _held_against(
    model: ModelInfo, room: Room, load: Load, reserve: int
) -> tuple[MemoryEstimate, tuple[str, int, int] | None]:
    # Layers for a GPU that is not there, or that has no memory of its own, lie in RAM.
    needs = estimate(model, load if room.gpus else msgspec.structs.replace(load, gpu_layers=0))
    if len(room.gpus) > 1 and needs.vram:
        placed = estimate_on(model, load, room.gpus)
        needs = msgspec.structs.replace(needs, ram=placed.ram, vram=sum(placed.vram))
        for part, free in zip(placed.vram, room.gpus, strict=True):
            if part and part + reserve > free:
                return needs, ("VRAM", part, free)
    elif needs.vram and needs.vram + reserve > room.gpus[0]:
        return needs, ("VRAM", needs.vram, room.gpus[0])
    ram = needs.ram + needs.vram if room.unified else needs.ram
    return needs, ("RAM", ram, room.ram) if ram > room.ram else None
