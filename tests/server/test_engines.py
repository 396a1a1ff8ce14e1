"""The routes of the engine programs: shapes, states, errors, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.schema import EngineCandidate
from genai_notebook.server.extension import GenaiNotebookApp
from tests.fakes import FakeEngine
from tests.fakes.release_server import ReleaseServer
from tests.released import GPU, LLAMA_CPU, Released
from tests.server.conftest import Answer, Call, Models
from tests.server.helpers import until
from tests.server.test_routes import document

ACTIONS = ["use", "test", "install", "remove"]


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Released]:
    """Builds to fetch, for the server that is started after this."""
    with ReleaseServer() as server:
        released = Released(server, tmp_path / "released")
        monkeypatch.setitem(BinaryManager.__init__.__kwdefaults__, "catalog", released.catalog)
        for name, value in released.environ.items():
            monkeypatch.setenv(name, value)
        yield released


@pytest.fixture
def jp_server_config(home: Path, released: Released, jp_server_config: dict[str, Any], monkeypatch: Any) -> Any:
    """No engine of the user's own."""
    for name in ("GENAI_NOTEBOOK_LLAMA_SERVER", "GENAI_NOTEBOOK_SD_SERVER"):
        monkeypatch.delenv(name)
    return jp_server_config


def engine(answer: Answer) -> EngineCandidate:
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=EngineCandidate)


async def test_the_list_has_both_kinds(call: Call) -> None:
    answer = await call("GET", "engines")
    engines = msgspec.convert(answer.json["engines"], list[EngineCandidate])
    assert {each.kind for each in engines} == {"llama", "diffusion"}
    assert (await call("GET", "engines")).json == answer.json
    required = document()["components"]["schemas"]["EngineCandidate"]["required"]
    assert all(set(required) <= set(each) for each in answer.json["engines"])


async def test_an_engine_is_installed_tested_chosen_and_removed(call: Call, models: Models) -> None:
    installed = engine(await call("POST", "engines/install", {"kind": "llama", "name": "cpu"}))
    assert (installed.name, installed.state) == (LLAMA_CPU, "usable")
    assert engine(await call("POST", "engines/test", {"kind": "llama"})).state == "works"
    assert engine(await call("POST", "engines/use", {"kind": "llama", "name": LLAMA_CPU})).in_use
    assert engine(await call("POST", "engines/remove", {"kind": "llama"})).state == "available"


@pytest.mark.parametrize("body", [{}, {"name": None}, {"name": "auto"}])
async def test_without_a_name_the_choice_is_free_again(call: Call, body: dict[str, Any]) -> None:
    embedded = engine(await call("POST", "engines/use", {"kind": "llama", "name": "embedded"}))
    await call("POST", "engines/install", {"kind": "llama"})
    assert embedded.name in [each["name"] for each in (await call("GET", "engines")).json["engines"] if "inUse" in each]
    assert engine(await call("POST", "engines/use", {"kind": "llama", **body})).name == LLAMA_CPU


@pytest.mark.parametrize("action", ACTIONS)
async def test_errors_name_the_field(call: Call, action: str) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "cpu"}, "kind"),
        ({"kind": "toaster"}, "kind"),
        ({"kind": "llama", "name": 7}, "name"),
        ({"kind": "llama", "name": "quantum"}, "name"),
        ({"kind": "llama", "name": ""}, "name"),
        ({"kind": "llama", "path": "/bin/sh"}, "path"),
    ]
    for body, field in cases:
        answer = await call("POST", f"engines/{action}", body)
        assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST"), body
        assert field in str(answer.error["details"]), body
    assert (await call("POST", "engines/dance", {"kind": "llama"})).status == 404


async def test_failures_have_the_statuses_that_openapi_names(call: Call, released: Released) -> None:
    described = document()["components"]["pathItems"]["EngineAction"]["post"]["responses"]
    assert set(described) == {"200", "400", "502", "503", "507", "default"}
    released.serve(status=404)
    answer = await call("POST", "engines/install", {"kind": "llama"})
    assert (answer.status, answer.error["code"]) == (502, "DOWNLOAD_FAILED")
    released.serve(corrupt=True)
    answer = await call("POST", "engines/install", {"kind": "llama"})
    assert (answer.status, answer.error["code"]) == (502, "CHECKSUM_ERROR")
    answer = await call("POST", "engines/use", {"kind": "llama", "name": GPU})
    assert (answer.status, answer.error["code"]) == (503, "BINARY_ERROR")


async def test_a_client_that_goes_away_ends_the_installation(
    call: Call,
    released: Released,
    extension: GenaiNotebookApp,
    http_server_client: Any,
    jp_auth_header: dict[str, str],
    jp_base_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    released.serve(stall_after=600_000)
    news: list[dict[str, Any]] = []
    extension.runtime.subscribe(lambda name, data: news.append(data) if name == "binary-progress" else None)
    url = http_server_client.get_url(f"{jp_base_url}genai/engines/install")
    async with httpx.AsyncClient(trust_env=False, headers=jp_auth_header, timeout=30) as client:
        asking = asyncio.ensure_future(client.post(url, json={"kind": "llama"}))
        await until(lambda: news and news[-1].get("done", 0) > 100_000, "the middle of the download")
        asking.cancel()
        await asyncio.wait({asking})
    room = extension.runtime.settings.engines / ".incoming" / "llama-b9860-cpu"
    released.serve()
    released.server.seen.clear()
    # It waits until the other one has let go of its files.
    assert engine(await call("POST", "engines/install", {"kind": "llama"})).state == "usable"
    assert released.server.requests[0][2] is not None, "it began anew"
    assert not room.exists()
    assert not [record for record in caplog.records if record.exc_info and "StreamClosed" not in str(record.exc_info)]


async def test_news_are_as_openapi_describes_them(call: Call, models: Models, extension: GenaiNotebookApp) -> None:
    schemas = document()["components"]["schemas"]
    news: list[tuple[str, dict[str, Any]]] = []
    extension.runtime.subscribe(lambda name, data: news.append((name, data)))
    await call("POST", "engines/install", {"kind": "diffusion"})
    await call("POST", "llamas/second/start", {"modelId": models.llm, "port": "auto"})
    await call("POST", "llamas/second/stop")
    logs = [data for name, data in news if name == "binary-log"]
    progress = [data for name, data in news if name == "binary-progress"]
    assert {each["server"] for each in logs} == {"second"}
    assert {each["server"] for each in progress} == {"engines", "second"}
    for each in logs:
        described = schemas["BinaryLogEvent"]
        assert set(each) == set(described["required"])
        assert each["level"] in described["properties"]["level"]["enum"]
    for each in progress:
        described = schemas["EngineProgress"]
        assert {"server", *described["required"]} <= set(each) <= {"server", *described["properties"]}
        assert each["stage"] in described["properties"]["stage"]["enum"]


async def test_a_program_that_the_user_has_set_is_listed_and_holds(
    call: Call, fake_llama: FakeEngine, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = extension.runtime.engine_manager
    monkeypatch.setattr(manager, "settings", msgspec.structs.replace(manager.settings, llama_server=fake_llama.path))
    (explicit,) = [each for each in (await call("GET", "engines")).json["engines"] if each["variant"] == "explicit"]
    assert (explicit["path"], explicit["inUse"]) == (str(fake_llama.path), True)
    answer = await call("POST", "engines/use", {"kind": "llama", "name": "embedded"})
    assert (answer.status, answer.error["details"]["field"]) == (400, "name")
    assert "GENAI_NOTEBOOK_LLAMA_SERVER" in answer.error["hint"]
