"""Hugging Face through the real huggingface_hub, against a hub on loopback."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.models import ModelManager, sources
from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.errors import ChecksumError, DownloadError
from tests.fakes.file_server import FileServer, file_server
from tests.fakes.gguf_files import tiny_llm

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO, FILE = "owner/tiny-GGUF", "sub/Tiny.Q4_0.gguf"


class Hub:
    """Two servers, as the real hub has: one that knows the files, and one that has their bytes."""

    def __init__(self, hub: FileServer, storage: FileServer, data: bytes) -> None:
        self.hub, self.storage, self.data = hub, storage, data
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{self.sha256}"',
            "ETag": '"pointer"',
        }
        bytes_url = storage.add("/bytes", data)
        for revision in ("main", COMMIT):
            hub.add(f"/{REPO}/resolve/{revision}/{FILE}", b"", status=302, Location=bytes_url, **self.headers)

    def answer(self, status: int, code: str | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        for path in list(self.hub.routes):
            self.hub.add(path, b"no", status=status, **headers)

    def download(self, home: Path, **more: Any) -> ModelInfo:
        async def main() -> ModelInfo:
            manager = ModelManager(Settings(home=home))
            return await manager.download_model(source="huggingface", repo=REPO, file=FILE, **more)

        return asyncio.run(main())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with file_server() as names, file_server() as storage:
        monkeypatch.setattr(sources, "HUB_ENDPOINT", names.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield Hub(names, storage, tiny_llm(tmp_path / "a.gguf").read_bytes())


def test_a_file_is_described_fetched_and_verified(home: Path, hub: Hub) -> None:
    model = hub.download(home)
    assert (model.id, model.size, model.checksum) == ("tiny-q4-0", len(hub.data), f"sha256:{hub.sha256}")
    assert (model.source.type, model.source.repo, model.source.file) == ("huggingface", REPO, FILE)
    assert model.source.revision == COMMIT
    assert Path(model.path).read_bytes() == hub.data
    # Described at main, fetched at the commit, the token only for the hub.
    assert [(method, path.split("/resolve/")[1]) for method, path, _ in hub.hub.seen] == [
        ("HEAD", f"main/{FILE}"),
        ("GET", f"{COMMIT}/{FILE}"),
    ]
    for _, _, headers in hub.hub.seen:
        assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer hf_secret"
    for _, _, headers in hub.storage.seen:
        assert "authorization" not in {name.lower() for name in headers}


def test_what_is_there_needs_no_hub(home: Path, hub: Hub) -> None:
    model = hub.download(home)
    hub.answer(500)
    assert hub.download(home) == model
    assert hub.download(home, revision=COMMIT) == model


def test_other_bytes_than_the_hub_says(home: Path, hub: Hub) -> None:
    hub.storage.add("/bytes", hub.data[:-1] + b"x")
    with pytest.raises(ChecksumError) as caught:
        hub.download(home)
    assert caught.value.expected == hub.sha256


def test_another_length_than_the_hub_says(home: Path, hub: Hub) -> None:
    hub.storage.add("/bytes", hub.data[:-1])
    with pytest.raises(DownloadError, match="promised"):
        hub.download(home)


def test_another_checksum_than_the_caller_says_fetches_nothing(home: Path, hub: Hub) -> None:
    with pytest.raises(ChecksumError):
        hub.download(home, checksum="0" * 64)
    assert hub.storage.seen == []


def test_a_small_file_that_is_not_in_lfs(home: Path, hub: Hub) -> None:
    path = f"/{REPO}/resolve/main/{FILE}"
    for revision in ("main", COMMIT):
        hub.hub.add(f"/{REPO}/resolve/{revision}/{FILE}", hub.data, X_Repo_Commit=COMMIT, ETag='"abc"')
    assert path in hub.hub.routes
    assert hub.download(home).checksum == f"sha256:{hub.sha256}"


@pytest.mark.parametrize(
    ("status", "code", "reason", "says"),
    [
        (403, "GatedRepo", "gated", "granted"),
        (401, "GatedRepo", "gated", "granted"),
        (404, "EntryNotFound", "not-found", "no file"),
        (404, "RevisionNotFound", "not-found", "revision"),
        (404, "RepoNotFound", "not-found", "private"),
        (401, None, "refused", "private"),
        (500, None, "status", "answers"),
        (429, None, "status", "answers"),
    ],
)
def test_what_the_hub_may_answer(home: Path, hub: Hub, status: int, code: str | None, reason: str, says: str) -> None:
    hub.answer(status, code)
    with pytest.raises(DownloadError, match=says) as caught:
        hub.download(home)
    assert (caught.value.details or {})["reason"] == reason
    assert caught.value.hint or status == 404
    assert "hf_secret" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with file_server() as gone:
        monkeypatch.setattr(sources, "HUB_ENDPOINT", gone.url)
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        hub.download(home)
    assert (caught.value.details or {})["reason"] == "unreachable"


def test_a_hub_that_does_not_answer(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HUB_TIMEOUT", 0.3)

    def silent(handler: BaseHTTPRequestHandler) -> None:
        hub.hub.hold.wait(60)

    hub.hub.routes[f"/{REPO}/resolve/main/{FILE}"] = silent
    with pytest.raises(DownloadError) as caught:
        hub.download(home)
    assert (caught.value.details or {})["reason"] == "unreachable"
