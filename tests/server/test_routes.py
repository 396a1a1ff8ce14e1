"""Every route: nobody gets in without a token, without being asked for, or without the XSRF cookie's counterpart."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from jupyter_server.base.handlers import APIHandler

from genai_notebook.server.extension import GenaiNotebookApp
from genai_notebook.server.routes import ROUTES, Route
from tests.server.conftest import Call, RecordingAuthorizer
from tests.server.schemas import OPENAPI, schemas

METHODS = ("get", "post", "put", "patch", "delete")


def own_methods(route: Route) -> list[str]:
    """What the route's handler answers itself; what `register` inherits belongs to a model of that id."""
    return [name for name in METHODS if name in vars(route.handler)]


def example(template: str) -> str:
    """A URL of that route, below `genai/`."""
    return re.sub(r"\{\w+\}", "something", template).removeprefix("/genai/")


CASES = [(method, example(route.template)) for route in ROUTES for method in own_methods(route)]


def test_there_are_routes() -> None:
    assert len(CASES) > 45


@pytest.mark.parametrize(("method", "path"), CASES)
async def test_no_answer_without_a_token(call: Call, method: str, path: str) -> None:
    answer = await call(method.upper(), path, token=False)
    assert answer.status == 403
    assert answer.error["code"] == "FORBIDDEN"


@pytest.mark.parametrize("path", ["", "nowhere", "models", "events"])
@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "TRACE", "PROPFIND"])
async def test_no_answer_without_a_token_to_methods_that_are_not_there(call: Call, method: str, path: str) -> None:
    answer = await call(method, path, token=False)
    assert answer.status in (403, 405)
    assert b"genai" not in answer.body


async def test_no_answer_to_a_wrong_token(call: Call) -> None:
    for path in ("", "system", "events", "llama/v1/models"):
        assert (await call("GET", path, token=False, headers={"Authorization": "token wrong"})).status == 403
        assert (await call("GET", path + "?token=wrong", token=False)).status == 403


@pytest.mark.parametrize(("method", "path"), CASES)
async def test_the_authorizer_is_asked_for_every_route(
    call: Call, extension: GenaiNotebookApp, method: str, path: str
) -> None:
    authorizer: RecordingAuthorizer = extension.settings["authorizer"]
    authorizer.refuse = True
    answer = await call(method.upper(), path)
    assert answer.status == 403
    assert answer.error["code"] == "FORBIDDEN"
    (asked,) = authorizer.asked
    assert asked[:2] == ("read" if method == "get" else "write", "genai")


async def test_one_action_does_not_stick_to_another(call: Call, extension: GenaiNotebookApp) -> None:
    # `authorized` fixes its action at the first call; a function shared by two methods would keep the wrong one.
    authorizer: RecordingAuthorizer = extension.settings["authorizer"]
    authorizer.refuse = True
    for method in ("GET", "POST", "DELETE", "POST", "GET"):
        await call(method, "llama/v1/models")
    assert [action for action, _, _ in authorizer.asked] == ["read", "write", "write", "write", "read"]


@pytest.mark.parametrize(("method", "path"), [case for case in CASES if case[0] != "get"])
async def test_a_cookie_needs_its_xsrf_token(
    call: Call, jp_serverapp: Any, http_server_client: Any, jp_base_url: str, method: str, path: str
) -> None:
    cookie = await log_in(jp_serverapp, http_server_client, jp_base_url)
    answer = await call(method.upper(), path, token=False, headers={"Cookie": cookie})
    assert answer.status == 403
    assert "_xsrf" in answer.error["message"]


async def test_a_cookie_with_its_xsrf_token_is_enough(
    call: Call, jp_serverapp: Any, http_server_client: Any, jp_base_url: str
) -> None:
    cookie = await log_in(jp_serverapp, http_server_client, jp_base_url)
    xsrf = re.search(r"_xsrf=([^;]+)", cookie)
    assert xsrf
    headers = {"Cookie": cookie, "X-XSRFToken": xsrf[1]}
    assert (await call("DELETE", "downloads", token=False, headers=headers)).status == 204
    evil = {**headers, "Origin": "https://evil.example"}
    assert (await call("DELETE", "downloads", token=False, headers=evil)).status in (403, 404)


async def log_in(serverapp: Any, client: Any, base_url: str) -> str:
    """The cookies of a browser that has opened the server's URL with its token."""
    token = serverapp.identity_provider.token
    response = await client.fetch(f"{base_url}tree?token={token}", raise_error=False, follow_redirects=False)
    cookies = [value.split(";")[0] for value in response.headers.get_list("Set-Cookie")]
    names = {cookie.split("=")[0] for cookie in cookies}
    if "_xsrf" not in names:
        page = await client.fetch(f"{base_url}login", raise_error=False, headers={"Cookie": "; ".join(cookies)})
        cookies += [value.split(";")[0] for value in page.headers.get_list("Set-Cookie")]
    assert any(cookie.startswith("username-") for cookie in cookies), response.headers
    return "; ".join(cookies)


async def test_a_foreign_host_name_is_refused(call: Call) -> None:
    assert (await call("GET", "", headers={"Host": "evil.example"})).status == 403


def test_handlers_carry_no_method_of_their_own_unguarded() -> None:
    for route in ROUTES:
        for name in own_methods(route):
            method = getattr(route.handler, name)
            # Both decorators wrap; what they wrap is the handler's own code.
            assert hasattr(method, "__wrapped__"), (route, name)
            assert hasattr(method.__wrapped__, "__wrapped__"), (route, name)
        assert issubclass(route.handler, APIHandler)
        assert route.handler.auth_resource == "genai"


# ---- openapi.yaml -----------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(OPENAPI.read_text())
    return loaded


def described_methods(item: dict[str, Any], doc: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in item:
        item = item | resolve(item["$ref"], doc)
    return {name: operation for name, operation in item.items() if name in METHODS}


def resolve(reference: str, doc: dict[str, Any]) -> Any:
    value: Any = doc
    for part in reference.removeprefix("#/").split("/"):
        value = value[part]
    return value


def test_openapi_describes_every_route_and_no_other() -> None:
    doc = document()
    served = {route.template: sorted(own_methods(route)) for route in ROUTES}
    described = {path: sorted(described_methods(item, doc)) for path, item in doc["paths"].items()}
    assert described == served


def test_openapi_names_every_parameter_of_a_path() -> None:
    doc = document()
    for path, item in doc["paths"].items():
        named = {(resolve(p["$ref"], doc) if "$ref" in p else p)["name"] for p in item.get("parameters", [])}
        assert named == set(re.findall(r"\{(\w+)\}", path)), path


def test_openapi_says_what_every_route_answers() -> None:
    doc = document()
    for path, item in doc["paths"].items():
        for method, operation in described_methods(item, doc).items():
            assert operation["summary"], (path, method)
            assert "default" in operation["responses"], (path, method)
            assert len(operation["responses"]) > 1, (path, method)


def test_openapi_has_the_schemas_of_the_structs() -> None:
    assert document()["components"]["schemas"] == schemas(), "run: python -m tests.server.schemas"


def test_openapi_refers_to_nothing_that_is_not_there() -> None:
    doc = document()
    references = re.findall(r'"(#/[^"]+)"', json.dumps(doc))
    assert references
    for reference in references:
        resolve(reference, doc)
