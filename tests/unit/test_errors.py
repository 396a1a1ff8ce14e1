"""errors: codes, attributes, the picture of the tree, and the way over a wire and back."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook import errors
from genai_notebook.errors import (
    BinaryError,
    ChecksumError,
    DownloadError,
    FileSystemError,
    GenaiNotebookError,
    InsufficientResourcesError,
    InvalidRequestError,
    ModelNotFoundError,
    NotYetError,
    PortInUseError,
    ServerError,
    error_from_wire,
    error_to_wire,
)

EXAMPLES = [
    GenaiNotebookError("anything"),
    ModelNotFoundError("tiny"),
    DownloadError("no route", {"url": "https://example.org"}),
    ChecksumError("aa", "bb"),
    InsufficientResourcesError("disk full", {"required": "4 GB", "available": "1 GB", "suggestion": "Make room."}),
    ServerError("exited", {"exit_code": 3, "log": ["a", "b"]}),
    ServerError("busy", code="SERVER_BUSY"),
    ServerError("cancelled", code="GENERATION_CANCELLED"),
    PortInUseError(8080, "nginx (pid 12)"),
    PortInUseError(8080),
    FileSystemError("write", "/x", OSError(28, "No space left on device")),
    BinaryError("none works", {"tried": []}, hint="pip install genai-notebook[embedded]"),
    InvalidRequestError("width: too big", {"field": "width"}),
    NotYetError("install"),
]
STATUS = {
    GenaiNotebookError: 500,
    ModelNotFoundError: 404,
    DownloadError: 502,
    ChecksumError: 502,
    InsufficientResourcesError: 507,
    PortInUseError: 409,
    FileSystemError: 500,
    BinaryError: 503,
    InvalidRequestError: 400,
    NotYetError: 501,
}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: f"{type(error).__name__}-{error.code}")
def test_an_error_survives_json(error: GenaiNotebookError) -> None:
    back = error_from_wire(json.loads(json.dumps(error_to_wire(error))))
    assert type(back) is type(error)
    assert str(back) == str(error) == error.message
    assert back.args == error.args
    assert (back.code, back.details, back.hint) == (error.code, error.details, error.hint)
    assert back.http_status == error.http_status
    for name, value in vars(error).items():
        if name != "original_error":
            assert getattr(back, name) == value, name


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: f"{type(error).__name__}-{error.code}")
def test_an_error_can_be_pickled(error: GenaiNotebookError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert error_to_wire(back) == error_to_wire(error)


@pytest.mark.parametrize(("cls", "status"), STATUS.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_class_has_its_http_status(cls: type[GenaiNotebookError], status: int) -> None:
    assert {error.http_status for error in EXAMPLES if type(error) is cls} == {status}


def test_server_errors_are_conflicts_or_unavailability() -> None:
    assert ServerError("x").http_status == 503
    assert ServerError("x", code="SERVER_BUSY").http_status == 503
    assert ServerError("x", code="SERVER_NOT_RUNNING").http_status == 503
    assert ServerError("x", code="ALREADY_TERMINAL").http_status == 409
    assert ServerError("x", code="GENERATION_CANCELLED").http_status == 409


def test_an_own_code_does_not_leak_into_the_class() -> None:
    ServerError("x", code="SERVER_BUSY")
    assert ServerError("y").code == "SERVER_ERROR"


def test_the_arguments_are_attributes() -> None:
    assert ModelNotFoundError("tiny").model_id == "tiny"
    assert (ChecksumError("aa", "bb").expected, ChecksumError("aa", "bb").actual) == ("aa", "bb")
    assert (PortInUseError(1, "x").port, PortInUseError(1, "x").holder) == (1, "x")
    cause = OSError("no")
    error = FileSystemError("read", "/x", cause)
    assert (error.operation, error.path, error.original_error) == ("read", "/x", cause)


def test_the_port_error_names_the_holder() -> None:
    assert str(PortInUseError(8080, "nginx (pid 12)")) == "Port 8080 is already in use by nginx (pid 12)."
    assert str(PortInUseError(8080)) == "Port 8080 is already in use."


def test_errors_fit_the_builtin_tree() -> None:
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(NotYetError, NotImplementedError)
    assert not issubclass(ChecksumError, DownloadError)


def test_the_suggestion_is_the_hint() -> None:
    error = InsufficientResourcesError("x", {"required": "1", "available": "0", "suggestion": "Close something."})
    assert error.hint == "Close something."


def test_ipython_shows_message_and_hint_and_no_stack() -> None:
    lines = PortInUseError(8080)._render_traceback_()
    assert lines[0] == "PortInUseError: Port 8080 is already in use."
    assert "another port" in lines[1]
    assert len(GenaiNotebookError("x")._render_traceback_()) == 1


def test_an_unknown_code_is_a_server_error() -> None:
    error = error_from_wire({"code": "BACKEND_ERROR", "message": "CUDA fell over"})
    assert type(error) is ServerError
    assert (error.code, str(error)) == ("BACKEND_ERROR", "CUDA fell over")


wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
CODES = sorted({error.code for error in EXAMPLES})


@given(st.dictionaries(st.sampled_from(["code", "message", "details", "hint", "other"]), wild), st.sampled_from(CODES))
def test_any_json_object_becomes_an_error(wire: dict[str, object], code: str) -> None:
    for given_wire in (wire, {**wire, "code": code}):
        error = error_from_wire(given_wire)
        assert isinstance(error, GenaiNotebookError)
        json.dumps(error_to_wire(error))
        str(error)
        error._render_traceback_()


@pytest.mark.parametrize("code", CODES)
def test_attributes_are_there_even_without_details(code: str) -> None:
    error = error_from_wire({"code": code, "message": "m"})
    sample = next(example for example in EXAMPLES if type(example) is type(error))
    for name in vars(sample):
        getattr(error, name)


def test_the_picture_shows_every_class_with_its_code() -> None:
    picture = errors.__doc__ or ""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, GenaiNotebookError)]
    assert len(classes) == 11
    for cls in classes:
        (line,) = [line for line in picture.splitlines() if line.strip(" ├└─").split(" ")[0] == cls.__name__]
        if cls is not GenaiNotebookError:
            assert cls.code in line
            assert len(cls.__bases__) == 1 or "also a" in line


def test_all_is_sorted_and_complete() -> None:
    assert errors.__all__ == sorted(errors.__all__)
    public = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}
    assert {name for name in public if not name.startswith("_")} == set(errors.__all__)
