"""Models in numbered files: from an address, from Hugging Face, out of its cache, and where they lie."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.downloads import jobs
from genai_notebook.core.models import ModelManager
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.shards import MAX_SHARDS, safe_shard_names, shard_names, without_number
from genai_notebook.core.schema import ModelInfo
from genai_notebook.errors import ChecksumError, DownloadError, InvalidRequestError
from tests.fakes.gguf_files import tiny_llm, write_gguf
from tests.fakes.hub import (
    FakeHub,
    WebServer,
    download,
    fake_hub,
    fill_cache,
    on_the_way,
    point_at,
    use_manager,
    web_server,
)

REPO = "owner/Big-GGUF"
#: Some 130 KB each, so that there is a body behind the first 64 KiB.
TENSORS = {"blk.0.ffn_up.weight": (32, 1024)}


def name(number: int, stem: str = "Big-Q4_0", total: int = 3) -> str:
    return f"{stem}-{number:05d}-of-{total:05d}.gguf"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """As llama.cpp splits a model: the keys are in the first file."""
    folder = tmp_path_factory.mktemp("shards")
    first = tiny_llm(folder / "a.gguf", **{"split.no": 0, "split.count": 3}).read_bytes() + bytes(131072)
    others = [write_gguf(folder / "b.gguf", {"split.no": n, "split.count": 3}, TENSORS).read_bytes() for n in (1, 2)]
    return [first, *others]


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        yield running


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: list[bytes]) -> Iterator[FakeHub]:
    with fake_hub() as running:
        point_at(running, tmp_path / "huggingface", monkeypatch)
        running.add(REPO, {f"Q4_0/{name(n)}": data for n, data in enumerate(shards, 1)})
        yield running


def listing_of(shards: list[bytes], stem: str = "Big-Q4_0") -> str:
    """The SHA-256 of what sha256sum prints for all of them."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name(n, stem)}\n" for n, data in enumerate(shards, 1)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def serve(server: WebServer, bodies: list[bytes]) -> list[str]:
    """The addresses of all of them, in order."""
    return [server.add(f"/{name(n)}", data) for n, data in enumerate(bodies, 1)]


def assert_whole(model: ModelInfo, folder: Path, shards: list[bytes]) -> None:
    assert model.path == str(folder / name(1))
    assert model.shards == [str(folder / name(n)) for n in (1, 2, 3)]
    assert [Path(path).read_bytes() for path in model.shards] == shards
    assert model.size == sum(map(len, shards))
    assert model.checksum == f"sha256:{listing_of(shards)}"
    assert model.components is None
    assert model.gguf_metadata is not None
    assert model.gguf_metadata.block_count == 4


# ---- names


@pytest.mark.parametrize(
    ("given", "total"),
    [
        ("a-00001-of-00003.gguf", 3),
        ("dir/a-00003-of-00003.gguf", 3),
        ("a-00001-of-00001.gguf", 1),
        ("-00001-of-00002.gguf", 2),
        ("A-00002-OF-00002.GGUF", 2),
        ("a\nb-00001-of-00002.gguf", 2),
    ],
)
def test_names_of_numbered_files(given: str, total: int) -> None:
    names = shard_names(given)
    assert names is not None
    assert len(names) == total
    assert all(shard_names(each) == names for each in names)
    assert {without_number(each) for each in names} == {without_number(given)}


@pytest.mark.parametrize(
    "given",
    [
        "a.gguf",
        "a-00000-of-00003.gguf",
        "a-00004-of-00003.gguf",
        "a-00001-of-00000.gguf",
        "a-1-of-3.gguf",
        "a-00001-of-00003.safetensors",
        "a-00001-of-00003.gguf.part",
        f"a-00001-of-{MAX_SHARDS + 1:05d}.gguf",
        "a-٠٠٠٠١-of-٠٠٠٠٣.gguf",
        "",
    ],
)
def test_names_of_other_files(given: str) -> None:
    assert shard_names(given) is None
    assert safe_shard_names(given) is None
    assert without_number(given) == given


@given(st.text(max_size=300), st.integers(1, 20), st.integers(1, 20))
def test_safe_names_keep_their_numbers(stem: str, number: int, total: int) -> None:
    given_name = name(min(number, total), stem, total)
    names = safe_shard_names(given_name)
    assert names is not None
    assert [each[-20:] for each in names] == [name(n, "", total)[-20:] for n in range(1, total + 1)]
    # What they are called is what the store takes for a file of its own.
    assert all(safe_file_name(each) == each for each in names)
    assert len(set(names)) == total
    assert shard_names(names[0]) == names


@pytest.mark.parametrize("stem", ["x" * 300, "größte " * 30, "模型", "..", "-", "con", ".hidden", "a.b.c"])
def test_foreign_names(home: Path, server: WebServer, shards: list[bytes], stem: str) -> None:
    urls = [server.add(f"/{name(n, stem)}", data) for n, data in enumerate(shards, 1)]

    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(source="url", url=urls[1])
        files = [Path(path) for path in model.shards or ()]
        assert [file.name[-20:] for file in files] == [name(n)[-20:] for n in (1, 2, 3)]
        assert [file.read_bytes() for file in files] == shards
        assert await manager.list_models() == [model]
        assert await manager.verify_model(model.id)
        assert model.name

    use_manager(home, use)


# ---- from an address


@pytest.mark.parametrize("number", [1, 2, 3])
def test_from_an_address(home: Path, server: WebServer, shards: list[bytes], number: int) -> None:
    urls = [server.add(f"/dir one/{name(n)}", data) + "?download=true" for n, data in enumerate(shards, 1)]
    model = download(home, source="url", url=urls[number - 1])
    assert (model.id, model.name, model.source.url) == ("big-q4-0", "Big-Q4_0", urls[0])
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert server.sent() == model.size  # each byte once
    assert on_the_way(home) == []
    # Any other of them is the same model.
    server.seen.clear()
    for url in urls:
        assert download(home, source="url", url=url) == model
    assert server.seen == []


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_the_checksum_is_that_of_sha256sums_listing(home: Path, server: WebServer, shards: list[bytes]) -> None:
    url = serve(server, shards)[0]
    model = download(home, source="url", url=url)
    folder = Path(model.path).parent
    listing = subprocess.run("sha256sum *.gguf", shell=True, cwd=folder, capture_output=True, check=True).stdout
    assert model.checksum == f"sha256:{hashlib.sha256(listing).hexdigest()}"


def test_the_checksum_of_the_listing_may_be_given(home: Path, server: WebServer, shards: list[bytes]) -> None:
    url = serve(server, shards)[1]
    with pytest.raises(ChecksumError) as caught:
        download(home, source="url", url=url, checksum="0" * 64)
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, listing_of(shards))
    assert on_the_way(home) == []
    model = download(home, source="url", url=url, checksum=f"sha256:{listing_of(shards).upper()}")
    assert download(home, source="url", url=url, checksum=listing_of(shards)) == model
    with pytest.raises(ChecksumError):
        download(home, source="url", url=url, checksum=hashlib.sha256(shards[0]).hexdigest())


def test_a_single_numbered_file(home: Path, server: WebServer, shards: list[bytes]) -> None:
    url = server.add(f"/{name(1, total=1)}", shards[0])
    digest = hashlib.sha256(shards[0]).hexdigest()
    with pytest.raises(ChecksumError):
        download(home, source="url", url=url, checksum="0" * 64)
    model = download(home, source="url", url=url, checksum=digest)
    assert (model.shards, model.checksum, model.name) == (None, f"sha256:{digest}", "Big-Q4_0")


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_one_is_seen_before_any_body(
    home: Path, server: WebServer, shards: list[bytes], missing: int
) -> None:
    urls = serve(server, shards)
    del server.files[f"/{name(missing)}"]
    with pytest.raises(DownloadError, match="404") as caught:
        download(home, source="url", url=urls[missing % 3])
    assert name(missing) in str(caught.value)
    assert server.sent() <= 2 * 65536


@pytest.mark.parametrize(("number", "type"), [(1, "llm"), (2, "llm"), (3, "diffusion")])
def test_one_that_is_no_model_is_seen_before_any_body(
    home: Path, server: WebServer, shards: list[bytes], number: int, type: str
) -> None:
    bodies = [*shards[: number - 1], b"<!doctype html>" + bytes(200_000), *shards[number:]]
    url = serve(server, bodies)[0]
    with pytest.raises(DownloadError, match="web page") as caught:
        download(home, source="url", url=url, type=type)
    assert name(number) in str(caught.value)
    assert server.sent() <= 3 * 65536


def test_a_first_one_without_a_language_model(home: Path, server: WebServer, shards: list[bytes]) -> None:
    url = serve(server, [shards[1], *shards[1:]])[0]
    with pytest.raises(DownloadError, match="not of a language model"):
        download(home, source="url", url=url)


def test_progress_is_of_all_files(
    home: Path, server: WebServer, shards: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REPORT_INTERVAL", 0)
    url = serve(server, shards)[0]
    heard: list[tuple[int, int | None]] = []
    model = download(home, source="url", url=url, on_progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (model.size, model.size)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    totals = [total for _, total in heard]
    assert set(totals) <= {None, model.size}
    assert totals == sorted(totals, key=lambda total: total is not None)  # once known, it stays


# ---- from Hugging Face


@pytest.mark.parametrize("number", [1, 3])
def test_from_hugging_face(home: Path, hub: FakeHub, shards: list[bytes], number: int) -> None:
    files = [f"Q4_0/{name(n)}" for n in (1, 2, 3)]
    model = download(home, source="huggingface", repo=REPO, file=files[number - 1])
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert model.source.file == files[0]
    commit = hub.repos[REPO].refs["main"]
    assert model.source.revision == commit
    assert hub.fetched_bytes() == model.size
    hub.forget()
    for file in files:
        assert download(home, source="huggingface", repo=REPO, file=file) == model
        assert download(home, source="huggingface", repo=REPO, file=file, revision=commit) == model
    assert hub.asked == []
    assert download(home, source="huggingface", repo=REPO, file=files[1], revision="main") == model
    assert hub.fetched == []


def test_all_of_them_are_of_one_commit(home: Path, hub: FakeHub, shards: list[bytes], tmp_path: Path) -> None:
    hub.before_body = lambda _: hub.commit(REPO, {})
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(2)}")
    assert [Path(path).read_bytes() for path in model.shards or ()] == shards


def test_one_that_hugging_face_does_not_have(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    hub.commit(REPO, {f"Q4_0/{name(n)}": shards[n - 1] for n in (1, 3)})
    with pytest.raises(DownloadError, match=name(2)) as caught:
        download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(3)}")
    assert (caught.value.details or {})["reason"] == "not-found"
    assert hub.fetched == []


def test_a_corrupt_one(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    digest = hashlib.sha256(shards[2]).hexdigest()
    hub.bytes[digest] = shards[2][:-1] + b"x"
    with pytest.raises(ChecksumError) as caught:
        download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert caught.value.expected == digest
    assert not any(name(3) in path for path in on_the_way(home))
    hub.bytes[digest] = shards[2]
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert_whole(model, home / "models" / "big-q4-0", shards)


def test_the_checksum_of_the_listing_for_hugging_face(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    def get(**more: Any) -> ModelInfo:
        return download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(2)}", **more)

    with pytest.raises(ChecksumError):
        get(checksum="0" * 64)
    model = get(checksum=listing_of(shards))
    assert get(checksum=listing_of(shards), revision="main") == model
    for revision in (None, "main"):
        with pytest.raises(ChecksumError):
            get(checksum="0" * 64, revision=revision)


def test_those_that_are_whole_are_not_fetched_again(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    digests = [hashlib.sha256(data).hexdigest() for data in shards]
    seen: list[str] = []

    def before_body(digest: str) -> None:
        seen.append(digest)
        if seen.count(digests[1]) == 2:  # the beginning of all is here, and the body of the second one comes
            hub.refused.add(digests[2])

    hub.before_body = before_body
    with pytest.raises(DownloadError, match="403"):
        download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    hub.refused.clear()
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert [hub.fetched_bytes(data) for data in shards] == [len(data) for data in shards]
    assert on_the_way(home) == []


def test_at_the_same_time(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    async def main() -> None:
        managers = (ModelManager(), ModelManager())
        models = await asyncio.gather(
            *(
                manager.download_model(source="huggingface", repo=REPO, file=f"Q4_0/{name(n)}")
                for manager in managers
                for n in (1, 2, 3)
            )
        )
        assert len({model.id for model in models}) == 1
        assert hub.fetched_bytes() == models[0].size

    asyncio.run(main())


# ---- out of the hub's cache


def test_all_in_the_cache(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    folder = {fill_cache(hub, REPO, f"Q4_0/{name(n)}").parent for n in (1, 2, 3)}.pop()
    hub.forget()
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(2)}")
    assert_whole(model, folder, shards)
    assert hub.fetched == []
    use_manager(home, lambda manager: manager.delete_model(model.id))
    assert [(folder / name(n)).read_bytes() for n in (1, 2, 3)] == shards


def test_all_in_the_cache_without_the_hub(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    folder = {fill_cache(hub, REPO, f"Q4_0/{name(n)}").parent for n in (1, 2, 3)}.pop()
    hub.close()
    assert_whole(download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(3)}"), folder, shards)


def test_some_in_the_cache_end_up_beside_the_others(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    cached = fill_cache(hub, REPO, f"Q4_0/{name(2)}")
    hub.forget()
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert hub.fetched_bytes(shards[1]) == 0  # it has two names now
    assert cached.resolve().samefile((model.shards or [])[1])
    use_manager(home, lambda manager: manager.delete_model(model.id))
    assert cached.read_bytes() == shards[1]


def test_a_corrupt_one_in_the_cache(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    cached = [fill_cache(hub, REPO, f"Q4_0/{name(n)}") for n in (1, 2, 3)]
    cached[1].resolve().write_bytes(shards[1][:-1] + b"x")
    hub.forget()
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert hub.fetched_bytes() == len(shards[1])


def test_those_of_an_older_commit(home: Path, hub: FakeHub, shards: list[bytes]) -> None:
    old = [fill_cache(hub, REPO, f"Q4_0/{name(n)}") for n in (1, 2)]
    hub.commit(REPO, {f"Q4_0/{name(n)}": data for n, data in enumerate(shards, 1)} | {"README.md": b"new"})
    fill_cache(hub, REPO, f"Q4_0/{name(3)}")
    hub.forget()
    model = download(home, source="huggingface", repo=REPO, file=f"Q4_0/{name(1)}")
    assert_whole(model, home / "models" / "big-q4-0", shards)
    assert hub.fetched == []
    assert all(path.exists() for path in old)


# ---- where they lie


@pytest.fixture
def local(tmp_path: Path, shards: list[bytes]) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    for n, data in enumerate(shards, 1):
        (folder / name(n)).write_bytes(data)
    return folder


@pytest.mark.parametrize("number", [1, 2, 3])
def test_registering_any_of_them(home: Path, local: Path, shards: list[bytes], number: int) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.register_model(path=str(local / name(number)))
        assert (model.id, model.name, model.checksum) == ("big-q4-0", "Big-Q4_0", None)
        assert await manager.verify_model(model.id)  # takes the checksums
        assert_whole(await manager.get_model_info(model.id), local, shards)
        for n in (1, 2, 3):
            assert (await manager.register_model(path=str(local / name(n)))).id == model.id
        (local / name(3)).write_bytes(shards[2][:-1] + b"x")
        assert not await manager.verify_model(model.id)
        await manager.delete_model(model.id)
        assert len(list(local.iterdir())) == 3

    use_manager(home, use)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_registering_with_one_missing(home: Path, local: Path, missing: int) -> None:
    (local / name(missing)).unlink()
    with pytest.raises(InvalidRequestError, match=name(missing)) as caught:
        use_manager(home, lambda manager: manager.register_model(path=str(local / name(missing % 3 + 1))))
    assert (caught.value.details or {})["field"] == "path"


def test_registering_with_one_that_is_no_model(home: Path, local: Path) -> None:
    (local / name(2)).write_bytes(b"<html>")
    with pytest.raises(InvalidRequestError, match="no model"):
        use_manager(home, lambda manager: manager.register_model(path=str(local / name(1))))
