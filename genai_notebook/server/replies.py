"""What every HTTP answer of this package has in common, under Jupyter and on the stand-alone image port.

JSON in the wire form of `core.schema`, and one shape for errors:
``{"error": {"code", "message", "details"?, "hint"?}}``.
"""

from __future__ import annotations

import http
from typing import Any

import msgspec
from tornado.web import HTTPError, MissingArgumentError

from genai_notebook.errors import GenaiNotebookError, InvalidRequestError, error_to_wire

#: The largest JSON body that is read, in bytes. Longer ones are refused, and never kept in memory.
MAX_BODY = 2_000_000

_CODES = {401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


class NotFoundError(GenaiNotebookError):
    """A route, a generation or a download that is not there. On the wire only; managers say it in other ways."""

    code = "NOT_FOUND"
    http_status = 404


class BodyTooLargeError(InvalidRequestError):
    """More bytes than any request here needs."""

    http_status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is longer than {limit} bytes.", {"field": None, "limit": limit})


def encode(value: Any) -> bytes:
    """JSON of structs, dicts and lists."""
    return msgspec.json.encode(value)


def error_reply(error: BaseException | None, status: int = 500) -> tuple[int, bytes]:
    """HTTP status and JSON body for `error`. What was not raised on purpose says nothing about our insides."""
    if isinstance(error, GenaiNotebookError):
        return error.http_status, _body(error_to_wire(error))
    if isinstance(error, HTTPError):
        status = error.status_code
        wire: dict[str, Any] = {"code": _code(status), "message": _message(error, status)}
        return status, _body(wire)
    if error is None and status != 500:
        return status, _body({"code": _code(status), "message": _phrase(status)})
    return 500, _body(
        {
            "code": "INTERNAL_ERROR",
            "message": "Something went wrong inside genai-notebook.",
            "hint": "The log of the Jupyter server has the details.",
        }
    )


def _body(wire: dict[str, Any]) -> bytes:
    try:
        return encode({"error": wire})
    except (TypeError, ValueError):  # details that JSON cannot say
        return encode({"error": {**wire, "details": repr(wire.get("details"))}})


def _message(error: HTTPError, status: int) -> str:
    if isinstance(error, MissingArgumentError):
        return f"{error.arg_name}: is required."
    if not error.log_message:
        return error.reason or _phrase(status)
    # Tornado doubles the percent signs of messages without arguments; formatting undoes that.
    try:
        return error.log_message % (error.args or ())
    except (TypeError, ValueError):
        return error.log_message


def _code(status: int) -> str:
    return _CODES.get(status, "INVALID_REQUEST" if status < 500 else "SERVER_ERROR")


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown error"
