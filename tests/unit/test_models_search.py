"""Finding models on a hub on loopback, and what is chosen where no file is named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.models import hub as client
from genai_notebook.core.schema import FoundRepo, ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo
from genai_notebook.errors import DownloadError, InsufficientResourcesError, InvalidRequestError
from tests.fakes.gguf_files import tiny_llm
from tests.fakes.hub import FakeHub, fake_hub, point_at, switch_off, use_manager
from tests.fakes.machine import Machine, card
from tests.unit.test_system_info import GIB

#: With a card of 8 GiB and 16 GiB of RAM: up to some 5.8 GiB go onto the card, up to some 13.3 GiB into RAM.
MACHINE = Machine(ram=16 * GIB, gpus=[card(8 * GIB)])
SIZES = {"Q2_K": 3, "Q4_K_M": 5, "Q8_0": 9, "BF16": 16, "F32": 32}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as running:
        point_at(running, tmp_path / "huggingface", monkeypatch)
        yield running


def system(home: Path, machine: Machine = MACHINE) -> SystemInfo:
    return SystemInfo(Settings(home=home), probe=machine)


def search(home: Path, query: Any, machine: Machine = MACHINE, **more: Any) -> list[FoundRepo]:
    return use_manager(home, lambda manager: manager.search_models(query, **more), system(home, machine))


def names(repos: list[FoundRepo]) -> list[str]:
    return [repo.repo for repo in repos]


# ---- searching


def test_what_is_found(home: Path, hub: FakeHub) -> None:
    files = {f"Qwen-{name}.gguf": size * GIB for name, size in SIZES.items()}
    extra = {"README.md": b"# Qwen", "mmproj-F16.gguf": GIB, "imatrix_unsloth.gguf": 10, "Qwen.imatrix.gguf": 10}
    hub.add("owner/Qwen3-8B-GGUF", files | extra | {"config.json": b"{}"}, downloads=12, likes=3)
    (repo,) = search(home, "qwen3 8b")
    assert (repo.repo, repo.downloads, repo.likes, repo.gated) == ("owner/Qwen3-8B-GGUF", 12, 3, False)
    assert [(file.file, file.size, file.quantization, file.fits, file.shards) for file in repo.files] == [
        ("Qwen-Q2_K.gguf", 3 * GIB, "Q2_K", "vram", None),
        ("Qwen-Q4_K_M.gguf", 5 * GIB, "Q4_K_M", "vram", None),
        ("Qwen-Q8_0.gguf", 9 * GIB, "Q8_0", "ram", None),
        ("Qwen-BF16.gguf", 16 * GIB, "BF16", "no", None),
        ("Qwen-F32.gguf", 32 * GIB, "F32", "no", None),
    ]
    assert repo.choice == "Qwen-Q4_K_M.gguf"
    assert (repo.updated_at or "").startswith("2026-01-02T03:04:05")
    assert hub.fetched == []


def test_numbered_files_are_one(home: Path, hub: FakeHub) -> None:
    whole = {f"UD-Q4_K_XL/Big-UD-Q4_K_XL-{n:05d}-of-00003.gguf": 20 * GIB for n in (1, 2, 3)}
    incomplete = {f"Q8_0/Big-Q8_0-{n:05d}-of-00003.gguf": 40 * GIB for n in (1, 3)}
    hub.add("owner/Big-GGUF", whole | incomplete)
    for machine, fits in ((MACHINE, "no"), (Machine(ram=128 * GIB), "ram")):
        (repo,) = search(home, "big", machine)
        (file,) = repo.files
        assert (file.file, file.size) == ("UD-Q4_K_XL/Big-UD-Q4_K_XL-00001-of-00003.gguf", 60 * GIB)
        assert (file.shards, file.quantization, file.fits) == (3, "Q4_K_XL", fits)
        assert repo.choice == (file.file if fits == "ram" else None)


def test_models_made_with_an_importance_matrix_are_models(home: Path, hub: FakeHub) -> None:
    hub.add("owner/a-GGUF", {"a-imatrix-Q4_K_M.gguf": GIB, "a-imatrix.gguf": 5, "a.MMPROJ-Q8_0.gguf": GIB})
    assert [file.file for file in search(home, "a")[0].files] == ["a-imatrix-Q4_K_M.gguf"]


def test_words_order_and_limit(home: Path, hub: FakeHub) -> None:
    for n in range(12):
        hub.add(f"owner/Qwen3-{n}-GGUF", {"a-Q4_0.gguf": GIB}, downloads=n * 7 % 12)
    hub.add("owner/Qwen3-no-gguf-here", {"model.safetensors": GIB}, tags=("safetensors",), downloads=99)
    hub.add("other/Llama-GGUF", {"a-Q4_0.gguf": GIB}, downloads=99)
    found = search(home, "  qwen3 gguf ")
    assert [repo.downloads for repo in found] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert len(search(home, "qwen3", limit=3)) == 3
    assert names(search(home, "qwen3 GGUF", limit=1)) == ["owner/Qwen3-5-GGUF"]
    assert len(search(home, "qwen3", limit=50)) == 12
    assert search(home, "nothing of that name") == []
    listing = hub.asked[0]
    assert (listing.method, listing.path) == ("GET", "/api/models")
    assert listing.query == {"search": "qwen3 gguf", "filter": "gguf", "sort": "downloads", "limit": "8"}


def test_several_pages(home: Path, hub: FakeHub) -> None:
    for n in range(7):
        hub.add(f"owner/m{n}-GGUF", {"a-Q4_0.gguf": GIB}, downloads=n)
    hub.page = 2
    assert [repo.downloads for repo in search(home, "owner", limit=5)] == [6, 5, 4, 3, 2]
    assert len([asked for asked in hub.asked if asked.path == "/api/models"]) == 3
    assert len(search(home, "owner", limit=50)) == 7


def test_a_repository_by_its_name(home: Path, hub: FakeHub) -> None:
    hub.add("Owner/Tiny", {"a-Q4_0.gguf": GIB}, tags=())  # not even tagged
    hub.add("Owner/Tiny-too", {"a-Q4_0.gguf": GIB})
    for query in ("Owner/Tiny", "hf:Owner/Tiny", " Owner/Tiny "):
        hub.forget()
        assert names(search(home, query)) == ["Owner/Tiny"]
        assert [asked.path for asked in hub.asked] == ["/api/models/Owner/Tiny"]
    # What has the form of a name may be words as well.
    assert names(search(home, "owner/tiny-t")) == ["Owner/Tiny-too"]
    assert search(home, "owner/nothing") == []


def test_gated_and_private_repositories(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens.add("hf_mine")
    hub.add("o/gated-GGUF", {"a-Q4_0.gguf": GIB}, gated="auto", downloads=2)
    hub.add("o/private-GGUF", {"a-Q4_0.gguf": GIB}, private=True, readers={"hf_mine"}, downloads=1)
    found = search(home, "gguf")
    assert [(repo.repo, repo.gated, len(repo.files)) for repo in found] == [("o/gated-GGUF", True, 1)]
    assert search(home, "o/private-GGUF") == []
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.forget()
    assert names(search(home, "gguf")) == ["o/gated-GGUF", "o/private-GGUF"]
    assert {asked.token for asked in hub.asked} == {"hf_mine"}
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(DownloadError, match="token is not valid") as caught:
        search(home, "gguf")
    assert "hf_expired" not in str(caught.value)


def test_a_repository_that_hides_its_files_is_shown_without(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/a-GGUF", {"a-Q4_0.gguf": GIB}, downloads=5)
    hub.add("o/b-GGUF", {"a-Q4_0.gguf": GIB}, downloads=4)
    describe = hub._describe

    def half(answer: Any, id: str, revision: str) -> None:
        if id == "o/a-GGUF":
            answer.error(403, None, "Forbidden")
        else:
            describe(answer, id, revision)

    monkeypatch.setattr(hub, "_describe", half)
    found = search(home, "gguf")
    assert [(repo.repo, repo.downloads, len(repo.files)) for repo in found] == [("o/a-GGUF", 5, 0), ("o/b-GGUF", 4, 1)]
    assert found[0].choice is None


@pytest.mark.parametrize("query", ["", "  ", "hf:", "x" * 201, "a\nb", "a\0b", "\u202egpj", None, 3, ["qwen"]])
def test_queries_that_are_none(home: Path, hub: FakeHub, query: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        search(home, query)
    assert (caught.value.details or {})["field"] == "query"
    assert hub.asked == []


@pytest.mark.parametrize("limit", [0, -1, 51, True, 2.5, "3", None])
def test_limits_that_are_none(home: Path, hub: FakeHub, limit: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        search(home, "qwen", limit=limit)
    assert (caught.value.details or {})["field"] == "limit"
    assert hub.asked == []


@pytest.mark.parametrize("query", ["../../etc/passwd", "a?b=c&limit=9", "100% #1", "größe 模型"])
def test_odd_words_are_only_words(home: Path, hub: FakeHub, query: str) -> None:
    assert search(home, query) == []
    assert [(asked.path, asked.query["search"]) for asked in hub.asked] == [("/api/models", query)]


@pytest.mark.parametrize("query", ["qwen", "owner/qwen"])
@pytest.mark.parametrize("how", ["unreachable", "silent", "offline", "failing"])
def test_a_hub_that_does_not_help(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str, query: str
) -> None:
    if how == "unreachable":
        hub.close()
    elif how == "silent":
        monkeypatch.setattr(client, "TIMEOUT", 0.3)
        hub.silence = threading.Event()
    elif how == "offline":
        switch_off(monkeypatch)
    else:
        hub.trouble = (503, None, "Service unavailable")
    begin = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        search(home, query)
    assert (caught.value.details or {})["reason"] == ("status" if how == "failing" else "unreachable")
    assert caught.value.hint
    assert time.monotonic() - begin < 5  # and no tries for half a minute


def test_a_hub_that_dies_in_the_middle(home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        hub.add(f"o/m{n}-GGUF", {"a-Q4_0.gguf": GIB})
    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    monkeypatch.setattr(hub, "_describe", lambda *_: time.sleep(1))
    with pytest.raises(DownloadError) as caught:
        search(home, "gguf")
    assert (caught.value.details or {})["reason"] == "unreachable"


def test_a_search_can_be_given_up(home: Path, hub: FakeHub) -> None:
    hub.silence = threading.Event()

    async def use(manager: ModelManager) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(manager.search_models("qwen"), 0.2)

    begin = time.monotonic()
    use_manager(home, use)
    assert time.monotonic() - begin < 3


# ---- a repository without the name of a file


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return tiny_llm(tmp_path / "tiny.gguf").read_bytes()


def get(home: Path, repo: str, machine: Machine = MACHINE, **more: Any) -> ModelInfo:
    def use(manager: ModelManager) -> Any:
        return manager.download_model(source="huggingface", repo=repo, **more)

    return use_manager(home, use, system(home, machine))


def test_the_best_quantisation_that_fits_is_fetched(home: Path, hub: FakeHub, tiny: bytes) -> None:
    files: dict[str, Any] = {f"m-{name}.gguf": size * GIB for name, size in SIZES.items()}
    helpers = {"mmproj-F16.gguf": GIB, "imatrix.gguf": GIB, "README.md": b"#"}
    hub.add("o/m-GGUF", files | helpers | {"m-Q5_K_M.gguf": tiny})
    machine = Machine(ram=2 * GIB)  # everything else is too large
    model = get(home, "o/m-GGUF", machine)
    assert (model.id, model.source.file) == ("m-q5-k-m", "m-Q5_K_M.gguf")
    assert model.source.revision == hub.repos["o/m-GGUF"].refs["main"]
    hub.forget()
    assert get(home, "o/m-GGUF", machine) == model  # at once
    assert hub.asked == []
    assert get(home, "o/m-GGUF", machine, file="m-Q5_K_M.gguf") == model


def test_numbered_files_may_be_the_best(home: Path, hub: FakeHub, tiny: bytes) -> None:
    shards = {f"Q6_K/m-Q6_K-{n:05d}-of-00002.gguf": tiny for n in (1, 2)}
    hub.add("o/m-GGUF", shards | {"m-Q4_0.gguf": tiny, "m-BF16.gguf": 40 * GIB})
    model = get(home, "o/m-GGUF")
    assert [Path(path).name for path in model.shards or ()] == [name.partition("/")[2] for name in shards]


def test_the_files_of_the_revision_count(home: Path, hub: FakeHub, tiny: bytes) -> None:
    hub.add("o/m-GGUF", {"m-Q8_0.gguf": 9 * GIB})
    commit = hub.commit("o/m-GGUF", {"old-Q4_0.gguf": tiny}, branch="old")
    model = get(home, "o/m-GGUF", revision="old")
    assert (model.source.file, model.source.revision) == ("old-Q4_0.gguf", commit)


def test_where_nothing_fits(home: Path, hub: FakeHub) -> None:
    hub.add("o/m-GGUF", {"m-Q2_K.gguf": 40 * GIB, "m-Q4_0.gguf": 80 * GIB})
    with pytest.raises(InsufficientResourcesError, match="None of the 2 files") as caught:
        get(home, "o/m-GGUF")
    assert "m-Q2_K.gguf" in str((caught.value.details or {})["required"])
    assert "name the file" in str((caught.value.details or {})["suggestion"])
    assert hub.fetched == []


@pytest.mark.parametrize("files", [{}, {"model.safetensors": GIB}, {"mmproj-F16.gguf": GIB}])
def test_where_no_model_is(home: Path, hub: FakeHub, files: dict[str, int]) -> None:
    hub.add("o/m", files)
    with pytest.raises(DownloadError, match="no GGUF file") as caught:
        get(home, "o/m")
    assert (caught.value.details or {})["reason"] == "not-found"
    assert "%genai search m" in (caught.value.hint or "")


def test_a_repository_that_is_not_there(home: Path, hub: FakeHub) -> None:
    with pytest.raises(DownloadError) as caught:
        get(home, "o/none")
    assert (caught.value.details or {})["reason"] == "not-found"
