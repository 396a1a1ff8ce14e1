"""The import rule: rooms import downwards only, the core knows no Jupyter, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genai_notebook

PACKAGE = Path(genai_notebook.__file__).parent
# Bottom to top. A module may import from its own room and from rooms on a lower level.
LEVELS = [
    ["_version", "errors"],
    ["core.schema", "core.settings"],
    ["core.utilities", "core.validation", "core.callbacks", "core.waiting"],
    ["core.events"],
    ["core.system", "core.processes", "core.downloads"],
    ["core.models", "core.engines"],
    ["core.servers"],
    ["core.runtime"],
    ["client", "server"],
    ["current"],
    ["_chat", "display"],
    ["widgets"],
    ["magics"],
]
LEVEL_OF = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FRONT = {
    "IPython",
    "ipykernel",
    "ipywidgets",
    "jupyter_client",
    "jupyter_core",
    "jupyter_server",
    "tornado",
    "traitlets",
}
HEAVY = {"httpx", "huggingface_hub", "gguf", "numpy", "platformdirs", "pynvml", "PIL", "xllamacpp", "cyllama", *FRONT}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """core/system/probe.py → core.system.probe"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    for length in (2, 1):
        room = ".".join(module.split(".")[:length])
        if room in LEVEL_OF:
            return room
    return ""


def imports_of(tree: ast.AST, *, top_only: bool = False) -> Iterator[tuple[str, int]]:
    """Imported modules with their lines; `top_only` leaves out what stands in functions or under TYPE_CHECKING."""
    for node in _walk(tree, top_only):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            base = node.module or ""
            yield base, node.lineno
            if base.startswith("genai_notebook"):
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _walk(tree: ast.AST, top_only: bool) -> Iterator[ast.AST]:
    if not top_only:
        yield from ast.walk(tree)
        return
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        stack.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_import_downwards(path: Path) -> None:
    module = name_of(path)
    if not module:
        return  # the front door may import every room
    room = room_of(module)
    if module in ("core", ""):
        room = "errors"
    assert room, f"{module} is in no room of the house"
    for target, line in imports_of(ast.parse(path.read_text())):
        if not target.startswith("genai_notebook"):
            continue
        other = room_of(target.removeprefix("genai_notebook").lstrip("."))
        if other and other != room:
            assert LEVEL_OF[other] < LEVEL_OF[room], f"{path}:{line}: {room} must not import {other}"


@pytest.mark.parametrize("path", [p for p in modules() if "core" in p.relative_to(PACKAGE).parts[:1]], ids=name_of)
def test_the_core_knows_no_jupyter(path: Path) -> None:
    for target, line in imports_of(ast.parse(path.read_text())):
        root = target.split(".")[0]
        assert root not in FRONT, f"{path}:{line}: imports {target}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if p.relative_to(PACKAGE).parts[:1] not in (("server",), ("widgets",))], ids=name_of
)
def test_heavy_imports_are_made_where_they_are_needed(path: Path) -> None:
    if not {"embedded", "sd_cli"}.isdisjoint(path.parts):
        return  # programs of their own, never imported
    allowed = {"IPython"} if "magics" in path.parts else set()
    for target, line in imports_of(ast.parse(path.read_text()), top_only=True):
        root = target.split(".")[0]
        assert root not in HEAVY - allowed, f"{path}:{line}: imports {target} at module level"


def test_engines_from_wheels_are_never_imported_by_the_rest() -> None:
    for path in modules():
        if not {"embedded", "sd_cli"}.isdisjoint(path.parts):
            continue  # programs of their own
        for target, line in imports_of(ast.parse(path.read_text())):
            assert target.split(".")[0] not in ("xllamacpp", "cyllama"), f"{path}:{line}"
            assert not target.startswith("genai_notebook.core.engines.embedded."), f"{path}:{line}"


HEAVY_AT_START = "tornado httpx httpx2 huggingface_hub ipywidgets gguf numpy platformdirs pynvml PIL jupyter_server"
SHOW = f"import sys; print([n for n in {HEAVY_AT_START.split()!r} if n in sys.modules])"
BARE = "from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance();"
LOAD = "shell.run_line_magic('load_ext', 'genai_notebook');"


def loaded_by(code: str) -> str:
    command = [sys.executable, "-c", f"{code} {SHOW}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    assert loaded_by("import genai_notebook;") == "[]"
    names = "ServerError, format_bytes, run, llama_server, LlamaServerConfig"
    assert loaded_by(f"from genai_notebook import {names};") == "[]"


def test_loading_the_extension_pulls_in_nothing_heavy() -> None:
    assert loaded_by(BARE + LOAD) == loaded_by(BARE)


def test_dir_and_completion_import_nothing() -> None:
    assert loaded_by("import genai_notebook; dir(genai_notebook); genai_notebook.__all__;") == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        genai_notebook.frobnicate  # noqa: B018
