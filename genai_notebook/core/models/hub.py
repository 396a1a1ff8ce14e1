"""Hugging Face: huggingface_hub finds, authorises and describes a file; the bytes come through our own downloader.

A file that lies in the hub's own cache on this machine is used where it lies. Where the hub cannot be reached, or is
switched off, the cache answers for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from genai_notebook.core.downloads.hashing import parse_checksum
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import Expect
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.pieces import Piece
from genai_notebook.core.models.shards import safe_shard_names, shard_names
from genai_notebook.core.schema import ModelSource, PartConfig, Role
from genai_notebook.errors import ChecksumError, DownloadError

T = TypeVar("T")

#: Seconds until Hugging Face counts as unreachable.
TIMEOUT = 8.0
#: Another hub than huggingface_hub's own setting (HF_ENDPOINT); for tests.
ENDPOINT: str | None = None

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN"


class _Found(Struct, kw_only=True):
    """A file of a repository, as the hub or its cache knows it."""

    commit: str | None
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    local: Path | None = None


def pieces_of(part: PartConfig, role: Role | None, expect: Expect, work: Work) -> list[Piece]:
    """The files behind one wish: one, or all of a numbered set, each pinned to a commit and with its SHA-256. Blocks.

    Raises:
        DownloadError: not found, no access, not reachable.
        ChecksumError: the hub's SHA-256 is another one than the wish's.
    """
    assert part.repo is not None
    assert part.file is not None
    names = shard_names(part.file) or [part.file]
    targets = safe_shard_names(part.file) or [safe_file_name(part.file)]
    # All of them of the same commit, and of one whose files belong together.
    found = [_find(part.repo, names[0], part.revision, work)]
    found += [_find(part.repo, name, found[0].commit or part.revision, work) for name in names[1:]]
    if len(found) == 1:
        _promise(found[0], part.checksum)
    # llama.cpp looks for numbered files side by side.
    together = len({file.local.parent if file.local else None for file in found}) == 1
    return [
        Piece(
            name=target,
            source=ModelSource(
                type="huggingface", repo=part.repo, file=name, revision=file.commit or part.revision, url=file.url
            ),
            expect=expect if index == 0 else "shard",
            role=role,
            url=file.url,
            headers=_authorisation() if file.url else {},
            local=file.local,
            in_place=file.local is not None and together,
            size=file.size,
            sha256=file.sha256,
        )
        for index, (name, target, file) in enumerate(zip(names, targets, found, strict=True))
    ]


def address(source: ModelSource) -> tuple[str, dict[str, str]]:
    """Where a file is that was fetched before, and the headers to ask for it with."""
    from huggingface_hub import hf_hub_url

    url: str = hf_hub_url(source.repo or "", source.file or "", revision=source.revision, endpoint=ENDPOINT)
    return url, _authorisation()


def ask(work: Work, origin: str, call: Callable[[], T]) -> T:
    """A call of huggingface_hub on a thread of its own, so that it can be cancelled; errors as `pieces_of`."""

    def typed() -> T:
        try:
            return call()
        except Exception as error:  # the hub's HTTP library differs by version; whatever it raises means: no answer
            raise _explained(error, origin) from error

    return work.abandonable(typed, late=lambda _: None)


def _find(repo: str, file: str, revision: str | None, work: Work) -> _Found:
    try:
        found = _described(repo, file, revision, work)
    except DownloadError as error:
        if (error.details or {}).get("reason") != "unreachable":
            raise
        local = _cached(repo, file, revision, None)
        if local is None:
            raise
        commit = local.parents[len(file.split("/")) - 1].name
        return _Found(commit=commit, local=local, sha256=_told_by_cache(local))
    found.local = _cached(repo, file, found.commit or revision, found.sha256)
    return found


def _described(repo: str, file: str, revision: str | None, work: Work) -> _Found:
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    url = hf_hub_url(repo, file, revision=revision, endpoint=ENDPOINT)
    described = ask(
        work, f"{repo}/{file}", lambda: get_hf_file_metadata(url, token=get_token() or False, timeout=TIMEOUT)
    )
    commit, etag = described.commit_hash, (described.etag or "").lower()
    return _Found(
        commit=commit,
        url=hf_hub_url(repo, file, revision=commit or revision, endpoint=ENDPOINT),
        size=described.size,
        sha256=etag if _SHA256.fullmatch(etag) else None,
    )


def _cached(repo: str, file: str, revision: str | None, sha256: str | None) -> Path | None:
    """The file in the hub's cache: of that revision, or of another one with the same bytes."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(found, str):
        return Path(os.path.abspath(found))
    folder = Path(os.path.abspath(constants.HF_HUB_CACHE)) / f"models--{repo.replace('/', '--')}"
    blob = folder / "blobs" / (sha256 or "none")
    if not blob.is_file():
        return None
    snapshots = (snapshot / file for snapshot in sorted((folder / "snapshots").glob("*")))
    return next((path for path in snapshots if path.resolve() == blob.resolve()), None)


def _told_by_cache(path: Path) -> str | None:
    """The SHA-256 of a file in the cache: it is a link to a blob of that name (which may be a link itself, to a file
    under another hash).
    """
    try:
        blob = Path(os.readlink(path)).name
    except OSError:
        return None
    return blob if _SHA256.fullmatch(blob) else None


def _promise(found: _Found, checksum: str | None) -> None:
    wanted = parse_checksum(checksum)
    if wanted and found.sha256 and wanted != found.sha256:
        raise ChecksumError(
            wanted, found.sha256, hint="The file on Hugging Face is another one; nothing was downloaded."
        )
    found.sha256 = found.sha256 or wanted


def _authorisation() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _explained(error: Exception, origin: str) -> DownloadError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{'/'.join(origin.split('/')[:2])}"
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"Access to {origin} must be granted by its owner.",
            {"reason": "gated"},
            hint=f"Accept the licence on {page}. {_LOGIN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{origin} has no such revision.", {"reason": "not-found"}, hint=f"See {page}.")
    if isinstance(error, EntryNotFoundError):
        return DownloadError(
            f"There is no file {origin} on Hugging Face.", {"reason": "not-found"}, hint=f"See {page}/tree/main."
        )
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"There is no repository for {origin}, or it is private.",
            {"reason": "not-found"},
            hint=f"Check the name. For a private one: {_LOGIN}.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(
            f"Hugging Face is switched off (HF_HUB_OFFLINE is set), and {origin} is not in its cache.",
            {"reason": "unreachable"},
            hint="Unset HF_HUB_OFFLINE.",
        )
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            return DownloadError(
                f"Hugging Face refuses access to {origin} ({status}): it is private, or your token is not valid.",
                {"reason": "refused"},
                hint=f"Check the name and the token. {_LOGIN}.",
            )
        return DownloadError(
            f"Hugging Face answers {status or 'strangely'} for {origin}.", {"reason": "status"}, hint="Try again later."
        )
    return DownloadError(
        f"Hugging Face could not be reached: {error or type(error).__name__}",
        {"reason": "unreachable"},
        hint="Check the network and the proxy settings, or use another source.",
    )
