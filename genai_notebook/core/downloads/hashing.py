"""The SHA-256 of a file, interruptible, and the forms in which people write checksums."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import FileSystemError, InvalidRequestError

_SHA256 = re.compile(r"(?:sha256[:=-])?([0-9a-f]{64})", re.IGNORECASE)
_CHUNK = 1 << 20


def parse_checksum(text: str | None) -> str | None:
    """Bare lowercase hex of ``sha256:<hex>`` or ``<hex>``, in any case; None stays None.

    Raises:
        InvalidRequestError: it is no SHA-256.
    """
    if text is None:
        return None
    match = _SHA256.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(
            "checksum: must be a SHA-256.", {"field": "checksum"}, hint="Write it as sha256:<64 hexadecimal digits>."
        )
    return match[1].lower()


def hash_file(path: Path, work: Work) -> str:
    """Bare lowercase hex. Blocks.

    Raises:
        FileSystemError: the file cannot be read.
        DownloadError: the work was cancelled.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                work.check()
    except OSError as error:
        raise FileSystemError("read", str(path), error) from error
    return digest.hexdigest()
