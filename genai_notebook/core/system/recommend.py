"""Rules of thumb: threads for a processor, model sizes for a memory."""

from __future__ import annotations

from collections.abc import Sequence

from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo, SystemRecommendations

GIB = 1 << 30
BALANCED = ["Q5_K_M", "Q4_K_M"]
COMPACT = ["Q4_K_M", "Q4_K_S", "Q3_K_M"]
#: As llama.cpp takes it: more layers than any model has, so all of them.
ALL_LAYERS = 999

_BY_VRAM = ((24, "70B", BALANCED), (16, "34B", BALANCED))
_BY_RAM = ((32, "34B", COMPACT), (16, "13B", BALANCED), (8, "7B", BALANCED))


def recommended_threads(cores: int) -> int:
    """Threads for an engine on that many logical cores: some are left for the rest of the machine."""
    if cores <= 2:
        return max(1, cores)
    if cores <= 8:
        return cores - 1
    if cores <= 16:
        return cores - 2
    return cores * 85 // 100


def best_gpu(gpus: Sequence[GPUInfo]) -> GPUInfo:
    """The card with the most memory, else the graphics that shares the RAM, or one that says `available=False`."""
    usable = [gpu for gpu in gpus if gpu.available]
    return max(usable, key=lambda gpu: (not gpu.unified, gpu.vram or 0), default=GPUInfo(available=False))


def recommend(cpu: CPUInfo, memory: MemoryInfo, gpu: GPUInfo) -> SystemRecommendations:
    """The largest class of model, and its quantizations, that this machine runs well."""
    size, quantization = _class(memory.total, gpu.vram or 0 if gpu.available else 0)
    return SystemRecommendations(
        max_model_size=size,
        recommended_quantization=list(quantization),
        threads=recommended_threads(cpu.cores),
        gpu_layers=ALL_LAYERS if gpu.available else None,
    )


def _class(ram: int, vram: int) -> tuple[str, list[str]]:
    for amount, rules in ((vram, _BY_VRAM), (ram, _BY_RAM)):
        for least, size, quantization in rules:
            if amount >= least * GIB:
                return size, quantization
    return "7B", COMPACT
