"""The model manager: one behaviour, local and remote."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from genai_notebook.core.schema import ModelInfo
from genai_notebook.errors import InvalidRequestError, ModelNotFoundError
from tests.contract.conftest import Subject
from tests.fakes.gguf_files import tiny_llm


def test_registered_models_are_listed_with_what_their_headers_say(subject: Subject) -> None:
    async def scenario() -> None:
        models = await subject.models.list_models()
        assert {model.id for model in models} == {subject.llm_id, subject.image_id}
        assert [model.id for model in await subject.models.list_models("llm")] == [subject.llm_id]
        assert [model.id for model in await subject.models.list_models(type="diffusion")] == [subject.image_id]
        info = await subject.models.get_model_info(subject.llm_id)
        assert isinstance(info, ModelInfo)
        assert (info.type, info.path, info.size) == ("llm", str(subject.llm_file), subject.llm_file.stat().st_size)
        assert info.source.type == "local"
        assert info.gguf_metadata is not None
        assert (info.gguf_metadata.architecture, info.gguf_metadata.block_count) == ("llama", 4)
        assert await subject.models.get_model_layer_count(subject.llm_id) == 4
        assert await subject.models.get_model_context_length(subject.llm_id) == 2048
        assert await subject.models.get_model_architecture(subject.llm_id) == "llama"

    subject.run(scenario())


def test_the_same_path_is_the_same_model_and_another_name_gets_a_number(subject: Subject) -> None:
    async def scenario() -> None:
        again = await subject.models.register_model(path=str(subject.llm_file), type="llm")
        assert again.id == subject.llm_id
        other = tiny_llm(subject.folder / "files" / "elsewhere" / "tiny.gguf")
        second = await subject.models.register_model(path=str(other), type="llm")
        assert second.id == f"{subject.llm_id}-2"
        await subject.models.delete_model(second.id)

    subject.run(scenario())


def test_deleting_leaves_a_file_that_is_not_ours(subject: Subject) -> None:
    async def scenario() -> None:
        await subject.models.delete_model(subject.llm_id)
        assert subject.llm_file.exists()
        with pytest.raises(ModelNotFoundError):
            await subject.models.get_model_info(subject.llm_id)

    subject.run(scenario())


def test_verify_takes_the_checksum_first_and_holds_the_file_to_it(subject: Subject) -> None:
    async def scenario() -> None:
        assert await subject.models.verify_model(subject.llm_id) is True
        info = await subject.models.get_model_info(subject.llm_id)
        assert info.checksum == "sha256:" + hashlib.sha256(subject.llm_file.read_bytes()).hexdigest()
        assert await subject.models.verify_model(subject.llm_id) is True
        with subject.llm_file.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x01")
        assert await subject.models.verify_model(subject.llm_id) is False

    subject.run(scenario())


@pytest.mark.parametrize(
    "method",
    [
        "get_model_info",
        "delete_model",
        "verify_model",
        "get_model_layer_count",
        "get_model_context_length",
        "get_model_architecture",
        "update_model_metadata",
    ],
)
@pytest.mark.parametrize("id", ["no-such-model", "..", "../../etc/passwd", "a/b", "%2e%2e", "x" * 300, "ümlaut"])
def test_an_unknown_model(subject: Subject, method: str, id: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        subject.run(getattr(subject.models, method)(id))
    assert caught.value.model_id == id


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty.gguf"),
        (b"GGUF", "short.gguf"),
        (b"<html>", "page.gguf"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 64, "x.gguf"),
    ],
    ids=["empty", "short", "html", "wild"],
)
def test_a_file_that_is_no_model(subject: Subject, content: bytes, name: str) -> None:
    path = subject.folder / name
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError) as caught:
        subject.run(subject.models.register_model(path=str(path), type="llm"))
    assert (caught.value.details or {})["field"] == "path"


@pytest.mark.parametrize("path", ["/no/such/file.gguf", "", "a\0b", "/"])
def test_a_path_that_is_no_file(subject: Subject, path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        subject.run(subject.models.register_model(path=path, type="llm"))
    assert (caught.value.details or {})["field"] == "path"


@pytest.mark.parametrize("type", ["video", "", None, 3])
def test_a_type_there_is_not(subject: Subject, type: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        subject.run(subject.models.register_model(path=str(subject.llm_file), type=type))
    assert (caught.value.details or {})["field"] == "type"


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({}, "source"),
        ({"source": "carrier-pigeon"}, "source"),
        ({"source": "url"}, "url"),
        ({"source": "url", "url": "file:///etc/passwd"}, "url"),
        ({"source": "pypi"}, "package"),
        ({"source": "url", "url": "https://example.org/x.gguf", "checksum": "md5:00"}, "checksum"),
        ({"source": "url", "url": "https://example.org/x.gguf", "frobnicate": 1}, "frobnicate"),
    ],
    ids=str,
)
def test_a_wrong_download_is_refused_by_field(subject: Subject, keywords: dict[str, Any], field: str) -> None:
    if "frobnicate" in keywords:
        call = subject.models.download_model(keywords)  # as a configuration: Python itself refuses the keyword
    else:
        call = subject.models.download_model(**keywords)
    with pytest.raises(InvalidRequestError) as caught:
        subject.run(call)
    assert (caught.value.details or {})["field"] == field


def test_many_registrations_at_once_make_one_model(subject: Subject) -> None:
    async def scenario() -> None:
        path = str(tiny_llm(subject.folder / "files" / "busy.gguf"))
        infos = await asyncio.gather(*(subject.models.register_model(path=path, type="llm") for _ in range(8)))
        assert len({info.id for info in infos}) == 1
        await subject.models.delete_model(infos[0].id)

    subject.run(scenario())


def test_nothing_is_being_downloaded(subject: Subject) -> None:
    async def scenario() -> None:
        assert [job for job in subject.models.list_downloads() if job.status in ("queued", "running")] == []
        await subject.models.cancel_download()
        with pytest.raises(InvalidRequestError):
            await subject.models.cancel_download("no-such-job")

    subject.run(scenario())
