"""Quantisations by file name, and which of several files is the best for a machine."""

from __future__ import annotations

import pytest

from genai_notebook.core.models.quantisation import best_fit, bits_of, quantization_of
from genai_notebook.core.schema import FoundFile, Placement

GB = 10**9


@pytest.mark.parametrize(
    ("file", "name", "bits"),
    [
        # as they are called out there
        ("Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M", 4),
        ("Qwen3-0.6B-UD-Q4_K_XL.gguf", "Q4_K_XL", 4),
        ("UD-IQ2_XXS/DeepSeek-V3.1-UD-IQ2_XXS-00001-of-00005.gguf", "IQ2_XXS", 2),
        ("Qwen3-30B-A3B-Instruct-2507-IQ4_NL.gguf", "IQ4_NL", 4),
        ("gemma-3-27b-it.i1-IQ1_S.gguf", "IQ1_S", 1),
        ("Mistral-7B-Instruct-v0.3.IQ3_M.gguf", "IQ3_M", 3),
        ("Meta-Llama-3.1-8B-Instruct-Q3_K_XL.gguf", "Q3_K_XL", 3),
        ("Meta-Llama-3.1-8B-Instruct-Q6_K_L.gguf", "Q6_K_L", 6),
        ("Meta-Llama-3.1-8B-Instruct-Q2_K.gguf", "Q2_K", 2),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1", 4),
        ("llama-2-7b.Q5_K_S.gguf", "Q5_K_S", 5),
        ("ggml-model-q4_0.gguf", "Q4_0", 4),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "Q8_0", 8),
        ("qwen2.5-72b-instruct-q5_k_m-00003-of-00014.gguf", "Q5_K_M", 5),
        ("phi-2_Q4_K_M.gguf", "Q4_K_M", 4),
        ("Llama-3.2-3B-Instruct-Q4_0_4_8.gguf", "Q4_0_4_8", 4),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4", 4),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4", 4),
        ("Qwen3-Next-80B-A3B-MXFP4_MOE-00001-of-00002.gguf", "MXFP4_MOE", 4),
        ("Falcon3-1B-TQ2_0.gguf", "TQ2_0", 2),
        ("BF16/Qwen3-8B-BF16-00001-of-00002.gguf", "BF16", 16),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "F16", 16),
        ("model-f16.gguf", "F16", 16),
        ("stories15M.F32.gguf", "F32", 32),
        ("model.fp32.gguf", "F32", 32),
        ("Q4_K_M.gguf", "Q4_K_M", 4),
        ("Q8_0/model-imatrix-Q4_K_M.gguf", "Q4_K_M", 4),
        # names that do not tell
        ("model.gguf", None, None),
        ("phi-4.gguf", None, None),
        ("Qwen3-8B.gguf", None, None),
        ("llama3.Q4-K-M.gguf", None, None),
        ("F16C-benchmark.gguf", None, None),
        ("xQ4_0.gguf", None, None),
        ("", None, None),
    ],
)
def test_names_of_quantisations(file: str, name: str | None, bits: int | None) -> None:
    assert quantization_of(file) == name
    assert bits_of(name) == bits


def found(**files: tuple[int, Placement]) -> list[FoundFile]:
    """Files by quantisation, which may be none of the known ones: size in GB and where they would go."""
    return [
        FoundFile(file=f"m-{name}.gguf", size=size * GB, fits=fits, quantization=quantization_of(name))
        for name, (size, fits) in files.items()
    ]


@pytest.mark.parametrize(
    ("files", "best"),
    [
        ({}, None),
        ({"Q4_K_M": (4, "no"), "Q2_K": (3, "no")}, None),
        # the best that goes onto the GPU, for the CPU is much slower
        ({"Q4_K_M": (4, "vram"), "Q5_K_M": (5, "vram"), "Q8_0": (8, "ram"), "BF16": (16, "no")}, "Q5_K_M"),
        # but not at any price
        ({"Q2_K": (2, "vram"), "IQ3_M": (3, "vram"), "Q4_K_M": (4, "ram"), "Q8_0": (8, "ram")}, "Q8_0"),
        ({"Q2_K": (2, "vram"), "IQ3_M": (3, "vram"), "Q4_K_M": (4, "no")}, "IQ3_M"),
        # more than eight bits only where there is nothing else
        ({"Q4_0": (4, "vram"), "Q8_0": (8, "vram"), "F16": (16, "vram"), "F32": (32, "vram")}, "Q8_0"),
        ({"F16": (16, "ram"), "F32": (32, "ram")}, "F16"),
        ({"Q2_K": (2, "ram"), "BF16": (16, "ram")}, "BF16"),
        ({"MXFP4": (4, "ram"), "BF16": (16, "ram")}, "MXFP4"),
        # names that do not tell count little, but they count
        ({"model": (9, "ram"), "Q4_0": (4, "ram")}, "Q4_0"),
        ({"model": (9, "ram")}, "model"),
    ],
)
def test_the_best_that_fits(files: dict[str, tuple[int, Placement]], best: str | None) -> None:
    chosen = best_fit(found(**files))
    assert (chosen.file if chosen else None) == (f"m-{best}.gguf" if best else None)
