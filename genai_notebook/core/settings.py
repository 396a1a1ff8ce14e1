"""Where things lie and what the environment asks for.

Everything on disk is below one home (`GENAI_NOTEBOOK_HOME`, default: the user's data folder), in folders only the user
can read. Settings are read once per Runtime; nothing else looks at the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from genai_notebook.errors import FileSystemError, InvalidRequestError

PREFIX = "GENAI_NOTEBOOK_"
#: The mirror of who wants no engines downloaded.
OFF = "off"
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


class Settings(Struct, kw_only=True, frozen=True):
    """Folders and limits of one Runtime.

    Attributes:
        home: the folder everything lives under.
        memory_limit: bytes of RAM we may plan with, or None (GENAI_NOTEBOOK_MEMORY_LIMIT, e.g. ``8GiB``).
        vram_limit: bytes of VRAM we may plan with, or None (GENAI_NOTEBOOK_VRAM_LIMIT).
        llama_server: path of an own llama-server, or None (GENAI_NOTEBOOK_LLAMA_SERVER).
        sd_server: path of an own sd-server or sd-cli, or None (GENAI_NOTEBOOK_SD_SERVER).
        mirror: address that takes the place of https://github.com for engines, 'off' for no such downloads, or None
            (GENAI_NOTEBOOK_MIRROR).
    """

    home: Path
    memory_limit: int | None = None
    vram_limit: int | None = None
    llama_server: Path | None = None
    sd_server: Path | None = None
    mirror: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the GENAI_NOTEBOOK_* variables.

        Raises:
            InvalidRequestError: a variable holds nonsense; the message names it.
        """
        env = os.environ if environ is None else environ
        return cls(
            home=_home(env),
            memory_limit=_size(env, "MEMORY_LIMIT"),
            vram_limit=_size(env, "VRAM_LIMIT"),
            llama_server=_path(env, "LLAMA_SERVER"),
            sd_server=_path(env, "SD_SERVER"),
            mirror=_mirror(env),
        )

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def engines(self) -> Path:
        return self.home / "engines"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """Engines that run now (one JSON each) and their locks; also the working folder of engine processes."""
        return self.home / "run"

    @property
    def cache(self) -> Path:
        return self.home / "cache"


def private_folder(path: Path) -> Path:
    """Make `path` a folder that only this user can enter, and return it.

    Raises:
        FileSystemError: it cannot be made, or it belongs to somebody else.
    """
    try:
        for folder in (*reversed(path.parents), path):  # mkdir's own parents=True leaves the parents to the umask
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
        if os.name == "posix":
            status = path.stat()
            if status.st_uid != os.getuid():
                raise PermissionError(f"the folder belongs to user id {status.st_uid}")
            if status.st_mode & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise FileSystemError(
            "use the folder", str(path), error, hint="Set GENAI_NOTEBOOK_HOME to a folder of your own."
        ) from error
    return path


def parse_size(text: str) -> int | None:
    """Bytes in a text such as ``8GiB``, ``512M`` or ``1073741824`` (powers of 1024); None if it is not a size."""
    match = _SIZE.fullmatch(text)
    if not match:
        return None
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def _home(env: Mapping[str, str]) -> Path:
    if given := env.get(PREFIX + "HOME"):
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("genai-notebook", appauthor=False))


def _size(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(PREFIX + name)
    if not text:
        return None
    size = parse_size(text)
    if size is None or size <= 0:
        raise InvalidRequestError(
            f"{PREFIX}{name}={text!r} is not a size.", {"field": PREFIX + name}, hint="Write it like 8GiB or 512MiB."
        )
    return size


def _path(env: Mapping[str, str], name: str) -> Path | None:
    text = env.get(PREFIX + name)
    return Path(text).expanduser().absolute() if text else None


def _mirror(env: Mapping[str, str]) -> str | None:
    text = env.get(PREFIX + "MIRROR", "").strip()
    if text.lower() in ("off", "none", "no", "0"):
        return OFF
    if text and not _is_address(text):
        shown = re.sub(r"(?is)^(https?:/*)?.*@", r"\1…@", text)  # it may hold a password
        raise InvalidRequestError(
            f"{PREFIX}MIRROR={shown!r} is not an http or https address.",
            {"field": PREFIX + "MIRROR"},
            hint="Give the address that stands for https://github.com, or 'off' for no downloads of engines.",
        )
    return text or None


def _is_address(text: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises on a port that is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\\]", text)
