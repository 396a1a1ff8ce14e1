"""Models that cannot be loaded: both engines end at once, with exit code 1 and a last line that names the model."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.engines.running import LLAMA, SD, run_to_end
from tests.models import check_diffusion_model, starter_llm

pytestmark = pytest.mark.engines

LLAMA_FLAGS = ("--port", "0", "--fit", "off", "--n-gpu-layers", "0", "--verbosity", "4")


def strange(path: Path, architecture: str) -> Path:
    """A whole GGUF with one tensor that no engine knows."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("foo.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bad_file(kind: str, whole: Path, folder: Path) -> Path:
    path = folder / "bad.gguf"
    if kind == "other":
        return strange(path, "frobnicate")
    if kind == "hollow":
        return strange(path, "llama")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "page":
        path.write_bytes(b"<!DOCTYPE html><html>no model</html>\n" * 50)
    else:
        with whole.open("rb") as source:
            path.write_bytes(source.read({"header": 10_000, "data": 20 << 20}[kind]))
    return path


def last_line(text: bytes) -> str:
    return [line for line in re.split(r"[\r\n]+", text.decode()) if line.strip()][-1]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("data", "data is not within the file bounds, model is corrupted or incomplete"),
        ("header", "failed to read"),
        ("page", "invalid magic characters: '<!DO', expected 'GGUF'"),
        ("empty", "failed to read magic"),
        ("other", "unknown model architecture: 'frobnicate'"),
        ("hollow", "key not found in model: llama.context_length"),
    ],
)
def test_the_llm_engine(tmp_path: Path, kind: str, said: str) -> None:
    path = bad_file(kind, starter_llm(), tmp_path)
    program = run_to_end(LLAMA, "-m", str(path), *LLAMA_FLAGS, cwd=tmp_path)
    assert program.process.returncode == 1
    assert said in program.output
    assert re.search(rf"E srv +load_model: failed to load model, '{re.escape(str(path))}'\n", program.output)
    assert re.search(r"E srv +\w+: exiting due to model loading error\n", program.output)
    # A line of its own: not one that landed inside the engine's.
    assert last_line(bytes(program.stderr)).startswith(f"error: the engine did not start with '{path}': ")
    assert "Traceback" not in program.output


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("data", "is cut short: it has 20971520 bytes and must have"),
        ("header", "is cut short: the file ends inside its header"),
        ("page", "init model loader from file failed"),
        ("empty", "file is empty"),
        ("other", "get sd version from file failed"),
        ("hollow", "get sd version from file failed"),
    ],
)
def test_the_image_engine(tmp_path: Path, kind: str, said: str) -> None:
    path = bad_file(kind, check_diffusion_model(), tmp_path)
    program = run_to_end(SD, "-m", str(path), "--listen-port", "0", cwd=tmp_path)
    assert program.process.returncode == 1
    assert said in program.output
    last = last_line(bytes(program.stderr))
    assert last.startswith("[ERROR] sd_server.py  - new_sd_ctx_t failed: ")
    assert str(path) in last
    # What a wheel lists as possible reasons is no reason.
    assert "insufficient memory" not in program.output
    assert "Traceback" not in program.output


def test_each_engine_with_the_others_model(tmp_path: Path) -> None:
    program = run_to_end(LLAMA, "-m", str(check_diffusion_model()), *LLAMA_FLAGS, cwd=tmp_path)
    assert (program.process.returncode, "exiting due to model loading error" in program.output) == (1, True)
    program = run_to_end(SD, "-m", str(starter_llm()), "--listen-port", "0", cwd=tmp_path)
    assert (program.process.returncode, "get sd version from file failed" in program.output) == (1, True)


def test_a_busy_port_is_not_the_models_fault(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = (*LLAMA_FLAGS[2:], "--port", port)
        program = run_to_end(LLAMA, "-m", str(starter_llm()), *flags, cwd=tmp_path)
    assert program.process.returncode == 1
    assert "couldn't bind HTTP server socket" in program.output
    assert "exiting due to HTTP server error" in program.output
    assert "model loading error" not in program.output
