"""The public contract in `api.pyi`, held against the exports, the local classes, the remote ones and the handles."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import genai_notebook
from genai_notebook import current, errors
from genai_notebook.client.remote import RemoteRuntime

SOURCE = (Path(__file__).parent / "api.pyi").read_text()
TREE = ast.parse(SOURCE)
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {n.name: n for n in TREE.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
VARIABLES = {n.target.id: n for n in TREE.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
# Exported beside the contract: what it mentions in passing, and what this version needs to be honest.
EXTRA = {
    *("LlamaServerConfig", "DiffusionServerConfig", "DownloadConfig", "PartConfig", "FoundRepo", "FoundFile"),
    *("MemoryUse", "MemoryHolder", "EngineCandidate", "EngineProgress"),
    *("achat", "embed", "aembed", "NotYetError", "__version__"),
}
HANDLES = {
    "system_info": "SystemInfo",
    "model_manager": "ModelManager",
    "llama_server": "LlamaServerManager",
    "diffusion_server": "DiffusionServerManager",
    "orchestrator": "ResourceOrchestrator",
    "engine_manager": "BinaryManager",
}
ENGINE_METHODS = {"list", "use", "test", "install", "remove"}


def methods_of(name: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The methods a class has in the contract, inherited ones included."""
    node = CLASSES[name]
    found: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            found |= methods_of(base.id)
    return found | {n.name: n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}


def fields_of(name: str) -> dict[str, str]:
    """The fields a struct has in the contract, with their annotations."""
    node = CLASSES[name]
    found: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            found |= fields_of(base.id)
    own = {n.target.id: ast.unparse(n.annotation).strip("'") for n in node.body if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr]
    return found | own


def is_struct(name: str) -> bool:
    return bool(fields_of(name)) and not is_error(name)


def is_error(name: str) -> bool:
    return name.endswith("Error")


STRUCTS = sorted(name for name in CLASSES if is_struct(name))
ERRORS = sorted(name for name in CLASSES if is_error(name))
MANAGERS = sorted(name for name in CLASSES if methods_of(name) and not is_error(name))
METHODS = [(name, method) for name in MANAGERS for method in methods_of(name) if method != "__init__"]
MISSING = object()


def contract_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, Any, Any]]:
    """(name, kind, default) of every parameter but self."""
    arguments = node.args
    kinds = inspect.Parameter
    positional = arguments.args
    defaults: list[Any] = [MISSING] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    found = [(a.arg, kinds.POSITIONAL_OR_KEYWORD, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        found.append((arguments.vararg.arg, kinds.VAR_POSITIONAL, MISSING))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((argument.arg, kinds.KEYWORD_ONLY, MISSING if default is None else default))
    if arguments.kwarg:
        found.append((arguments.kwarg.arg, kinds.VAR_KEYWORD, MISSING))
    values = [(n, k, d if d is MISSING else ast.literal_eval(d)) for n, k, d in found]
    return [value for value in values if value[0] != "self"]


def real_parameters(function: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    found = [(p.name, p.kind, MISSING if p.default is p.empty else p.default) for p in parameters]
    return [value for value in found if value[0] != "self"]


def assert_same(function: Any, node: ast.FunctionDef | ast.AsyncFunctionDef, where: str) -> None:
    assert inspect.iscoroutinefunction(function) == isinstance(node, ast.AsyncFunctionDef), f"{where}: sync or async"
    wanted, found = contract_parameters(node), real_parameters(function)
    assert [value[:2] for value in found] == [value[:2] for value in wanted], f"{where}: parameters"
    for (name, _, default), (_, _, real) in zip(wanted, found, strict=True):
        # `...` says "not given": needed where a configuration object may have been given instead.
        if default is ... or (real is ... and wanted[0][0] == "config"):
            assert real is not MISSING, f"{where}: {name} can be left out"
        else:
            assert real is default or real == default, f"{where}: default of {name}"


# ---- names ----------------------------------------------------------------------------------------------------------


def test_the_contract_is_read() -> None:
    assert len(STRUCTS) == 19
    assert len(ERRORS) == 10
    assert len(METHODS) >= 50


def test_every_name_is_exported() -> None:
    names = {*CLASSES, *FUNCTIONS, *VARIABLES}
    assert names - set(genai_notebook.__all__) == set()
    assert set(genai_notebook.__all__) - names == EXTRA


@pytest.mark.parametrize("name", genai_notebook.__all__)
def test_every_export_is_there(name: str) -> None:
    assert getattr(genai_notebook, name) is not None
    assert name in dir(genai_notebook)


def test_the_exports_are_sorted() -> None:
    # isort's order: constants, classes, the rest.
    def rank(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert genai_notebook.__all__ == sorted(set(genai_notebook.__all__), key=rank)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str) -> None:
    assert_same(getattr(genai_notebook, name), FUNCTIONS[name], name)


# ---- structs and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_fields(name: str) -> None:
    cls = getattr(genai_notebook, name)
    assert issubclass(cls, msgspec.Struct)
    wanted = fields_of(name)
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    assert set(wanted) - set(fields) == set()
    if name not in ("GGUFMetadata", "GPUInfo"):  # a header and a driver may tell more than the contract names
        assert set(fields) - set(wanted) == set()
    for field, annotation in wanted.items():
        optional = annotation.endswith("| None") or annotation == "Any"
        assert (fields[field].default is None) == optional or field in _DEFAULTED.get(name, ()), field


_DEFAULTED = {
    "ImageGenerationConfig": {"width", "height", "steps", "cfg_scale", "sampler", "count"},
    "GenerationState": {"config"},  # a registry of one's own may be used without
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_classes(name: str) -> None:
    cls = getattr(genai_notebook, name)
    assert cls is getattr(errors, name)
    assert issubclass(cls, genai_notebook.GenaiNotebookError)
    line = next(line for line in SOURCE.splitlines() if line.startswith(f"class {name}("))
    if match := re.search(r"# ([A-Z_]+) \[(\d+)(?: or (\d+))?\]", line):
        assert cls.code == match[1]
        instance = cls("x", "y") if name in ("ChecksumError", "FileSystemError") else cls(*_ARGUMENTS.get(name, ("x",)))
        assert str(instance.http_status) in match.groups()[1:]
    else:
        assert name == "GenaiNotebookError"
    if "__init__" in methods_of(name):
        wanted = contract_parameters(methods_of(name)["__init__"])
        found = [value for value in real_parameters(cls) if value[0] != "hint"]
        assert found == wanted


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "PortInUseError": (8080,),
    "InsufficientResourcesError": ("x", {}),
}


@pytest.mark.parametrize("name", ["DownloadError", "ServerError", "BinaryError", "InvalidRequestError"])
def test_plain_errors_take_a_message_and_details(name: str) -> None:
    error = getattr(genai_notebook, name)("message", {"field": "x"})
    assert (str(error), error.details) == ("message", {"field": "x"})


# ---- managers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), METHODS, ids=lambda value: str(value))
def test_local_methods(name: str, method: str) -> None:
    cls = getattr(genai_notebook, name)
    assert_same(getattr(cls, method), methods_of(name)[method], f"{name}.{method}")
    assert inspect.getdoc(getattr(cls, method)), f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", ["GenerationRegistry", "ResourceOrchestrator"])
def test_constructors(name: str) -> None:
    assert real_parameters(getattr(genai_notebook, name)) == contract_parameters(methods_of(name)["__init__"])


@pytest.mark.parametrize("name", ["SystemInfo", "ModelManager", "LlamaServerManager", "DiffusionServerManager"])
def test_managers_can_be_built_by_hand(name: str) -> None:
    cls = getattr(genai_notebook, name)
    assert isinstance(cls(), cls)


@pytest.mark.parametrize("name", ["SystemInfo", "ModelManager", "BinaryManager"])
def test_get_instance_is_the_processes_own(name: str) -> None:
    cls = getattr(genai_notebook, name)
    assert isinstance(cls.get_instance(), cls)
    assert cls.get_instance() is cls.get_instance()


REMOTE_METHODS = [
    (handle, method) for handle, name in HANDLES.items() if name in MANAGERS for method in methods_of(name)
]
REMOTE_METHODS = [pair for pair in REMOTE_METHODS if pair[1] != "__init__"]


@pytest.fixture(scope="module")
def remote() -> Any:
    return RemoteRuntime("http://127.0.0.1:9/", "token")  # never opened: only looked at


@pytest.mark.parametrize(("handle", "method"), REMOTE_METHODS, ids=lambda value: str(value))
def test_remote_methods(remote: Any, handle: str, method: str) -> None:
    function = getattr(type(getattr(remote, handle)), method)
    assert_same(function, methods_of(HANDLES[handle])[method], f"remote {handle}.{method}")


def test_a_remote_runtime_has_what_a_local_one_has(remote: Any) -> None:
    for handle in HANDLES:
        assert getattr(remote, handle) is not None
    assert_same(type(remote.get_llama_server("other")).start, methods_of("LlamaServerManager")["start"], "remote start")


@pytest.mark.parametrize(("handle", "method"), REMOTE_METHODS, ids=lambda value: str(value))
def test_handle_methods(handle: str, method: str) -> None:
    function = getattr(getattr(current, handle), method)
    assert_same(function, methods_of(HANDLES[handle])[method], f"{handle}.{method}")
    assert method in dir(getattr(genai_notebook, handle))
    assert inspect.getdoc(function)


def test_named_llms_have_handles_too() -> None:
    handle = genai_notebook.get_llama_server("other")
    assert_same(handle.start, methods_of("LlamaServerManager")["start"], "handle start")


@pytest.mark.parametrize("method", sorted(ENGINE_METHODS))
@pytest.mark.parametrize("place", ["local", "remote", "handle"])
def test_engine_methods(remote: Any, place: str, method: str) -> None:
    owner = {
        "local": genai_notebook.BinaryManager,
        "remote": type(remote.engine_manager),
        "handle": genai_notebook.engine_manager,
    }[place]
    function = getattr(owner, method)
    assert inspect.iscoroutinefunction(function)
    assert real_parameters(function) == real_parameters(getattr(genai_notebook.BinaryManager, method))


def test_a_handle_has_no_other_names() -> None:
    with pytest.raises(AttributeError):
        genai_notebook.llama_server.frobnicate  # noqa: B018
