"""What is known of engines, kept on disk: which program a file is, and what became of its tests.

A verdict belongs to a program (by the SHA-256 of its file), the release it is of, what it computes on and the drivers
of this machine: if one of them changes, the tests are made again. The hash itself is taken again when the file's size,
time of change or inode is another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.settings import private_folder
from genai_notebook.core.utilities import sha256_of
from genai_notebook.errors import FileSystemError

#: The oldest ones go.
KEPT = 100
#: Seconds for which a host that could not be reached is not asked again by itself.
UNREACHED = 3600.0
#: Seconds for which a failure counts: of a program that does not run, and of one that does not compute.
BRIEFLY, FOR_A_DAY = 60.0, 86_400.0
KEPT_FAILURES = 20

T = TypeVar("T")
Text = Annotated[str, Meta(max_length=20_000)]


class Failure(Struct, frozen=True):
    """A test that failed. It counts until `until` (seconds since the epoch): drivers recover, disks warm up, libraries
    get installed, and nothing of that shows in the program's own file.
    """

    reason: Text
    until: float
    log: Annotated[list[Text], Meta(max_length=50)] = []

    @property
    def counts(self) -> bool:
        return 0 < self.until - time.time() <= FOR_A_DAY


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tests of one engine showed.

    Attributes:
        version: what its `--version` says.
        proved: whether it has loaded a model and computed with it.
        gpu: whether a GPU took part in that; None: it did not tell.
        failures: by the id of the model it failed with; under '' what holds for every model.
    """

    version: str | None = None
    proved: bool = False
    gpu: bool | None = None
    failures: dict[str, Failure] = {}

    def failure_with(self, model: str | None) -> Failure | None:
        """Why the engine is of no use for this model (None: for any), as far as that still counts."""
        known = [self.failures.get(""), self.failures.get(model) if model else None]
        return next((failure for failure in known if failure is not None and failure.counts), None)

    @property
    def unfit(self) -> frozenset[str]:
        """The models that it is known to fail with, as far as that still counts."""
        return frozenset(model for model, failure in self.failures.items() if model and failure.counts)

    def with_failure(self, model: str | None, failure: Failure) -> Verdict:
        """Failed with this model; None: with every one."""
        others = {other: known for other, known in self.failures.items() if other != (model or "")}
        failures = {**others, model or "": failure}
        for oldest in list(failures)[:-KEPT_FAILURES]:
            del failures[oldest]
        return msgspec.structs.replace(self, failures=failures, proved=self.proved and model is not None)

    def without_failure(self, *models: str) -> Verdict:
        left = {model: failure for model, failure in self.failures.items() if model not in ("", *models)}
        return msgspec.structs.replace(self, failures=left)


class _Hash(Struct, frozen=True, array_like=True):
    size: int
    changed: int
    inode: int
    sha256: str


class _Known(Struct):
    hashes: dict[str, _Hash] = {}
    verdicts: dict[str, Verdict] = {}
    unreached: dict[str, float] = {}


class Verdicts:
    """Everything in `<folder>/engines.json`. Thread-safe; a file that cannot be read or written is no misfortune."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "engines.json"
        self._lock = threading.RLock()
        self._known = _Known()
        self._stamp: tuple[int, int, int] | None = None

    # ---- programs

    def identity_of(self, path: str | Path) -> str:
        """The SHA-256 of a program's file.

        Raises:
            FileSystemError: it cannot be read.
        """
        key = os.path.abspath(path)
        try:
            status = os.stat(key)
        except OSError as error:
            raise FileSystemError("read", key, error) from error
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock:
            known = self._read().hashes.get(key)
        if known is not None and (known.size, known.changed, known.inode) == stamp:
            return known.sha256
        found = _Hash(*stamp, sha256_of(key))
        with self._lock:
            _put(self._read().hashes, key, found)
            self._write()
        return found.sha256

    # ---- tests

    def get(self, key: str) -> Verdict | None:
        with self._lock:
            return self._read().verdicts.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        with self._lock:
            _put(self._read().verdicts, key, verdict)
            self._write()

    # ---- hosts

    def unreached(self, host: str) -> float | None:
        """Seconds ago that `host` could not be reached, while it is not worth another try; else None."""
        with self._lock:
            since = time.time() - self._read().unreached.get(host, 0.0)
        return since if 0 <= since < UNREACHED else None

    def note_unreached(self, host: str, *, reached: bool = False) -> None:
        """Write down that `host` could not be reached just now, or, with `reached`, that it can be."""
        with self._lock:
            hosts = self._read().unreached
            if reached and host not in hosts:
                return
            if reached:
                del hosts[host]
            else:
                _put(hosts, host, time.time())
            self._write()

    # ---- the file

    def _read(self) -> _Known:
        """What the file says; read again when another process has written it."""
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._known = msgspec.json.decode(self._path.read_bytes(), type=_Known)
                self._stamp = stamp
        except FileNotFoundError:
            if self._stamp is not None:  # somebody has cleared the cache
                self._known, self._stamp = _Known(), None
        except (OSError, msgspec.DecodeError):
            self._known, self._stamp = _Known(), None
        return self._known

    def _write(self) -> None:
        temporary = self._path.with_name(f"engines.{os.getpid()}.{threading.get_ident()}.new")
        with contextlib.suppress(OSError, FileSystemError):
            private_folder(self._path.parent)
            temporary.write_bytes(msgspec.json.encode(self._known))
            os.replace(temporary, self._path)
            status = os.stat(self._path)
            self._stamp = (status.st_mtime_ns, status.st_size, status.st_ino)


def verdict_key(identity: str, variant: str, release: str | None, drivers: str) -> str:
    """One word for a program, its release, what it computes on, and the drivers it meets."""
    return hashlib.sha256(msgspec.json.encode([identity, variant, release, drivers])).hexdigest()[:32]


def drivers_of(gpus: Iterable[GPUInfo]) -> str:
    """The GPUs of a machine and their drivers, in a word."""
    return ", ".join(sorted(f"{gpu.name} {gpu.driver}" for gpu in gpus))


def _put(store: dict[str, T], key: str, value: T) -> None:
    store.pop(key, None)
    store[key] = value
    for oldest in list(store)[:-KEPT]:
        del store[oldest]
