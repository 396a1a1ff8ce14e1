"""%genai fit on machines of our choice: which rows there are, what they say of the memory, and the verdicts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from genai_notebook import current
from genai_notebook.client.bridge import run
from genai_notebook.core.models import ModelManager
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo
from genai_notebook.display.views import Bundle
from genai_notebook.errors import InvalidRequestError
from genai_notebook.magics import system_commands
from tests.fakes.gguf_files import tiny_diffusion, write_gguf
from tests.fakes.machine import Machine, card

MIB, GIB = 1 << 20, 1 << 30
# 32 layers with 8 key-value heads of 128: 128 KiB of cache a token.
HEADER: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 40960,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 32000,
}


class Shown:
    """What one `%genai fit` showed and stored."""

    def __init__(self, rows: list[dict[str, Any]], bundle: Bundle) -> None:
        self.rows = rows
        self.text = bundle["text/plain"]

    def row(self, context: int, placement: str) -> dict[str, Any]:
        (row,) = [row for row in self.rows if (row["context_size"], row["placement"]) == (context, placement)]
        return row


class Room:
    """A home with a model of some 1 GB ('large') and an image model ('picture'), on a machine of our choice."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(home=folder / "home")
        self.manager = ModelManager(self.settings)
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(current, "model_manager", self.manager)
        large = write_gguf(folder / "large.gguf", HEADER, {"w": (64,)})
        with large.open("r+b") as file:
            file.truncate(GIB)
        run(self.manager.register_model(path=str(large), name="large", type="llm"))
        run(self.manager.register_model(path=str(tiny_diffusion(folder / "p.gguf")), name="picture", type="diffusion"))

    def fit(self, machine: Machine, model: str = "large", **options: Any) -> Shown:
        system = SystemInfo(self.settings, probe=machine, find_model=self.manager.get_model_info)
        self.monkeypatch.setattr(current, "system_info", system)
        names = ("context_size", "cache_type_k", "cache_type_v", "parallel_requests")
        arguments = argparse.Namespace(model=model, **{name: options.get(name) for name in names})
        info = run(self.manager.get_model_info(model))
        rooms, rows, advice = run(system_commands._work_out(info, arguments))
        return Shown(rows, system_commands._fit_view(info, rooms, rows, advice))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("trained", "asked", "expected"),
    [
        (131072, None, [4096, 8192, 16384, 32768, 65536, 131072]),
        (1 << 20, None, [4096, 8192, 16384, 32768, 65536, 131072]),
        (8192, None, [4096, 8192]),
        (10000, None, [4096, 8192, 10000]),
        (2048, None, [2048]),
        (2048, 5000, [2048, 5000]),
        (8192, 4096, [4096, 8192]),
    ],
)
def test_contexts(trained: int, asked: int | None, expected: list[int]) -> None:
    assert system_commands.contexts(trained, asked) == expected


def test_without_a_gpu(room: Room) -> None:
    shown = room.fit(Machine(ram=8 * GIB, free=3 * GIB))
    assert [row["context_size"] for row in shown.rows] == [4096, 8192, 16384, 32768, 40960]
    assert {row["placement"] for row in shown.rows} == {"CPU"}
    assert [row["fits"] for row in shown.rows] == ["now", "now", "alone", "alone", "alone"]
    grown = shown.rows[1]["ram"] - shown.rows[0]["ram"]
    assert 512 * MIB <= grown < 600 * MIB  # 4096 tokens more
    assert all(row["exact"] and row["vram"] == 0 for row in shown.rows)
    assert "VRAM" not in shown.text
    assert "when nothing else is loaded" in shown.text
    assert "Free now: 3 GB of 8 GB RAM." in shown.text
    assert "%genai start large would take: context 4,096, all of it on the CPU, 7 threads" in shown.text


def test_too_large_for_the_machine(room: Room) -> None:
    assert {row["fits"] for row in room.fit(Machine(ram=GIB, free=GIB)).rows} == {"no"}


def test_a_gpu_that_holds_all_of_it(room: Room) -> None:
    shown = room.fit(Machine(ram=64 * GIB, free=60 * GIB, gpus=[card(24 * GIB, 22 * GIB)]))
    assert {row["placement"] for row in shown.rows} == {"CPU", "GPU (all layers)"}
    whole = shown.row(40960, "GPU (all layers)")
    assert (whole["gpu_layers"], whole["fits"]) == (33, "now")
    assert whole["vram"] > 6 * GIB
    assert "22 GB of 24 GB VRAM" in shown.text
    assert "33 layers on the GPU" in shown.text


def test_a_gpu_that_holds_some_layers(room: Room) -> None:
    shown = room.fit(Machine(ram=64 * GIB, free=60 * GIB, gpus=[card(8 * GIB, 4 * GIB)]))
    assert shown.row(4096, "GPU (all layers)")["fits"] == "now"
    assert shown.row(40960, "GPU (all layers)")["fits"] == "alone"
    (part,) = [row for row in shown.rows if row["context_size"] == 40960 and " of 33 " in row["placement"]]
    assert part["placement"] == f"GPU ({part['gpu_layers']} of 33 layers)"
    assert 0 < part["gpu_layers"] < 33
    assert (part["fits"], part["vram"] <= 3 * GIB) == ("now", True)
    assert part["ram"] > 0


def test_a_gpu_that_shares_the_ram(room: Room) -> None:
    shown = room.fit(Machine(ram=8 * GIB, free=2 * GIB, gpus=[card(6 * GIB, 6 * GIB, unified=True)]))
    assert shown.row(8192, "GPU (all layers)")["fits"] == "alone"


def test_several_gpus_hold_it_together(room: Room) -> None:
    machine = Machine(ram=64 * GIB, free=60 * GIB, gpus=[card(6 * GIB, 6 * GIB), card(6 * GIB, 6 * GIB)])
    assert room.fit(machine).row(40960, "GPU (all layers)")["fits"] == "now"


def test_what_is_asked_for(room: Room) -> None:
    machine = Machine(ram=8 * GIB, free=8 * GIB)
    usual, asked = room.fit(machine), room.fit(machine, context_size=5000, cache_type_k="q8_0", cache_type_v="q8_0")
    assert 5000 in [row["context_size"] for row in asked.rows]
    assert asked.row(40960, "CPU")["ram"] < usual.row(40960, "CPU")["ram"] - 2 * GIB
    for wrong in ({"context_size": 0}, {"cache_type_k": "q3"}, {"parallel_requests": -1}):
        with pytest.raises(InvalidRequestError):
            room.fit(machine, **wrong)


def test_an_image_model_goes_by_its_size(room: Room) -> None:
    shown = room.fit(Machine(ram=8 * GIB, free=8 * GIB), "picture")
    (row,) = shown.rows
    size = run(room.manager.get_model_info("picture")).size
    assert (row["ram"], row["context_size"], row["exact"], row["fits"]) == (int(size * 1.2), None, False, "now")
    assert "By size × 1.2: the file tells no more." in shown.text


def test_a_file_whose_header_tells_nothing_goes_by_its_size(room: Room, tmp_path: Path) -> None:
    header = {"general.architecture": "llama", "llama.block_count": 2}
    bare = write_gguf(tmp_path / "bare.gguf", header, {"w": (4096,)})
    run(room.manager.register_model(path=str(bare), name="bare", type="llm"))
    shown = room.fit(Machine(ram=8 * GIB, free=8 * GIB), "bare")
    assert not any(row["exact"] for row in shown.rows)
    assert "By size × 1.2" in shown.text
