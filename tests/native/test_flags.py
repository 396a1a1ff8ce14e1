"""Compiled engines take every flag that managers pass, and print what managers read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec
import pytest

from genai_notebook.core.engines import sdcpp
from genai_notebook.core.engines.load_report import LoadReport
from genai_notebook.core.engines.sd_cli.program import ask
from genai_notebook.core.processes.output import LineSplitter
from genai_notebook.core.processes.ports import free_port
from genai_notebook.core.schema import (
    DiffusionServerConfig,
    ImageGenerationConfig,
    ImageSampler,
    LlamaServerConfig,
    ModelInfo,
    Role,
)
from genai_notebook.core.servers import llama_flags, sd_flags
from genai_notebook.core.servers.progress import Calibration, ProgressTracker
from genai_notebook.core.servers.resolved import Resolved
from tests.contract.waiting import until
from tests.models import check_diffusion_model, starter_llm
from tests.native.referee import model_at
from tests.native.starting import started

IMAGE = ImageGenerationConfig(prompt="-a\nlighthouse", width=64, height=64, steps=4, cfg_scale=1)


def diffusion_model(**more: object) -> ModelInfo:
    path = check_diffusion_model()
    return msgspec.structs.replace(
        model_at(starter_llm()), type="diffusion", path=str(path), size=path.stat().st_size, **more
    )


def adapter(cli: Path) -> list[str]:
    return [sys.executable, "-m", "genai_notebook.core.engines.sd_cli", "--cli", str(cli)]


# ---- llama-server ----


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("flash_attention", [True, False, "auto"])
def test_llama_server_takes_our_flags(programs: Path, tmp_path: Path, fit: bool, flash_attention: bool | str) -> None:
    """All there are; with memory flags of every kind, the model is loaded, and its buffers are read from the log."""
    kind = "f16" if flash_attention is False else "q8_0"
    config = LlamaServerConfig(
        model_id="x",
        threads=2,
        context_size=512,
        gpu_layers=3,
        flash_attention=flash_attention,  # type: ignore[arg-type]
        cache_type_k=kind,  # type: ignore[arg-type]
        cache_type_v=kind,  # type: ignore[arg-type]
    )
    model = msgspec.structs.replace(model_at(starter_llm()), supports_reasoning=True)
    resolved = Resolved(asked=config, config=config, port=free_port(), api_key=None, fit=fit)
    argv = [str(programs / "llama-server"), *llama_flags.arguments(resolved, model)]
    with started(argv, resolved.port, tmp_path / "log") as server:
        server.until_ready("/health")
        report = LoadReport()
        for line, is_bar in LineSplitter().feed(server.log):
            report.feed(line, is_bar)
    assert report.footprint is not None
    assert report.footprint.vram == 0
    assert 0.9 < report.footprint.ram / starter_llm().stat().st_size < 2
    assert report.gpu_layers in (0, None)
    assert report.out_of_memory is None


# ---- sd-server and sd-cli ----


@pytest.mark.parametrize("program", ["sd-server", "sd-cli"])
def test_a_picture_with_our_flags(painters: Path, tmp_path: Path, program: str) -> None:
    """With all flags; the log has each stage of the progress, and what the model takes."""
    flags = ["--vae-tiling", "--diffusion-fa", "-v"]
    config = DiffusionServerConfig(model_id="x", gpu_layers=0, vram_budget=1536, extra_args=flags)
    port = free_port()
    start = [str(painters / program)] if program == "sd-server" else adapter(painters / program)
    argv = [*start, *sd_flags.arguments(config, diffusion_model(), port, 2)]
    with started(argv, port, tmp_path / "log") as server:
        server.until_ready("/sdcpp/v1/capabilities")
        picture = asyncio.run(paint(server.url))
        lines = LineSplitter().feed(server.log)
    assert picture.startswith(b"\x89PNG")
    tracker, report = ProgressTracker(IMAGE, Calibration(), loaded=False), LoadReport()
    seen = []
    for line, is_bar in lines:
        tracker.feed(line)
        report.feed(line, is_bar)
        seen.append((tracker.current().stage, tracker.current().current_step))
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["loading", "diffusion", "decoding"]
    assert {1, 2, 3, 4} <= {step for stage, step in seen if stage == "diffusion"}
    assert tracker.decoded
    assert report.footprint is not None
    assert report.footprint.vram == 0
    assert report.footprint.ram / check_diffusion_model().stat().st_size == pytest.approx(1, abs=0.1)


async def paint(url: str) -> bytes:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        job = await sdcpp.post_job(client, IMAGE, 7)

        async def ended() -> dict[str, Any] | None:
            state = await sdcpp.job_state(client, job)
            return state if state["status"] not in ("queued", "generating") else None

        state = await until(ended, "the picture", 60)
    assert state["status"] == "completed", state
    return sdcpp.job_image(state, IMAGE)


@pytest.mark.parametrize("program", ["sd-server", "sd-cli"])
def test_the_parts_of_a_split_model(painters: Path, tmp_path: Path, program: str) -> None:
    """Every role is a flag it knows. No model is made of these parts: it ends, but not over its command line."""
    parts = {role: str(check_diffusion_model()) for role in get_args(Role)}
    model = diffusion_model(components={role: str(tmp_path / f"{role}.gguf") for role in parts})
    config = DiffusionServerConfig(model_id="x", gpu_layers=0)
    flags = sd_flags.arguments(config, model, free_port(), 2)
    if program == "sd-cli":
        flags = [*flags[4:], "--prompt", "x", "-o", str(tmp_path / "picture.png")]
    result = subprocess.run([str(painters / program), *flags], capture_output=True, timeout=60, cwd=tmp_path)
    output = (result.stdout + result.stderr).decode()
    assert result.returncode == 1
    assert "argument" not in output
    assert "loading diffusion model from" in output
    assert "new_sd_ctx_t failed" in output


def test_all_samplers_are_known(painters: Path) -> None:
    """sd-server takes one it does not know for no choice at all, and sd-cli ends."""
    program = ask(str(painters / "sd-cli"))
    assert set(get_args(ImageSampler)) <= set(program.samplers)
    assert {"discrete", "karras"} <= set(program.schedulers)
