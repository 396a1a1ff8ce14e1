"""The models on disk: one folder per model, with its `model.json` and the files that we fetched.

    models/<id>/model.json      a ModelRecord
    models/<id>/<file>          absent for a file registered where it lies
    models/.incoming/           what is on its way in or out (see `rooms`)
    models/.lock                held while models are added, changed or removed

A model comes and goes by the renaming of its folder: there are no half ones. A file that two models share is one file
with two names (a hard link), and goes with the last of them. Deleting removes the model's own folder and nothing else:
a path in a `model.json` is never followed. A `model.json` that cannot be read, or whose model is none of ours, is
reported as broken and hides no other. All of it blocks; callers use threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from genai_notebook.core.downloads.disk import write_error
from genai_notebook.core.models.ids import is_model_id, model_id, numbered, safe_file_name
from genai_notebook.core.models.records import info_of, is_whole
from genai_notebook.core.models.rooms import incoming_folder
from genai_notebook.core.schema import BrokenModel, Inventory, ModelFile, ModelInfo, ModelRecord
from genai_notebook.core.settings import Settings, private_folder
from genai_notebook.errors import FileSystemError, InvalidRequestError, ModelNotFoundError

log = logging.getLogger("genai_notebook")

METADATA = "model.json"
MAX_METADATA = 16 << 20
#: Seconds to wait for another process that changes the store.
LOCK_LIMIT = 30.0
_DECODER = msgspec.json.Decoder(ModelRecord)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

Matches = Callable[[ModelRecord], bool]


class ModelStore:
    """The folder of models of one home. Safe for several processes."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.models

    # ---- reading

    def inventory(self) -> Inventory:
        """Every model, and every one that cannot be used."""
        broken: list[BrokenModel] = []

        def tell(id: str, reason: str) -> None:
            broken.append(BrokenModel(id=id, reason=reason))

        records = self._records(tell)
        return Inventory(models=[info_of(record) for record in records], broken=broken)

    def get(self, id: str) -> ModelInfo:
        """Raises:
        ModelNotFoundError: there is none of that id.
        """
        return info_of(self.record(id))

    def record(self, id: str) -> ModelRecord:
        """The record of a model, with absolute paths; errors as `get`."""
        broken: list[str] = []
        record = self._read(id, lambda _, reason: broken.append(reason)) if is_model_id(id) else None
        if record is None:
            hint = f"Its folder is there, but {broken[0]}. %genai delete {id} removes it." if broken else None
            raise ModelNotFoundError(str(id), hint=hint)
        return record

    def find(self, matches: Matches) -> ModelInfo | None:
        """The first model that `matches` and whose files are all there in their full size."""
        found = next((record for record in self._records(_logged) if matches(record) and is_whole(record)), None)
        return info_of(found) if found is not None else None

    def find_file(self, sha256: str) -> Path | None:
        """A file of ours with that SHA-256, as long as its record says."""
        for record in self._records(_logged):
            for file in record.files:
                path = Path(file.path)
                if file.sha256 == sha256 and path.parent == self.folder / record.id:
                    with contextlib.suppress(OSError):
                        if path.stat().st_size == file.size:
                            return path
        return None

    def _records(self, tell: Callable[[str, str], None]) -> list[ModelRecord]:
        try:
            with os.scandir(self.folder) as entries:
                names = sorted(entry.name for entry in entries if is_model_id(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileSystemError("read", str(self.folder), error) from error
        found = (self._read(name, tell) for name in names)
        return [record for record in found if record is not None]

    def _read(self, id: str, tell: Callable[[str, str], None]) -> ModelRecord | None:
        folder = os.path.join(self.folder, id)
        try:
            if os.path.islink(folder):
                raise ValueError("it is a link")
            with open(os.open(os.path.join(folder, METADATA), _READ), "rb") as file:
                data = file.read(MAX_METADATA + 1)
            if len(data) > MAX_METADATA:
                raise ValueError(f"its {METADATA} is too long")
            return self._placed(_DECODER.decode(data), id, folder)
        except FileNotFoundError:
            if os.path.isdir(folder):  # else it has just been removed
                tell(id, f"it has no {METADATA}")
        except OSError as error:
            tell(id, f"its {METADATA} cannot be read: {error.strerror}")
        except (ValueError, RecursionError) as error:
            tell(id, f"its {METADATA} cannot be used: {error}")
        return None

    def _placed(self, record: ModelRecord, id: str, folder: str) -> ModelRecord:
        """The record with absolute paths."""
        if record.id != id:
            raise ValueError(f"it says that its id is {record.id[:80]!r}")
        files = [self._placed_file(file, folder) for file in record.files]
        return msgspec.structs.replace(record, files=files)

    def _placed_file(self, file: ModelFile, folder: str) -> ModelFile:
        """A bare name is a file in the model's own folder, so that a home can be moved. Only a file that was registered
        where it lies, by hand or in the hub's cache, may be elsewhere.
        """
        if file.path and file.path == safe_file_name(file.path, ""):
            path = os.path.join(folder, file.path)
            if os.path.islink(path):
                raise ValueError("its file is a link")
            return msgspec.structs.replace(file, path=path)
        lies = Path(file.path)
        if not lies.is_absolute() or ".." in lies.parts or "\0" in file.path:
            raise ValueError(f"its path {file.path[:200]!r} is not absolute")
        if file.source.type not in ("local", "huggingface") or self.folder in lies.parents:
            raise ValueError(f"its path {file.path[:200]!r} lies outside of its folder")
        return file

    # ---- changing

    def add(self, record: ModelRecord, files: Sequence[Path] = ()) -> ModelInfo:
        """Add a model under the first free id of its name; `record.id` says nothing yet.

        Args:
            record: its files that go into the model's folder have bare names.
            files: those files, complete; afterwards they are in the model's folder, and may be here still.
        """
        with self.locked():
            return self._add(record, files)

    def add_or_find(self, record: ModelRecord, matches: Matches) -> ModelInfo:
        """The model that `matches`, else a new one as by `add`."""
        with self.locked():
            found = next((known for known in self._records(_logged) if matches(known)), None)
            return info_of(found) if found is not None else self._add(record, ())

    def _add(self, record: ModelRecord, files: Sequence[Path]) -> ModelInfo:
        draft = private_folder(incoming_folder(self.folder) / f"new-{secrets.token_hex(8)}")
        id, folder = self._free_id(model_id(record.name, record.files[0].path))
        record = msgspec.structs.replace(record, id=id)
        model = info_of(self._placed(record, id, str(folder)))  # nothing comes in that would be broken
        try:
            for file in files:
                _put(file, draft / file.name)
            _write(draft / METADATA, record)
            os.rename(draft, folder)
        except OSError as error:
            raise write_error(error, folder) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return model

    def _free_id(self, base: str) -> tuple[str, Path]:
        for number in range(1, 10_000):
            id = numbered(base, number)
            folder = self.folder / id
            if not os.path.lexists(folder):
                return id, folder
        raise InvalidRequestError(f"There are too many models of the name {base!r}.", {"field": "name"})

    def change(self, id: str, change: Callable[[ModelRecord], ModelRecord]) -> ModelInfo:
        """Replace what is known of a model; errors as `get`."""
        with self.locked():
            record = change(self.record(id))
            folder = self.folder / id
            files = [
                msgspec.structs.replace(file, path=Path(file.path).name) if Path(file.path).parent == folder else file
                for file in record.files
            ]
            try:
                _write(folder / METADATA, msgspec.structs.replace(record, files=files))
            except OSError as error:
                raise write_error(error, folder / METADATA) from error
        return info_of(record)

    def remove(self, id: str) -> None:
        """Remove a model's folder, also that of a broken one. A file outside of it stays.

        Raises:
            ModelNotFoundError: there is none of that id.
            FileSystemError: it could not be removed.
        """
        folder = self.folder / id if is_model_id(id) else None
        if folder is None or folder.is_symlink() or not folder.is_dir():
            raise ModelNotFoundError(str(id))
        with self.locked():
            # Renamed first: what is half removed is no model any more.
            going = incoming_folder(self.folder) / f"old-{secrets.token_hex(8)}"
            try:
                os.rename(folder, going)
                shutil.rmtree(going)
            except FileNotFoundError:
                raise ModelNotFoundError(str(id)) from None
            except OSError as error:
                raise FileSystemError(
                    "remove", str(folder), error, hint="A server may still use the model: stop it first."
                ) from error

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


def _logged(id: str, reason: str) -> None:
    log.warning("the model %s is skipped: %s", id, reason)


def _put(file: Path, target: Path) -> None:
    """Give a file a second name; on a disk that knows no hard links, move it."""
    try:
        os.link(file, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.replace(file, target)


def _write(path: Path, record: ModelRecord) -> None:
    draft = path.with_name(f".{METADATA}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
