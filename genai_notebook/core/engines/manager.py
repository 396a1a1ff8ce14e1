"""Which program runs a model: an own one, one that came as a Python wheel, or one on the PATH.

In that order, and the first that is there wins. A path that the user set is meant: if it does not work, that is an
error, and no other engine takes its place in silence.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from genai_notebook.core.engines.check import CheckFailedError, check_runs, version_in
from genai_notebook.core.schema import EngineCandidate
from genai_notebook.core.settings import PREFIX, Settings
from genai_notebook.errors import BinaryError, InvalidRequestError, NotYetError

Kind = Literal["llama", "diffusion"]
Variant = Literal["explicit", "embedded", "path"]
OnLog = Callable[[str, str], None]

KINDS: tuple[Kind, ...] = ("llama", "diffusion")
HINT = "pip install genai-notebook[embedded]"

_PROGRAM = {"llama": "llama-server", "diffusion": "sd-server"}
_VARIABLE = {"llama": PREFIX + "LLAMA_SERVER", "diffusion": PREFIX + "SD_SERVER"}
_MODULE = {
    "llama": "genai_notebook.core.engines.embedded.llama_server",
    "diffusion": "genai_notebook.core.engines.embedded.sd_server",
}
# The wheel that holds the engine, then what its program needs besides, by import name and by package name.
_WHEELS = {
    "llama": (("xllamacpp", "xllamacpp"),),
    "diffusion": (("cyllama", "cyllama"), ("PIL", "pillow"), ("numpy", "numpy")),
}


class Engine(Struct, frozen=True, kw_only=True):
    """A program that can be started.

    Attributes:
        name: for people, e.g. ``xllamacpp 2026.10.11549 (embedded)``.
        kind: 'llama' (takes llama-server's flags) or 'diffusion' (sd-server's).
        argv: how it is started; its flags follow.
        version: its own version, or None where it does not tell.
        variant: where it is from: 'explicit', 'embedded' or 'path'.
        env: environment variables it needs on top of the usual ones.
        gpu: whether it can use a GPU at all; None: it shows when it has loaded a model.
    """

    name: str
    kind: Kind
    argv: list[str]
    version: str | None
    variant: Variant
    env: dict[str, str] = {}
    gpu: bool | None = None


class _Look(Struct, frozen=True):
    """What one place held: an engine, or why there is none (`state` as in EngineCandidate)."""

    name: str
    variant: Variant
    state: Literal["usable", "missing", "failed"]
    engine: Engine | None = None
    path: str | None = None
    reason: str | None = None

    def candidate(self, kind: Kind, in_use: bool) -> EngineCandidate:
        return EngineCandidate(
            name=self.engine.name if self.engine else self.name,
            kind=kind,
            state=self.state,
            version=self.engine.version if self.engine else None,
            path=self.path,
            reason=self.reason,
            in_use=in_use or None,
        )


class BinaryManager:
    """Finds engines.

    Args:
        settings: where the user's own engines are named; default: from the environment.
    """

    _instance: BinaryManager | None = None
    _instance_lock = threading.Lock()

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self._found: dict[tuple[Any, ...], Engine] = {}

    @classmethod
    def get_instance(cls) -> BinaryManager:
        """This process's own one."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

    async def resolve(self, kind: Kind, *, force_validation: bool = False, on_log: OnLog | None = None) -> Engine:
        """The engine to use for `kind`.

        What was found once is remembered; a program file is looked at again when it has changed.

        Args:
            kind: 'llama' or 'diffusion'.
            force_validation: forget what is known, and have the engine show that it runs.
            on_log: called with (message, level) for every step worth telling.

        Raises:
            BinaryError: there is none that works; `details["candidates"]` lists what was tried, and why not.
        """
        _check_kind(kind)
        key = self._key(kind)
        known = self._found.get(key)
        if known and not force_validation and os.path.exists(known.argv[0]):
            return known
        tell = on_log or (lambda message, level: None)
        looks: list[_Look] = []
        for look_for in self._places(kind):
            look = await asyncio.to_thread(look_for, force_validation)
            looks.append(look)
            if look.engine:
                tell(f"engine: {look.engine.name}", "info")
                self._found[key] = look.engine
                return look.engine
            # What nobody asked for and is not there is no news.
            tell(f"engine: {look.name}: {look.reason}", "debug" if look.state == "missing" else "warn")
            if look.variant == "explicit":
                raise _explicit_error(kind, look)
        raise _none_error(kind, looks)

    async def list(self) -> list[EngineCandidate]:
        """Every engine that was looked for, of both kinds; `in_use` marks the ones `resolve` takes."""
        candidates = []
        for kind in KINDS:
            taken = False
            for look_for in self._places(kind):
                look = await asyncio.to_thread(look_for, False)
                candidates.append(look.candidate(kind, in_use=look.engine is not None and not taken))
                # A broken path of the user's own is not skipped: nothing after it is used.
                taken = taken or look.engine is not None or look.variant == "explicit"
        return candidates

    async def use(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        raise NotYetError("Choosing an engine", hint=f"Set {_VARIABLE.get(kind, '…')} to the path of an own one.")

    async def test(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        raise NotYetError("Testing an engine", hint="Start a server with force_validation=True.")

    async def install(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        raise NotYetError("Installing an engine", hint=HINT)

    async def remove(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        raise NotYetError("Removing an engine")

    # ---- where engines are ------------------------------------------------------------------------------------------

    def _own(self, kind: Kind) -> Path | None:
        return self.settings.llama_server if kind == "llama" else self.settings.sd_server

    def _key(self, kind: Kind) -> tuple[Any, ...]:
        own = self._own(kind)
        if own is None:
            return kind, None
        try:
            status = own.stat()
        except OSError:
            return kind, str(own), None
        return kind, str(own), status.st_mtime_ns, status.st_size, status.st_ino

    def _places(self, kind: Kind) -> Iterator[Callable[[bool], _Look]]:
        own = self._own(kind)
        if own is not None:
            yield lambda validate: _look_at_file(kind, str(own), "explicit")
        yield lambda validate: _look_at_wheels(kind, validate)
        yield lambda validate: _look_at_path(kind)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidRequestError(f"kind: must be one of {', '.join(KINDS)}, not {kind!r}.", {"field": "kind"})


def _explicit_error(kind: Kind, look: _Look) -> BinaryError:
    return BinaryError(
        f"The {_PROGRAM[kind]} that {_VARIABLE[kind]} names does not work: {look.reason}.",
        {"kind": kind, "path": look.path, "candidates": [_as_dict(look)]},
        hint=f"Correct {_VARIABLE[kind]}, or unset it to use another engine.",
    )


def _none_error(kind: Kind, looks: list[_Look]) -> BinaryError:
    reasons = "; ".join(f"{look.name}: {look.reason}" for look in looks)
    return BinaryError(
        f"There is no {_PROGRAM[kind]} here ({reasons}).",
        {"kind": kind, "candidates": [_as_dict(look) for look in looks]},
        hint=HINT,
    )


def _as_dict(look: _Look) -> dict[str, Any]:
    return {"name": look.name, "state": look.state, "path": look.path, "reason": look.reason}


# ---- looking --------------------------------------------------------------------------------------------------------


def _look_at_file(kind: Kind, path: str, variant: Variant) -> _Look:
    name = path if variant == "explicit" else f"{_PROGRAM[kind]} on the PATH"
    problem = "there is no such file" if not os.path.isfile(path) else "it may not be executed"
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return _Look(name, variant, "failed", path=path, reason=f"{path}: {problem}")
    try:
        version = version_in(check_runs([path], flags=("--version", "--help")))
    except CheckFailedError as error:
        return _Look(name, variant, "failed", path=path, reason=f"{path}: {error}")
    shown = " ".join(filter(None, (os.path.basename(path), version, f"({variant})")))
    engine = Engine(name=shown, kind=kind, argv=[path], version=version, variant=variant)
    return _Look(name, variant, "usable", engine, path)


def _look_at_path(kind: Kind) -> _Look:
    import shutil

    name = f"{_PROGRAM[kind]} on the PATH"
    path = shutil.which(_PROGRAM[kind])
    if path is None:
        return _Look(name, "path", "missing", reason=f"no {_PROGRAM[kind]} in any of its folders")
    if not os.path.isabs(path):
        # An entry such as "." means: whatever lies where the notebook happens to be.
        return _Look(name, "path", "failed", path=path, reason=f"{path}: found by a relative entry, which is not used")
    return _look_at_file(kind, path, "path")


def _look_at_wheels(kind: Kind, validate: bool) -> _Look:
    wheel = _WHEELS[kind][0][1]
    name = f"{wheel} (embedded)"
    missing = [package for module, package in _WHEELS[kind] if not _is_there(module)]
    if missing:
        return _Look(name, "embedded", "missing", reason=f"not installed: {', '.join(missing)}")
    if not sys.executable:
        return _Look(name, "embedded", "missing", reason="this Python does not know its own executable")
    version = _version_of(wheel)
    engine = Engine(
        name=" ".join(filter(None, (wheel, version, "(embedded)"))),
        kind=kind,
        argv=[sys.executable, "-m", _MODULE[kind]],
        version=version,
        variant="embedded",
        env=_python_path(),
        gpu=_may_use_gpu(version),
    )
    if validate:
        try:
            check_runs(engine.argv, flags=("--version",), env=engine.env)
        except CheckFailedError as error:
            return _Look(name, "embedded", "failed", path=sys.executable, reason=str(error))
    return _Look(name, "embedded", "usable", engine, sys.executable)


def _may_use_gpu(version: str | None) -> bool | None:
    """The index's wheels are built for Metal on macOS and for the CPU elsewhere; GPU builds from other places have a
    local version, such as 0.2.0+cu128.
    """
    return None if sys.platform == "darwin" or "+" in (version or "") else False


def _is_there(module: str) -> bool:
    """Whether a top-level module could be imported, without importing it."""
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python_path() -> dict[str, str]:
    """What a child Python needs to find this package: nothing where it is installed the usual way."""
    import genai_notebook

    root = str(Path(genai_notebook.__file__).resolve().parent.parent)
    if os.path.basename(root) in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
