"""The random-weight check model: what is in the file, and that half a file is never left."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from genai_notebook.core.models import check_model
from genai_notebook.core.models.check_model import CHECK_MODEL_NAME, check_model_tensors, write_check_model
from genai_notebook.errors import FileSystemError
from tests.models import check_diffusion_model

KINDS = {"matrix": "Q4_0", "conv": "F16", "loud conv": "F16", "ones": "F32", "halves": "F32", "zeros": "F32"}


def test_the_file_holds_what_the_engine_looks_for() -> None:
    import gguf

    path = check_diffusion_model()
    reader = gguf.GGUFReader(str(path))
    assert reader.get_field("general.architecture").contents() == "sd1"
    assert reader.get_field("general.name").contents() == CHECK_MODEL_NAME
    found = {
        tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name) for tensor in reader.tensors
    }
    assert found == {tensor.name: (tensor.shape, KINDS[tensor.kind]) for tensor in check_model_tensors()}
    # What sd-server needs besides, and the two ends of the picture.
    for name in ("tae.encoder.layers.14.weight", "tae.decoder.layers.18.bias", "model.diffusion_model.out.2.weight"):
        assert name in found
    assert 400e6 < sum(math.prod(shape) for shape, _ in found.values()) < 500e6
    assert 500e6 < path.stat().st_size < 540e6


def test_weights_are_finite_and_not_all_alike() -> None:
    import gguf
    import numpy as np

    for tensor in gguf.GGUFReader(str(check_diffusion_model())).tensors:
        if tensor.name in ("model.diffusion_model.out.2.weight", "tae.decoder.layers.0.weight"):
            values = np.asarray(tensor.data, np.float32)
            assert np.isfinite(values).all()
            assert 0.1 < values.std() * math.sqrt(math.prod(values.shape[1:])) < 2


def test_names_are_unique() -> None:
    names = [tensor.name for tensor in check_model_tensors()]
    assert len(names) == len(set(names)) == 610


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"GGUF" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(check_model, "_write", write)
    target = tmp_path / "models" / "check.gguf"
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    with pytest.raises(FileSystemError, match="No space left") as caught:
        write_check_model(target)
    assert caught.value.hint
    assert "520 MB" in caught.value.hint
    assert [path.name for path in target.parent.iterdir()] == ["check.gguf"]
    assert target.read_bytes() == b"what was there before"


def test_it_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "check.gguf"
    seen: list[list[str]] = []

    def write(path: Path) -> None:
        path.write_bytes(b"GGUF")
        seen.append([path.suffix for path in target.parent.iterdir()])
        assert not target.exists()

    monkeypatch.setattr(check_model, "_write", write)
    write_check_model(target)
    assert seen == [[".part"]]
    assert [path.name for path in target.parent.iterdir()] == ["check.gguf"]
