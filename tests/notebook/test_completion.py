"""Completion in the magics' lines, asked for as a frontend asks."""

from __future__ import annotations

import pytest

from tests.fakes.gguf_files import tiny_llm
from tests.notebook.kernels import Kernel


@pytest.fixture(scope="module")
def with_models(shared_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    folder = tmp_path_factory.mktemp("files")
    for name in ("alpha one", "beta"):
        shared_kernel.ok(f"%genai import {tiny_llm(folder / f'{name[:4]}.gguf')} --name '{name}'")
    return shared_kernel


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("%genai st", ["start", "stop", "status"]),
        ("%genai help eng", ["engines"]),
        ("%genai start al", ["alpha-one"]),
        ("%genai start --port auto --th", ["--threads"]),
        ("%genai start alpha-one --flash-attention ", ["on", "off", "auto"]),
        ("%genai info ", ["alpha-one", "beta", "--help", "--into", "--refresh"]),
        ("%genai info beta --refresh remote", ["remote-only", "remote-local"]),
        ("%genai verify be", ["beta"]),
        ("%genai fit be", ["beta"]),
        ("%genai panel s", ["servers", "system"]),
        ("%genai stop ", ["llm", "images", "all", "--help"]),
        ("%genai models --type ", ["llm", "diffusion"]),
        ("%genai download st", ["starter", "starter-image"]),
        ("%%genai_image --sampler dpm++2m", ["dpm++2m", "dpm++2mv2"]),
        ("%%genai_chat --new --", ["--help", "--into", "--max-tokens", "--system", "--temperature"]),
        ("x = 1\n%genai dele", ["delete"]),
    ],
)
def test_what_is_offered(with_models: Kernel, code: str, expected: list[str]):
    assert with_models.complete(code) == expected


@pytest.mark.parametrize("code", ["%genai start --threads ", "%genai nonsense --", "%%genai_chat\nWhat --"])
def test_nothing_of_ours_is_offered_where_nothing_fits(with_models: Kernel, code: str):
    assert not set(with_models.complete(code)) & {"alpha-one", "--port", "--new", "--into"}


def test_other_completion_goes_on_as_before(with_models: Kernel):
    assert "sorted" in with_models.complete("sort")
    assert "%genai" in with_models.complete("%gen")


def test_it_is_gone_after_unload(tmp_path, bare_kernel: Kernel):
    assert "start" in bare_kernel.complete("%genai sta")
    bare_kernel.ok("%unload_ext genai_notebook")
    assert "start" not in bare_kernel.complete("%genai sta")
