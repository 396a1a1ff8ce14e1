"""Asking for a range of a file, and what the answer tells of it."""

from __future__ import annotations

import re

from genai_notebook.core.downloads.connection import Client, PassingError, Reply
from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import DownloadError

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def asked(client: Client, headers: dict[str, str], work: Work) -> Reply:
    """`client.get`; a cancellation does not wait for an answer."""
    work.check()
    return work.abandonable(lambda: client.get(headers), late=Reply.close)


def read(reply: Reply, buffer: memoryview, work: Work) -> int:
    """`reply.read`; a cancellation, which breaks the connection, is seen as what it is."""
    try:
        return reply.read(buffer)
    except DownloadError:
        work.check()
        raise


def range_headers(begin: int, end: int, validator: str | None) -> dict[str, str]:
    headers = {"Range": f"bytes={begin}-{end - 1}"}
    if begin and validator and not validator.startswith("W/"):
        headers["If-Range"] = validator
    return headers


def range_of(reply: Reply) -> tuple[int, int | None]:
    """Where a 206's bytes begin, and the file's size."""
    match = _RANGE.fullmatch((reply.header("content-range") or "").strip())
    if match is None:
        return -1, None
    return int(match[1]), int(match[3]) if match[3] != "*" else None


def other_range(shown: str) -> PassingError:
    return PassingError(
        f"{shown} sends another range than was asked for.", {"reason": "range"}, hint="Try again, or another address."
    )


def validator_of(reply: Reply) -> str | None:
    """What names this version of the file: a strong ETag, else the date of its last change, else a weak ETag."""
    etag = reply.header("etag")
    return etag if etag and not etag.startswith("W/") else reply.header("last-modified") or etag


def contradicts(reply: Reply, validator: str | None) -> bool:
    """Whether an answer names another version. Not all answers name one."""
    if validator is None:
        return False
    is_date = validator.endswith(" GMT")
    named = reply.header("last-modified" if is_date else "etag")
    return named is not None and named.removeprefix("W/") != validator.removeprefix("W/")


def check_encoding(reply: Reply, shown: str) -> None:
    """Raises:
    DownloadError: the body is compressed: its bytes are not those of the file.
    """
    if (reply.header("content-encoding") or "identity").lower() not in ("identity", ""):
        raise DownloadError(
            f"{shown} sends a compressed body though none was asked for.",
            {"reason": "encoding"},
            hint="Give the address of the file itself, not of a page that shows it.",
        )
