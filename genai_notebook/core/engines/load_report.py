"""What an engine prints while it loads: what the model took, where, and what went wrong."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from genai_notebook.core.processes.logs import split_level

_MIB = 1 << 20
# The words stand at the start of a message, behind names of functions and devices: never inside a path or a prompt.
# No two parts of the patterns may take the same spaces: a line that is made for it would hold everything up.
_WHERE = r"(?:[\w.-]+(?::\d+)?\s+- )?"
_START = _WHERE + r"\s*(?!WARNING: )(?:[\w~<>(),.|-][\w ~<>(),.|-]*:{1,2}\s*){0,6}"
_ABORTED = (
    r"(?:terminate called after throwing an instance of '|libc\+\+abi: terminating due to uncaught exception of type )"
)
_OUT_OF_MEMORY = re.compile(
    _START + r"(?:cudaMalloc failed|hipMalloc failed|failed to allocate|unable to allocate|insufficient memory"
    r"|out of memory|[\w.]+ alloc (?:params backend|compute) buffer failed"
    r"|(?:vk::Device::allocateMemory: )?ErrorOutOf(?:Device|Host)Memory|VK_ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY"
    r"|GGML status: error \(failed to allocate memory|(?:Device )?memory allocation of size \d+ failed|std::bad_alloc"
    rf"|{_ABORTED}(?:std::bad_alloc|vk::OutOf\w+MemoryError))"
    rf"|{_WHERE}ggml_vulkan: .{{1,300}} error ErrorOutOf(?:Device|Host)Memory at ",
    re.IGNORECASE,
)
_GPU_ERROR = re.compile(
    _START + r"(?:(?:CUDA|ROCm|HIP|Vulkan|GPU|Metal|MUSA|SYCL) error\b|vkCreate\w+ failed"
    r"|(?:vk::\w+(?:::\w+)*: )?Error(?:DeviceLost|InitializationFailed|IncompatibleDriver|ExtensionNotPresent"
    r"|FeatureNotPresent)|VK_ERROR_(?:DEVICE_LOST|INITIALIZATION_FAILED|INCOMPATIBLE_DRIVER)"
    rf"|{_ABORTED}vk::)"
    rf"|{_WHERE}ggml_vulkan: (?:Error:|device (?:lost|fault) on|(?:compute pipeline|shader module) creation failed"
    r"|No suitable queue family|Invalid device index|Device with index|device \S+ does not support 16-bit storage"
    r"|.{1,300} error Error\w+ at )",
    re.IGNORECASE,
)
#: With this an engine goes on, on the CPU.
_NO_GPU = re.compile(_WHERE + r"ggml_\w+_init: (failed to initialize .+)")
_UNKNOWN_FLAG = re.compile(_START + r"(?:invalid|unknown) argument: (\S+)")
# Why a model cannot be loaded, then that it cannot.
_MODEL_REASON = re.compile(
    _START + r"(?:error loading model: (.+)|(unknown format .+|read tensor data failed: .+|(?:\w+ model )?tensor '.+))"
)
_MODEL_ERROR = re.compile(
    _START + r"((?:exiting due to model loading error|failed to load model|init model loader from file failed"
    r"|get sd version from file failed|load tensors from model loader failed|model metadata validation failed"
    r"|new_sd_ctx_t failed).*)"
)
_BUFFER = re.compile(r"\w+:\s+(\S+)\s+(?:model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")
_OFFLOADED = re.compile(r"load_tensors: offloaded (\d+)/\d+ layers to GPU")
_PARAMS = re.compile(r"total params memory size = [\d.]+MB \(VRAM ([\d.]+)MB, RAM ([\d.]+)MB\)")
_HOST = re.compile(r"CPU|AMX|\w+_Host\Z|Host\Z")


class Footprint(Struct, frozen=True):
    """Bytes that a loaded model holds, or will."""

    ram: Annotated[int, Meta(ge=0)]
    vram: Annotated[int, Meta(ge=0)]


class LoadReport:
    """Reads the lines of one run of one engine; give `feed` to its session.

    llama.cpp names every buffer and the device it is on, stable-diffusion.cpp the sum of a model's parameters.
    """

    def __init__(self) -> None:
        #: The first line that spoke of too little memory.
        self.out_of_memory: str | None = None
        #: The first line in which a GPU's driver or backend reported an error.
        self.gpu_error: str | None = None
        #: Why the engine found no GPU, if it said so.
        self.no_gpu: str | None = None
        #: A flag that the engine refused.
        self.unknown_flag: str | None = None
        self._model_reason: str | None = None
        self._model_error: str | None = None
        self._layers: int | None = None
        self._ram = self._vram = 0.0
        self._params: Footprint | None = None

    def feed(self, line: str, is_bar: bool = False) -> None:
        """Read one line of the engine's output."""
        if is_bar:
            return
        level, message = split_level(line)
        # Errors are said as such, or raw, without a level; anything else may quote a prompt.
        grave = level == "error" or message is line
        if self.out_of_memory is None and grave and _OUT_OF_MEMORY.match(message):
            self.out_of_memory = message
        elif self.gpu_error is None and grave and _GPU_ERROR.match(message):
            self.gpu_error = message
        elif level in ("error", "warn") and (_MODEL_REASON.match(message) or _MODEL_ERROR.match(message)):
            self._blame_model(message)
        elif match := _UNKNOWN_FLAG.match(message):
            self.unknown_flag = match[1]
        elif match := _NO_GPU.match(message):
            self.no_gpu = match[1]
        elif match := _BUFFER.match(message):
            self._add(match[1], float(match[2]))
        elif match := _OFFLOADED.match(message):
            self._layers = int(match[1])
            self._ram = self._vram = 0.0  # a load begins; with --fit on there were dry runs before
        elif match := _PARAMS.search(message):
            self._params = Footprint(ram=int(float(match[2]) * _MIB), vram=int(float(match[1]) * _MIB))

    def _blame_model(self, message: str) -> None:
        if match := _MODEL_REASON.match(message):
            self._model_reason = match[1] or match[2]
        elif match := _MODEL_ERROR.match(message):
            self._model_error = self._model_error or match[1]

    @property
    def model_error(self) -> str | None:
        """Why the model could not be loaded, or None where the engine did not say so."""
        return (self._model_reason or self._model_error) if self._model_error is not None else None

    @property
    def used_gpu(self) -> bool | None:
        """Whether any of the model is on a GPU; None: the engine did not tell where it is."""
        found = self.footprint
        return None if found is None else found.vram > 0

    def forget_out_of_memory(self) -> None:
        """Something new begins: what was too much before is no reason any more."""
        self.out_of_memory = None

    def _add(self, device: str, mebibytes: float) -> None:
        if _HOST.match(device):
            self._ram += mebibytes
        else:
            self._vram += mebibytes

    @property
    def footprint(self) -> Footprint | None:
        """What the engine said it took, or None where it said nothing."""
        if self._params is not None:
            return self._params
        if not self._ram and not self._vram:
            return None
        return Footprint(ram=int(self._ram * _MIB), vram=int(self._vram * _MIB))

    @property
    def gpu_layers(self) -> int | None:
        """Layers that really are on a GPU, or None where the engine did not tell.

        A build without a GPU backend prints "offloaded 31/31 layers" all the same: its buffers say where they are.
        """
        return self._layers if self._layers is None or self._vram else 0
