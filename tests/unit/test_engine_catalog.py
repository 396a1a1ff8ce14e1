"""The pinned releases: exactly these files, with exactly these digests."""

from __future__ import annotations

import re

import pytest

from genai_notebook.core.engines.catalog import CATALOG, GITHUB, Build
from genai_notebook.core.engines.engine import KINDS

LLAMA = "https://github.com/ggml-org/llama.cpp/releases/download/b9860/"
SD = "https://github.com/leejet/stable-diffusion.cpp/releases/download/master-782-b290693/"
LLAMA_CUDA = (
    f"{LLAMA}cudart-llama-bin-win-cuda-12.4-x64.zip",
    "8c79a9b226de4b3cacfd1f83d24f962d0773be79f1e7b75c6af4ded7e32ae1d6",
)
SD_CUDA = (f"{SD}cudart-sd-bin-win-cu12-x64.zip", "fe20366827d357c00797eebb58244dddab7fd9a348d70090c3871004c320f38d")
#: Kind, platform, variant, the asset's own part of the file name, and its SHA-256; in the order of trying.
PINS = [
    (
        *("llama", "linux-x64", "vulkan", "ubuntu-vulkan-x64.tar.gz"),
        "4aaa4ca2ed9f608cf26cb6ba0cdad9c5b8e8f2d1e95c4f04bb3fa9a1a8c86806",
    ),
    (
        *("llama", "linux-x64", "cpu", "ubuntu-x64.tar.gz"),
        "b68e8072eb88d1cc8b8e9d6ea8237aae87b34c6d8bbffda958c870e4dc949714",
    ),
    (
        *("llama", "darwin-arm64", "metal", "macos-arm64.tar.gz"),
        "35a2e8c3528adc71db5044e7ad7de8d8b96a4221e737958915e31538a005f1d9",
    ),
    (
        *("llama", "darwin-x64", "cpu", "macos-x64.tar.gz"),
        "d442123d5441c82b23b412a58d91e149f60723adfc20a7cc9df04a3908cb5113",
    ),
    (
        *("llama", "win32-x64", "cuda", "win-cuda-12.4-x64.zip"),
        "70c433fcb55bcb0e0ff0d4a4fc5f02c11a14303445e0525b526071bccdc6c848",
    ),
    (
        *("llama", "win32-x64", "vulkan", "win-vulkan-x64.zip"),
        "c3f0703c8fca8fa4cbc01a347d7180fca092e889fe693268bf1192fd07350c13",
    ),
    (
        *("llama", "win32-x64", "cpu", "win-cpu-x64.zip"),
        "d33871623713345cd90b54e516ebada79039cab636e51b22c8c9feae72567837",
    ),
    (
        *("diffusion", "linux-x64", "vulkan", "Linux-Ubuntu-24.04-x86_64-vulkan"),
        "e49466d0c0c5f985d9ca9f82c18bb55e8e02885c654210f918ca0c0098ea2829",
    ),
    (
        *("diffusion", "linux-x64", "cpu", "Linux-Ubuntu-24.04-x86_64"),
        "16547f8ffb35547f9058e2ea831a2eb36cfcb99594043fc97ad2895c6c485aaf",
    ),
    (
        *("diffusion", "darwin-arm64", "metal", "Darwin-macOS-26.4-arm64"),
        "61620d31fa787d318ca1ec67ba73ef77b3236bc3a2dc891d66c161c7b075e45c",
    ),
    (
        *("diffusion", "win32-x64", "cuda", "win-cuda12-x64"),
        "bc7aa2f6d471b324bfbc76f108a5cb3b76de29cb892d12609647e11b041f8a02",
    ),
    (
        *("diffusion", "win32-x64", "vulkan", "win-vulkan-x64"),
        "431dd14e12cc5fb1abdc20ab213bbfdf390f18766ed7f54ecfd61d6b467a7915",
    ),
    (
        *("diffusion", "win32-x64", "cpu", "win-cpu-x64"),
        "38da3539d3af6918f4c218fd198ac6e26cd71249e54feb3a491d184d3ca94ea0",
    ),
]


def url_of(kind: str, asset: str) -> str:
    return f"{LLAMA}llama-b9860-bin-{asset}" if kind == "llama" else f"{SD}sd-master-b290693-bin-{asset}.zip"


def test_every_pin_is_there_and_nothing_else() -> None:
    pinned = [
        (build.kind, build.platform, build.variant, f"{GITHUB}/{build.archive.path}", build.archive.sha256)
        for build in CATALOG
    ]
    wanted = [(kind, platform, variant, url_of(kind, asset), sha256) for kind, platform, variant, asset, sha256 in PINS]
    assert pinned == wanted


def test_only_cuda_builds_need_a_runtime() -> None:
    for build in CATALOG:
        runtime = build.runtime and (f"{GITHUB}/{build.runtime.path}", build.runtime.sha256)
        expected = {"llama": LLAMA_CUDA, "diffusion": SD_CUDA}[build.kind] if build.variant == "cuda" else None
        assert runtime == expected


@pytest.mark.parametrize("build", CATALOG, ids=lambda build: f"{build.kind}-{build.platform}-{build.variant}")
def test_a_pin_is_of_one_release(build: Build) -> None:
    assert build.tag == ("b9860" if build.kind == "llama" else "master-782-b290693")
    for archive in filter(None, (build.archive, build.runtime)):
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert f"/releases/download/{build.tag}/{archive.file}" in archive.path
        assert archive.file.endswith((".zip", ".tar.gz"))


def test_no_digest_is_pinned_twice() -> None:
    digests = [archive.sha256 for build in CATALOG for archive in (build.archive, build.runtime) if archive]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_comes_last(kind: str) -> None:
    for platform in {build.platform for build in CATALOG}:
        variants = [build.variant for build in CATALOG if (build.kind, build.platform) == (kind, platform)]
        assert "cpu" not in variants[:-1]
        assert len(set(variants)) == len(variants)
