"""The adapter for sd-cli, with a compiled one and the check model."""

from __future__ import annotations

import base64
import io
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.engines.running import Running, run_to_end
from tests.engines.test_embedded_sd import LONG, QUICK, SMALL, finished, paint, post
from tests.fakes import eventually
from tests.models import check_diffusion_model

MODULE = "genai_notebook.core.engines.sd_cli"


def flags(painters: Path, *more: str) -> list[str]:
    cli = str(painters / "sd-cli")
    return ["--cli", cli, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", *more]


@pytest.fixture(scope="module")
def engine(painters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("sd-cli")
    (folder / "temp").mkdir()
    with Running(MODULE, *flags(painters), cwd=folder, env={"TMPDIR": str(folder / "temp")}) as running:
        running.ready()
        yield running
    assert not list((folder / "temp").iterdir())


def children(engine: Running) -> list[psutil.Process]:
    return psutil.Process(engine.process.pid).children()


def begun(engine: Running) -> tuple[str, psutil.Process]:
    """A long job in its second step: its id, and its sd-cli."""
    before = len(engine.stdout)
    id = post(engine, LONG)
    engine.until(lambda: re.search(rb"\| [2-9]/200 - ", engine.stdout[before:]), "second step")
    (child,) = children(engine)
    return id, child


def test_a_picture_and_what_is_written_into_it(engine: Running) -> None:
    state = finished(engine, post(engine, SMALL))
    assert state["status"] == "completed", state
    found = Image.open(io.BytesIO(base64.b64decode(state["result"]["images"][0]["b64_json"])))
    assert (found.format, found.size) == ("PNG", (64, 64))
    assert found.info["parameters"].startswith("a lighthouse\nNegative prompt: fog\nSteps: 4, ")
    assert "Seed: 7" in found.info["parameters"]
    assert b"save result image 0 to 'picture.png' (success)" in engine.stdout


@pytest.mark.parametrize("prompt", ["-v", "--help\n--steps 9", "<lora:/etc/passwd:1> x", "\"'$HOME`\\", ""])
def test_any_prompt_arrives_whole(engine: Running, prompt: str) -> None:
    (picture,) = paint(engine, prompt=prompt)
    assert picture.info["parameters"].startswith(f"{prompt}\nNegative prompt: fog\nSteps: 1, ")


def test_the_seed_decides(engine: Running) -> None:
    first, again, other = (paint(engine, seed=seed)[0].tobytes() for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_batch_is_in_order(engine: Running) -> None:
    pictures = paint(engine, batch_count=3, seed=5)
    assert [re.search(r"Seed: (\d+)", picture.info["parameters"])[1] for picture in pictures] == ["5", "6", "7"]  # type: ignore[index]
    assert pictures[1].tobytes() == paint(engine, seed=6)[0].tobytes()


def test_all_that_a_request_may_set(engine: Running) -> None:
    guidance = {"txt_cfg": 2, "img_cfg": 1.5, "distilled_guidance": 3}
    params = {"sample_steps": 2, "sample_method": "dpm++2m", "scheduler": "karras", "eta": 0.5, "flow_shift": 1}
    params |= {"shifted_timestep": 250, "guidance": guidance}
    more = {"clip_skip": 2, "strength": 0.5, "vae_tiling_params": {"enabled": True}}
    (picture,) = paint(engine, sample_params=params, embed_image_metadata=False, **more)
    assert "parameters" not in picture.info
    for format in ("jpeg", "webp"):
        assert paint(engine, output_format=format)[0].format == format.upper()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_that_are_given(engine: Running, kind: str) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, kind)
    given = base64.b64encode(file.getvalue()).decode()
    steps = {"sample_params": {"sample_steps": 4, "guidance": {"txt_cfg": 1}}}
    painted, masked = (paint(engine, init_image=given, **steps, **more)[0] for more in ({}, {"mask_image": given}))
    assert painted.size == (64, 64)
    assert painted.tobytes() != masked.tobytes()
    assert painted.tobytes() != paint(engine, **steps)[0].tobytes()


def test_a_running_job_is_cancelled(engine: Running) -> None:
    id, child = begun(engine)
    status, reply, _ = engine.ask("POST", f"/sdcpp/v1/jobs/{id}/cancel")
    assert (status, reply["status"]) == (200, "cancelled")
    eventually(lambda: not child.is_running(), "the end of sd-cli", 5)
    paint(engine)
    assert not children(engine)


def test_a_killed_sd_cli_costs_its_job_alone(engine: Running) -> None:
    id, child = begun(engine)
    child.send_signal(signal.SIGSEGV)
    assert finished(engine, id)["error"]["message"].startswith("sd-cli was ended by SIGSEGV")
    paint(engine)


def test_a_file_that_is_no_model(painters: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no model at all" * 100)
    cli = ["--cli", str(painters / "sd-cli"), "-m", "model.gguf", "--listen-port", "0"]
    with Running(MODULE, *cli, cwd=tmp_path) as running:
        running.ready()
        error = finished(running, post(running, QUICK))["error"]["message"]
    assert error.startswith("sd-cli ended with exit code 1: [ERROR] ")
    assert "model.gguf" in error


def test_its_end_is_the_end_of_all(painters: Path, tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    with Running(MODULE, *flags(painters), cwd=tmp_path, env={"TMPDIR": str(tmp_path / "temp")}) as running:
        running.ready()
        _, child = begun(running)
        running.process.terminate()
        assert running.finish(5) == 0
        eventually(lambda: not child.is_running(), "the end of sd-cli", 5)
    assert not list((tmp_path / "temp").iterdir())


def test_version_and_a_taken_port(painters: Path, tmp_path: Path) -> None:
    asked = run_to_end(MODULE, *flags(painters, "--version"), cwd=tmp_path)
    assert asked.process.returncode == 0
    assert asked.output.startswith("stable-diffusion.cpp version ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run_to_end(MODULE, *flags(painters, "--listen-port", port), cwd=tmp_path)
    assert refused.process.returncode == 1
    assert f"couldn't bind 127.0.0.1:{port}" in refused.output
