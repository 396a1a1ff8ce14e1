"""What an engine prints about memory while it loads: what it took, where, and whether there was too little."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from genai_notebook.core.processes.logs import split_level

_MIB = 1 << 20
# The words stand at the start of a message, behind names of functions and devices: never inside a path or a prompt.
_OUT_OF_MEMORY = re.compile(
    r"(?:[\w.]+:\d+\s+- )?(?:[\w ~<>(),.|-]+:{1,2}\s*){0,6}"
    r"(?:cudaMalloc failed|hipMalloc failed|failed to allocate|unable to allocate|insufficient memory|out of memory"
    r"|(?:vk::Device::allocateMemory: )?ErrorOutOf(?:Device|Host)Memory|VK_ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY"
    r"|Device memory allocation of size \d+ failed|std::bad_alloc"
    r"|terminate called after throwing an instance of 'std::bad_alloc')",
    re.IGNORECASE,
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
        self._layers: int | None = None
        self._ram = self._vram = 0.0
        self._params: Footprint | None = None

    def feed(self, line: str, is_bar: bool = False) -> None:
        """Read one line of the engine's output."""
        if is_bar:
            return
        level, message = split_level(line)
        if self.out_of_memory is None and level != "debug" and _OUT_OF_MEMORY.match(message):
            self.out_of_memory = message
        elif match := _BUFFER.match(message):
            self._add(match[1], float(match[2]))
        elif match := _OFFLOADED.match(message):
            self._layers = int(match[1])
            self._ram = self._vram = 0.0  # a load begins; with --fit on there were dry runs before
        elif match := _PARAMS.search(message):
            self._params = Footprint(ram=int(float(match[2]) * _MIB), vram=int(float(match[1]) * _MIB))

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
