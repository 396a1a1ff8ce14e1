"""What engines print about memory, as recorded, and the footprints that are kept of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_notebook.core.schema import ModelInfo, ModelSource
from genai_notebook.core.servers.footprints import KEPT, Footprints, footprint_key
from genai_notebook.core.servers.load_report import Footprint, LoadReport

MIB = 1 << 20

CPU_BUILD = """\
0.00.120.283 I load_tensors: offloaded 31/31 layers to GPU
0.00.120.290 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.121.365 I llama_context:        CPU  output buffer size =     0.75 MiB
0.00.121.452 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.00.177.349 I sched_reserve:        CPU compute buffer size =    18.65 MiB
"""
CUDA = """\
0.00.520.283 I load_tensors: offloaded 20/33 layers to GPU
0.00.520.290 I load_tensors:   CPU_Mapped model buffer size =  1900.00 MiB
0.00.520.290 I load_tensors:        CUDA0 model buffer size =  1500.50 MiB
0.00.520.290 I load_tensors:        CUDA1 model buffer size =  1500.50 MiB
0.00.621.452 I llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
0.00.621.452 I llama_memory_recurrent:      CUDA1 RS buffer size =    10.00 MiB
0.00.621.365 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB
0.00.677.349 I sched_reserve:      CUDA0 compute buffer size =    89.00 MiB
0.00.677.349 I sched_reserve:  CUDA_Host compute buffer size =     9.50 MiB
"""
AMX = """\
0.00.520.283 I load_tensors: offloaded 33/33 layers to GPU
0.00.520.290 I load_tensors:          AMX model buffer size =  4000.00 MiB
"""
DRY_RUN_AND_LOAD = (
    CUDA
    + """\
0.01.520.283 I load_tensors: offloaded 9/33 layers to GPU
0.01.520.290 I load_tensors:        CUDA0 model buffer size =  1000.00 MiB
"""
)
SD = """\
[INFO ] stable-diffusion.cpp:985  - total params memory size = 4495.50MB (VRAM 4400.25MB, RAM 95.25MB): text_encoders \
66.61MB(RAM), diffusion_model 424.26MB(RAM), vae 4.67MB(RAM), controlnet 0.00MB(N/A), pmid 0.00MB(N/A)
"""


def read(text: str) -> LoadReport:
    report = LoadReport()
    for line in text.splitlines():
        report.feed(line)
    return report


def test_a_build_without_a_gpu_backend_has_offloaded_nothing() -> None:
    report = read(CPU_BUILD)
    assert report.gpu_layers == 0
    assert report.footprint == Footprint(ram=int(201.5 * MIB), vram=0)
    assert report.out_of_memory is None


def test_gpus_are_told_apart_from_the_host_s_part_of_them() -> None:
    report = read(CUDA)
    assert report.gpu_layers == 20
    assert report.footprint == Footprint(ram=1910 * MIB, vram=3200 * MIB)


def test_buffers_for_the_processor_s_matrix_units_are_ram() -> None:
    report = read(AMX)
    assert (report.gpu_layers, report.footprint) == (0, Footprint(ram=4000 * MIB, vram=0))


def test_the_last_load_counts() -> None:
    report = read(DRY_RUN_AND_LOAD)
    assert (report.gpu_layers, report.footprint) == (9, Footprint(ram=0, vram=1000 * MIB))


def test_an_image_model_s_parameters() -> None:
    assert read(SD).footprint == Footprint(ram=int(95.25 * MIB), vram=int(4400.25 * MIB))


def test_an_engine_that_says_nothing() -> None:
    report = read("0.00.031.589 I srv  llama_server: model loaded\n")
    assert (report.footprint, report.gpu_layers, report.out_of_memory) == (None, None, None)


@pytest.mark.parametrize(
    "line",
    [
        "0.00.256.982 E ggml_aligned_malloc: insufficient memory (attempted to allocate 43948.12 MB)",
        "0.00.257.012 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 46082949120",
        "0.00.264.333 E llama_init: failed to initialize the context: failed to allocate compute pp buffers",
        "0.01.0.0 E x",
        "0.00.500.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: "
        "cudaMalloc failed: out of memory",
        "0.00.500.000 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592",
        "0.00.500.000 E ggml_vulkan: Device memory allocation of size 1073741824 failed.",
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "CUDA error: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
        "[ERROR] ggml_extend.hpp:1900 - failed to allocate the compute buffer",
    ],
)
def test_too_little_memory(line: str) -> None:
    assert (read(line).out_of_memory is not None) is not line.endswith("E x")


@pytest.mark.parametrize(
    "line",
    [
        "0.00.004.698 I srv    load_model: loading model '/models/out of memory: failed to allocate.gguf'",
        "[INFO ] stable-diffusion.cpp:244  - loading model from '/x/std::bad_alloc.gguf'",
        "0.00.004.698 I slot launch_slot_: id 1 | prompt = 'what does cudaMalloc failed mean'",
        "[DEBUG] model.cpp:1 - failed to allocate",
    ],
)
def test_words_in_a_path_or_a_prompt_mean_nothing(line: str) -> None:
    assert read(line).out_of_memory is None


def test_bars_are_not_read() -> None:
    report = LoadReport()
    report.feed("CUDA error: out of memory", True)
    assert report.out_of_memory is None


def model(path: str = "/m.gguf", size: int = 7) -> ModelInfo:
    source = ModelSource(type="local")
    return ModelInfo(id="m", name="m", type="diffusion", size=size, path=path, downloaded_at="2026", source=source)


def test_footprints_outlive_the_process_and_belong_to_engine_and_flags(tmp_path: Path) -> None:
    first = Footprints(tmp_path)
    key = footprint_key(model(), "sd-server 1", [])
    assert first.recall(key) is None
    first.remember(key, Footprint(ram=1, vram=2))
    again = Footprints(tmp_path)
    assert again.recall(key) == Footprint(ram=1, vram=2)
    others = [
        footprint_key(model(size=8), "sd-server 1", []),
        footprint_key(model("/n.gguf"), "sd-server 1", []),
        footprint_key(model(), "sd-server 2", []),
        footprint_key(model(), "sd-server 1", ["--max-vram", "4"]),
    ]
    assert [again.recall(other) for other in others] == [None] * 4


def test_the_oldest_footprints_go(tmp_path: Path) -> None:
    kept = Footprints(tmp_path)
    for number in range(KEPT + 5):
        kept.remember(str(number), Footprint(ram=number, vram=0))
    assert kept.recall("4") is None
    assert Footprints(tmp_path).recall(str(KEPT + 4)) == Footprint(ram=KEPT + 4, vram=0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"k": {"ram": -1, "vram": 0}}', b'{"k": {"ram": "1"}}', b"\xff"]
)
def test_a_spoilt_file_is_no_misfortune(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "footprints.json").write_bytes(content)
    kept = Footprints(tmp_path)
    assert kept.recall("k") is None
    kept.remember("k", Footprint(ram=1, vram=0))
    assert Footprints(tmp_path).recall("k") == Footprint(ram=1, vram=0)


def test_a_folder_that_cannot_be_written_is_none_either(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    kept = Footprints(tmp_path / "cache")
    kept.remember("k", Footprint(ram=1, vram=0))
    assert kept.recall("k") == Footprint(ram=1, vram=0)
