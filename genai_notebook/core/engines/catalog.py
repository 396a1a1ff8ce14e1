"""The pinned releases: which archives there are for which machine, and the SHA-256 that each must have.

A new pin is a new tag and new digests here; whatever was installed before stays until the new build has passed its
tests. Upstream has no CUDA build for Linux, and none at all for Linux and Windows on ARM.
"""

from __future__ import annotations

from msgspec import Struct

from genai_notebook.core.engines.engine import Kind, Variant

#: Where releases are from, unless a mirror is set: below it come OWNER/REPO/releases/download/TAG/FILE.
GITHUB = "https://github.com"

LLAMA_TAG = "b9860"
SD_TAG = "master-782-b290693"
_LLAMA = f"ggml-org/llama.cpp/releases/download/{LLAMA_TAG}/"
_SD = f"leejet/stable-diffusion.cpp/releases/download/{SD_TAG}/"


class Archive(Struct, frozen=True):
    """One file of a release: its path below the mirror, and its SHA-256 in hex."""

    path: str
    sha256: str

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


class Build(Struct, frozen=True, kw_only=True):
    """One build of one release.

    Attributes:
        platform: as `get_platform_key` names it, e.g. 'linux-x64'.
        variant: what it computes on.
        archive: the program and its libraries.
        runtime: libraries of the GPU's maker that come in an archive of their own, which several builds may share.
    """

    kind: Kind
    platform: str
    variant: Variant
    tag: str
    archive: Archive
    runtime: Archive | None = None


def _llama(platform: str, variant: Variant, asset: str, sha256: str, runtime: Archive | None = None) -> Build:
    archive = Archive(f"{_LLAMA}llama-{LLAMA_TAG}-bin-{asset}", sha256)
    return Build(kind="llama", platform=platform, variant=variant, tag=LLAMA_TAG, archive=archive, runtime=runtime)


def _sd(platform: str, variant: Variant, asset: str, sha256: str, runtime: Archive | None = None) -> Build:
    commit = SD_TAG.rpartition("-")[2]
    archive = Archive(f"{_SD}sd-master-{commit}-bin-{asset}.zip", sha256)
    return Build(kind="diffusion", platform=platform, variant=variant, tag=SD_TAG, archive=archive, runtime=runtime)


_LLAMA_CUDA = Archive(
    f"{_LLAMA}cudart-llama-bin-win-cuda-12.4-x64.zip",
    "8c79a9b226de4b3cacfd1f83d24f962d0773be79f1e7b75c6af4ded7e32ae1d6",
)
_SD_CUDA = Archive(
    f"{_SD}cudart-sd-bin-win-cu12-x64.zip", "fe20366827d357c00797eebb58244dddab7fd9a348d70090c3871004c320f38d"
)

#: For each kind and platform in the order in which they are tried.
CATALOG: tuple[Build, ...] = (
    _llama(
        "linux-x64",
        "vulkan",
        "ubuntu-vulkan-x64.tar.gz",
        "4aaa4ca2ed9f608cf26cb6ba0cdad9c5b8e8f2d1e95c4f04bb3fa9a1a8c86806",
    ),
    _llama("linux-x64", "cpu", "ubuntu-x64.tar.gz", "b68e8072eb88d1cc8b8e9d6ea8237aae87b34c6d8bbffda958c870e4dc949714"),
    _llama(
        "darwin-arm64",
        "metal",
        "macos-arm64.tar.gz",
        "35a2e8c3528adc71db5044e7ad7de8d8b96a4221e737958915e31538a005f1d9",
    ),
    _llama("darwin-x64", "cpu", "macos-x64.tar.gz", "d442123d5441c82b23b412a58d91e149f60723adfc20a7cc9df04a3908cb5113"),
    _llama(
        "win32-x64",
        "cuda",
        "win-cuda-12.4-x64.zip",
        "70c433fcb55bcb0e0ff0d4a4fc5f02c11a14303445e0525b526071bccdc6c848",
        _LLAMA_CUDA,
    ),
    _llama(
        "win32-x64",
        "vulkan",
        "win-vulkan-x64.zip",
        "c3f0703c8fca8fa4cbc01a347d7180fca092e889fe693268bf1192fd07350c13",
    ),
    _llama("win32-x64", "cpu", "win-cpu-x64.zip", "d33871623713345cd90b54e516ebada79039cab636e51b22c8c9feae72567837"),
    _sd(
        "linux-x64",
        "vulkan",
        "Linux-Ubuntu-24.04-x86_64-vulkan",
        "e49466d0c0c5f985d9ca9f82c18bb55e8e02885c654210f918ca0c0098ea2829",
    ),
    _sd(
        "linux-x64",
        "cpu",
        "Linux-Ubuntu-24.04-x86_64",
        "16547f8ffb35547f9058e2ea831a2eb36cfcb99594043fc97ad2895c6c485aaf",
    ),
    _sd(
        "darwin-arm64",
        "metal",
        "Darwin-macOS-26.4-arm64",
        "61620d31fa787d318ca1ec67ba73ef77b3236bc3a2dc891d66c161c7b075e45c",
    ),
    _sd(
        "win32-x64",
        "cuda",
        "win-cuda12-x64",
        "bc7aa2f6d471b324bfbc76f108a5cb3b76de29cb892d12609647e11b041f8a02",
        _SD_CUDA,
    ),
    _sd("win32-x64", "vulkan", "win-vulkan-x64", "431dd14e12cc5fb1abdc20ab213bbfdf390f18766ed7f54ecfd61d6b467a7915"),
    _sd("win32-x64", "cpu", "win-cpu-x64", "38da3539d3af6918f4c218fd198ac6e26cd71249e54feb3a491d184d3ca94ea0"),
)
