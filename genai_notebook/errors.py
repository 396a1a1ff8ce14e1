"""Every error this package raises on purpose.

    GenaiNotebookError
    ├── ModelNotFoundError           MODEL_NOT_FOUND           no model of that id in the store
    ├── DownloadError                DOWNLOAD_FAILED           bytes did not arrive
    ├── ChecksumError                CHECKSUM_ERROR            bytes arrived, but not the right ones
    ├── InsufficientResourcesError   INSUFFICIENT_RESOURCES    RAM, VRAM or disk does not suffice
    ├── ServerError                  SERVER_ERROR, SERVER_BUSY, SERVER_NOT_RUNNING, GENERATION_CANCELLED, …
    ├── PortInUseError               PORT_IN_USE               somebody else listens there
    ├── FileSystemError              FILE_SYSTEM_ERROR         the disk said no
    ├── BinaryError                  BINARY_ERROR              no engine that works here
    ├── InvalidRequestError          INVALID_REQUEST           also a ValueError
    └── NotYetError                  NOT_YET                   also a NotImplementedError

An error knows its `code` (stable, for programs), its `details` (what the constructor was given) and a `hint` (the way
out, for people). It survives JSON: `error_to_wire` and `error_from_wire` are what the HTTP layers use, so that a remote
caller catches the same class with the same attributes as a local one.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BinaryError",
    "ChecksumError",
    "DownloadError",
    "FileSystemError",
    "GenaiNotebookError",
    "InsufficientResourcesError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "NotYetError",
    "PortInUseError",
    "ServerError",
    "error_from_wire",
    "error_to_wire",
]


class GenaiNotebookError(Exception):
    """The base of all errors here.

    Attributes:
        code: stable identifier for programs, e.g. ``MODEL_NOT_FOUND``.
        details: JSON-able facts about what went wrong, or None.
        hint: one sentence that says the way out, or None.
        http_status: the status code under which the HTTP API reports it.
    """

    code: str = "GENAI_NOTEBOOK_ERROR"
    http_status: int = 500

    def __init__(
        self, message: str, code: str | None = None, details: dict[str, Any] | None = None, *, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors differ by class; the wire form is common to all.
        return error_from_wire, (error_to_wire(self),)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a stack: the message and the way out."""
        lines = [f"{type(self).__name__}: {self.message}"]
        if self.hint:
            lines.append(f"  → {self.hint}")
        return lines


class ModelNotFoundError(GenaiNotebookError):
    """No model of that id is in the store."""

    code = "MODEL_NOT_FOUND"
    http_status = 404

    def __init__(self, model_id: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"There is no model {model_id!r}.",
            details={"model_id": model_id},
            hint=hint or "%genai models lists what is installed; %genai download starter fetches a small LLM.",
        )
        self.model_id = model_id


class DownloadError(GenaiNotebookError):
    """A download failed, or was cancelled."""

    code = "DOWNLOAD_FAILED"
    http_status = 502

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, details=details, hint=hint)


class ChecksumError(GenaiNotebookError):
    """The bytes are not the ones that were promised. The file has been removed; a retry may work."""

    code = "CHECKSUM_ERROR"
    http_status = 502

    def __init__(self, expected: str, actual: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"The SHA-256 does not match: expected {expected}, got {actual}.",
            details={"expected": expected, "actual": actual},
            hint=hint or "The file was removed. Try again; if it fails again, the source or the checksum is wrong.",
        )
        self.expected = expected
        self.actual = actual


class InsufficientResourcesError(GenaiNotebookError):
    """RAM, VRAM or disk space does not suffice. `details`: required, available, suggestion (all text)."""

    code = "INSUFFICIENT_RESOURCES"
    http_status = 507

    def __init__(self, message: str, details: dict[str, Any], *, hint: str | None = None) -> None:
        super().__init__(message, details=details, hint=hint or details.get("suggestion"))


class ServerError(GenaiNotebookError):
    """An engine or one of its jobs failed, is busy, or was cancelled; `code` says which."""

    code = "SERVER_ERROR"
    _conflicts = frozenset({"ALREADY_RUNNING", "ALREADY_TERMINAL", "GENERATION_CANCELLED", "START_CANCELLED"})

    def __init__(
        self, message: str, details: dict[str, Any] | None = None, *, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code, details, hint=hint)
        self.http_status = 409 if self.code in self._conflicts else 503


class PortInUseError(GenaiNotebookError):
    """Somebody else listens on that port; `holder` says who, where the system tells."""

    code = "PORT_IN_USE"
    http_status = 409

    def __init__(self, port: int, holder: str | None = None, *, hint: str | None = None) -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(
            f"Port {port} is already in use{by}.",
            details={"port": port, "holder": holder},
            hint=hint or 'Use another port, or port="auto" for any free one.',
        )
        self.port = port
        self.holder = holder


class FileSystemError(GenaiNotebookError):
    """Reading, writing or removing a file failed."""

    code = "FILE_SYSTEM_ERROR"

    def __init__(
        self, operation: str, path: str, original_error: BaseException | None = None, *, hint: str | None = None
    ) -> None:
        why = f": {original_error}" if original_error else ""
        super().__init__(
            f"Could not {operation} {path}{why}",
            details={
                "operation": operation,
                "path": str(path),
                "original_error": str(original_error) if original_error else None,
            },
            hint=hint,
        )
        self.operation = operation
        self.path = str(path)
        self.original_error = original_error


class BinaryError(GenaiNotebookError):
    """No engine program could be found, fetched or run."""

    code = "BINARY_ERROR"
    http_status = 503

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, details=details, hint=hint)


class InvalidRequestError(GenaiNotebookError, ValueError):
    """An argument is wrong; `details["field"]` names it."""

    code = "INVALID_REQUEST"
    http_status = 400

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, details=details, hint=hint)


class NotYetError(GenaiNotebookError, NotImplementedError):
    """Part of the public contract that this version does not do yet."""

    code = "NOT_YET"
    http_status = 501

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(f"{what} is not there yet in this version.", details={"what": what}, hint=hint)
        self.what = what


_BY_NAME: dict[str, type[GenaiNotebookError]] = {
    cls.__name__: cls
    for cls in (
        GenaiNotebookError,
        ModelNotFoundError,
        DownloadError,
        ChecksumError,
        InsufficientResourcesError,
        ServerError,
        PortInUseError,
        FileSystemError,
        BinaryError,
        InvalidRequestError,
        NotYetError,
    )
}
_BY_CODE = {cls.code: cls for cls in _BY_NAME.values()}


def error_to_wire(error: GenaiNotebookError) -> dict[str, Any]:
    """The JSON form: ``{"code", "message", "details"?, "hint"?}``."""
    wire: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        wire["details"] = error.details
    if error.hint is not None:
        wire["hint"] = error.hint
    return wire


def error_from_wire(wire: dict[str, Any]) -> GenaiNotebookError:
    """The error that `error_to_wire` described. Codes without a class of their own are ServerErrors.

    The other side may be anything that answers HTTP: what does not fit is dropped, never an error of its own.
    """
    code, details, hint = wire.get("code"), wire.get("details"), wire.get("hint")
    code = code if isinstance(code, str) and code else None
    cls = _BY_CODE.get(code or "", ServerError)
    error = cls.__new__(cls)
    GenaiNotebookError.__init__(
        error,
        str(wire.get("message", "")),
        code,
        details if isinstance(details, dict) else None,
        hint=hint if isinstance(hint, str) else None,
    )
    if isinstance(error, ServerError):
        error.http_status = 409 if error.code in ServerError._conflicts else 503
    for name in _ATTRIBUTES.get(cls, ()):
        setattr(error, name, (error.details or {}).get(name))
    return error


_ATTRIBUTES: dict[type[GenaiNotebookError], tuple[str, ...]] = {
    ModelNotFoundError: ("model_id",),
    ChecksumError: ("expected", "actual"),
    PortInUseError: ("port", "holder"),
    FileSystemError: ("operation", "path", "original_error"),
    NotYetError: ("what",),
}
