"""Releases of fake engines that real programs fetch: on a server of the test's own, in a catalogue of its own.

    with ReleaseServer() as server:
        released = Released(server, tmp_path / "fakes")
        released.pin_for_jupyter(config_folder)  # a notebook server that is started with that folder
        kernel.ok(released.pinning)              # a kernel that has used no engine yet

Nothing in the package knows of this: a process under test runs `pinning` before it makes its first BinaryManager.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from genai_notebook.core.engines.catalog import Archive, Build
from genai_notebook.core.engines.engine import Kind, Variant
from genai_notebook.core.utilities import get_platform_key
from tests.fakes import FakeEngine
from tests.fakes.release_server import TAG, ReleaseServer, engine_archive, llama_path, sd_path

SD_TAG = "master-782-b290693"
LLAMA_CPU, SD_CPU = f"llama.cpp {TAG} (cpu)", f"stable-diffusion.cpp {SD_TAG} (cpu)"
#: A build for GPUs that the machine under test has none of, and what is said of it.
GPU: Variant = "rocm" if sys.platform == "darwin" else "metal"
GPU_REASON = "no AMD GPU with ROCm was found" if GPU == "rocm" else "no GPU with Metal was found"
#: So many bytes an archive holds beside its program, which no compression makes fewer.
BALLAST = 1 << 20


class Released:
    """A build for the CPU of each kind, which is a fake engine, and one for GPUs that this machine has none of.

    Attributes:
        llama, sd: the fakes; what they are told holds for what was installed.
        catalog: the builds, as they are to be pinned.
        environ: what a process needs to fetch them.
        pinning: the Python that pins them in a process.
    """

    def __init__(self, server: ReleaseServer, folder: Path) -> None:
        self.server = server
        self.llama = FakeEngine(folder, "llama", proved=False)
        self.sd = FakeEngine(folder, "sd", proved=False)
        ballast = {"ballast.bin": random.Random(1).randbytes(BALLAST)}
        self._archives = {
            llama_path("ubuntu-x64.tar.gz"): engine_archive(self.llama.path, extra=ballast),
            sd_path("Linux-Ubuntu-24.04-x86_64"): engine_archive(self.sd.path, kind="sd", extra=ballast),
        }
        llama, sd = self._archives
        nowhere = Archive("nowhere/gpu.zip", "0" * 64)
        self.catalog = (
            _build("llama", GPU, TAG, nowhere),
            _build("llama", "cpu", TAG, self._pinned(llama)),
            _build("diffusion", GPU, SD_TAG, nowhere),
            _build("diffusion", "cpu", SD_TAG, self._pinned(sd)),
        )
        self.environ = {"GENAI_NOTEBOOK_MIRROR": server.url}
        self.pinning = (
            "from genai_notebook.core.engines.catalog import Archive, Build\n"
            "from genai_notebook.core.engines.manager import BinaryManager\n"
            f"BinaryManager.__init__.__kwdefaults__['catalog'] = {self.catalog!r}\n"
        )
        self.serve()

    def _pinned(self, path: str) -> Archive:
        return Archive(path, hashlib.sha256(self._archives[path]).hexdigest())

    def serve(self, **behaviour: Any) -> None:
        """Serve the archives from now on; the words are those of `ReleaseServer.put`."""
        for path, data in self._archives.items():
            self.server.put(path, data, **behaviour)

    def pin_for_jupyter(self, config: Path) -> None:
        """Have notebook servers that are configured by this folder pin these builds."""
        config.mkdir(parents=True, exist_ok=True)
        (config / "jupyter_server_config.py").write_text(self.pinning)

    def reset(self, home: Path) -> None:
        """Fakes and server behave well again, and nothing in `home` knows of them any more."""
        self.llama.reset()
        self.sd.reset()
        self.serve()
        self.server.seen.clear()
        for name in ("engines", "cache"):
            shutil.rmtree(home / name, ignore_errors=True)


def _build(kind: Kind, variant: Variant, tag: str, archive: Archive) -> Build:
    return Build(kind=kind, platform=get_platform_key(), variant=variant, tag=tag, archive=archive)
