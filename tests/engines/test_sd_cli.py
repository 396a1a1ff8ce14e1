"""The adapter that puts sd-cli in the place of sd-server, with an sd-cli that is none."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from genai_notebook.core.engines.sd_cli.pictures import measure
from genai_notebook.core.engines.sd_cli.program import Program, ProgramError, ask
from genai_notebook.core.processes.output import LineSplitter
from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.core.servers.progress import Calibration, ProgressTracker
from tests.engines.running import Running, run_to_end
from tests.engines.test_embedded_sd import QUICK, SMALL, finished, paint, post
from tests.fakes import eventually

MODULE = "genai_notebook.core.engines.sd_cli"
FAKE = Path(__file__).with_name("fake_sd_cli.py")


class Adapter(Running):
    """The adapter at work, and what its sd-cli was told."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.temp = folder / "temp"
        self.temp.mkdir()
        self.model = folder / "model.bin"
        self.model.write_bytes(b"not read by the stand-in")
        self._record = folder / "runs"
        env = {"FAKE_SD_CLI_RECORD": str(self._record), "TMPDIR": str(self.temp)}
        given = ("--cli", str(fake_cli(folder)), "-m", str(self.model), "--listen-port", "0")
        super().__init__(MODULE, *given, *flags, cwd=folder / "cwd", env=env)

    def runs(self) -> list[dict[str, Any]]:
        """Each run of sd-cli: its pid, folder, arguments, and the sizes of the pictures it was given."""
        text = self._record.read_text() if self._record.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def value(self, flag: str) -> str:
        """What the latest run was given for a flag."""
        words = self.runs()[-1]["words"]
        return str(words[words.index(flag) + 1])


def fake_cli(folder: Path) -> Path:
    """An executable of the stand-in."""
    path = folder / "sd-cli"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE))} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    """One adapter for all tests that leave it idle."""
    with Adapter(tmp_path_factory.mktemp("sd-cli"), "--threads", "2", "--max-vram", "1.5") as running:
        running.ready()
        yield running
        assert not list(running.temp.iterdir())


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Adapter]:
    """An adapter that may be ended."""
    with Adapter(tmp_path) as running:
        running.ready()
        yield running


def slow_job(engine: Adapter) -> tuple[str, int]:
    """A job that would take minutes: its id, and the pid of the sd-cli that has begun with it."""
    before = len(engine.runs())
    id = post(engine, {**SMALL, "prompt": "slow", "sample_params": {"sample_steps": 500}})
    engine.until(lambda: len(engine.runs()) > before, "run of sd-cli")
    engine.until(lambda: "2/500" in engine.output.rpartition("generating image")[2], "second step")
    return id, int(engine.runs()[-1]["pid"])


def gone(pid: int) -> None:
    eventually(lambda: not psutil.pid_exists(pid), "the end of sd-cli", 5)


def picture(size: tuple[int, int] = (64, 64), kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(file, kind, **more)
    return file.getvalue()


# ---- jobs ----


def test_a_picture(engine: Adapter) -> None:
    state = finished(engine, post(engine, SMALL))
    assert state["status"] == "completed", state
    assert state["result"]["seed"] == 7
    (image,) = state["result"]["images"]
    found = Image.open(io.BytesIO(base64.b64decode(image["b64_json"])))
    assert (found.format, found.size) == ("PNG", (64, 64))
    assert found.info["parameters"] == "a lighthouse\nSteps: 4, Version: fake sd-cli"  # as sd-cli wrote it
    assert engine.value("--negative-prompt") == "fog"
    assert engine.value("--sampling-method") == "euler_a"
    assert float(engine.value("--cfg-scale")) == 1
    assert engine.value("--model") == str(engine.model)
    assert engine.value("--threads") == "2"
    assert engine.value("--max-vram") == "1.5"
    assert engine.value("--lora-model-dir") == ""  # prompts name no files
    assert not os.path.exists(engine.runs()[-1]["cwd"])


def test_its_output_is_passed_on(engine: Adapter) -> None:
    before = len(engine.stdout)
    assert finished(engine, post(engine, SMALL))["status"] == "completed"
    log = bytes(engine.stdout[before:])
    assert re.findall(rb"\r  \|[=> ]+\| (\d)/4 - 6.28it/s\x1b\[K", log) == [b"1", b"2", b"3", b"4"]
    tracker = ProgressTracker(ImageGenerationConfig(prompt="x", steps=4), Calibration(), loaded=False)
    stages = []
    for line, _ in LineSplitter().feed(log):
        tracker.feed(line)
        stages.append((tracker.current().stage, tracker.current().current_step))
    assert list(dict.fromkeys(stage for stage, _ in stages)) == ["loading", "diffusion", "decoding"]
    assert [step for stage, step in stages if stage == "diffusion"][-4:] == [1, 2, 3, 4]
    assert tracker.decoded
    assert "save result image 0" in log.decode()


@pytest.mark.parametrize(
    "prompt", ["-v", "--help", "a\nb\n\nc", "-n\n--steps 3", "größe \U0001f600", "100%d \"q\" 'q' $HOME `id` \\", ""]
)
def test_any_prompt_arrives_whole(engine: Adapter, prompt: str) -> None:
    paint(engine, prompt=prompt, negative_prompt="-" + prompt)
    assert engine.value("--prompt") == prompt
    assert engine.value("--negative-prompt") == "-" + prompt


def test_a_prompt_that_no_command_line_can_hold(engine: Adapter) -> None:
    state = finished(engine, post(engine, {**QUICK, "prompt": "x" * 1_000_000}))
    assert "sd-cli cannot be started" in state["error"]["message"]


def test_a_batch(engine: Adapter) -> None:
    state = finished(engine, post(engine, {**QUICK, "batch_count": 3, "seed": 5}))
    images = [base64.b64decode(image["b64_json"]) for image in state["result"]["images"]]
    assert [Image.open(io.BytesIO(image)).getpixel((0, 0)) for image in images] == [(n, 100, 200) for n in range(3)]
    assert [image["seed"] for image in state["result"]["images"]] == [5, 6, 7]


def test_a_seed_that_was_left_open_is_drawn(engine: Adapter) -> None:
    seeds = [finished(engine, post(engine, {**QUICK, "seed": -1}))["result"]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert engine.value("--seed") == str(seeds[1])


def test_what_a_request_may_set(engine: Adapter) -> None:
    params = {"sample_steps": 2, "scheduler": "karras", "guidance": {"txt_cfg": 2.5}}
    more = {"vae_tiling_params": {"enabled": True}, "embed_image_metadata": False, "output_format": "jpeg"}
    (image,) = paint(engine, sample_params=params, **more)
    assert image.format == "JPEG"
    assert engine.value("--scheduler") == "karras"
    assert engine.value("--cfg-scale") == "2.5"
    assert {"--vae-tiling", "--disable-image-metadata"} <= set(engine.runs()[-1]["words"])
    assert "--sampling-method" not in engine.runs()[-1]["words"]


def test_pictures_that_are_given(engine: Adapter) -> None:
    first, mask = picture(kind="JPEG"), picture()
    fields = {"init_image": base64.b64encode(first).decode(), "strength": 0.5}
    paint(engine, **fields, mask_image="data:image/png;base64," + base64.b64encode(mask).decode())
    assert engine.runs()[-1]["inputs"] == {"--init-img": len(first), "--mask": len(mask)}
    assert engine.value("--strength") == "0.5"


@pytest.mark.parametrize("data", [b"no picture at all", picture()[:20], picture((20_000, 20_000), optimize=True)])
def test_pictures_that_are_refused(engine: Adapter, data: bytes) -> None:
    body = {**QUICK, "init_image": base64.b64encode(data).decode()}
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", body)
    assert (status, reply["field"]) == (400, "init_image")


def test_a_sampler_it_does_not_know(engine: Adapter) -> None:
    body = {**QUICK, "sample_params": {"sample_method": "tcd"}}
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", body)
    assert (status, reply["field"]) == (400, "sample_params.sample_method")


def test_capabilities(engine: Adapter) -> None:
    status, found, _ = engine.ask("GET", "/sdcpp/v1/capabilities")
    assert status == 200
    assert found["samplers"] == ["euler", "euler_a", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "lcm"]
    assert found["schedulers"] == ["discrete", "karras", "sgm_uniform"]
    assert found["features"]["cancel_generating"] is True
    assert found["model"]["name"] == "model.bin"


# ---- failures ----


def test_failures_say_why(engine: Adapter) -> None:
    failed = finished(engine, post(engine, {**QUICK, "prompt": "fail"}))
    assert failed["status"] == "failed"
    line = "[ERROR] stable-diffusion.cpp:1696 - diffusion model compute failed"
    assert failed["error"]["message"] == f"sd-cli ended with exit code 1: {line}"
    assert f"{line}\na line that says nothing\n" in bytes(engine.stderr).decode()
    crashed = finished(engine, post(engine, {**SMALL, "prompt": "crash"}))
    assert crashed["error"]["message"].startswith("sd-cli was ended by SIGSEGV")
    empty = finished(engine, post(engine, {**QUICK, "prompt": "empty"}))
    assert "wrote 0 of 1 pictures" in empty["error"]["message"]
    paint(engine)
    assert not list(engine.temp.iterdir())


def test_a_running_job_is_cancelled(engine: Adapter) -> None:
    id, pid = slow_job(engine)
    status, reply, _ = engine.ask("POST", f"/sdcpp/v1/jobs/{id}/cancel")
    assert (status, reply["status"]) == (200, "cancelled")
    gone(pid)
    paint(engine)
    assert finished(engine, id)["status"] == "cancelled"
    assert not list(engine.temp.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_is_the_end_of_all(own: Adapter, number: int) -> None:
    _, pid = slow_job(own)
    own.process.send_signal(number)
    assert own.finish(5) == 0
    gone(pid)
    assert not list(own.temp.iterdir())


def test_an_idle_one_ends_at_once(own: Adapter) -> None:
    paint(own)
    own.process.terminate()
    assert own.finish(5) == 0


def test_what_a_killed_one_left_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_notebook.core.engines.sd_cli.painter import remove_leftovers

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = time.time() - 7200
    names = {"dead": f"genai-notebook-sd-cli-{2**22 + 5}-a", "young": f"genai-notebook-sd-cli-{2**22 + 6}-b"}
    names |= {"live": f"genai-notebook-sd-cli-{os.getpid()}-c", "other": "something-else-1-d"}
    for name in names.values():
        (tmp_path / name).mkdir()
        if name != names["young"]:
            os.utime(tmp_path / name, (old, old))
    remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {names["young"], names["live"], names["other"]}


# ---- the command line ----


def start_and_end(folder: Path, *flags: str) -> Running:
    return run_to_end(MODULE, *flags, cwd=folder)


def test_version_and_help(tmp_path: Path) -> None:
    cli = str(fake_cli(tmp_path))
    asked = start_and_end(tmp_path, "--cli", cli, "--version")
    assert (asked.process.returncode, asked.output) == (0, "stable-diffusion.cpp version fake-1, commit 0123abc\n")
    helped = start_and_end(tmp_path, "--help")
    assert helped.process.returncode == 0
    for flag in ("--cli", "-m, --model", "--listen-port", "--diffusion-model", "--max-vram", "--vae-tiling"):
        assert flag in helped.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "model.bin"], "required: --cli"),
        (["--cli", "sd-cli"], "required: -m"),
        (["--cli", "sd-cli", "-m", "model.bin", "--frobnicate"], "invalid argument: --frobnicate"),
        (["--cli", "sd-cli", "-m", "nothing.gguf"], "no such file: nothing.gguf"),
        (["--cli", "sd-cli", "-m", "model.bin", "--clip_l", "nothing"], "no such file: nothing"),
        (["--cli", "sd-cli", "-m", "model.bin", "--mmap"], "this sd-cli has no --mmap"),
        (["--cli", "sd-cli", "-m", "cut.safetensors"], "is cut short"),
        (["--cli", "nothing", "-m", "model.bin"], "cannot be started"),
        (["--cli", "cat", "-m", "model.bin"], "is no sd-cli"),
        (["--cli", "nothing", "--version"], "cannot be started"),
    ],
)
def test_what_fails_at_the_start(tmp_path: Path, flags: list[str], words: str) -> None:
    fake_cli(tmp_path)
    (tmp_path / "cat").symlink_to("/bin/cat")
    (tmp_path / "model.bin").write_bytes(b"model")
    (tmp_path / "cut.safetensors").write_bytes((100).to_bytes(8, "little") + b"{")
    ended = start_and_end(tmp_path, *flags, "--listen-port", "0")
    assert ended.process.returncode == 1
    assert words in ended.output


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = start_and_end(tmp_path, "--cli", str(fake_cli(tmp_path)), "-m", "model.bin", "--listen-port", port)
    assert ended.process.returncode == 1
    assert f"couldn't bind 127.0.0.1:{port}" in ended.output


# ---- its parts ----


def test_the_help_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "sd"
    path.write_text(
        "#!/bin/sh\necho '-p, --prompt [PROMPT]  -o, --output OUTPUT  --steps STEPS'\n"
        "echo '--sampling-method {euler, euler_a, lcm}'\necho '--scheduler {discrete, karras} (default: discrete)'\n"
    )
    path.chmod(0o755)
    flags = frozenset({"-p", "--prompt", "-o", "--output", "--steps", "--sampling-method", "--scheduler"})
    assert ask(str(path)) == Program(str(path), flags, ("euler", "euler_a", "lcm"), ("discrete", "karras"))
    path.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ProgramError, match="exit code 3"):
        ask(str(path))


@pytest.mark.parametrize(
    ("kind", "more", "suffix"),
    [
        ("PNG", {}, "png"),
        ("JPEG", {}, "jpg"),
        ("JPEG", {"progressive": True}, "jpg"),
        ("WEBP", {}, "webp"),
        ("WEBP", {"lossless": True}, "webp"),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}, "webp"),
    ],
)
def test_sizes_of_pictures(kind: str, more: dict[str, Any], suffix: str) -> None:
    data = picture((123, 45), kind, **more)
    assert measure(data) == (suffix, 123, 45)
    for length in range(24):
        with pytest.raises(ValueError):
            measure(data[:length])
