"""What models took is remembered, for the engine and the flags they were loaded with."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_notebook.core.engines.load_report import Footprint
from genai_notebook.core.schema import ModelInfo, ModelSource
from genai_notebook.core.servers.footprints import KEPT, Footprints, footprint_key


def model(path: str = "/m.gguf", size: int = 7) -> ModelInfo:
    source = ModelSource(type="local")
    return ModelInfo(id="m", name="m", type="diffusion", size=size, path=path, downloaded_at="2026", source=source)


def test_footprints_outlive_the_process_and_belong_to_engine_and_flags(tmp_path: Path) -> None:
    first = Footprints(tmp_path)
    key = footprint_key(model(), "sd-server 1", [])
    assert first.recall(key) is None
    first.remember(key, Footprint(ram=1, vram=2))
    again = Footprints(tmp_path)
    assert again.recall(key) == Footprint(ram=1, vram=2)
    others = [
        footprint_key(model(size=8), "sd-server 1", []),
        footprint_key(model("/n.gguf"), "sd-server 1", []),
        footprint_key(model(), "sd-server 2", []),
        footprint_key(model(), "sd-server 1", ["--max-vram", "4"]),
    ]
    assert [again.recall(other) for other in others] == [None] * 4


def test_the_oldest_footprints_go(tmp_path: Path) -> None:
    kept = Footprints(tmp_path)
    for number in range(KEPT + 5):
        kept.remember(str(number), Footprint(ram=number, vram=0))
    assert kept.recall("4") is None
    assert Footprints(tmp_path).recall(str(KEPT + 4)) == Footprint(ram=KEPT + 4, vram=0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"k": {"ram": -1, "vram": 0}}', b'{"k": {"ram": "1"}}', b"\xff"]
)
def test_a_spoilt_file_is_no_misfortune(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "footprints.json").write_bytes(content)
    kept = Footprints(tmp_path)
    assert kept.recall("k") is None
    kept.remember("k", Footprint(ram=1, vram=0))
    assert Footprints(tmp_path).recall("k") == Footprint(ram=1, vram=0)


def test_a_folder_that_cannot_be_written_is_none_either(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    kept = Footprints(tmp_path / "cache")
    kept.remember("k", Footprint(ram=1, vram=0))
    assert kept.recall("k") == Footprint(ram=1, vram=0)
