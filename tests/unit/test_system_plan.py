"""Placements: what is chosen, in which order, and what is said where nothing fits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.schema import GGUFMetadata, GPUInfo, MemoryInfo
from genai_notebook.core.system.estimate import GIB, MIB, Load, estimate
from genai_notebook.core.system.plan import VRAM_RESERVE, Room, Wishes, plan, room_of
from tests.unit.test_system_estimate import LLAMA_2_7B, LLAMA_31_8B, model

BIG = 64 * GIB
LLAMA = model(4685 * MIB, msgspec.structs.replace(LLAMA_31_8B, context_length=131_072))
#: 3891 MiB of weights, and at 4096 tokens 2048 MiB of KV cache in f16.
CACHE_HEAVY = model(3891 * MIB, msgspec.structs.replace(LLAMA_2_7B, context_length=4096))


def kinds(found: object) -> tuple[int, int, str]:
    return found.gpu_layers, found.context_size, found.cache_type_k  # type: ignore[attr-defined]


def test_all_on_one_gpu() -> None:
    assert kinds(plan(LLAMA, Room(ram=GIB, gpus=(16 * GIB,)), Wishes())) == (33, 4096, "f16")


def test_a_quantised_cache_before_layers_in_ram() -> None:
    whole = estimate(CACHE_HEAVY, Load(gpu_layers=33, parallel_requests=4, kv_unified=True)).vram
    found = plan(CACHE_HEAVY, Room(ram=BIG, gpus=(whole + VRAM_RESERVE - MIB,)), Wishes())
    assert kinds(found) == (33, 4096, "q8_0")
    assert found.fits


def test_then_as_many_layers_as_fit() -> None:
    found = plan(CACHE_HEAVY, Room(ram=BIG, gpus=(4 * GIB,)), Wishes())
    assert 0 < found.gpu_layers < 33
    assert kinds(found)[1:] == (4096, "f16")
    assert found.needs.vram + VRAM_RESERVE <= 4 * GIB
    more = Load(gpu_layers=found.gpu_layers + 1, parallel_requests=4, kv_unified=True)
    assert estimate(CACHE_HEAVY, more).vram + VRAM_RESERVE > 4 * GIB


def test_without_a_gpu_the_cache_shrinks_and_then_the_context() -> None:
    seen = [kinds(plan(CACHE_HEAVY, Room(ram=ram * MIB), Wishes())) for ram in (6100, 5400, 5050, 4600, 4300)]
    assert seen == [(0, 4096, "f16"), (0, 4096, "q8_0"), (0, 2048, "f16"), (0, 2048, "q8_0"), (0, 1024, "q8_0")]


def test_what_lacks_is_told_of_the_smallest() -> None:
    found = plan(CACHE_HEAVY, Room(ram=GIB), Wishes())
    assert not found.fits
    assert found.lacks is not None
    what, needed, there = found.lacks
    assert (what, needed, there) == ("RAM", found.needs.ram, GIB)
    assert kinds(found) == (0, 1024, "q8_0")


def test_wishes_hold_even_if_they_do_not_fit() -> None:
    wishes = Wishes(context_size=32_768, gpu_layers=10, cache_type_k="f32")
    found = plan(CACHE_HEAVY, Room(ram=BIG, gpus=(2 * GIB,)), wishes)
    assert (found.gpu_layers, found.context_size, found.cache_type_k, found.cache_type_v) == (10, 32_768, "f32", "f16")
    assert found.lacks is not None
    assert found.lacks[0] == "VRAM"


def test_the_layers_are_those_for_the_context_that_was_asked_for() -> None:
    room = Room(ram=BIG, gpus=(8 * GIB,))
    short, long = (plan(LLAMA, room, Wishes(context_size=size)) for size in (4096, 65_536))
    assert short.gpu_layers == 33
    assert 0 < long.gpu_layers < 33
    assert long.fits


def test_an_engine_without_a_gpu_backend_gets_no_layers() -> None:
    found = plan(LLAMA, Room(ram=16 * GIB, gpus=(80 * GIB,)), Wishes(use_gpu=False))
    assert (found.gpu_layers, found.needs.vram) == (0, 0)
    assert not plan(LLAMA, Room(ram=4 * GIB, gpus=(80 * GIB,)), Wishes(use_gpu=False)).fits


@pytest.mark.parametrize("ram", [64, 2])
def test_layers_asked_of_such_an_engine_are_reckoned_in_ram(ram: int) -> None:
    found = plan(LLAMA, Room(ram=ram * GIB, gpus=(2 * GIB,)), Wishes(gpu_layers=99, use_gpu=False))
    assert found.fits is (ram == 64)


def test_what_had_to_be_made_smaller_is_no_first_choice() -> None:
    assert plan(LLAMA, Room(ram=BIG), Wishes()).first_choice
    assert plan(LLAMA, Room(ram=GIB, gpus=(16 * GIB,)), Wishes()).first_choice
    assert not plan(CACHE_HEAVY, Room(ram=5000 * MIB), Wishes()).first_choice
    assert not plan(LLAMA, Room(ram=BIG, gpus=(4 * GIB,)), Wishes()).first_choice


def test_layers_for_a_gpu_that_is_not_there_lie_in_ram() -> None:
    found = plan(LLAMA, Room(ram=GIB), Wishes(gpu_layers=99))
    assert found.lacks is not None
    assert found.lacks[0] == "RAM"


def test_no_quantised_cache_where_it_would_not_work() -> None:
    odd = msgspec.structs.replace(LLAMA_2_7B, attention_key_length=80, attention_value_length=80)
    for found in (
        plan(model(3891 * MIB, odd), Room(ram=GIB), Wishes()),
        plan(model(3891 * MIB), Room(ram=GIB), Wishes()),
        plan(CACHE_HEAVY, Room(ram=GIB), Wishes(flash_attention=False)),
    ):
        assert (found.cache_type_k, found.cache_type_v) == ("f16", "f16")


def test_the_model_s_own_context_bounds_what_is_chosen() -> None:
    short = model(GIB, msgspec.structs.replace(LLAMA_31_8B, context_length=2048))
    assert plan(short, Room(ram=BIG), Wishes()).context_size == 2048
    assert plan(short, Room(ram=BIG), Wishes(context_size=8192)).context_size == 8192


def test_shared_memory_is_counted_once() -> None:
    """Of Apple's 16 GiB the GPU may have 12, but what it takes is gone for everybody."""
    assert plan(LLAMA, Room(ram=16 * GIB, gpus=(12 * GIB,), unified=True), Wishes()).gpu_layers == 33
    found = plan(LLAMA, Room(ram=2 * GIB, gpus=(12 * GIB,), unified=True), Wishes())
    assert found.lacks is not None
    assert found.lacks[0] == "RAM"


def test_several_gpus_hold_together_what_one_cannot() -> None:
    one, two = (plan(CACHE_HEAVY, Room(ram=BIG, gpus=gpus), Wishes()) for gpus in ((6 * GIB,), (6 * GIB, 6 * GIB)))
    assert one.gpu_layers < 33
    assert two.gpu_layers == 33
    assert two.fits


def test_room_takes_cards_before_shared_graphics() -> None:
    memory = MemoryInfo(total=32 * GIB, available=20 * GIB, used=12 * GIB)
    card = GPUInfo(available=True, type="nvidia", vram=8 * GIB, vram_available=5 * GIB)
    shared = GPUInfo(available=True, type="intel", vram=16 * GIB, unified=True)
    unsized = GPUInfo(available=True, type="intel", unified=True)
    assert room_of(memory, [shared, card, unsized]) == Room(ram=20 * GIB, gpus=(5 * GIB,))
    assert room_of(memory, [shared, card], total=True) == Room(ram=32 * GIB, gpus=(8 * GIB,))
    full = GPUInfo(available=True, type="nvidia", vram=8 * GIB, vram_available=GIB)
    assert room_of(memory, [full, card, card]) == Room(ram=20 * GIB, gpus=(5 * GIB, 5 * GIB))
    assert room_of(memory, [full]) == Room(ram=20 * GIB, gpus=(GIB,))
    assert room_of(memory, [shared]) == Room(ram=20 * GIB, gpus=(16 * GIB,), unified=True)
    assert room_of(memory, [unsized, GPUInfo(available=False)]) == Room(ram=20 * GIB)


def nvidia(name: str, free: int) -> GPUInfo:
    return GPUInfo(available=True, type="nvidia", id=name, vram=24 * GIB, vram_available=free)


def test_cards_are_named_where_an_engine_could_take_others_or_another_order() -> None:
    memory = MemoryInfo(total=BIG, available=BIG, used=0)
    small, one, two = nvidia("GPU-s", GIB), nvidia("GPU-1", 20 * GIB), nvidia("GPU-2", 16 * GIB)
    assert room_of(memory, [small, one, two]).visible == ("GPU-1", "GPU-2")
    assert room_of(memory, [one, two]).visible == ("GPU-1", "GPU-2")
    assert room_of(memory, [one]).visible == ()
    assert room_of(memory, [one, GPUInfo(available=True, type="amd", id="0000:03:00.0", vram=8 * GIB)]).visible == ()
    found = plan(LLAMA, room_of(memory, [small, one]), Wishes())
    assert (found.gpu_layers, found.visible) == (33, ("GPU-1",))
    assert plan(LLAMA, room_of(memory, [small, one]), Wishes(gpu_layers=0)).visible == ()


def test_of_slices_the_best_counts() -> None:
    memory = MemoryInfo(total=BIG, available=BIG, used=0)
    room = room_of(memory, [nvidia("MIG-a", 5 * GIB), nvidia("MIG-b", 9 * GIB), nvidia("MIG-c", 9 * GIB)])
    assert (room.gpus, room.visible) == ((9 * GIB,), ("MIG-b",))


NUMBER = st.one_of(st.none(), st.integers(-5, 5), st.integers(0, 10_000), st.integers(-(2**70), 2**70))


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(-(2**65), 2**65),
    numbers=st.tuples(*[NUMBER] * 7),
    ram=st.integers(0, 2**50),
    gpus=st.lists(st.integers(0, 2**45), max_size=3),
    unified=st.booleans(),
    context=st.one_of(st.none(), st.integers(1, 2**24)),
)
def test_nonsense_gets_a_plan_all_the_same(
    size: int, numbers: tuple[int | None, ...], ram: int, gpus: list[int], unified: bool, context: int | None
) -> None:
    names = ("block_count", "context_length", "embedding_length", "vocab_size", "attention_head_count",
             "attention_head_count_kv", "attention_key_length")  # fmt: skip
    metadata = GGUFMetadata(architecture="x", **dict(zip(names, numbers, strict=True)))  # type: ignore[arg-type]
    found = plan(model(size, metadata), Room(ram=ram, gpus=tuple(gpus), unified=unified), Wishes(context_size=context))
    assert found.context_size >= 1
    assert found.gpu_layers >= 0
    if found.fits:
        assert found.needs.ram <= ram
        assert sum(gpus) >= found.needs.vram
