"""The models on disk: what is trusted, what is skipped, and that nothing outside is ever touched."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.schema import ModelInfo, ModelSource
from genai_notebook.core.settings import Settings
from genai_notebook.errors import DownloadError, FileSystemError, ModelNotFoundError


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(Settings(home=tmp_path / "home"))


def add(store: ModelStore, name: str = "My Model", content: bytes = b"weights") -> ModelInfo:
    folder = store.folder.parent / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "weights.gguf"
    file.write_bytes(content)
    return store.add(name, lambda model, room: info(model, room / file.name, name), file=file)


def info(id: str, path: Path, name: str = "My Model", source: str = "url") -> ModelInfo:
    return ModelInfo(
        id=id,
        name=name,
        type="llm",
        size=7,
        path=str(path),
        downloaded_at="2026-01-01T00:00:00Z",
        source=ModelSource(type=source),  # type: ignore[arg-type]
    )


def rewrite(store: ModelStore, model: str, fields: dict[str, object]) -> None:
    path = store.folder / model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_model_comes_and_goes(store: ModelStore) -> None:
    assert store.all() == []
    model = add(store)
    assert model.id == "my-model"
    assert Path(model.path).read_bytes() == b"weights"
    assert store.all() == [model]
    assert store.get("my-model") == model
    store.remove("my-model")
    assert store.all() == []
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
    "fields",
    [
        {"path": "/etc/passwd"},
        {"path": "../../../etc/passwd"},
        {"path": "relative/x.gguf"},
        {"path": "x\0y"},
        {"path": "/tmp/../etc/passwd", "source": {"type": "local"}},
        {"id": "other"},
        {"id": "../x"},
        {"type": "virus"},
        {"size": "big"},
        {"source": {"type": "magic"}},
        {"ggufMetadata": {"block_count": "many"}},
    ],
)
def test_metadata_that_is_not_ours_is_skipped(
    store: ModelStore, caplog: pytest.LogCaptureFixture, fields: dict[str, object]
) -> None:
    add(store)
    add(store, "Good")
    rewrite(store, "my-model", fields)
    with caplog.at_level(logging.WARNING):
        assert [model.id for model in store.all()] == ["good"]
    assert "my-model" in caplog.text
    with pytest.raises(ModelNotFoundError):
        store.get("my-model")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * (17 << 20)])
def test_metadata_that_is_broken_is_skipped(
    store: ModelStore, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    add(store)
    (store.folder / "my-model" / "model.json").write_bytes(content)
    assert store.all() == []
    assert "my-model" in caplog.text


def test_a_path_into_another_models_folder_is_skipped(store: ModelStore) -> None:
    victim = add(store)
    add(store, "Other")
    rewrite(store, "other", {"path": victim.path, "source": {"type": "local"}})
    assert [model.id for model in store.all()] == ["my-model"]


def test_deleting_never_leaves_the_models_own_folder(store: ModelStore, tmp_path: Path) -> None:
    outside = tmp_path / "precious.gguf"
    outside.write_bytes(b"mine")
    store.add("Mine", lambda model, room: info(model, outside, source="local"))
    assert store.get("mine").path == str(outside)
    store.remove("mine")
    assert outside.read_bytes() == b"mine"


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_in_the_store_are_not_followed(
    store: ModelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert store.all() == []
    with pytest.raises(ModelNotFoundError):
        store.remove(model.id)
    other = add(store, "Other")
    os.remove(other.path)
    os.symlink(outside / "precious", other.path)
    assert store.all() == []


def test_changes_are_kept(store: ModelStore) -> None:
    add(store)
    store.change("my-model", checksum="sha256:x")
    assert store.get("my-model").checksum == "sha256:x"
    assert sorted(path.name for path in (store.folder / "my-model").iterdir()) == ["model.json", "weights.gguf"]


def test_a_failed_add_leaves_nothing(store: ModelStore) -> None:
    def fail(id: str, room: Path) -> ModelInfo:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.add("My Model", fail)
    assert add(store).id == "my-model"


def test_find_wants_the_whole_file(store: ModelStore) -> None:
    model = add(store)
    assert store.find(lambda model: True) == model
    Path(model.path).write_bytes(b"short")
    assert store.find(lambda model: True) is None


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FileSystemError):
        ModelStore(Settings(home=tmp_path)).all()


def test_one_download_of_a_thing_at_a_time(store: ModelStore) -> None:
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def first() -> None:
        with store.incoming("k", Work()) as room:
            (room / "a.part").write_text("x")
            inside.set()
            go.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(30)
    phases: list[str] = []
    work = Work(phase=phases.append)
    with store.incoming("other", Work()):
        pass  # another thing does not wait
    second = threading.Thread(target=lambda: _enter(store, work, order))
    second.start()
    while not phases:
        pass
    go.set()
    thread.join(30)
    second.join(30)
    assert order == ["first", "second, empty"]
    assert phases[0] == "queued"
    assert not [path for path in (store.folder / ".incoming").iterdir() if path.is_dir()]


def _enter(store: ModelStore, work: Work, order: list[str]) -> None:
    with store.incoming("k", work) as room:
        order.append("second" + (", empty" if not list(room.iterdir()) else ""))


HOLD = """
import sys
from pathlib import Path
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.settings import Settings
with ModelStore(Settings(home=Path(sys.argv[1]))).incoming("k", Work()):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_other_processes_wait_too_and_can_be_cancelled(store: ModelStore) -> None:
    command = [sys.executable, "-c", HOLD, str(store.folder.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        work = Work()
        threading.Timer(0.2, work.cancel).start()
        with pytest.raises(DownloadError) as caught, store.incoming("k", work):
            pass
        assert is_cancelled(caught.value)
        child.communicate()
    with store.incoming("k", Work()) as room:
        assert room.is_dir()
