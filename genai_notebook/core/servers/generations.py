"""The registry of asynchronous image generations: what the polling routes report."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import msgspec

from genai_notebook.core.schema import (
    GenerationFailure,
    GenerationOutput,
    GenerationState,
    ImageGenerationConfig,
    ImageGenerationProgress,
)
from genai_notebook.core.utilities import generate_id, now_ms
from genai_notebook.core.validation import from_keywords
from genai_notebook.errors import InvalidRequestError

TERMINAL = ("complete", "error")
_UPDATABLE = ("status", "progress", "result", "error", "config")


class GenerationRegistry:
    """Generations by id, in memory. Finished ones go after a while; others stay until they are deleted.

    Usable from any thread and without a running event loop.

    Args:
        max_result_age_ms: how long a finished generation is kept, in milliseconds.
        cleanup_interval_ms: how often the finished ones are looked through, in milliseconds.
    """

    def __init__(self, *, max_result_age_ms: int = 300_000, cleanup_interval_ms: int = 60_000) -> None:
        self._max_age = max_result_age_ms
        self._interval = cleanup_interval_ms
        self._states: dict[str, GenerationState] = {}
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._destroyed = False

    def create(self, config: ImageGenerationConfig | None = None, **fields: Any) -> str:
        """Add a generation with status 'pending' and return its id.

        Raises:
            InvalidRequestError: a field of the configuration is wrong.
        """
        checked = from_keywords(ImageGenerationConfig, config, fields)
        now = now_ms()
        state = GenerationState(id=generate_id(), status="pending", created_at=now, updated_at=now, config=checked)
        with self._lock:
            self._states[state.id] = state
            self._schedule()
        return state.id

    def get(self, id: str) -> GenerationState | None:
        """A snapshot, or None where no such generation is kept."""
        with self._lock:
            return self._states.get(id)

    def update(self, id: str, updates: dict[str, Any] | None = None, **fields: Any) -> None:
        """Change some of status, progress, result, error, config; `updated_at` follows. Unknown ids are ignored.

        Raises:
            InvalidRequestError: another field, or a value of the wrong shape.
        """
        changes = {**(updates or {}), **fields}
        for name in changes:
            if name not in _UPDATABLE:
                raise InvalidRequestError(
                    f"A generation's {name!r} cannot be updated.", {"field": name, "valid": list(_UPDATABLE)}
                )
        checked = {name: _as_struct(name, value) for name, value in changes.items()}
        with self._lock:
            state = self._states.get(id)
            if state is not None:
                self._states[id] = msgspec.structs.replace(state, updated_at=now_ms(), **checked)

    def delete(self, id: str) -> None:
        """Forget one generation; an unknown id is no error."""
        with self._lock:
            self._states.pop(id, None)

    def get_all_ids(self) -> list[str]:
        """The ids of all generations that are kept, oldest first."""
        with self._lock:
            return list(self._states)

    def size(self) -> int:
        """How many generations are kept."""
        return len(self._states)

    def cleanup(self, max_age_ms: int) -> int:
        """Remove finished generations that have not changed for `max_age_ms`; returns how many."""
        oldest = now_ms() - max_age_ms
        with self._lock:
            old = [s.id for s in self._states.values() if s.status in TERMINAL and s.updated_at <= oldest]
            for id in old:
                del self._states[id]
        return len(old)

    def clear(self) -> None:
        """Forget all generations."""
        with self._lock:
            self._states.clear()

    def destroy(self) -> None:
        """End the periodic cleaning. What is kept stays readable."""
        with self._lock:
            self._destroyed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _schedule(self) -> None:
        """Keep a timer while there is something to clean; an empty registry costs nothing."""
        if self._timer is None and not self._destroyed and self._states:
            self._timer = threading.Timer(self._interval / 1000, _sweep, (weakref.ref(self),))
            self._timer.daemon = True
            self._timer.start()


def _sweep(reference: weakref.ref[GenerationRegistry]) -> None:
    registry = reference()
    if registry is not None:
        registry.cleanup(registry._max_age)
        with registry._lock:
            registry._timer = None
            registry._schedule()


_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "progress": ImageGenerationProgress,
    "result": GenerationOutput,
    "error": GenerationFailure,
    "config": ImageGenerationConfig,
}


def _as_struct(name: str, value: Any) -> Any:
    """Dicts in the shape of the wire become structs; structs and None pass."""
    if name in _STRUCTS and isinstance(value, dict):
        return from_keywords(_STRUCTS[name], _snake(_STRUCTS[name], value))
    if name == "status" and value not in ("pending", "in_progress", "complete", "error"):
        raise InvalidRequestError(f"{value!r} is no status of a generation.", {"field": "status"})
    return value


def _snake(struct: type[msgspec.Struct], value: dict[str, Any]) -> dict[str, Any]:
    names = {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    return {names.get(key, key): item for key, item in value.items()}
