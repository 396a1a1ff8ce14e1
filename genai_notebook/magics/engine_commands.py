"""%genai engines: the engine programs, which is used, and what users do with them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.engines import Meter, state_of, with_log
from genai_notebook.display.live import ticking
from genai_notebook.magics.arguments import add_into
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import EngineCandidate

KINDS = {"llm": "llama", "images": "diffusion"}
_TITLES = {"llama": "language models", "diffusion": "images"}
ACTIONS = ("list", "use", "test", "install", "remove")
_DOING = {"use": "Choosing", "test": "Testing", "install": "Installing", "remove": "Removing"}

_HELP = """\
The engine programs in the order in which they are tried, and what became of their tests. The first that works is used.

  %genai engines                        all of them
  %genai engines install llm            fetch the best build for this machine; it is verified and tried
  %genai engines install llm vulkan     fetch that build
  %genai engines test                   test the engines in use again, with an installed model
  %genai engines use llm cpu            use this one from now on, and no other; 'auto' takes that back
  %genai engines remove images vulkan   delete a build that was installed

An engine's NAME is what stands in the first column, or in short: cuda, rocm, vulkan, metal, cpu, embedded, path.
"""


def add(subparsers: Any) -> None:
    engines = subparsers.add_parser("engines", help="list, install, test and choose engine programs", description=_HELP)
    engines.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="default: list")
    engines.add_argument("server", nargs="?", choices=tuple(KINDS), help="which kind of engine")
    # A name may have spaces in it, and needs no quotes then.
    engines.add_argument("name", nargs="*", metavar="NAME", help="which one; default: the best, or the one in use")
    add_into(engines, "the list of engines, or the engine")
    engines.set_defaults(run=engines_line)


def engines_line(shell: Shell, arguments: argparse.Namespace) -> Any:
    action, server, name = arguments.action, arguments.server, " ".join(arguments.name) or None
    if action == "list":
        if name:
            raise UsageError("%genai engines list takes no name.")
        return _list(shell, server)
    if action == "test" and server is None:
        return _test_those_in_use(shell)
    if server is None:
        raise UsageError(f"%genai engines {action}: say which kind of engine: llm or images.")
    if name is None and action in ("use", "remove"):
        raise UsageError(f"%genai engines {action} {server}: say which one (%genai engines lists them).")
    return _act(shell, action, KINDS[server], name)


def _engines(server: str | None = None) -> list[EngineCandidate]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import engine_manager

    return [each for each in run(engine_manager.list()) if server is None or each.kind == KINDS[server]]


def _list(shell: Shell, server: str | None) -> list[EngineCandidate]:
    engines = _engines(server)
    rows = [
        (each.name, _TITLES[each.kind], state_of(each), each.version or "", each.reason or each.path or "")
        for each in engines
    ]
    bundle = views.table(("Engine", "For", "State", "Version", "Details"), rows)
    for each in engines:
        bundle = with_log(bundle, each)
    shell.emit(bundle)
    return engines


def _test_those_in_use(shell: Shell) -> list[EngineCandidate]:
    found = [each for each in _engines() if each.in_use]
    if not found:
        shell.emit(views.note("No engine is in use.", detail="The next start of a model finds, or fetches, one."))
    return [_act(shell, "test", each.kind, each.name) for each in found]


def _act(shell: Shell, action: str, kind: str, name: str | None) -> EngineCandidate:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import current

    runtime = current().runtime
    title = f"{_DOING[action]} the engine for {_TITLES[kind]}" + (f" ({name})" if name else "")
    with shell.working(title) as live:
        meter = Meter(title, live)
        engine: EngineCandidate = run(ticking(lambda: _carry_out(runtime, meter, action, kind, name), meter))
        live.finish(_outcome(action, name, engine))
    return engine


async def _carry_out(runtime: Any, meter: Meter, action: str, kind: str, name: str | None) -> Any:
    def hear(event: str, data: dict[str, Any]) -> None:
        if event == "binary-progress" and data["server"] == "engines" and data["kind"] == kind:
            meter.hear(data)

    unsubscribe = runtime.subscribe(hear)  # `use` fetches too, and takes no callback
    try:
        return await getattr(runtime.engine_manager, action)(kind, name)
    finally:
        unsubscribe()


def _outcome(action: str, name: str | None, engine: EngineCandidate) -> views.Bundle:
    if action == "remove":
        return views.note(f"{engine.name} is removed.")
    if action == "install":
        return views.note(f"{engine.name} is installed.", detail=_next_start(engine))
    if action == "use" and name == "auto":
        now = f"Now that is {engine.name}." if engine.in_use else "The next start of a model finds, or fetches, one."
        return views.note(f"The best engine for {_TITLES[engine.kind]} is used from now on.", detail=now)
    if action == "use":
        return views.note(f"{engine.name} is used from now on.", detail=_next_start(engine))
    return with_log(views.note(f"{engine.name}: {state_of(engine)}.", detail=engine.reason or ""), engine)


def _next_start(engine: EngineCandidate) -> str:
    if engine.state == "works":
        return f"It {state_of(engine).rpartition('in use, ')[2]}."
    return f"It runs; the next start of a model tests whether it computes{', and uses it then' * (not engine.in_use)}."
