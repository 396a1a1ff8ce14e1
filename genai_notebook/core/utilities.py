"""Small functions of the public surface that belong to no room."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
import secrets
import string
import sys
import time
from datetime import datetime, timezone
from typing import Any

from genai_notebook.errors import FileSystemError

REASONING_MODEL_PATTERNS: tuple[str, ...] = ("qwen3", "deepseek-r1", "gpt-oss")

# Each letter may be followed by separators; a digit behind the last one would be another model ("Qwen-32B").
_REASONING = re.compile(
    "|".join(r"[\s._-]*".join(pattern.replace("-", "")) + r"(?!\d)" for pattern in REASONING_MODEL_PATTERNS),
    re.IGNORECASE,
)
_UNITS = ("Bytes", "KB", "MB", "GB", "TB", "PB")
_ID_ALPHABET = string.ascii_lowercase + string.digits
_CHUNK = 1 << 20


def detect_reasoning_support(filename: str) -> bool:
    """Whether a file name is one of the known reasoning models'; any separator, any case."""
    return _REASONING.search(filename) is not None


def get_arch_field(metadata: dict[str, Any], field_path: str) -> Any:
    """`metadata["<general.architecture>.<field_path>"]`, or None where the architecture or the field is absent."""
    architecture = metadata.get("general.architecture")
    return metadata.get(f"{architecture}.{field_path}") if isinstance(architecture, str) else None


def format_bytes(size: int) -> str:
    """A size for people, in powers of 1024 with at most two decimals: ``4.07 GB``, ``1.5 KB``, ``0 Bytes``."""
    value = float(size)
    unit = 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{text} {_UNITS[unit]}"


def generate_id() -> str:
    """12 random lowercase letters and digits, unguessable."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


def sha256_of(path: str) -> str:
    """The SHA-256 of a file, bare lowercase hex. Blocks; see `calculate_checksum`.

    Raises:
        FileSystemError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise FileSystemError("read", str(path), error) from error
    return digest.hexdigest()


async def calculate_checksum(path: str) -> str:
    """The SHA-256 of a file, bare lowercase hex, computed off the event loop; errors as `sha256_of`."""
    return await asyncio.to_thread(sha256_of, path)


def get_platform() -> str:
    """'linux', 'darwin' or 'win32'."""
    return "linux" if sys.platform.startswith("linux") else sys.platform


def get_architecture() -> str:
    """'x64', 'arm64', or the machine's own name in lowercase."""
    machine = platform.machine().lower()
    return {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(machine, machine)


def get_platform_key() -> str:
    """Platform and architecture: 'linux-x64', 'darwin-arm64', 'win32-x64', …"""
    return f"{get_platform()}-{get_architecture()}"


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def now_iso() -> str:
    """This moment in UTC, ISO 8601 with milliseconds and a Z."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
