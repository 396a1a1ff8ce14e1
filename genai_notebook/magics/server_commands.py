"""%genai start, stop, restart, status, logs: the processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.engines import Meter
from genai_notebook.display.live import ticking
from genai_notebook.display.words import KINDS, a_kind, describe, manager_of, where
from genai_notebook.errors import InvalidRequestError, ModelNotFoundError, PortInUseError, ServerError
from genai_notebook.magics.arguments import add_into, given, port_number
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import ModelInfo, ServerInfo

SERVERS = ("llm", "images")
NAMES = {"llm": "language model", "images": "image generation"}

_START_HELP = """\
Start the language model, or image generation.

  %genai start                       the language model that was installed last
  %genai start MODEL                 this model, of either type
  %genai start --images              the image model that was installed last

What is not given is worked out from the machine and the model.
"""
_LLM_ONLY = {
    "context_size": "--context-size",
    "parallel_requests": "--parallel",
    "flash_attention": "--flash-attention",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
}
_IMAGES_ONLY = {"vram_budget": "--vram-budget"}
_SHARED = ("port", "threads", "gpu_layers")


def add(subparsers: Any) -> None:
    start = subparsers.add_parser("start", help="start a model", description=_START_HELP)
    start.add_argument("model", nargs="?", metavar="MODEL", help="id of the model; default: the newest")
    start.add_argument("--images", action="store_true", help="start image generation")
    start.add_argument("--port", type=port_number, help="port, or 'auto' for any free one (default: 8080 for the LLM)")
    start.add_argument("--context-size", type=int, metavar="N", help="context in tokens")
    start.add_argument("--gpu-layers", type=int, metavar="N", help="layers on the GPU; 0: none")
    start.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    start.add_argument("--parallel", type=int, metavar="N", dest="parallel_requests", help="requests at a time")
    start.add_argument("--flash-attention", choices=("on", "off", "auto"))
    start.add_argument("--cache-type-k", metavar="TYPE", help="type of the cached keys, e.g. q8_0")
    start.add_argument("--cache-type-v", metavar="TYPE", help="type of the cached values")
    start.add_argument("--vram-budget", type=int, metavar="MB", help="GPU memory that images may use")
    start.add_argument("--no-api-key", action="store_true", help="let any program on this machine use the server")
    add_into(start, "the server's description")
    start.set_defaults(run=start_server)

    for name, words in (("stop", "stop what runs"), ("restart", "stop and start again, with the same settings")):
        parser = subparsers.add_parser(name, help=words)
        parser.add_argument("server", nargs="?", choices=(*SERVERS, "all"), default="all", help="default: all that run")
        parser.set_defaults(run=stop_servers if name == "stop" else restart_servers)

    status = subparsers.add_parser("status", help="show what runs, who owns it, and why")
    add_into(status, "a dict of owner, reason, llm and images")
    status.set_defaults(run=show_status)

    logs = subparsers.add_parser("logs", help="show the end of an engine's log")
    logs.add_argument("server", nargs="?", choices=SERVERS, default="llm", help="default: llm")
    logs.add_argument("--lines", type=int, default=40, metavar="N", help="how many lines (default: 40)")
    add_into(logs, "the lines")
    logs.set_defaults(run=show_logs)


# ---- start ----------------------------------------------------------------------------------------------------------


def start_server(shell: Shell, arguments: argparse.Namespace) -> ServerInfo:
    from genai_notebook.client.bridge import run

    model = run(choose_model(arguments.model, "diffusion" if arguments.images else None))
    server = "llm" if model.type == "llm" else "images"
    options = _start_options(arguments, server)
    manager = manager_of(server)
    info = manager.get_info()
    if info.status == "running" and info.model_id == model.id and not options:
        shell.emit(views.note(f"{model.id} is running already.", detail=where(info)))
        return info  # type: ignore[no-any-return]
    title = f"Starting {model.id}"
    began = time.monotonic()
    with shell.working(title) as live:
        info, remark = _wait(Meter(title, live), manager, lambda: _start(manager, model.id, options))
        took = views.duration(time.monotonic() - began)
        detail = " · ".join(part for part in (where(info), remark) if part)
        text = f"{model.id} is running, loaded in {took}."
        if server == "images":
            text = f"Image generation with {model.id} is running; the first picture loads the model."
        live.finish(views.note(text, detail=detail))
    return info  # type: ignore[no-any-return]


async def _start(manager: Any, model_id: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Start, on another port than the usual one if that is taken and none was asked for; says so."""
    try:
        return await manager.start(model_id=model_id, **options), ""
    except PortInUseError as error:
        if "port" in options:
            raise
        info = await manager.start(model_id=model_id, **options, port="auto")
        return info, f"not the usual port: {error.message}"
    except ServerError as error:
        running = (error.details or {}).get("model_id")
        if error.code == "ALREADY_RUNNING" and running and running != model_id:
            error.hint = f"{running} holds that place. Stop it first: %genai stop"
        raise


async def choose_model(id: str | None, type: str | None) -> ModelInfo:
    """The model of that id; without one the newest of that type (None: an LLM).

    Raises:
        ModelNotFoundError: no such model; the hint names close ones.
        InvalidRequestError: it is of the other type, or none is installed.
    """
    from genai_notebook.current import model_manager

    if id is not None:
        try:
            model = await model_manager.get_model_info(id)
        except ModelNotFoundError:
            raise await _unknown_model(id) from None
        if type is not None and model.type != type:
            raise InvalidRequestError(f"{id} is {a_kind(model.type)}, not {a_kind(type)}.", {"field": "model"})
        return model
    wanted = type or "llm"
    models = await model_manager.list_models(wanted)
    if not models:
        starter = "starter" if wanted == "llm" else "starter-image"
        raise InvalidRequestError(
            f"No {KINDS[wanted]} is installed yet.",
            {"field": "model"},
            hint=f"%genai download {starter} fetches a small one.",
        )
    return max(models, key=lambda model: model.downloaded_at)


async def _unknown_model(id: str) -> ModelNotFoundError:
    import difflib

    from genai_notebook.current import model_manager

    ids = [model.id for model in await model_manager.list_models()]
    close = [known for known in ids if id.lower() in known][:3] or difflib.get_close_matches(id, ids, 3)
    return ModelNotFoundError(id, hint=f"Did you mean {' or '.join(close)}?" if close else None)


def _start_options(arguments: argparse.Namespace, server: str) -> dict[str, Any]:
    others = _IMAGES_ONLY if server == "llm" else _LLM_ONLY
    for name, option in others.items():
        if getattr(arguments, name) is not None:
            raise UsageError(f"%genai start: {option} is not for {'language' if server == 'llm' else 'image'} models.")
    own = _LLM_ONLY if server == "llm" else _IMAGES_ONLY
    options = given(arguments, *_SHARED, *own)
    if arguments.no_api_key:
        options["api_key"] = False
    return options


def _wait(meter: Meter, manager: Any, work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `work()`; the cell shows how far it, and the manager's engine, is until then."""
    from genai_notebook.client.bridge import run

    async def listening() -> Any:
        manager.on("binary-progress", meter.hear)
        try:
            return await work()
        finally:
            manager.off("binary-progress", meter.hear)

    return run(ticking(listening, meter))


# ---- stop, restart --------------------------------------------------------------------------------------------------


def _chosen(server: str) -> list[str]:
    return [name for name in SERVERS if server in (name, "all")]


def stop_servers(shell: Shell, arguments: argparse.Namespace) -> None:
    _each(shell, arguments.server, "stop", "Stopping", "stopped")


def restart_servers(shell: Shell, arguments: argparse.Namespace) -> None:
    _each(shell, arguments.server, "restart", "Restarting", "running again")


def _is_up(server: str) -> bool:
    """Whether there is something to stop: an LLM that stepped aside for an image would come back."""
    from genai_notebook.current import orchestrator

    if manager_of(server).get_status() != "stopped":
        return True
    return server == "llm" and orchestrator.get_saved_state() is not None


def _each(shell: Shell, server: str, method: str, doing: str, done: str) -> None:

    names = [name for name in _chosen(server) if _is_up(name)]
    if not names:
        what = "Nothing" if server == "all" else f"No {NAMES[server]}"
        shell.emit(views.note(f"{what} is running."))
        return
    for name in names:
        manager = manager_of(name)
        model = manager.get_info().model_id
        what = f"{'the ' * (name == 'llm')}{NAMES[name]}" + (f" ({model})" if model else "")
        title = f"{doing} {what}"
        with shell.working(title) as live:
            _wait(Meter(title, live), manager, getattr(manager, method))
            live.finish(views.note(f"{what[:1].upper()}{what[1:]} is {done}."))


# ---- status, logs ---------------------------------------------------------------------------------------------------


def show_status(shell: Shell, arguments: argparse.Namespace) -> dict[str, Any]:
    from genai_notebook.current import current, orchestrator

    where = current()
    llm, images = (manager_of(name).get_info() for name in SERVERS)
    saved = orchestrator.get_saved_state()
    rows: list[tuple[str, object]] = [
        ("Engines belong to", "the Jupyter server" if llm.owner == "jupyter-server" else "this kernel"),
        ("Why", where.reason),
        ("Language model", describe(llm)),
        ("Image generation", describe(images)),
    ]
    if saved:
        rows.append(("Stepped aside", saved.error or "the language model comes back after the image"))
    shell.emit(views.facts("genai-notebook", rows))
    return {"owner": llm.owner, "reason": where.reason, "llm": llm, "images": images}


def show_logs(shell: Shell, arguments: argparse.Namespace) -> list[str]:
    from genai_notebook.client.bridge import run

    if arguments.lines < 1:
        raise UsageError("%genai logs: --lines must be 1 or more.")
    lines: list[str] = run(manager_of(arguments.server).get_logs(arguments.lines))
    print("\n".join(views.clean(line) for line in lines) or f"The log of the {NAMES[arguments.server]} is empty.")
    return lines
