"""What the embedded engines print, read by the code of the managers that reads it from every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genai_notebook.core.engines.load_report import LoadReport
from genai_notebook.core.processes.logs import split_level
from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.core.servers.progress import Calibration, ProgressTracker
from tests.engines.running import LLAMA, SD, Running
from tests.models import check_diffusion_model, starter_llm

pytestmark = pytest.mark.engines


def lines(output: bytes) -> list[str]:
    """Lines and bars, as a reader of a pipe sees them."""
    parts = re.split(rb"\r|\n", output)
    return [part.decode("utf-8", "replace").removesuffix("\x1b[K") for part in parts if part.strip()]


def test_the_image_engine(tmp_path: Path) -> None:
    config = ImageGenerationConfig(prompt="a boat", width=64, height=64, steps=4)
    calibration = Calibration()
    tracker = ProgressTracker(config, calibration, loaded=False)
    report = LoadReport()
    with Running(SD, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", cwd=tmp_path) as engine:
        port = engine.ready()
        loading = lines(bytes(engine.stdout))
        params = {"sample_steps": 4, "sample_method": "euler_a", "guidance": {"txt_cfg": 1.0}}
        request = {"prompt": "a boat", "width": 64, "height": 64, "seed": 5, "sample_params": params}
        job = engine.ask("POST", "/sdcpp/v1/img_gen", request)[1]["id"]
        done = "decode_first_stage completed"
        engine.until(lambda: engine.ask("GET", f"/sdcpp/v1/jobs/{job}")[1]["status"] == "completed", "picture")
        painting = lines(bytes(engine.stdout))[len(loading) :]

    seen: list[tuple[str, int, int]] = []
    for line in loading:
        report.feed(line, "|" in line)
        if tracker.feed(line):
            progress = tracker.current()
            seen.append((progress.stage, progress.current_step, progress.total_steps))
    assert len(seen) >= 3
    assert [stage for stage, *_ in seen[:2]] == ["loading", "loading"]  # a quick load shows one bar, the full one
    bars = [line for line in loading if re.match(r" {2}\|[=>#]+ *\| \d+/\d+ - \d+\.\d\d[MG]B/s\Z", line)]
    assert bars
    assert any(re.match(rf"\[INFO \] \S+ +- listening on http://127\.0\.0\.1:{port}\Z", line) for line in loading)
    footprint = report.footprint
    assert footprint is not None
    assert 400 << 20 < footprint.ram + footprint.vram < 700 << 20

    tracker.loaded()
    steps, stages = [], []
    for line in painting:
        assert not report.feed(line)
        if tracker.feed(line):
            progress = tracker.current()
            stages.append(progress.stage)
            if progress.stage == "diffusion" and "|" in line:
                steps.append(progress.current_step)
        if done in line:
            assert tracker.decoded
    assert steps == [1, 2, 3, 4]
    assert stages[0] == "diffusion"
    assert stages[-1] == "decoding"
    assert report.out_of_memory is None
    shape = r"\[INFO \] [\w.-]+:\d+ +- "
    for words in (
        r"generating image: 1/1 - seed 5",
        r"sampling completed, taking \d+\.\d\ds",
        r"decoding 1 latents",
        rf"{done}, taking \d+\.\d\ds",
    ):
        assert any(re.match(shape + words, line) for line in painting), words
    assert calibration.decode_per_megapixel != Calibration().decode_per_megapixel


def test_the_llm_engine(tmp_path: Path) -> None:
    flags = "--port 0 --ctx-size 512 --parallel 1 --kv-unified --n-gpu-layers 99 --flash-attn auto --fit off"
    arguments = ("--model", str(starter_llm()), *flags.split(), "--cache-ram", "0", "--verbosity", "4")
    with Running(LLAMA, *arguments, cwd=tmp_path) as engine:
        port = engine.ready()
        log = lines(bytes(engine.stderr))
    report = LoadReport()
    for line in log:
        report.feed(line)
    messages = [split_level(line) for line in log]
    stamp = r"\d+\.\d\d\.\d{3}\.\d{3} "
    assert any(re.match(stamp + r"I srv +\w+: +(?:\w+: )?model loaded\Z", line) for line in log)
    assert any(
        re.match(stamp + rf"I srv +\w+: +(?:\w+: )?listening on http://127\.0\.0\.1:{port}\Z", line) for line in log
    )
    # A build that can use no GPU at all says nothing of offloading; one that can says it in these words.
    offloading = [words for _, words in messages if "offloaded" in words]
    assert all(re.match(r"load_tensors: offloaded \d+/31 layers to GPU\Z", words) for words in offloading)
    assert (report.gpu_layers is None) == (not offloading)
    assert any(re.match(r"\w+:\s+\S+ model buffer size =\s+[\d.]+ MiB", words) for _, words in messages)
    assert any(re.match(r"\w+:\s+\S+ KV buffer size =\s+[\d.]+ MiB", words) for _, words in messages)
    assert any(re.match(r"\w+:\s+\S+ compute buffer size =\s+[\d.]+ MiB", words) for _, words in messages)
    footprint = report.footprint
    assert footprint is not None
    assert footprint.ram > 90 << 20
    assert report.out_of_memory is None
    assert {level for level, _ in messages} <= {"info", "warn", "warning", "debug"}
