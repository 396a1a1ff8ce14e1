"""What the routes answer: shapes, states and errors, with fake engines behind them."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import msgspec
import pytest

from genai_notebook._version import __version__
from genai_notebook.core.schema import (
    DiffusionServerInfo,
    MemoryEstimate,
    MemoryInfo,
    MemoryUse,
    ModelInfo,
    RunCheck,
    ServerInfo,
    SystemCapabilities,
)
from genai_notebook.server.extension import GenaiNotebookApp
from genai_notebook.server.replies import MAX_BODY
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion
from tests.server.conftest import Answer, Call, Models
from tests.server.helpers import until


def decoded(answer: Answer, cls: Any, status: int = 200) -> Any:
    assert answer.status == status, answer.body
    return msgspec.json.decode(answer.body, type=cls)


class TestSystem:
    async def test_root(self, call: Call) -> None:
        answer = await call("GET", "")
        assert answer.status == 200
        assert answer.json["name"] == "genai-notebook"
        assert answer.json["version"] == __version__
        assert answer.json["owner"] == "jupyter-server"
        assert {name: info["status"] for name, info in answer.json["servers"].items()} == {
            "llama": "stopped",
            "diffusion": "stopped",
        }
        assert answer.headers["Cache-Control"] == "no-store"

    async def test_machine(self, call: Call) -> None:
        machine = decoded(await call("GET", "system"), SystemCapabilities)
        assert machine.cpu.cores >= 1
        again = decoded(await call("GET", "system?force=true"), SystemCapabilities)
        assert again.detected_at >= machine.detected_at
        memory = decoded(await call("GET", "system/memory"), MemoryInfo)
        assert 0 < memory.available <= memory.total

    async def test_who_holds_memory(self, call: Call, extension: GenaiNotebookApp) -> None:
        stranger = decoded(await call("GET", "system/use"), MemoryUse)
        assert [(holder.kind, holder.name) for holder in stranger.holders] == [
            ("owner", "Jupyter server"),
            ("others", "other programs"),
        ]
        kernel = os.getppid()  # any process of this user will do
        asked = decoded(await call("GET", f"system/use?kernel={kernel}"), MemoryUse)
        assert [(holder.kind, holder.pid) for holder in asked.holders] == [
            ("kernel", kernel),
            ("owner", os.getpid()),
            ("others", None),
        ]
        for unknown in (0, 999_999_999):
            use = decoded(await call("GET", f"system/use?kernel={unknown}"), MemoryUse)
            assert [holder.kind for holder in use.holders] == ["owner", "others"]
        for wrong in ("-1", "me", "1.5"):
            answer = await call("GET", f"system/use?kernel={wrong}")
            assert (answer.status, answer.error["details"]["field"]) == (400, "kernel")

    async def test_models_and_the_machine(self, call: Call, models: Models) -> None:
        assert decoded(await call("POST", "system/check", {"model": models.llm}), RunCheck).possible
        config = (await call("POST", "system/config", {"model": models.llm})).json
        assert "contextSize" in config
        assert not any("_" in name for name in config)
        estimate = decoded(
            await call("POST", "system/estimate", {"model": models.llm, "contextSize": 1024}), MemoryEstimate
        )
        larger = decoded(
            await call("POST", "system/estimate", {"model": models.llm, "contextSize": 2048}), MemoryEstimate
        )
        assert larger.kv_cache == 2 * estimate.kv_cache > 0
        whole = (await call("GET", f"models/{models.llm}")).json
        assert decoded(await call("POST", "system/check", {"model": whole}), RunCheck).possible

    async def test_a_flag_is_true_or_false(self, call: Call) -> None:
        answer = await call("GET", "system?force=perhaps")
        assert answer.status == 400
        assert answer.error["details"]["field"] == "force"


class TestModels:
    async def test_life_of_a_model(self, call: Call, models: Models, tmp_path: Any) -> None:
        listed = (await call("GET", "models")).json["models"]
        assert [model["id"] for model in listed] == sorted([models.llm, models.image])
        only = (await call("GET", "models?type=diffusion")).json["models"]
        assert [model["id"] for model in only] == [models.image]
        info = decoded(await call("GET", f"models/{models.llm}"), ModelInfo)
        assert info.checksum is None
        assert (await call("POST", f"models/{models.llm}/verify")).json == {"valid": True}
        assert decoded(await call("GET", f"models/{models.llm}"), ModelInfo).checksum
        again = decoded(await call("POST", f"models/{models.llm}/metadata", {"source": "local-only"}), ModelInfo)
        assert again.gguf_metadata
        assert again.gguf_metadata.architecture == "llama"
        assert (await call("DELETE", f"models/{models.llm}")).status == 204
        gone = await call("GET", f"models/{models.llm}")
        assert gone.status == 404
        assert gone.error["code"] == "MODEL_NOT_FOUND"
        assert (tmp_path / "files" / "tiny.gguf").exists()

    async def test_register(self, call: Call, models: Models, tmp_path: Any) -> None:
        path = str(tmp_path / "files" / "tiny.gguf")
        answer = await call("POST", "models/register", {"path": path, "name": "again"})
        assert decoded(answer, ModelInfo, 201).id == models.llm
        missing = await call("POST", "models/register", {"path": "/nowhere/at/all.gguf"})
        assert missing.status == 400
        assert missing.error["details"]["field"] == "path"

    async def test_a_model_may_be_called_like_a_route(self, call: Call, tmp_path: Any, models: Models) -> None:
        from tests.fakes.gguf_files import tiny_llm

        path = tiny_llm(tmp_path / "files" / "register.gguf", **{"general.name": "other"})
        registered = await call("POST", "models/register", {"path": str(path), "name": "register"})
        assert registered.json["id"] == "register"
        assert (await call("GET", "models/register")).json["id"] == "register"
        assert (await call("DELETE", "models/register")).status == 204

    @pytest.mark.parametrize("id", ["..%2f..%2fetc", "%2e%2e", "a%00b", "x" * 500, "%e2%80%ae", "CON", "a%0ab"])
    async def test_wild_ids_are_unknown_models(self, call: Call, id: str) -> None:
        for method in ("GET", "DELETE"):
            answer = await call(method, f"models/{id}")
            assert answer.status in (400, 404)
            assert answer.error["code"] in ("MODEL_NOT_FOUND", "INVALID_REQUEST", "NOT_FOUND")

    async def test_a_download_that_fails_tells_why(self, call: Call) -> None:
        config = {"source": "url", "url": "http://127.0.0.1:1/model.gguf", "name": "nothing"}
        answer = await call("POST", "models", config)
        assert answer.status == 202, answer.body
        job = answer.json["id"]

        async def ended() -> Any:
            told = (await call("GET", f"downloads/{job}")).json
            return told if "failure" in told else None

        told = await until(ended)
        assert told["job"]["status"] == "error"
        assert told["failure"]["code"] == "DOWNLOAD_FAILED"
        assert [entry["id"] for entry in (await call("GET", "downloads")).json["downloads"]] == [job]
        assert (await call("DELETE", f"downloads/{job}")).status == 204

    async def test_an_unknown_download(self, call: Call) -> None:
        for method in ("GET", "DELETE"):
            answer = await call(method, "downloads/unknown")
            assert answer.status == 400
            assert answer.error["details"]["field"] == "job_id"

    async def test_a_broken_model_is_listed_beside_the_good_ones_and_can_be_deleted(
        self, call: Call, models: Models, home: Any
    ) -> None:
        (home / "models" / models.llm / "model.json").write_text("{")
        found = (await call("GET", "models")).json
        assert [model["id"] for model in found["models"]] == [models.image]
        (broken,) = found["broken"]
        assert broken["id"] == models.llm
        assert "cannot be used" in broken["reason"]
        gone = await call("GET", f"models/{models.llm}")
        assert (gone.status, gone.error["code"]) == (404, "MODEL_NOT_FOUND")
        assert models.llm in gone.error["hint"]
        assert (await call("DELETE", f"models/{models.llm}")).status == 204
        assert (await call("GET", "models")).json["broken"] == []

    @pytest.mark.parametrize(
        ("query", "field"),
        [("", "query"), ("query=%20", "query"), ("query=x&limit=0", "limit"), ("query=x&limit=99", "limit"),
         ("query=x&limit=many", "limit"), ("query=" + 300 * "x", "query"), ("query=a%0Ab", "query")],
    )  # fmt: skip
    async def test_a_search_for_nothing(self, call: Call, query: str, field: str) -> None:
        answer = await call("GET", f"search?{query}")
        assert answer.status == 400
        assert answer.error["details"]["field"] == field

    @pytest.mark.parametrize(
        ("components", "says"),
        [
            ({"vae": "/x/vae.gguf"}, "diffusion_model is missing"),
            ({"diffusion_model": "x.gguf"}, "diffusion_model: path"),
            ({"boss": "/x"}, "boss"),
            ({"diffusion_model": {"path": "/x", "speed": 3}}, "speed"),
            ({"diffusion_model": {"url": "file:///x"}}, "address"),
            ({"diffusion_model": {"path": "x"}}, "must be absolute"),
            ([], "object"),
        ],
    )
    async def test_wrong_components(self, call: Call, components: Any, says: str) -> None:
        config = {"source": "local", "type": "diffusion", "name": "x", "components": components}
        answer = await call("POST", "models", config)
        assert answer.status == 400
        assert answer.error["details"]["field"] == "components"
        assert says in answer.error["message"]
        if says == "boss":
            assert "t5xxl" in answer.error["hint"]

    async def test_an_image_model_in_parts(self, call: Call, models: Models, tmp_path: Any) -> None:
        parts = {role: str(tiny_diffusion(tmp_path / f"{role}.gguf")) for role in ("vae", "diffusion_model")}
        config = {"source": "local", "type": "diffusion", "name": "Parts", "components": parts}
        job = (await call("POST", "models", config)).json["id"]

        async def ended() -> Any:
            told = (await call("GET", f"downloads/{job}")).json
            return told if "model" in told or "failure" in told else None

        model = msgspec.convert((await until(ended))["model"], ModelInfo)
        assert model.components == parts
        assert model.path == parts["diffusion_model"]


class TestServers:
    async def test_life_of_the_llm(self, call: Call, models: Models, fake_llama: FakeEngine) -> None:
        info = decoded(await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"}), ServerInfo)
        assert (info.status, info.model_id, info.owner) == ("running", models.llm, "jupyter-server")
        assert info.api_key
        assert decoded(await call("GET", "llama"), ServerInfo) == info
        assert "apiKey" not in (await call("GET", "")).json["servers"]["llama"]
        assert (await call("GET", "llama/health")).json == {"healthy": True, "health": "ok"}
        twice = await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
        assert twice.status == 409
        assert twice.error["code"] == "ALREADY_RUNNING"
        again = decoded(await call("POST", "llama/restart"), ServerInfo)
        assert (again.port, again.api_key) == (info.port, info.api_key)
        assert again.pid != info.pid
        assert decoded(await call("POST", "llama/stop"), ServerInfo).status == "stopped"
        assert (await call("POST", "llama/stop")).status == 200

    async def test_logs(self, call: Call, models: Models) -> None:
        await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
        lines = (await call("GET", "llama/logs?lines=all")).json["lines"]
        assert any("listening" in line for line in lines)
        assert (await call("GET", "llama/logs?lines=1")).json["lines"] == lines[-1:]
        entries = (await call("GET", "llama/logs?structured=true")).json["entries"]
        assert {"timestamp", "level", "message"} <= set(entries[0])
        for wrong in ("-1", "two", "1.5", "9" * 30, ""):
            answer = await call("GET", f"llama/logs?lines={wrong}")
            assert answer.status == 400, wrong
            assert answer.error["details"]["field"] == "lines"
        assert (await call("DELETE", "llama/logs")).status == 204
        assert (await call("GET", "llama/logs?lines=all")).json["lines"] == []

    async def test_a_second_llm(self, call: Call, models: Models) -> None:
        first = (await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})).json
        second = (await call("POST", "llamas/second/start", {"modelId": models.llm, "port": "auto"})).json
        assert first["pid"] != second["pid"]
        assert set((await call("GET", "")).json["servers"]) == {"llama", "second", "diffusion"}
        assert (await call("POST", "llamas/second/stop")).json["status"] == "stopped"
        assert (await call("GET", "llama")).json["status"] == "running"
        assert (await call("GET", "llamas/diffusion")).status == 400

    @pytest.mark.parametrize("name", ["a%20b", "..%2fx", "x" * 41, "%00", "%c3%a4"])
    async def test_wild_names_are_refused(self, call: Call, name: str) -> None:
        answer = await call("GET", f"llamas/{name}")
        assert answer.status in (400, 404)
        assert answer.error["code"] in ("INVALID_REQUEST", "NOT_FOUND")

    async def test_errors_of_a_start(self, call: Call, models: Models, fake_llama: FakeEngine) -> None:
        unknown = await call("POST", "llama/start", {"modelId": "nobody"})
        assert (unknown.status, unknown.error["code"]) == (404, "MODEL_NOT_FOUND")
        assert unknown.error["details"] == {"model_id": "nobody"}
        fake_llama.set(exit_at_start=7, start_log=["0.00.000.001 E nothing works"])
        died = await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
        assert (died.status, died.error["code"]) == (503, "SERVER_ERROR")
        assert died.error["details"]["exit_code"] == 7
        assert (await call("GET", "llama")).json["status"] == "crashed"

    async def test_orchestrator(self, call: Call) -> None:
        assert (await call("GET", "orchestrator")).json == {"wouldNeedOffload": False}
        assert (await call("GET", "orchestrator?wait=reload")).json == {"wouldNeedOffload": False}
        assert (await call("GET", "orchestrator?wait=what")).status == 400
        assert (await call("DELETE", "orchestrator/saved-state")).status == 204


class TestImages:
    async def start(self, call: Call, models: Models) -> None:
        info = decoded(await call("POST", "diffusion/start", {"modelId": models.image}), DiffusionServerInfo)
        assert info.status == "running"
        assert info.port is None
        assert info.url
        assert info.url.endswith("/genai")

    async def finished(self, call: Call, id: str) -> Any:
        async def ended() -> Any:
            state = (await call("GET", f"v1/images/generations/{id}")).json
            return state if state["status"] in ("complete", "error") else None

        return await until(ended)

    async def test_a_picture_as_in_the_reference(self, call: Call, models: Models) -> None:
        await self.start(call, models)
        assert (await call("GET", "health")).json == {"status": "ok", "busy": False}
        request = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "seed": 7, "count": 2}
        accepted = await call("POST", "v1/images/generations", request)
        assert accepted.status == 201
        assert set(accepted.json) == {"id", "status", "createdAt"}
        assert accepted.json["status"] == "pending"
        state = await self.finished(call, accepted.json["id"])
        assert set(state) >= {"id", "status", "createdAt", "updatedAt", "result"}
        assert "config" not in state
        assert set(state["result"]) == {"images", "format", "timeTaken"}
        assert [image["seed"] for image in state["result"]["images"]] == [7, 8]
        assert base64.b64decode(state["result"]["images"][0]["image"]).startswith(b"\x89PNG")
        full = (await call("GET", f"v1/images/generations/{state['id']}?full=true")).json
        assert full["config"]["prompt"] == "a cat"

    async def test_busy_and_cancelled(self, call: Call, models: Models, fake_sd: FakeEngine) -> None:
        await self.start(call, models)
        fake_sd.set(hang_job=True)
        first = (await call("POST", "v1/images/generations", {"prompt": "x", "width": 64, "height": 64})).json["id"]
        busy = await call("POST", "v1/images/generations", {"prompt": "y"})
        assert (busy.status, busy.error["code"]) == (503, "SERVER_BUSY")
        queued = await call("POST", "v1/images/generations?queue=true", {"prompt": "y", "width": 64, "height": 64})
        assert queued.status == 201
        assert (await call("GET", "health")).json["busy"] is True
        cancelled = await call("DELETE", f"v1/images/generations/{first}")
        assert cancelled.json == {"id": first, "status": "cancelled"}
        state = (await call("GET", f"v1/images/generations/{first}")).json
        assert (state["status"], state["error"]["code"]) == ("error", "GENERATION_CANCELLED")
        assert set(state["error"]) == {"message", "code"}
        late = await call("DELETE", f"v1/images/generations/{first}")
        assert (late.status, late.error["code"]) == (409, "ALREADY_TERMINAL")
        assert (await call("DELETE", "v1/images/generations")).json == {"cancelled": True}
        assert (await call("DELETE", "v1/images/generations")).json == {"cancelled": False}

    async def test_an_unknown_generation(self, call: Call) -> None:
        for method in ("GET", "DELETE"):
            answer = await call(method, "v1/images/generations/nothere")
            assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
            assert answer.error["message"] == "Generation not found"

    async def test_nothing_runs(self, call: Call) -> None:
        for answer in (await call("GET", "health"), await call("POST", "v1/images/generations", {"prompt": "x"})):
            assert (answer.status, answer.error["code"]) == (503, "SERVER_NOT_RUNNING")

    async def test_a_failed_generation(self, call: Call, models: Models, fake_sd: FakeEngine) -> None:
        await self.start(call, models)
        fake_sd.set(fail_job="the GPU is on fire")
        id = (await call("POST", "v1/images/generations", {"prompt": "x", "width": 64, "height": 64})).json["id"]
        state = await self.finished(call, id)
        assert state["error"]["code"] == "BACKEND_ERROR"
        assert "on fire" in state["error"]["message"]

    async def test_the_gallery_is_not_there_yet(self, call: Call) -> None:
        answer = await call("GET", "gallery")
        assert (answer.status, answer.error["code"]) == (501, "NOT_YET")


POSTS = [
    "models",
    "models/register",
    "models/x/metadata",
    "system/check",
    "system/config",
    "system/estimate",
    "llama/start",
    "llamas/second/start",
    "diffusion/start",
    "v1/images/generations",
    "engines/use",
    "engines/test",
    "engines/install",
    "engines/remove",
]
EMPTY_POSTS = [
    "llama/stop",
    "llama/restart",
    "diffusion/stop",
    "diffusion/restart",
    "models/x/verify",
    "models/check-model",
]


class TestBadBodies:
    @pytest.mark.parametrize("path", POSTS + EMPTY_POSTS)
    async def test_every_post_refuses_them(self, call: Call, path: str) -> None:
        cases: list[tuple[Any, int]] = [
            ([], 400),
            ([{"prompt": "x"}], 400),
            ("not json", 400),
            ('"text"', 400),
            ("null", 400),
            ("17", 400),
            ("\ufeff{}", 400),
            ("[" * 100_000, 400),
            ('{"a": NaN}', 400),
            ({"noSuchField": 1}, 400),
            ("x" * 2 * 1024 * 1024, 413),
            (json.dumps({"noSuchField": "x" * MAX_BODY}), 413),
        ]
        for body, status in cases:
            answer = await call("POST", path, body)
            assert answer.status == status, (path, str(body)[:40], answer.body)
            assert answer.error["code"] == "INVALID_REQUEST"

    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            ("v1/images/generations", {}, "prompt"),
            ("v1/images/generations", {"prompt": 1}, "prompt"),
            ("v1/images/generations", {"prompt": "x", "count": 0}, "count"),
            ("v1/images/generations", {"prompt": "x", "count": 6}, "count"),
            ("v1/images/generations", {"prompt": "x", "count": 2.5}, "count"),
            ("v1/images/generations", {"prompt": "x", "count": "3"}, "count"),
            ("v1/images/generations", {"prompt": "x", "width": 10**9}, "width"),
            ("v1/images/generations", {"prompt": "x", "seed": 2**70}, "seed"),
            ("v1/images/generations", {"prompt": "x\0y"}, "prompt"),
            ("v1/images/generations", {"prompt": "x", "sampler": "bogus"}, "sampler"),
            ("llama/start", {}, "modelId"),
            ("llama/start", {"modelId": "x", "port": 70000}, "port"),
            ("llama/start", {"modelId": "x", "contextSize": "big"}, "contextSize"),
            ("models", {"source": "ftp"}, "source"),
            ("models/register", {"path": 5}, "path"),
            ("system/check", {"model": 5}, "model"),
        ],
    )
    async def test_a_wrong_field_is_named(self, call: Call, path: str, body: Any, field: str) -> None:
        answer = await call("POST", path, body)
        assert answer.status == 400, answer.body
        assert answer.error["details"]["field"] == field

    async def test_the_server_survives_a_flood(self, call: Call) -> None:
        answer = await call("POST", "v1/images/generations", "x" * 40_000_000)
        assert answer.status == 413
        assert (await call("GET", "")).status == 200


class TestErrors:
    async def test_an_unknown_error_says_nothing_of_our_insides(
        self, call: Call, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise RuntimeError("secret /path/of/ours 100%")

        monkeypatch.setattr(extension.runtime.system_info, "get_memory_info", broken)
        answer = await call("GET", "system/memory")
        assert (answer.status, answer.error["code"]) == (500, "INTERNAL_ERROR")
        assert b"secret" not in answer.body
        assert b"RuntimeError" not in answer.body

    async def test_percent_signs_are_not_doubled(self, call: Call) -> None:
        answer = await call("GET", "models/100%25")
        assert "'100%'" in answer.error["message"]
        assert "%%" not in answer.error["message"]
        answer = await call("POST", "llama/start", {"100%s": 1})
        assert "100%s" in answer.error["message"]

    async def test_jupyters_own_errors_keep_their_percent_signs(
        self, call: Call, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tornado.web import HTTPError

        def full() -> None:
            raise HTTPError(418, "the pot is 100% full of %s")

        monkeypatch.setattr(extension.runtime.system_info, "get_memory_info", full)
        answer = await call("GET", "system/memory")
        assert (answer.status, answer.error["message"]) == (418, "the pot is 100% full of %s")

    async def test_details_that_json_cannot_say(
        self, call: Call, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from genai_notebook.errors import ServerError

        def odd() -> None:
            raise ServerError("odd", {"what": object()})

        monkeypatch.setattr(extension.runtime.system_info, "get_memory_info", odd)
        answer = await call("GET", "system/memory")
        assert answer.status == 503
        assert answer.error["message"] == "odd"

    async def test_an_unknown_route(self, call: Call) -> None:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            answer = await call(method, "no/such/route", "{}" if method in ("PUT", "PATCH") else None)
            assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")

    async def test_a_method_that_a_route_does_not_have(self, call: Call) -> None:
        answer = await call("PUT", "models", "{}")
        assert (answer.status, answer.error["code"]) == (405, "METHOD_NOT_ALLOWED")


class TestActivity:
    async def test_reading_is_no_activity(self, call: Call, extension: GenaiNotebookApp) -> None:
        settings = extension.serverapp.web_app.settings
        settings["api_last_activity"] = marker = object()
        reads = (
            "",
            "system",
            "system/memory",
            "models",
            "downloads",
            "llama",
            "diffusion",
            "llama/logs",
            "orchestrator",
        )
        for path in reads:
            assert (await call("GET", path)).status == 200
        assert settings["api_last_activity"] is marker
        assert (await call("POST", "llama/stop")).status == 200
        assert settings["api_last_activity"] is not marker

    async def test_only_jobs_keep_a_server_up(
        self, call: Call, models: Models, extension: GenaiNotebookApp, fake_sd: FakeEngine
    ) -> None:
        assert not extension.current_activity()
        await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
        await call("POST", "diffusion/start", {"modelId": models.image})
        assert not extension.current_activity()
        fake_sd.set(hang_job=True)
        await call("POST", "v1/images/generations", {"prompt": "x", "width": 64, "height": 64})
        assert extension.current_activity() == {"downloads": 0, "generations": 1}
        await call("DELETE", "v1/images/generations")

        async def idle() -> bool:
            return not extension.current_activity()

        await until(idle)
