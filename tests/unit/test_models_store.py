"""The models on disk: what is trusted, what is skipped, and that nothing outside is ever touched."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import msgspec
import pytest

from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.schema import ModelFile, ModelInfo, ModelRecord, ModelSource
from genai_notebook.core.settings import Settings
from genai_notebook.errors import FileSystemError, ModelNotFoundError


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(Settings(home=tmp_path / "home"))


def add(store: ModelStore, name: str = "My Model", content: bytes = b"weights") -> ModelInfo:
    folder = store.folder.parent / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "weights.gguf"
    file.write_bytes(content)
    return store.add(record(file.name, name), [file])


def record(path: str, name: str = "My Model", source: str = "url") -> ModelRecord:
    file = ModelFile(path=path, size=7, source=ModelSource(type=source))  # type: ignore[arg-type]
    return ModelRecord(id="", name=name, type="llm", downloaded_at="2026-01-01T00:00:00Z", files=[file])


def models(store: ModelStore) -> list[ModelInfo]:
    return store.inventory().models


def broken(store: ModelStore) -> dict[str, str]:
    return {model.id: model.reason for model in store.inventory().broken}


def rewrite(store: ModelStore, model: str, fields: dict[str, object], file: dict[str, object] | None = None) -> None:
    """Change what a `model.json` says; `file`: of its first file."""
    path = store.folder / model / "model.json"
    found = {**json.loads(path.read_text()), **fields}
    if file:
        found["files"][0].update(file)
    path.write_text(json.dumps(found))


def test_a_model_comes_and_goes(store: ModelStore) -> None:
    assert models(store) == []
    model = add(store)
    assert model.id == "my-model"
    assert Path(model.path).read_bytes() == b"weights"
    assert models(store) == [model]
    assert store.get("my-model") == model
    store.remove("my-model")
    assert models(store) == []
    assert not Path(model.path).exists()
    with pytest.raises(ModelNotFoundError):
        store.remove("my-model")


def test_equal_names_get_numbers(store: ModelStore) -> None:
    assert [add(store).id for _ in range(3)] == ["my-model", "my-model-2", "my-model-3"]
    store.remove("my-model-2")
    assert add(store).id == "my-model-2"


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_everything_is_private(store: ModelStore) -> None:
    before = os.umask(0)
    try:
        model = add(store)
    finally:
        os.umask(before)
    for path in (store.folder, Path(model.path).parent):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (Path(model.path).parent / "model.json").stat().st_mode & 0o777 == 0o600


def test_a_home_can_be_moved(store: ModelStore, tmp_path: Path) -> None:
    add(store)
    os.rename(tmp_path / "home", tmp_path / "moved")
    moved = ModelStore(Settings(home=tmp_path / "moved"))
    assert Path(moved.get("my-model").path).read_bytes() == b"weights"


@pytest.mark.parametrize("id", ["../my-model", "", "My-Model", "my-model/", ".incoming", "a\0b", None])
def test_ids_that_are_none(store: ModelStore, id: str) -> None:
    add(store)
    for act in (store.get, store.remove):
        with pytest.raises(ModelNotFoundError):
            act(id)


@pytest.mark.parametrize(
    ("fields", "file"),
    [
        ({}, {"path": "/etc/passwd"}),
        ({}, {"path": "../../../etc/passwd"}),
        ({}, {"path": "relative/x.gguf"}),
        ({}, {"path": "x\0y"}),
        ({}, {"path": "/tmp/../etc/passwd", "source": {"type": "local"}}),
        ({}, {"path": "/etc/passwd", "source": {"type": "pypi"}}),
        ({}, {"path": ""}),
        ({}, {"size": "big"}),
        ({}, {"source": {"type": "magic"}}),
        ({}, {"role": "boss"}),
        ({"id": "other"}, {}),
        ({"id": "../x"}, {}),
        ({"type": "virus"}, {}),
        ({"files": []}, {}),
        ({"files": None}, {}),
        ({"ggufMetadata": {"block_count": "many"}}, {}),
    ],
)
def test_metadata_that_is_not_ours_is_reported(
    store: ModelStore, fields: dict[str, object], file: dict[str, object]
) -> None:
    add(store)
    add(store, "Good")
    rewrite(store, "my-model", fields, file)
    assert [model.id for model in models(store)] == ["good"]
    assert "cannot be used" in broken(store)["my-model"]
    with pytest.raises(ModelNotFoundError) as caught:
        store.get("my-model")
    assert "%genai delete my-model" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * (17 << 20)])
def test_metadata_that_is_broken_is_reported_and_can_be_removed(store: ModelStore, content: bytes) -> None:
    add(store)
    add(store, "Good")
    (store.folder / "my-model" / "model.json").write_bytes(content)
    assert [model.id for model in models(store)] == ["good"]
    assert list(broken(store)) == ["my-model"]
    store.remove("my-model")
    assert broken(store) == {}
    assert not (store.folder / "my-model").exists()


def test_a_folder_that_is_no_model_is_reported_and_in_nobodys_way(store: ModelStore) -> None:
    (store.folder / "my-model").mkdir(parents=True)
    (store.folder / "my-model" / "mine.gguf").write_bytes(b"put here by hand")
    assert add(store).id == "my-model-2"
    assert broken(store) == {"my-model": "it has no model.json"}
    assert (store.folder / "my-model" / "mine.gguf").exists()


def test_what_is_looked_up_by_its_checksum_must_be_ours(store: ModelStore, tmp_path: Path) -> None:
    model = add(store)
    store.change(model.id, with_checksum)
    assert store.find_file("x") == Path(model.path)
    assert store.find_file("y") is None
    Path(model.path).write_bytes(b"shorter")
    Path(model.path).write_bytes(b"short")
    assert store.find_file("x") is None
    (tmp_path / "outside.gguf").write_bytes(b"outside")
    outside = store.add(record(str(tmp_path / "outside.gguf"), "Outside", source="local"))
    store.change(outside.id, with_checksum)
    assert store.find_file("x") is None


def with_checksum(record: ModelRecord) -> ModelRecord:
    return msgspec.structs.replace(record, files=[msgspec.structs.replace(record.files[0], sha256="x")])


def test_a_path_into_another_models_folder_is_skipped(store: ModelStore) -> None:
    victim = add(store)
    add(store, "Other")
    rewrite(store, "other", {}, {"path": victim.path, "source": {"type": "local"}})
    assert [model.id for model in models(store)] == ["my-model"]


def test_deleting_never_leaves_the_models_own_folder(store: ModelStore, tmp_path: Path) -> None:
    outside = tmp_path / "precious.gguf"
    outside.write_bytes(b"mine")
    store.add(record(str(outside), "Mine", source="local"))
    assert store.get("mine").path == str(outside)
    store.remove("mine")
    assert outside.read_bytes() == b"mine"


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_in_the_store_are_not_followed(store: ModelStore, tmp_path: Path) -> None:
    model = add(store)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    # A link inside a model's folder goes, what it points to stays.
    (store.folder / "my-model" / "link").symlink_to(outside)
    store.remove("my-model")
    assert (outside / "precious").read_text() == "mine"
    # A folder that is a link, and a file that is one, are no models.
    model = add(store)
    os.rename(store.folder / model.id, outside / "moved")
    (store.folder / model.id).symlink_to(outside / "moved")
    assert models(store) == []
    with pytest.raises(ModelNotFoundError):
        store.remove(model.id)
    other = add(store, "Other")
    os.remove(other.path)
    os.symlink(outside / "precious", other.path)
    assert models(store) == []


def test_changes_are_kept(store: ModelStore) -> None:
    add(store)
    assert store.change("my-model", with_checksum).checksum == "sha256:x"
    assert store.get("my-model").checksum == "sha256:x"
    assert sorted(path.name for path in (store.folder / "my-model").iterdir()) == ["model.json", "weights.gguf"]


def test_changes_by_many_at_once_are_all_kept(store: ModelStore) -> None:
    add(store)

    def grow(record: ModelRecord) -> ModelRecord:
        return msgspec.structs.replace(record, name=record.name + "x")

    threads = [threading.Thread(target=store.change, args=("my-model", grow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert store.get("my-model").name == "My Model" + 8 * "x"


def test_a_failed_add_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(FileSystemError):
        store.add(record("missing.gguf"), [tmp_path / "missing.gguf"])
    assert list((store.folder / ".incoming").iterdir()) == []
    assert add(store).id == "my-model"


@pytest.mark.skipif(os.name != "posix", reason="other platform: hard links")
def test_a_file_that_two_models_share_goes_with_the_last(store: ModelStore) -> None:
    one = add(store)
    two = store.add(record("weights.gguf", "Two"), [Path(one.path)])
    assert os.path.samefile(one.path, two.path)
    store.remove(one.id)
    assert Path(two.path).read_bytes() == b"weights"
    assert os.stat(two.path).st_nlink == 2  # the other name is the one it was added from
    store.remove(two.id)
    assert not Path(two.path).exists()


def test_without_hard_links_files_are_moved(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    model = add(store)
    assert Path(model.path).read_bytes() == b"weights"
    assert not (store.folder.parent / "incoming" / "weights.gguf").exists()


def test_find_wants_the_whole_file(store: ModelStore) -> None:
    model = add(store)
    assert store.find(lambda model: True) == model
    Path(model.path).write_bytes(b"short")
    assert store.find(lambda model: True) is None


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FileSystemError):
        ModelStore(Settings(home=tmp_path)).inventory()
