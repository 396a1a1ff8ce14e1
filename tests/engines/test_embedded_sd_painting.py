"""The embedded sd-server: every sampler and scheduler, batches, previews, cancelling."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from genai_notebook.core.schema import ImageSampler
from tests.engines.running import SD, Running
from tests.models import check_diffusion_model

pytestmark = pytest.mark.engines


def body(steps: int = 1, **changes: Any) -> dict[str, Any]:
    params = {"sample_steps": steps, "guidance": {"txt_cfg": 1.0}, **changes.pop("sample_params", {})}
    return {"prompt": "a boat", "width": 64, "height": 64, "seed": 7, "sample_params": params, **changes}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    arguments = ("-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2")
    with Running(SD, *arguments, cwd=tmp_path_factory.mktemp("sd")) as running:
        running.ready()
        yield running


@pytest.fixture(scope="module")
def told(engine: Running) -> dict[str, Any]:
    """What the engine says it can do."""
    return dict(engine.ask("GET", "/sdcpp/v1/capabilities")[1])


def post(engine: Running, request: dict[str, Any]) -> str:
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", request)
    assert status == 202, reply
    return str(reply["id"])


def states(engine: Running, id: str) -> Iterator[dict[str, Any]]:
    """The job as it is, again and again until it is over."""
    end = time.monotonic() + 120
    while True:
        state = engine.ask("GET", f"/sdcpp/v1/jobs/{id}")[1]
        yield state
        if state["status"] not in ("queued", "generating"):
            return
        assert time.monotonic() < end, state
        time.sleep(0.005)


def paint(engine: Running, request: dict[str, Any]) -> dict[str, Any]:
    *_, last = states(engine, post(engine, request))
    assert last["status"] == "completed", last
    return last


def picture(image: str) -> Image.Image:
    """A whole PNG, or an error."""
    opened = Image.open(io.BytesIO(base64.b64decode(image, validate=True)))
    assert opened.format == "PNG"
    opened.load()
    return opened


def test_every_sampler_paints(engine: Running, told: dict[str, Any]) -> None:
    samplers = told["samplers"]
    assert set(get_args(ImageSampler)) <= set(samplers)
    for name in samplers:
        state = paint(engine, body(2, sample_params={"sample_method": name}))
        (image,) = state["result"]["images"]
        assert picture(image["b64_json"]).size == (64, 64), name


def test_every_scheduler_paints(engine: Running, told: dict[str, Any]) -> None:
    for name in told["schedulers"]:
        state = paint(engine, body(2, sample_params={"scheduler": name, "sample_method": "euler"}))
        (image,) = state["result"]["images"]
        assert picture(image["b64_json"]).size == (64, 64), name


def test_samplers_differ(engine: Running) -> None:
    """The word reaches the engine."""
    seen = {
        picture(
            paint(engine, body(3, sample_params={"sample_method": name}))["result"]["images"][0]["b64_json"]
        ).tobytes()
        for name in ("euler", "heun", "lcm")
    }
    assert len(seen) == 3


def test_a_batch_tells_each_seed(engine: Running) -> None:
    images = paint(engine, body(batch_count=3, seed=40))["result"]["images"]
    assert [(image["index"], image["seed"]) for image in images] == [(0, 40), (1, 41), (2, 42)]
    alone = paint(engine, body(seed=41))["result"]["images"][0]
    assert picture(alone["b64_json"]).tobytes() == picture(images[1]["b64_json"]).tobytes()


# ---- previews -------------------------------------------------------------------------------------------------------


def test_previews_are_announced(told: dict[str, Any]) -> None:
    assert told["features"]["preview"] is True
    assert {"none", "proj", "tae", "vae"} <= set(told["preview_modes"])


@pytest.mark.parametrize(("mode", "size"), [("proj", (16, 8)), ("tae", (128, 64)), ("vae", (128, 64))])
def test_previews_come_while_it_paints(engine: Running, mode: str, size: tuple[int, int]) -> None:
    seen: dict[int, str] = {}
    request = body(6, width=128, preview=mode)
    for state in states(engine, post(engine, request)):
        if state["preview"]:
            assert state["status"] == "generating"
            assert list(seen)[-1:] <= [state["preview"]["step"]]
            seen[state["preview"]["step"]] = state["preview"]["b64_json"]
    assert state["status"] == "completed"
    assert state["preview"] is None
    assert len(seen) >= 3
    assert set(seen) <= set(range(1, 7))
    assert {picture(image).size for image in seen.values()} == {size}
    assert len(set(seen.values())) == len(seen)
    # The picture is the one that comes without previews.
    plain = paint(engine, body(6, width=128))["result"]["images"][0]["b64_json"]
    assert picture(state["result"]["images"][0]["b64_json"]).tobytes() == picture(plain).tobytes()


def test_previews_at_an_interval(engine: Running) -> None:
    id = post(engine, body(6, preview="proj", preview_interval=3))
    assert {state["preview"]["step"] for state in states(engine, id) if state["preview"]} <= {3, 6}


def test_a_big_preview_is_made_small(engine: Running) -> None:
    id = post(engine, body(2, width=512, height=64, preview="tae"))
    sizes = {picture(state["preview"]["b64_json"]).size for state in states(engine, id) if state["preview"]}
    assert sizes == {(256, 32)}


@pytest.mark.parametrize("changes", [{}, {"preview": "none"}, {"preview": None, "preview_interval": None}])
def test_none_when_nobody_asked(engine: Running, changes: dict[str, Any]) -> None:
    paint(engine, body(1, preview="proj"))  # what is left of another job's wish is no wish of this one
    found = [state["preview"] for state in states(engine, post(engine, body(4, **changes)))]
    assert found
    assert not any(found)


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"preview": "magic"}, "preview", "there is no 'magic'; known are none, proj"),
        ({"preview": 3}, "preview", "expected str"),
        ({"preview": "proj", "preview_interval": 0}, "preview_interval", ">= 1"),
        ({"preview": "proj", "preview_interval": "often"}, "preview_interval", "expected int"),
    ],
)
def test_what_is_no_preview(engine: Running, changes: dict[str, Any], field: str, said: str) -> None:
    status, reply, _ = engine.ask("POST", "/sdcpp/v1/img_gen", body(**changes))
    assert (status, reply["field"]) == (400, field)
    assert said in reply["error"]


# ---- cancelling -----------------------------------------------------------------------------------------------------


def test_cancelling_what_waits_and_what_runs(tmp_path: Path) -> None:
    """With previews on: the one that is dropped shows none any more, and the next one gets its own."""
    with Running(SD, "-m", str(check_diffusion_model()), "--listen-port", "0", "-t", "2", cwd=tmp_path) as engine:
        engine.ready()
        can = engine.ask("GET", "/sdcpp/v1/capabilities")[1]["features"]["cancel_generating"]
        running = post(engine, body(200 if can else 12, width=128, height=128, preview="proj"))
        waiting, last = post(engine, body()), post(engine, body(4, preview="proj"))
        assert engine.ask("POST", f"/sdcpp/v1/jobs/{waiting}/cancel", b"")[1]["status"] == "cancelled"
        engine.until(lambda: engine.ask("GET", f"/sdcpp/v1/jobs/{running}")[1]["preview"], "preview", 60)
        status, reply, _ = engine.ask("POST", f"/sdcpp/v1/jobs/{running}/cancel", b"")
        if can:
            assert (status, reply["status"], reply["preview"]) == (200, "cancelled", None)
        else:
            assert status == 409
        *_, ended = states(engine, last)
        assert ended["status"] == "completed"
        state = engine.ask("GET", f"/sdcpp/v1/jobs/{running}")[1]
        assert (state["status"], state["preview"]) == ("cancelled" if can else "completed", None)
