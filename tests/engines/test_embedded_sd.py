"""The embedded sd-server with the check model: real weights in shape, random in value."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engines.running import SD, Running, run_to_end
from tests.models import check_diffusion_model

pytestmark = pytest.mark.engines

SMALL: dict[str, Any] = {
    "prompt": "a lighthouse",
    "negative_prompt": "fog",
    "width": 64,
    "height": 64,
    "seed": 7,
    "sample_params": {"sample_steps": 4, "sample_method": "euler_a", "guidance": {"txt_cfg": 1.0}},
}
QUICK: dict[str, Any] = {**SMALL, "sample_params": {"sample_steps": 1, "guidance": {"txt_cfg": 1.0}}}
LONG: dict[str, Any] = {**SMALL, "width": 256, "height": 256, "sample_params": {"sample_steps": 200}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One engine for all tests that leave it idle."""
    arguments = ("-m", str(check_diffusion_model()), "--listen-ip", "127.0.0.1", "--listen-port", "0", "-t", "2")
    with Running(SD, *arguments, cwd=tmp_path_factory.mktemp("sd")) as running:
        running.ready()
        yield running


def post(engine: Running, body: dict[str, Any]) -> str:
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", body)
    assert status == 202, reply
    assert reply["status"] == "queued"
    assert reply["poll_url"] == f"/sdcpp/v1/jobs/{reply['id']}"
    return str(reply["id"])


def finished(engine: Running, id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        state = engine.ask("GET", f"/sdcpp/v1/jobs/{id}")[1]
        return state if state["status"] not in ("queued", "generating") else None

    state: dict[str, Any] = engine.until(look, "finished job", 120)
    return state


def paint(engine: Running, **changes: Any) -> list[Image.Image]:
    state = finished(engine, post(engine, {**QUICK, **changes}))
    assert state["status"] == "completed", state
    return [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in state["result"]["images"]]


def test_a_picture_and_its_progress(engine: Running) -> None:
    before = len(engine.stdout)
    state = finished(engine, post(engine, SMALL))
    assert state["status"] == "completed"
    assert state["result"]["seed"] == 7
    data = base64.b64decode(state["result"]["images"][0]["b64_json"])
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")
    assert len(set(picture.get_flattened_data() if hasattr(picture, "get_flattened_data") else picture.getdata())) > 100
    parameters = picture.info["parameters"]
    assert parameters.startswith("a lighthouse\nNegative prompt: fog\nSteps: 4, ")
    assert "Seed: 7, Size: 64x64" in parameters
    assert b"tEXtparameters" in data

    log = bytes(engine.stdout[before:]).decode()
    steps = re.findall(r"\r {2}\|[=> ]+\| (\d+)/4 - \d+\.\d\d(?:it/s|s/it)\x1b\[K", log)
    assert steps == ["1", "2", "3", "4"]  # each once: not printed by us and by the engine
    shape = r"\[INFO \] [\w.-]+:\d+ +- "
    places = [
        re.search(pattern, log)
        for pattern in (
            shape + r"generating image: 1/1 - seed 7\n",
            r"\| 1/4 - ",
            r"\| 4/4 - ",
            shape + r"sampling completed, taking \d+\.\d\ds\n",
            shape + r"decoding 1 latents\n",
            shape + r"decode_first_stage completed, taking \d+\.\d\ds\n",
        )
    ]
    assert all(places), log
    positions = [place.start() for place in places if place]
    assert positions == sorted(positions)


def test_the_loading_was_reported(engine: Running) -> None:
    log = bytes(engine.stdout).decode()
    path = re.escape(str(check_diffusion_model()))
    assert re.search(rf"^\[INFO \] [\w.-]+:\d+ +- loading model from '{path}'$", log, re.MULTILINE)
    assert re.search(r"\r {2}\|[=>#]+ *\| \d+/\d+ - \d+\.\d\d[MG]B/s\x1b\[K", log)
    assert log.index("loading model from") < log.index("loading tensors completed") < log.index("listening on")


def test_the_seed_decides(engine: Running) -> None:
    first, again, other = (paint(engine, seed=seed)[0].tobytes() for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_batch_and_a_seed_that_was_left_open(engine: Running) -> None:
    drawn = []
    for _ in range(2):
        state = finished(engine, post(engine, {**QUICK, "seed": -1, "batch_count": 2}))
        seeds = [image["seed"] for image in state["result"]["images"]]
        assert seeds == [state["result"]["seed"], state["result"]["seed"] + 1]
        assert f"seed {seeds[1]}" in engine.output
        drawn.append(seeds[0])
    assert drawn[0] != drawn[1]


def test_image_to_image(engine: Running) -> None:
    file = io.BytesIO()
    Image.new("RGB", (100, 80), "red").save(file, "PNG")
    init = base64.b64encode(file.getvalue()).decode()
    (plain,) = paint(engine)
    (changed,) = paint(engine, init_image=f"data:image/png;base64,{init}", strength=0.3)
    assert changed.size == (64, 64)
    assert changed.tobytes() != plain.tobytes()
    assert "Denoising strength: 0.3" in changed.info["parameters"]


def test_it_answers_while_it_paints(engine: Running) -> None:
    id = post(engine, {**SMALL, "sample_params": {"sample_steps": 8, "guidance": {"txt_cfg": 1.0}}})
    states = []
    while (state := engine.ask("GET", f"/sdcpp/v1/jobs/{id}")[1])["status"] in ("queued", "generating"):
        states.append(state["status"])
        assert engine.ask("GET", "/sdcpp/v1/capabilities")[0] == 200
        time.sleep(0.01)
    assert states.count("generating") > 5
    assert state["status"] == "completed"


def test_jobs_wait_in_line_and_can_be_dropped_there(engine: Running) -> None:
    first, second, third = (post(engine, QUICK) for _ in range(3))
    status, dropped, _ = engine.ask("POST", f"/sdcpp/v1/jobs/{second}/cancel", b"")
    assert (status, dropped["status"], dropped["error"]["code"]) == (200, "cancelled", "cancelled")
    assert finished(engine, first)["status"] == "completed"
    last = finished(engine, third)
    assert last["status"] == "completed"
    assert engine.ask("GET", f"/sdcpp/v1/jobs/{second}")[1]["status"] == "cancelled"
    # Cancelling what is over changes nothing.
    assert engine.ask("POST", f"/sdcpp/v1/jobs/{third}/cancel", b"")[1]["status"] == "completed"


def test_what_it_says_about_itself(engine: Running) -> None:
    status, told, headers = engine.ask("GET", "/sdcpp/v1/capabilities")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert told["model"]["path"] == str(check_diffusion_model())
    assert {"euler", "euler_a", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "lcm"} <= set(told["samplers"])
    assert {"discrete", "karras", "normal"} <= set(told["schedulers"])
    assert told["limits"]["max_queue_size"] > 0


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"prompt": None}, "prompt", "expected str"),
        ({"prompt": "a\0b"}, "prompt", "NUL"),
        ({"width": 10**9}, "width", "4096"),
        ({"width": 65}, "width", "multiple of 8"),
        ({"height": "64"}, "height", "expected int"),
        ({"seed": 2**70}, "seed", "int"),
        ({"batch_count": 0}, "batch_count", ">= 1"),
        ({"batch_count": 2.5}, "batch_count", "expected int"),
        ({"strength": 2}, "strength", "<= 1"),
        ({"sample_params": {"sample_steps": 0}}, "sample_params.sample_steps", ">= 1"),
        ({"sample_params": {"sample_method": "magic"}}, "sample_params.sample_method", "known are euler, euler_a"),
        ({"sample_params": {"scheduler": "magic"}}, "sample_params.scheduler", "known are discrete"),
        ({"sample_params": {"guidance": {"txt_cfg": -1}}}, "sample_params.guidance.txt_cfg", ">= 0"),
        ({"promt": "x"}, "promt", "no such field"),
        ({"lora": [{"path": "x"}]}, "lora", "does not do that"),
        ({"hires": {"enabled": True}}, "hires", "does not do that"),
        ({"init_image": "%%%"}, "init_image", "base64"),
        ({"init_image": "AAAA"}, "init_image", "no picture"),
        ({"mask_image": "AAAA"}, "mask_image", "needs an init_image"),
    ],
)
def test_what_it_refuses_to_paint(engine: Running, changes: dict[str, Any], field: str, said: str) -> None:
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", {**SMALL, **changes})
    assert status == 400
    assert reply["field"] == field
    assert said in reply["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"[" * 100_000, b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"\xff\xfe"],
)
def test_bodies_that_are_no_request(engine: Running, body: bytes) -> None:
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", body)
    assert status == 400
    assert reply["error"]


def test_a_form_that_asks_for_nothing_unknown_is_let_through(engine: Running) -> None:
    extras = {"lora": [], "hires": {"enabled": False, "scale": 2.0}, "cache_mode": "disabled", "control_image": None}
    assert paint(engine, **extras, control_strength=0.9, init_image=None)[0].size == (64, 64)


def test_no_web_page_is_let_in(engine: Running) -> None:
    evil = {"Origin": "http://evil.example"}
    for method, path in (("GET", "/sdcpp/v1/capabilities"), ("POST", "/sdcpp/v1/img_gen"), ("OPTIONS", "/")):
        status, _, headers = engine.ask(method, path, b"{}" if method == "POST" else None, evil)
        assert status in (403, 501)
        assert not [name for name in headers if name.startswith("access-control")]
    assert engine.ask("GET", "/sdcpp/v1/capabilities", headers={"Host": "evil.example"})[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert engine.ask("POST", "/sdcpp/v1/img_gen", SMALL, {"Content-Type": kind})[0] == 415


def test_requests_that_are_too_big_or_unclear(engine: Running) -> None:
    assert engine.ask("POST", "/sdcpp/v1/img_gen", b"x", {"Content-Length": str(1 << 30)})[0] == 413
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": "2"}
    assert engine.ask("POST", "/sdcpp/v1/img_gen", b"{}", chunked)[0] == 411
    assert engine.ask("POST", "/sdcpp/v1/img_gen", b"x", {"Content-Length": "-1"})[0] == 411
    assert engine.ask("GET", "/")[0] == 404
    assert engine.ask("GET", "/sdcpp/v1/jobs/job_0")[0] == 404
    assert engine.ask("POST", "/sdcpp/v1/jobs/job_0/cancel", b"")[0] == 404
    assert engine.ask("DELETE", "/sdcpp/v1/jobs/job_0")[0] == 501


def test_a_body_is_not_taken_for_the_next_request(engine: Running) -> None:
    hidden = b"POST /sdcpp/v1/jobs/job_0/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", engine.port), 10) as connection:
        head = f"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(hidden)}\r\n\r\n"
        connection.sendall(head.encode() + hidden)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in received


def test_sigterm_ends_it_in_the_middle_of_a_picture(tmp_path: Path) -> None:
    with Running(SD, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", cwd=tmp_path) as engine:
        engine.ready()
        waiting = [post(engine, body) for body in (LONG, SMALL)][1]
        engine.until(lambda: "| 1/200 - " in engine.output, "first step")
        assert engine.ask("GET", f"/sdcpp/v1/jobs/{waiting}")[1]["queue_position"] == 1
        engine.process.send_signal(signal.SIGTERM)
        assert engine.finish(10) == 0


def test_the_queue_has_an_end(tmp_path: Path) -> None:
    with Running(SD, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", cwd=tmp_path) as engine:
        engine.ready()
        room = engine.ask("GET", "/sdcpp/v1/capabilities")[1]["limits"]["max_queue_size"]
        statuses = [engine.ask("POST", "/sdcpp/v1/img_gen", LONG)[0] for _ in range(room + 1)]
        assert statuses == [202] * room + [429]


def test_a_busy_port_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = run_to_end(SD, "-m", str(check_diffusion_model()), "--listen-port", port, cwd=tmp_path)
    assert program.process.returncode == 1
    assert f"couldn't bind 127.0.0.1:{port}" in program.output
    assert "loading model" not in program.output


def test_files_that_are_no_model(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.gguf"
    nonsense.write_bytes(b"no model at all\n" * 100)
    cut = tmp_path / "cut.gguf"
    with check_diffusion_model().open("rb") as whole:
        cut.write_bytes(whole.read(30 << 20))
    for path, said in ((nonsense, "new_sd_ctx_t failed"), (cut, "is cut short")):
        program = run_to_end(SD, "-m", str(path), "--listen-port", "0", cwd=tmp_path)
        assert program.process.returncode == 1
        assert said in program.output
        assert "listening on" not in program.output
        assert "Traceback" not in program.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--foo",), "error: invalid argument: --foo"),
        (("-m", "x", "--n-gpu-layers", "1"), "error: invalid argument: --n-gpu-layers"),
        (("--listen-port", "-1"), "error: --listen-port: invalid value '-1'"),
        (("--max-vram", "lots"), "error: --max-vram: invalid value 'lots'"),
        (("-m", "/nonexistent/x.gguf"), "error: no such file: /nonexistent/x.gguf"),
        ((), "error: the following arguments are required: -m"),
        (("-m", os.devnull), f"error: no such file: {os.devnull}"),
    ],
)
def test_what_it_refuses(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    program = run_to_end(SD, *arguments, cwd=tmp_path)
    assert program.process.returncode == 1
    assert program.stderr.decode().startswith(said)
    assert "--help" in program.output
    assert "Traceback" not in program.output


def test_version_help_and_types(tmp_path: Path) -> None:
    version = run_to_end(SD, "--version", cwd=tmp_path)
    assert version.process.returncode == 0
    assert version.output.startswith("version: ")
    shown = run_to_end(SD, "--help", cwd=tmp_path)
    assert shown.process.returncode == 0
    assert all(flag in shown.output for flag in ("--listen-port", "--diffusion-fa", "--max-vram", "--clip_l"))
    wrong = run_to_end(SD, "-m", str(check_diffusion_model()), "--type", "q9", "--listen-port", "0", cwd=tmp_path)
    assert wrong.process.returncode == 1
    assert "--type: invalid value 'q9': must be one of f32, f16" in wrong.output


def test_every_setting_is_taken(tmp_path: Path) -> None:
    """All switches at once: each names a setting that this version of the wheel has, and the engine still paints."""
    choices = "--rng cpu --sampler-rng std_default --prediction eps --type q8_0"
    switches = (
        *choices.split(),
        "--tensor-type-rules",
        r"^tae\.=f16",
        "--taesd-preview-only",
        "--diffusion-fa",
        "--clip-on-cpu",
        "--vae-on-cpu",
        "--offload-to-cpu",
        "--vae-tiling",
        "--mmap",
        "--fa",
    )
    arguments = ("-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", "--max-vram", "2.5", *switches)
    with Running(SD, *arguments, "-v", cwd=tmp_path) as engine:
        engine.ready()
        assert paint(engine)[0].size == (64, 64)
        assert "[DEBUG]" in engine.output


def test_many_clients_at_once(engine: Running) -> None:
    """Threads that ask together each get their own answer."""
    ids = [post(engine, QUICK) for _ in range(2)]
    answers: list[bool] = []

    def look(id: str) -> None:
        answers.extend(engine.ask("GET", f"/sdcpp/v1/jobs/{id}")[1]["id"] == id for _ in range(20))

    threads = [threading.Thread(target=look, args=(ids[index % 2],)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 160
    for id in ids:
        finished(engine, id)


def test_a_running_job_is_dropped_where_the_engine_can(tmp_path: Path) -> None:
    """cyllama 0.7 can, older ones say so with 409; either way the answer is true."""
    with Running(SD, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", cwd=tmp_path) as engine:
        engine.ready()
        can = engine.ask("GET", "/sdcpp/v1/capabilities")[1]["features"]["cancel_generating"]
        running = post(engine, {**LONG, "width": 128, "height": 128})
        engine.until(lambda: "| 1/200 - " in engine.output, "first step")
        status, reply, _ = engine.ask("POST", f"/sdcpp/v1/jobs/{running}/cancel", b"")
        state = engine.ask("GET", f"/sdcpp/v1/jobs/{running}")[1]["status"]
        if can:
            assert (status, reply["status"], state) == (200, "cancelled", "cancelled")
            assert paint(engine)[0].size == (64, 64)
            assert "| 50/200 - " not in engine.output
        else:
            assert (status, state) == (409, "generating")
            assert "cannot be interrupted" in reply["error"]
