from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeEngine
from tests.models import home_with_models
from tests.notebook.kernels import Kernel, kernel


@pytest.fixture
def bare_kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel with the extension loaded, and an empty home."""
    with kernel(tmp_path / "kernel", tmp_path / "home") as started:
        started.ok("%load_ext genai_notebook")
        yield started


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the tests of a file that start nothing; loaded, with an empty home."""
    folder = tmp_path_factory.mktemp("shared")
    with kernel(folder / "kernel", folder / "home") as started:
        started.ok("%load_ext genai_notebook")
        yield started


@pytest.fixture(scope="module")
def real_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the tests of a file that use the real engines: the starter LLM and the check model run."""
    folder = tmp_path_factory.mktemp("real")
    home = home_with_models(folder).settings.home
    with kernel(folder / "kernel", home) as started:
        started.ok("%load_ext genai_notebook")
        started.ok("%genai start --port auto")
        started.ok("%genai start --images --port auto")
        yield started


class FakeKernel(Kernel):
    """A kernel whose engines are fakes that can be told to misbehave."""

    llama: FakeEngine
    images: FakeEngine


@pytest.fixture
def fake_kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    """A kernel with fake engines and two tiny models, 'tiny-llm' and 'tiny-picture'."""
    from tests.fakes.gguf_files import tiny_diffusion, tiny_llm

    llama, images = FakeEngine(tmp_path / "fakes", "llama"), FakeEngine(tmp_path / "fakes", "sd")
    environ = {"GENAI_NOTEBOOK_LLAMA_SERVER": str(llama.path), "GENAI_NOTEBOOK_SD_SERVER": str(images.path)}
    with kernel(tmp_path / "kernel", tmp_path / "home", **environ) as started:
        fake = FakeKernel(started.manager, started.client)
        fake.llama, fake.images = llama, images
        fake.ok("%load_ext genai_notebook")
        fake.ok(f"%genai import {tiny_llm(tmp_path / 'files' / 'tiny.gguf')} --name 'Tiny LLM'")
        fake.ok(
            f"%genai import {tiny_diffusion(tmp_path / 'files' / 'sd.gguf')} --name 'Tiny picture' --type diffusion"
        )
        yield fake
