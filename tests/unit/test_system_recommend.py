"""Threads and recommendations: the exact figures."""

from __future__ import annotations

import pytest

from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo
from genai_notebook.core.system.recommend import BALANCED, COMPACT, best_gpu, recommend, recommended_threads

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cores", "threads"),
    [(0, 1), (1, 1), (2, 2), (3, 2), (8, 7), (9, 7), (16, 14), (17, 14), (20, 17), (64, 54), (128, 108)],
)
def test_threads(cores: int, threads: int) -> None:
    assert recommended_threads(cores) == threads


@pytest.mark.parametrize(
    ("ram", "vram", "size", "quantization"),
    [
        (64 * GIB, 24 * GIB, "70B", BALANCED),
        (64 * GIB, 24 * GIB - 1, "34B", BALANCED),
        (8 * GIB, 16 * GIB, "34B", BALANCED),
        (32 * GIB, 16 * GIB - 1, "34B", COMPACT),
        (32 * GIB, 0, "34B", COMPACT),
        (32 * GIB - 1, 0, "13B", BALANCED),
        (16 * GIB, 0, "13B", BALANCED),
        (8 * GIB, 0, "7B", BALANCED),
        (8 * GIB - 1, 0, "7B", COMPACT),
        (0, 0, "7B", COMPACT),
    ],
)
def test_model_classes(ram: int, vram: int, size: str, quantization: list[str]) -> None:
    cpu = CPUInfo(cores=8, physical_cores=4, model="x", architecture="x64")
    gpu = GPUInfo(available=True, vram=vram) if vram else GPUInfo(available=False)
    found = recommend(cpu, MemoryInfo(total=ram, available=ram, used=0), gpu)
    assert (found.max_model_size, found.recommended_quantization, found.threads) == (size, quantization, 7)
    assert (found.gpu_layers is not None) is (vram > 0)


def test_the_figures_of_the_quantizations() -> None:
    assert BALANCED == ["Q5_K_M", "Q4_K_M"]
    assert COMPACT == ["Q4_K_M", "Q4_K_S", "Q3_K_M"]


def test_the_best_gpu_has_the_most_memory() -> None:
    small, large = GPUInfo(available=True, vram=1), GPUInfo(available=True, vram=2)
    assert best_gpu([small, large, GPUInfo(available=False, vram=3)]) is large
    assert best_gpu([GPUInfo(available=True)]).available
    assert not best_gpu([]).available
