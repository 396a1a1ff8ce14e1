"""The models on disk: one folder per model, with its `model.json` and, where we fetched it, its file.

    models/<id>/model.json      a ModelInfo
    models/<id>/<file>          absent for a file registered where it lies
    models/.incoming/<key>/     what a running download has so far
    models/.lock                held while ids are given out, and models are added, changed or removed

Deleting removes the model's own folder and nothing else: a path in a `model.json` is never followed. A `model.json`
that cannot be read, or whose model is none of ours, is skipped with a warning. All of it blocks; callers use threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.ids import is_model_id, model_id, numbered, safe_file_name
from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.settings import Settings, private_folder
from genai_notebook.errors import FileSystemError, InvalidRequestError, ModelNotFoundError

log = logging.getLogger("genai_notebook")

METADATA = "model.json"
MAX_METADATA = 16 << 20
#: Seconds to wait for another process that changes the store.
LOCK_LIMIT = 30.0
_POLL = 0.1


class ModelStore:
    """The folder of models of one home. Safe for several processes."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.models

    # ---- reading

    def all(self) -> list[ModelInfo]:
        """Every readable model, sorted by id."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if is_model_id(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileSystemError("read", str(self.folder), error) from error
        found = (self._read(name) for name in names)
        return [model for model in found if model is not None]

    def get(self, id: str) -> ModelInfo:
        """Raises:
        ModelNotFoundError: there is none of that id.
        """
        model = self._read(id) if is_model_id(id) else None
        if model is None:
            raise ModelNotFoundError(str(id))
        return model

    def find(self, matches: Callable[[ModelInfo], bool]) -> ModelInfo | None:
        """The first model that `matches` and whose file is there in its full size."""
        return next((model for model in self.all() if matches(model) and self.is_whole(model)), None)

    @staticmethod
    def is_whole(model: ModelInfo) -> bool:
        try:
            return Path(model.path).stat().st_size == model.size
        except OSError:
            return False

    def owns_file(self, model: ModelInfo) -> bool:
        """Whether the model's file lies in its own folder (and goes with it when the model is deleted)."""
        return Path(model.path).parent == self.folder / model.id

    def _read(self, id: str) -> ModelInfo | None:
        path = self.folder / id / METADATA
        try:
            if path.parent.is_symlink() or path.is_symlink():
                raise ValueError("a link stands there")
            with open(path, "rb") as file:
                data = file.read(MAX_METADATA + 1)
            if len(data) > MAX_METADATA:
                raise ValueError("the file is too long")
            model = self._placed(msgspec.json.decode(data, type=ModelInfo), id)
        except FileNotFoundError:
            return None  # a model that is just being added or removed
        except (OSError, ValueError, RecursionError) as error:
            log.warning("the model in %s is skipped: %s", path.parent, error)
            return None
        return model

    def _placed(self, model: ModelInfo, id: str) -> ModelInfo:
        """The model with its absolute path. A bare name is a file in the model's own folder (so that a home can be
        moved); only a registered file (source local) may lie elsewhere.
        """
        if model.id != id:
            raise ValueError(f"it says that its id is {model.id[:80]!r}")
        if model.path == safe_file_name(model.path, ""):
            path = self.folder / id / model.path
            if path.is_symlink():
                raise ValueError("its file is a link")
            return msgspec.structs.replace(model, path=str(path))
        path = Path(model.path)
        if not path.is_absolute() or ".." in path.parts or "\0" in model.path:
            raise ValueError(f"its path {model.path[:200]!r} is not absolute")
        if model.source.type != "local" or self.folder in path.parents:
            raise ValueError(f"its path {model.path[:200]!r} lies outside of its folder")
        return model

    # ---- changing

    def add(self, name: str, make: Callable[[str, Path], ModelInfo], *, file: Path | None = None) -> ModelInfo:
        """Add a model under the first free id of its name.

        Args:
            name: what the id is made from (a display name or a file's name).
            make: gets the id and the model's folder, returns the model that goes into `model.json`.
            file: a complete file that is moved into the model's folder under its own name.
        """
        with self.locked():
            return self._add(name, make, file)

    def add_or_find(
        self, name: str, make: Callable[[str, Path], ModelInfo], matches: Callable[[ModelInfo], bool]
    ) -> ModelInfo:
        """The model that `matches`, else a new one as by `add`."""
        with self.locked():
            found = next((model for model in self.all() if matches(model)), None)
            return found or self._add(name, make, None)

    def _add(self, name: str, make: Callable[[str, Path], ModelInfo], file: Path | None) -> ModelInfo:
        id, folder = self._new_folder(model_id(name, file.name if file else None))
        try:
            if file is not None:
                os.replace(file, folder / file.name)
            model = make(id, folder)
            self._write(model)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return model

    def change(self, id: str, **fields: object) -> ModelInfo:
        """Replace fields of a model; errors as `get`."""
        with self.locked():
            model = msgspec.structs.replace(self.get(id), **fields)
            self._write(model)
        return model

    def remove(self, id: str) -> None:
        """Remove a model's folder. A file outside of it stays.

        Raises:
            ModelNotFoundError: there is none of that id.
            FileSystemError: it could not be removed.
        """
        if not is_model_id(id):
            raise ModelNotFoundError(str(id))
        with self.locked():
            self.get(id)
            folder = self.folder / id
            try:
                # The metadata goes first: what is half removed is no model any more.
                (folder / METADATA).unlink()
                shutil.rmtree(folder)
            except OSError as error:
                raise FileSystemError(
                    "remove", str(folder), error, hint="A server may still use the model: stop it first."
                ) from error

    def _new_folder(self, base: str) -> tuple[str, Path]:
        for number in range(1, 10_000):
            id = numbered(base, number)
            folder = self.folder / id
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise FileSystemError("make the folder", str(folder), error) from error
            return id, folder
        raise InvalidRequestError(f"There are too many models of the name {base!r}.", {"field": "name"})

    def _write(self, model: ModelInfo) -> None:
        path = self.folder / model.id / METADATA
        if self.owns_file(model):
            model = msgspec.structs.replace(model, path=Path(model.path).name)
        draft = path.with_name(f".{METADATA}.{secrets.token_hex(4)}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(model), indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise FileSystemError("write", str(path), error) from error

    # ---- locks and room for downloads

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The store's lock, for short changes."""
        from filelock import FileLock, Timeout

        private_folder(self.folder)
        lock = FileLock(self.folder / ".lock", timeout=LOCK_LIMIT, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, OSError) as error:
            raise FileSystemError(
                "lock", str(self.folder), error, hint="Another process changes the models; try again."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def incoming(self, key: str, work: Work) -> Iterator[Path]:
        """An empty folder for the download `key`, for one download at a time over all processes; removed afterwards."""
        from filelock import FileLock, Timeout

        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        folder = private_folder(private_folder(self.folder) / ".incoming")
        lock = FileLock(folder / f"{name}.lock", thread_local=False)
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                work.enter("queued")
                work.sleep(_POLL)
            except OSError as error:
                raise FileSystemError("lock", str(folder), error) from error
        try:
            room = folder / name
            shutil.rmtree(room, ignore_errors=True)
            yield private_folder(room)
        finally:
            shutil.rmtree(room, ignore_errors=True)
            lock.release()
