"""Hugging Face through the real huggingface_hub, against a hub on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.models import hub as client
from genai_notebook.core.models.files import inspect_model
from genai_notebook.core.models.records import new_record
from genai_notebook.core.schema import ModelFile, ModelInfo, ModelSource
from genai_notebook.errors import ChecksumError, DownloadError
from tests.fakes import eventually
from tests.fakes.gguf_files import tiny_llm
from tests.fakes.hub import (
    Asked,
    FakeHub,
    WebServer,
    download,
    fake_hub,
    fill_cache,
    on_the_way,
    point_at,
    switch_off,
    use_manager,
    web_server,
)

REPO, FILE, TOKEN = "owner/tiny-GGUF", "sub/Tiny.Q4_0.gguf", "hf_secret"


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return tiny_llm(tmp_path / "a.gguf").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[FakeHub]:
    with fake_hub() as running:
        point_at(running, tmp_path / "huggingface", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        running.tokens.add(TOKEN)
        running.add(REPO, {FILE: data, "README.md": b"# Tiny"})
        yield running


def fetch(home: Path, **more: Any) -> ModelInfo:
    return download(home, **{"source": "huggingface", "repo": REPO, "file": FILE} | more)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reason(error: pytest.ExceptionInfo[DownloadError]) -> object:
    return (error.value.details or {}).get("reason")


def main_of(hub: FakeHub) -> str:
    return hub.repos[REPO].refs["main"]


# ---- a file and its promises


def test_a_file_is_described_fetched_and_verified(home: Path, hub: FakeHub, data: bytes) -> None:
    model = fetch(home)
    assert (model.id, model.size, model.checksum) == ("tiny-q4-0", len(data), f"sha256:{sha256(data)}")
    assert (model.source.type, model.source.repo, model.source.file) == ("huggingface", REPO, FILE)
    assert model.source.revision == main_of(hub)
    assert Path(model.path).read_bytes() == data
    # Described at main, fetched at the commit.
    assert [(asked.method, asked.path.split("/resolve/")[1]) for asked in hub.asked] == [
        ("HEAD", f"main/{FILE}"),
        ("GET", f"{main_of(hub)}/{FILE}"),
    ]
    assert hub.fetched_bytes() == len(data)
    assert on_the_way(home) == []


def test_the_token_is_for_the_hub_alone(home: Path, hub: FakeHub) -> None:
    fetch(home)
    assert [asked.token for asked in hub.asked] == [TOKEN, TOKEN]
    assert hub.fetched
    for asked in hub.fetched:
        assert TOKEN not in str(asked.headers)
        assert "authorization" not in asked.headers


def test_without_a_token_none_is_sent(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    fetch(home)
    assert {asked.token for asked in hub.asked} == {None}


def test_what_is_there_needs_no_hub(home: Path, hub: FakeHub) -> None:
    model = fetch(home)
    hub.trouble = (500, None, "no")
    hub.forget()
    assert fetch(home) == model
    assert fetch(home, revision=main_of(hub)) == model
    assert hub.asked == []


def test_other_bytes_than_the_hub_says(home: Path, hub: FakeHub, data: bytes) -> None:
    hub.bytes[sha256(data)] = data[:-1] + b"x"
    with pytest.raises(ChecksumError) as caught:
        fetch(home)
    assert caught.value.expected == sha256(data)
    assert caught.value.actual == sha256(data[:-1] + b"x")
    assert on_the_way(home) == []
    hub.bytes[sha256(data)] = data
    assert Path(fetch(home).path).read_bytes() == data


def test_another_length_than_the_hub_says(home: Path, hub: FakeHub, data: bytes) -> None:
    hub.bytes[sha256(data)] = data[:-1]
    with pytest.raises(DownloadError, match="promised"):
        fetch(home)
    assert on_the_way(home) == []


def test_another_checksum_than_the_caller_says_fetches_nothing(home: Path, hub: FakeHub) -> None:
    with pytest.raises(ChecksumError):
        fetch(home, checksum="0" * 64)
    assert hub.fetched == []


def test_a_small_file_that_is_not_in_lfs(home: Path, hub: FakeHub, data: bytes) -> None:
    hub.repos[REPO].small.add(FILE)
    model = fetch(home)
    assert (model.checksum, model.source.revision) == (f"sha256:{sha256(data)}", main_of(hub))
    assert hub.fetched == []  # it came from the hub itself
    # Nobody has told its SHA-256 beforehand, but it is the same commit's.
    assert fetch(home, revision="main") == model


def test_what_has_come_of_a_failed_download_is_not_fetched_again(
    home: Path, hub: FakeHub, grown: dict[str, bytes]
) -> None:
    data = grown["first"]
    hub.add("owner/big", {"big.gguf": data})
    hub.before_body = hub.refused.add  # the first bytes come, and then nothing more
    with pytest.raises(DownloadError, match="403"):
        fetch(home, repo="owner/big", file="big.gguf")
    assert hub.fetched_bytes() == 65536
    assert on_the_way(home)
    hub.refused.clear()
    hub.before_body = lambda _: None
    # By another name for the same bytes, even.
    model = fetch(home, repo="owner/big", file="big.gguf", revision=hub.repos["owner/big"].refs["main"])
    assert Path(model.path).read_bytes() == data
    assert hub.fetched_bytes() == len(data)
    assert hub.fetched[-1].headers["range"] == f"bytes=65536-{len(data) - 1}"
    assert hub.fetched[-1].headers["if-range"] == f'"{sha256(data)}"'
    assert on_the_way(home) == []


def test_a_repository_that_was_renamed(home: Path, hub: FakeHub, data: bytes) -> None:
    hub.renamed["owner/old-name"] = REPO
    model = fetch(home, repo="owner/old-name")
    assert (model.source.repo, model.source.revision) == ("owner/old-name", main_of(hub))
    assert Path(model.path).read_bytes() == data


def test_a_file_with_an_odd_name(home: Path, hub: FakeHub, data: bytes) -> None:
    name = "größe & [1]/Mein Modell (neu) +ü.Q4_0.gguf"
    hub.commit(REPO, {name: data})
    model = fetch(home, file=name)
    assert model.source.file == name
    assert Path(model.path).name == "Mein-Modell-neu-u.Q4_0.gguf"
    assert fetch(home, file=name) == model


# ---- revisions


def test_a_branch_is_pinned_to_its_commit(home: Path, hub: FakeHub, data: bytes, tmp_path: Path) -> None:
    commit = hub.commit(REPO, {FILE: data}, branch="refs/pr/1")
    hub.repos[REPO].refs["v1.0"] = commit
    model = fetch(home, revision="refs/pr/1")
    assert model.source.revision == commit
    hub.forget()
    for revision in (commit, "refs/pr/1", "v1.0"):
        assert fetch(home, revision=revision) == model
    assert hub.fetched == []
    # The branch goes on: that is another file, and the old one stays.
    newer = tiny_llm(tmp_path / "new.gguf", **{"llama.block_count": 8}).read_bytes()
    hub.commit(REPO, {FILE: newer}, branch="refs/pr/1")
    other = fetch(home, revision="refs/pr/1")
    assert (other.id, Path(other.path).read_bytes()) == (f"{model.id}-2", newer)
    assert fetch(home, revision=commit) == model


def test_the_commit_counts_while_the_branch_moves(home: Path, hub: FakeHub, data: bytes, tmp_path: Path) -> None:
    first = main_of(hub)
    newer = tiny_llm(tmp_path / "new.gguf", **{"llama.block_count": 8}).read_bytes()
    # Somebody commits between the description and the first byte.
    hub.before_body = lambda _: hub.commit(REPO, {FILE: newer})
    model = fetch(home)
    assert model.source.revision == first
    assert Path(model.path).read_bytes() == data


def test_other_words_for_the_same_file_at_once_give_one_model(home: Path, hub: FakeHub) -> None:
    async def use(manager: ModelManager) -> None:
        models = await asyncio.gather(
            *(
                manager.download_model(source="huggingface", repo=REPO, file=FILE, revision=revision)
                for revision in (None, "main", main_of(hub))
            )
        )
        assert len({model.id for model in models}) == 1
        assert len(hub.fetched) == 1

    use_manager(home, use)


# ---- what the hub may refuse


@pytest.mark.parametrize(
    ("status", "code", "expected", "says"),
    [
        (403, "GatedRepo", "gated", "granted"),
        (401, "GatedRepo", "gated", "granted"),
        (404, "EntryNotFound", "not-found", "no file"),
        (404, "RevisionNotFound", "not-found", "revision"),
        (404, "RepoNotFound", "not-found", "private"),
        (401, None, "refused", "private"),
        (403, None, "refused", "403"),
        (500, None, "status", "answers"),
        (429, None, "status", "answers"),
    ],
)
def test_what_the_hub_may_answer(
    home: Path, hub: FakeHub, status: int, code: str | None, expected: str, says: str
) -> None:
    hub.trouble = (status, code, "no")
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(home)
    assert reason(caught) == expected
    assert caught.value.hint
    assert TOKEN not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_a_gated_repository(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].gated = "manual"
    with pytest.raises(DownloadError) as with_token:
        fetch(home)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DownloadError) as without:
        fetch(home)
    for caught in (with_token, without):
        assert reason(caught) == "gated"
        assert f"huggingface.co/{REPO}" in (caught.value.hint or "")
    assert [asked.method for asked in hub.asked] == ["HEAD", "HEAD"]
    hub.repos[REPO].readers.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(home).source.repo == REPO


def test_a_private_repository(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DownloadError, match="private") as caught:
        fetch(home)
    assert reason(caught) == "not-found"
    assert "HF_TOKEN" in (caught.value.hint or "")
    hub.repos[REPO].readers.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(home).source.repo == REPO


def test_a_token_that_is_nobodys(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(DownloadError, match="token is not valid") as caught:
        fetch(home)
    assert reason(caught) == "refused"
    assert "hf_expired" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("wrong", [{"repo": "owner/none"}, {"file": "none.gguf"}, {"revision": "none"}])
def test_what_is_not_there(home: Path, hub: FakeHub, wrong: dict[str, str]) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(home, **wrong)
    assert reason(caught) == "not-found"
    assert caught.value.hint
    assert hub.fetched == []


def test_a_hub_that_cannot_be_reached(home: Path, hub: FakeHub) -> None:
    hub.close()
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        fetch(home)
    assert reason(caught) == "unreachable"
    assert caught.value.hint


def test_a_hub_that_does_not_answer(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    hub.silence = threading.Event()
    with pytest.raises(DownloadError) as caught:
        fetch(home)
    assert reason(caught) == "unreachable"


def test_cancelling_while_the_hub_is_silent(home: Path, hub: FakeHub) -> None:
    hub.silence = threading.Event()

    async def use(manager: ModelManager) -> None:
        job = manager.start_download({"source": "huggingface", "repo": REPO, "file": FILE})
        await asyncio.to_thread(eventually, lambda: hub.asked)
        await asyncio.wait_for(manager.cancel_download(job.id), 2)
        assert manager.job_state(job.id).status == "cancelled"

    use_manager(home, use)


# ---- the hub's own cache


@pytest.fixture
def cached(hub: FakeHub) -> Path:
    """The file, in the cache of huggingface_hub, which has fetched it itself."""
    path = fill_cache(hub, REPO, FILE)
    hub.forget()
    return path


def test_a_file_in_the_cache_is_used_where_it_lies(home: Path, hub: FakeHub, cached: Path, data: bytes) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(source="huggingface", repo=REPO, file=FILE)
        assert model.path == str(cached)
        assert hub.fetched == []
        assert (model.size, model.checksum) == (len(data), f"sha256:{sha256(data)}")
        assert (model.source.revision, model.source.file) == (main_of(hub), FILE)
        assert model.gguf_metadata is not None
        assert await manager.list_models() == [model]
        assert await manager.verify_model(model.id)
        assert await manager.download_model(source="huggingface", repo=REPO, file=FILE) == model
        assert [path.name for path in (home / "models" / model.id).iterdir()] == ["model.json"]
        await manager.delete_model(model.id)
        assert cached.read_bytes() == data
        assert await manager.list_models() == []

    use_manager(home, use)


def test_a_cached_file_that_is_corrupt_is_not_used(home: Path, hub: FakeHub, cached: Path, data: bytes) -> None:
    blob = cached.resolve()
    blob.write_bytes(data[:-1] + b"x")
    model = fetch(home)
    assert Path(model.path).is_relative_to(home)
    assert Path(model.path).read_bytes() == data
    assert hub.fetched_bytes() == len(data)
    assert blob.read_bytes() == data[:-1] + b"x"  # not ours to mend


def test_a_cached_file_that_changes_later_is_seen(home: Path, hub: FakeHub, cached: Path, data: bytes) -> None:
    model = fetch(home)
    cached.resolve().write_bytes(data[:-1] + b"x")
    assert not use_manager(home, lambda manager: manager.verify_model(model.id))
    # And one that was pruned is fetched again.
    shutil.rmtree(cached.parents[4])
    assert Path(fetch(home).path).read_bytes() == data


def test_the_same_bytes_under_an_older_commit(home: Path, hub: FakeHub, cached: Path, data: bytes) -> None:
    newer = hub.commit(REPO, {FILE: data, "README.md": b"# Tiny, with a better description"})
    model = fetch(home)
    assert (model.path, model.source.revision) == (str(cached), newer)
    assert hub.fetched == []


def test_other_bytes_under_an_older_commit(home: Path, hub: FakeHub, cached: Path, tmp_path: Path) -> None:
    newer = tiny_llm(tmp_path / "new.gguf", **{"llama.block_count": 8}).read_bytes()
    hub.commit(REPO, {FILE: newer})
    assert Path(fetch(home).path).read_bytes() == newer


def test_a_cache_whose_place_is_relative(
    home: Path, hub: FakeHub, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "huggingface/hub")
    assert fetch(home).path == str(cached)
    hub.commit(REPO, {FILE: cached.read_bytes(), "README.md": b"new"})
    assert fetch(home, revision="main", name="again").path == str(cached)


def test_a_small_file_in_the_cache(home: Path, hub: FakeHub, data: bytes) -> None:
    hub.repos[REPO].small.add(FILE)
    cached = fill_cache(hub, REPO, FILE)
    assert fetch(home).path == str(cached)
    assert fetch(home, revision="main").id == "tiny-q4-0"


@pytest.mark.parametrize("how", ["offline", "unreachable", "silent"])
def test_without_the_hub_its_cache_answers(
    home: Path, hub: FakeHub, cached: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    commit = main_of(hub)
    if how == "offline":
        switch_off(monkeypatch)
    elif how == "unreachable":
        hub.close()
    else:
        monkeypatch.setattr(client, "TIMEOUT", 0.2)
        hub.silence = threading.Event()
    model = fetch(home)
    assert (model.path, model.source.revision) == (str(cached), commit)
    assert model.checksum == f"sha256:{sha256(data)}"
    assert fetch(home, revision=commit) == model
    for wrong in ({"file": "none.gguf"}, {"revision": "none"}, {"repo": "owner/none"}):
        with pytest.raises(DownloadError) as caught:
            fetch(home, **wrong)
        assert reason(caught) == "unreachable"
        assert caught.value.hint
        assert ("HF_HUB_OFFLINE" in str(caught.value)) == (how == "offline")


def test_without_the_hub_a_corrupt_cache_is_no_answer(
    home: Path, hub: FakeHub, cached: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.resolve().write_bytes(data[:-1] + b"x")
    switch_off(monkeypatch)
    with pytest.raises(ChecksumError) as caught:
        fetch(home)
    assert caught.value.expected == sha256(data)
    assert on_the_way(home) == []


def test_a_cache_whose_blobs_are_shared_between_repositories(
    home: Path, hub: FakeHub, cached: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub 2.4 moves what came through Xet to <cache>/blobs, under a hash that is no SHA-256.
    blob = cached.parent / os.readlink(cached)
    store = cached.parents[4] / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    switch_off(monkeypatch)
    model = fetch(home)
    assert (model.path, model.checksum) == (str(cached), f"sha256:{sha256(data)}")


# ---- the settings that are read when huggingface_hub is imported

CHILD = """
import asyncio, json, sys
from genai_notebook.core.models import ModelManager
from genai_notebook.errors import GenaiNotebookError

async def main():
    manager = ModelManager()
    for file in sys.argv[2:]:
        try:
            model = await manager.download_model(source="huggingface", repo=sys.argv[1], file=file)
            print(json.dumps({"path": model.path, "revision": model.source.revision}))
        except GenaiNotebookError as error:
            print(json.dumps({"error": str(error), "hint": error.hint, **(error.details or {})}))

asyncio.run(main())
"""


def in_a_child(home: Path, folder: Path, files: list[str], **environ: str) -> list[dict[str, Any]]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = ours | {"GENAI_NOTEBOOK_HOME": str(home), "HF_HOME": str(folder), **environ}
    command = [sys.executable, "-c", CHILD, REPO, *files]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_endpoint_and_offline_mode_of_the_environment(home: Path, hub: FakeHub, cached: Path, data: bytes) -> None:
    folder = cached.parents[5]
    other = tiny_llm(folder / "other.gguf", **{"llama.block_count": 5}).read_bytes()
    hub.commit(REPO, {FILE: data, "other.gguf": other})
    online = in_a_child(home, folder, ["other.gguf"], HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert online == [{"path": str(home / "models" / "other" / "other.gguf"), "revision": main_of(hub)}]
    assert {asked.token for asked in hub.asked if REPO in asked.path} == {TOKEN}
    assert hub.fetched_bytes() == len(other)

    hub.forget()
    shutil.rmtree(home / "models")
    first, second = in_a_child(home, folder, [FILE, "other.gguf"], HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert first["path"] == str(cached)
    assert second["reason"] == "unreachable"
    assert "HF_HUB_OFFLINE" in second["error"]
    assert "HF_HUB_OFFLINE" in second["hint"]
    assert hub.asked == []


# ---- the header, read again

STRATEGIES = ("local-remote", "local-only", "remote-only", "remote-local")
BLOCKS = {"local": 6, "remote": 9}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Models with a vocabulary as real ones have it: only what stands before it is in the first 64 KiB."""
    vocabulary = {"tokenizer.ggml.tokens": [f"token{n}" for n in range(10_000)]}
    return {
        place: tiny_llm(
            tmp_path_factory.mktemp("grown") / f"{place}.gguf",
            **{"llama.block_count": blocks} | vocabulary | {"tokenizer.chat_template": "<think>"},
        ).read_bytes()
        for place, blocks in {"first": 4, **BLOCKS}.items()
    }


@pytest.fixture(params=["url", "huggingface"])
def fetched(request: pytest.FixtureRequest, home: Path, hub: FakeHub, grown: dict[str, bytes]) -> Iterator[Fetched]:
    with web_server() as server:
        if request.param == "url":
            model = download(home, source="url", url=server.add("/big.gguf", grown["first"]))
        else:
            hub.add("owner/big", {"big.gguf": grown["first"]})
            model = download(home, source="huggingface", repo="owner/big", file="big.gguf")
        assert model.gguf_metadata is not None
        assert model.gguf_metadata.block_count == 4
        hub.forget()
        server.seen.clear()
        yield Fetched(home, hub, server, model, dict(grown))


class Fetched:
    """A model that was fetched, and both places its header may be read from."""

    def __init__(
        self, home: Path, hub: FakeHub, server: WebServer, model: ModelInfo, versions: dict[str, bytes]
    ) -> None:
        self.home, self.hub, self.server, self.model, self.versions = home, hub, server, model, versions
        self.file = Path(model.path)

    def change(self, place: str) -> None:
        """Put another version there: so it is seen where a header came from."""
        if place == "local":
            self.file.write_bytes(self.versions["local"])
        elif self.model.source.type == "url":
            self.server.files["/big.gguf"] = self.versions["remote"]
        else:
            self.hub.bytes[sha256(self.versions["first"])] = self.versions["remote"]

    def lose(self, place: str) -> None:
        if place == "local":
            self.file.unlink()
        elif self.model.source.type == "url":
            self.server.close()
        else:
            self.hub.close()

    @property
    def asked(self) -> list[Asked]:
        """Requests for bytes of the file."""
        return self.server.seen if self.model.source.type == "url" else self.hub.fetched

    def update(self, strategy: Any) -> ModelInfo:
        return use_manager(self.home, lambda manager: manager.update_model_metadata(self.model.id, strategy))

    def kept(self) -> ModelInfo:
        return use_manager(self.home, lambda manager: manager.get_model_info(self.model.id))


def blocks_of(model: ModelInfo) -> object:
    return model.gguf_metadata.block_count if model.gguf_metadata else None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_a_header_is_read(fetched: Fetched, strategy: str) -> None:
    fetched.change("local")
    fetched.change("remote")
    first = strategy.partition("-")[0]
    model = fetched.update(strategy)
    assert blocks_of(model) == BLOCKS[first]
    assert fetched.kept() == model
    if first == "local":
        assert fetched.asked == []
    else:  # one request, and a small one
        (asked,) = fetched.asked
        assert asked.sent <= 65536 < len(fetched.versions["remote"])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lost", ["local", "remote"])
def test_where_one_of_both_places_is_gone(fetched: Fetched, strategy: str, lost: str) -> None:
    other = "remote" if lost == "local" else "local"
    fetched.change(other)
    fetched.lose(lost)
    if strategy == f"{lost}-only":
        with pytest.raises(DownloadError) as caught:
            fetched.update(strategy)
        assert reason(caught) == "metadata"
        assert fetched.model.id in str(caught.value)
        assert fetched.kept() == fetched.model
    else:
        assert blocks_of(fetched.update(strategy)) == BLOCKS[other]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_both_places_are_gone(fetched: Fetched, strategy: str) -> None:
    fetched.lose("local")
    fetched.lose("remote")
    with pytest.raises(DownloadError) as caught:
        fetched.update(strategy)
    assert ("cannot be read" in str(caught.value)) == ("local" in strategy)
    assert ("reached" in str(caught.value)) == ("remote" in strategy)
    assert fetched.kept() == fetched.model


@pytest.mark.parametrize("broken", [b"", b"<html>", b"GGUF\3\0\0\0" + b"\xff" * 40])
def test_a_file_that_is_broken(fetched: Fetched, broken: bytes) -> None:
    fetched.file.write_bytes(broken)
    with pytest.raises(DownloadError, match="cannot be used"):
        fetched.update("local-only")
    assert fetched.kept() == fetched.model
    assert blocks_of(fetched.update("local-remote")) == 4


def test_what_stands_behind_the_vocabulary_stays_known(fetched: Fetched) -> None:
    known = fetched.model.gguf_metadata
    assert known is not None
    assert known.chat_template == "<think>"
    assert fetched.model.supports_reasoning
    model = fetched.update("remote-only")
    assert model.supports_reasoning
    assert model.gguf_metadata is not None
    for name in ("chat_template", "header_size", "general_name", "tensor_count"):
        assert getattr(model.gguf_metadata, name) == getattr(known, name)


def test_a_source_that_holds_something_else_now(fetched: Fetched) -> None:
    fetched.versions["remote"] = b"<!doctype html>" + bytes(100_000)
    fetched.change("remote")
    with pytest.raises(DownloadError, match="No header of a model"):
        fetched.update("remote-only")
    assert fetched.kept() == fetched.model


def test_a_header_on_hugging_face_is_read_at_its_commit(home: Path, hub: FakeHub, tmp_path: Path) -> None:
    model = fetch(home, revision="main")
    commit = main_of(hub)
    hub.commit(REPO, {FILE: tiny_llm(tmp_path / "n.gguf", **{"llama.block_count": 8}).read_bytes()})
    hub.forget()
    assert use_manager(home, lambda manager: manager.update_model_metadata(model.id, "remote-only")) == model
    assert [asked.path for asked in hub.asked] == [f"/{REPO}/resolve/{commit}/{FILE}"]
    assert [asked.token for asked in hub.asked] == [TOKEN]
    assert [asked.token for asked in hub.fetched] == [None]
    hub.repos[REPO].gated = "auto"
    with pytest.raises(DownloadError, match="403"):
        use_manager(home, lambda manager: manager.update_model_metadata(model.id, "remote-only"))


@pytest.mark.parametrize("source", ["pypi", "local"])
def test_models_without_an_address(home: Path, tmp_path: Path, data: bytes, source: Any) -> None:
    async def use(manager: ModelManager) -> None:
        path = tmp_path / "incoming" / "a.gguf"
        path.parent.mkdir()
        path.write_bytes(data)
        origin = ModelSource(type=source, package="p", file="a.gguf")
        entry = ModelFile(path="a.gguf", size=len(data), source=origin)
        model = manager.store.add(new_record("a", "llm", [entry], inspect_model(path, "llm")), [path])
        for strategy in ("remote-only", "remote-local"):
            if strategy == "remote-only":
                with pytest.raises(DownloadError, match="no address") as caught:
                    await manager.update_model_metadata(model.id, strategy)
                assert "local-only" in (caught.value.hint or "")
            else:
                assert await manager.update_model_metadata(model.id, strategy) == model
        Path(model.path).unlink()
        with pytest.raises(DownloadError):
            await manager.update_model_metadata(model.id)
        assert await manager.get_model_info(model.id) == model

    use_manager(home, use)


def test_a_model_without_a_gguf_header(home: Path) -> None:
    body = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    body = len(body).to_bytes(8, "little") + body + bytes(4)

    async def use(manager: ModelManager) -> None:
        with web_server() as server:
            url = server.add("/a.safetensors", body)
            model = await manager.download_model(source="url", url=url, type="diffusion")
            assert await manager.update_model_metadata(model.id) == model
            with pytest.raises(DownloadError):
                await manager.update_model_metadata(model.id, "remote-only")

    use_manager(home, use)
