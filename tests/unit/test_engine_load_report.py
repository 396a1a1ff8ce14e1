"""What engines print about memory, GPUs and models that cannot be loaded, as recorded."""

from __future__ import annotations

import pytest

from genai_notebook.core.engines.load_report import Footprint, LoadReport

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


LLAMA, SD_ERROR = "0.00.013.202 E ", "[ERROR] ggml_extend.hpp:69   - "
ALLOCATING = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1234.56 MiB on device 0"
INIT = "llama_init_from_model: failed to initialize the context"


@pytest.mark.parametrize("prefix", [LLAMA, SD_ERROR, ""])
@pytest.mark.parametrize(
    "message",
    [
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 43948.12 MB)",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 46082949120",
        f"{ALLOCATING}: cudaMalloc failed: out of memory",
        "ggml_backend_buft_alloc_buffer_n: failed to allocate CUDA0 buffer of size 12",
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "llama_model_load: error loading model: unable to allocate Vulkan0 buffer",
        "llama_kv_cache: failed to allocate buffer for kv cache",
        "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 1",
        "graph_reserve: failed to allocate compute buffers",
        f"{INIT}: failed to allocate compute pp buffers",
        f"{INIT}: failed to allocate buffer for kv cache",
        "CUDA error: out of memory",
        "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
        "ggml_vulkan: Memory allocation of size 1073741824 failed.",
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "ggml_vulkan: Requested buffer size exceeds device buffer size limit: ErrorOutOfDeviceMemory",
        "ggml_vulkan: No suitable memory type found: ErrorOutOfDeviceMemory",
        "ggml_vulkan: (ctx->device->device.waitForFences({ f }, true)) error ErrorOutOfDeviceMemory at /a/b.cpp:12",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'",
        "libc++abi: terminating due to uncaught exception of type std::bad_alloc: std::bad_alloc",
        "  what():  std::bad_alloc",
        "  what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    ],
)
def test_too_little_memory(prefix: str, message: str) -> None:
    report = read(prefix + message)
    assert (report.out_of_memory or "").endswith(message)
    assert report.gpu_error is None


@pytest.mark.parametrize(
    "line",
    [
        "[ERROR] ggml_extend.hpp:2572 - unet alloc params backend buffer failed, num_tensors = 3",
        "[ERROR] ggml_extend.hpp:1914 - unet: failed to allocate the compute buffer",
        "[ERROR] ggml_extend.hpp:1920 - unet alloc compute buffer failed",
        "[ERROR] ggml_extend.hpp:1920 - unet compute failed: GGML status: error (failed to allocate memory)",
    ],
)
def test_too_little_memory_for_an_image(line: str) -> None:
    assert read(line).out_of_memory is not None


@pytest.mark.parametrize("prefix", [LLAMA, SD_ERROR, ""])
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: device kernel image is invalid",
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
        "ROCm error: unspecified launch failure",
        "MUSA error: unspecified launch failure",
        "Vulkan error: x",
        "GPU error: x",
        "vkCreateDevice failed",
        "ggml_vulkan: device lost on Vulkan0",
        "ggml_vulkan: device lost on card 0, likely caused by previous submission (nodes 1 to 2):",
        "ggml_vulkan: device fault on card 0: an address",
        "ggml_vulkan: (ctx->queue.submit({ }, fence)) error ErrorDeviceLost at /a/ggml-vulkan.cpp:12",
        "ggml_vulkan: Error: Vulkan 1.2 required.",
        "ggml_vulkan: No suitable queue family index found.",
        "ggml_vulkan: device Vulkan0 does not support 16-bit storage.",
        "ggml_vulkan: Invalid device index 3 in GGML_VK_VISIBLE_DEVICES.",
        "ggml_vulkan: Device with index 3 does not exist.",
        "ggml_vulkan: compute pipeline creation failed for matmul: why",
        "ggml_vulkan: shader module creation failed for matmul: why",
        "terminate called after throwing an instance of 'vk::DeviceLostError'",
        "libc++abi: terminating due to uncaught exception of type vk::DeviceLostError: vk::Queue::submit",
        "  what():  vk::Queue::submit: ErrorDeviceLost",
        "  what():  vk::Device::waitForFences: ErrorDeviceLost",
        "  what():  vk::Device::getFenceStatus: ErrorDeviceLost",
    ],
)
def test_a_gpu_s_error(prefix: str, message: str) -> None:
    report = read(prefix + message)
    assert (report.gpu_error or "").endswith(message)
    assert report.out_of_memory is None


@pytest.mark.parametrize("prefix", [LLAMA, SD_ERROR, ""])
def test_a_driver_that_is_not_there_is_no_error(prefix: str) -> None:
    report = read(f"{prefix}ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected")
    assert report.no_gpu == "failed to initialize CUDA: no CUDA-capable device is detected"
    assert (report.gpu_error, report.out_of_memory, report.model_error) == (None, None, None)


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: failed to allocate 12.34 MB of pinned memory",
        "0.00.013.202 W ggml_vulkan: Failed to allocate pinned memory (ErrorOutOfHostMemory)",
        "[WARN ] ggml_extend.hpp:69   - ggml_vulkan: Failed to allocate pinned memory (ErrorOutOfHostMemory)",
        "0.00.013.202 W ggml_cuda_host_malloc: failed to allocate 12.00 MiB of pinned memory: out of memory",
    ],
)
def test_memory_that_need_not_be_pinned(line: str) -> None:
    report = read(line)
    assert (report.out_of_memory, report.gpu_error) == (None, None)


@pytest.mark.parametrize(
    "line",
    [
        "0.00.004.698 I srv    load_model: loading model '/models/out of memory: failed to allocate.gguf'",
        "0.00.004.698 E srv    load_model: failed to load model, '/models/CUDA error: out of memory.gguf'",
        "[INFO ] stable-diffusion.cpp:244  - loading model from '/x/std::bad_alloc.gguf'",
        "[ERROR] stable-diffusion.cpp:299  - get sd version from file failed: '/x/CUDA error: x: ErrorDeviceLost'",
        "0.00.004.698 I slot launch_slot_: id 1 | prompt = 'what does cudaMalloc failed mean'",
        "0.00.004.698 I slot 1: prompt: out of memory",
        "0.00.004.698 I srv  log: CUDA error: an illegal memory access was encountered",
        "[INFO ] main.cpp:1 - prompt: vulkan error: failed to allocate",
        "[DEBUG] model.cpp:1 - failed to allocate",
        "[DEBUG] model.cpp:1 - CUDA error: x",
        "0.00.004.698 D srv: CUDA error: out of memory",
    ],
)
def test_words_in_a_path_or_a_prompt_mean_nothing(line: str) -> None:
    report = read(line)
    assert (report.out_of_memory, report.gpu_error) == (None, None)


BROKEN_LLMS = {
    "llama_model_loader: failed to load model from /m": (
        "gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
        "llama_model_load: error loading model: llama_model_loader: failed to load model from /m",
    ),
    "tensor 'blk.15.attn_output.weight' data is not within the file bounds, model is corrupted or incomplete": (
        "llama_model_load: error loading model: tensor 'blk.15.attn_output.weight' data is not within the file bounds,"
        " model is corrupted or incomplete",
    ),
    "unknown model architecture: 'xxxxx'": (
        "llama_model_load: error loading model: unknown model architecture: 'xxxxx'",
    ),
    "error loading model hyperparameters: invalid n_rot: 64, expected 71": (
        "llama_model_load: error loading model: error loading model hyperparameters: invalid n_rot: 64, expected 71",
    ),
    "tensor 'blk.0.attn_q.weight' has wrong shape; expected   576,   576, got   576,   640,     1,     1": (
        "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.attn_q.weight' has wrong shape;"
        " expected   576,   576, got   576,   640,     1,     1",
    ),
    "tensor 'blk.5.attn_q.weight' not found": (
        "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.5.attn_q.weight' not found",
    ),
}
LAST_WORDS = [
    "llama_model_load_from_file_impl: failed to load model",
    "cmn  common_init_: failed to load model '/m'",
    "srv    load_model: failed to load model, '/m'",
]


@pytest.mark.parametrize("part", ["llama_server", "init"])
@pytest.mark.parametrize("reason", list(BROKEN_LLMS))
def test_a_language_model_that_cannot_be_loaded(reason: str, part: str) -> None:
    lines = [*BROKEN_LLMS[reason], *LAST_WORDS, f"srv  {part}: exiting due to model loading error"]
    report = read("\n".join(LLAMA + line for line in lines))
    assert report.model_error == reason
    assert (report.out_of_memory, report.gpu_error) == (None, None)


def test_without_a_reason_the_last_words_are_one() -> None:
    assert read("\n".join(LLAMA + line for line in LAST_WORDS)).model_error == "failed to load model"


BROKEN_PICTURES = {
    "unknown format /m": """\
[WARN ] model.cpp:229  - unknown format /m
[ERROR] stable-diffusion.cpp:214  - init model loader from file failed: '/m'
[ERROR] stable-diffusion.cpp:299  - get sd version from file failed: '/m'
[ERROR] main.cpp:92   - new_sd_ctx_t failed
""",
    "init model loader from file failed: '/m'": """\
[WARN ] model.cpp:231  - file /m not found
[ERROR] stable-diffusion.cpp:214  - init model loader from file failed: '/m'
[INFO ] main.cpp:92   - new_sd_ctx_t failed
""",
    "get sd version from file failed: '/m'": """\
[ERROR] stable-diffusion.cpp:299  - get sd version from file failed: '/m'
[ERROR] main.cpp:92   - new_sd_ctx_t failed
""",
    "read tensor data failed: '/m'": """\
[ERROR] model.cpp:876  - read tensor data failed: '/m'
[ERROR] model.cpp:1051 - load tensors from file failed
[ERROR] stable-diffusion.cpp:801  - load tensors from model loader failed
[ERROR] main.cpp:92   - new_sd_ctx_t failed
""",
    "tensor 'x' has wrong shape in model file: got [1, 2], expected [3, 4]": """\
[ERROR] model.cpp:1035 - tensor 'x' has wrong shape in model file: got [1, 2], expected [3, 4]
[ERROR] stable-diffusion.cpp:801  - load tensors from model loader failed
""",
    "tensor 'x' not in model file": """\
[ERROR] model.cpp:1067 - tensor 'x' not in model file
[ERROR] stable-diffusion.cpp:916  - load tensors from model loader failed
""",
    "Diffusion model tensor 'x' not in model metadata": """\
[ERROR] model_manager.cpp:761  - Diffusion model tensor 'x' not in model metadata
[ERROR] diffusion_engine.cpp:1237 - model metadata validation failed
""",
    "new_sd_ctx_t failed: /m is cut short: it has 31 bytes and must have 51": """\
[ERROR] sd_server.py  - new_sd_ctx_t failed: /m is cut short: it has 31 bytes and must have 51
""",
    "new_sd_ctx_t failed: '/m': Stable Diffusion model file is empty: /m": """\
[ERROR] sd_server.py  - new_sd_ctx_t failed: '/m': Stable Diffusion model file is empty: /m
""",
}


@pytest.mark.parametrize("reason", list(BROKEN_PICTURES))
def test_an_image_model_that_cannot_be_loaded(reason: str) -> None:
    report = read(BROKEN_PICTURES[reason])
    assert report.model_error == reason
    assert (report.out_of_memory, report.gpu_error) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "0.1.0.0 E srv  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1",
        LLAMA + "srv  llama_server: exiting due to HTTP server error",
        "[ERROR] sd_server.py  - couldn't bind 127.0.0.1:8081: Address already in use",
        "error: invalid argument: --foo",
        "error: no such file: /m",
        "[ERROR] common.cpp:290  - error: unknown argument: --frobnicate",
        LLAMA + "srv  update_slots: Compute error. off = 0, n_batch = 512, ret = -3",
        "[ERROR] stable-diffusion.cpp:3437 - sampling for image 1/1 failed after 0.12s",
        "/a/ggml.c:12: GGML_ASSERT(x) failed",
    ],
)
def test_what_is_not_the_model_s_fault(text: str) -> None:
    assert read(text).model_error is None


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("error: invalid argument: --x", "--x"),
        ("[ERROR] common.cpp:290  - error: unknown argument: --x", "--x"),
        (LLAMA + "error: invalid argument: --frobnicate", "--frobnicate"),
        ("error: no such file: --x", None),
        ("prompt: 'error: invalid argument: --x'", None),
        (CPU_BUILD, None),
    ],
)
def test_a_flag_that_the_engine_does_not_know(text: str, flag: str | None) -> None:
    report = read(text)
    assert report.unknown_flag == flag
    assert (report.out_of_memory, report.gpu_error, report.model_error) == (None, None, None)


def test_a_load_that_fails_for_want_of_memory_says_so_besides() -> None:
    lines = ["llama_model_load: error loading model: unable to allocate CUDA0 buffer", *LAST_WORDS]
    report = read("\n".join(LLAMA + line for line in lines))
    assert report.out_of_memory == "llama_model_load: error loading model: unable to allocate CUDA0 buffer"


def test_memory_is_told_apart_from_the_error_that_follows() -> None:
    report = read(f"{LLAMA}CUDA error: out of memory\nggml-cuda.cu:97: CUDA error\n")
    assert report.out_of_memory == "CUDA error: out of memory"


@pytest.mark.parametrize("prefix", [LLAMA, SD_ERROR, ""])
@pytest.mark.parametrize("part", ["a:" + " " * 500, "a " * 500 + ":", "::", "a - ", "a:1 - "])
def test_no_line_takes_long(prefix: str, part: str) -> None:
    report = read(prefix + part * 1000 + "!")
    assert (report.out_of_memory, report.gpu_error, report.model_error) == (None, None, None)


def test_what_was_too_much_before_is_forgotten() -> None:
    report = read("CUDA error: out of memory")
    report.forget_out_of_memory()
    assert report.out_of_memory is None
    report.feed("ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory")
    assert report.out_of_memory is not None


@pytest.mark.parametrize(("text", "used"), [(CUDA, True), (CPU_BUILD, False), (SD, True), ("", None)])
def test_whether_a_gpu_took_part(text: str, used: bool | None) -> None:
    assert read(text).used_gpu is used


def test_bars_are_not_read() -> None:
    report = LoadReport()
    report.feed("CUDA error: out of memory", True)
    assert report.out_of_memory is None
