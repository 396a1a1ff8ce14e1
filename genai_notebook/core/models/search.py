"""Finding models on Hugging Face: repositories, the model files in them, and which of those fit this machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import msgspec

from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models import hub
from genai_notebook.core.models.quantisation import best_fit, quantization_of
from genai_notebook.core.models.requests import is_repo
from genai_notebook.core.models.shards import shard_names
from genai_notebook.core.schema import DownloadConfig, FoundFile, FoundRepo, Placement
from genai_notebook.core.utilities import format_bytes
from genai_notebook.errors import DownloadError, InsufficientResourcesError, InvalidRequestError

MAX_REPOS, MAX_QUERY = 50, 200
#: Requests at once: one for each repository that was found.
_AT_ONCE = 6

Fits = Callable[[int], Placement]


def check_search(query: str, limit: int) -> None:
    """Raises:
    InvalidRequestError: nothing to search for, or a limit that is none; `details["field"]` names it.
    """
    if not isinstance(query, str) or not _wanted(query) or len(query) > MAX_QUERY or not query.isprintable():
        raise InvalidRequestError(
            f"query: must be some words, {MAX_QUERY} characters at most.",
            {"field": "query"},
            hint="For example: qwen3 0.6b.",
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_REPOS:
        raise InvalidRequestError(f"limit: must be a whole number from 1 to {MAX_REPOS}.", {"field": "limit"})


def search(query: str, limit: int, fits: Fits, work: Work) -> list[FoundRepo]:
    """The most downloaded GGUF repositories for some words, or the one of that name. Blocks.

    Raises:
        DownloadError: the hub cannot be reached, or refuses.
    """
    query = _wanted(query)
    if is_repo(query):
        try:
            return [look(query, None, fits, work)]
        except DownloadError as error:
            if (error.details or {}).get("reason") not in ("not-found", "refused"):
                raise
    found = hub.ask(work, query, lambda: _listed(query, limit))
    work.check()
    with ThreadPoolExecutor(_AT_ONCE, "genai-notebook-search") as pool:
        repos = list(pool.map(lambda one: _look_if_allowed(one, fits, work), found))
    return sorted(repos, key=lambda repo: -repo.downloads)


def look(repo: str, revision: str | None, fits: Fits, work: Work) -> FoundRepo:
    """What one repository holds; errors as `search`."""
    api = _api()
    return _described(
        hub.ask(work, repo, lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=hub.TIMEOUT)),
        fits,
    )


def choose(config: DownloadConfig, fits: Fits, work: Work) -> DownloadConfig:
    """The config with the file of its repository that suits this machine best.

    Raises:
        InsufficientResourcesError: none of them fits.
        DownloadError: there is no model in it; or as `search`.
    """
    assert config.repo is not None
    found = look(config.repo, config.revision, fits, work)
    if not found.files:
        raise DownloadError(
            f"{config.repo} holds no GGUF file.",
            {"reason": "not-found"},
            hint=f"%genai search {config.repo.partition('/')[2]} may find a repository that does.",
        )
    if found.choice is None:
        smallest = min(found.files, key=lambda file: file.size)
        raise InsufficientResourcesError(
            f"None of the {len(found.files)} files of {config.repo} fits this machine.",
            {
                "required": f"more than {format_bytes(smallest.size)} ({smallest.file})",
                "available": "see %genai system",
                "suggestion": "Choose a smaller model, or name the file to fetch it all the same.",
            },
        )
    return msgspec.structs.replace(config, file=found.choice)


def _wanted(query: str) -> str:
    return query.strip().removeprefix("hf:").strip()


def _listed(query: str, limit: int) -> list[Any]:
    """The hub's own list, without files. We ask for it ourselves: huggingface_hub waits for this one without an end,
    and tries for half a minute where there is no network.
    """
    from huggingface_hub import constants, get_token, hf_api, utils

    http: Any = utils
    place = f"{hub.ENDPOINT or constants.ENDPOINT}/api/models"
    params: dict[str, Any] | None = {"search": query, "filter": "gguf", "sort": "downloads", "limit": limit}
    headers = http.build_hf_headers(token=get_token() or False)
    entry_of: Any = hf_api.ModelInfo
    found: list[Any] = []
    page: str | None = place
    while page is not None and page.startswith(place) and len(found) < limit:
        reply = http.get_session().get(page, params=params, headers=headers, timeout=hub.TIMEOUT)
        http.hf_raise_for_status(reply)
        entries = reply.json()
        found += [entry_of(**entry) for entry in entries]
        page, params = reply.links.get("next", {}).get("url") if entries else None, None
    return found[:limit]


def _api() -> Any:
    from huggingface_hub import HfApi, get_token

    return HfApi(endpoint=hub.ENDPOINT, token=get_token() or False)


def _look_if_allowed(one: Any, fits: Fits, work: Work) -> FoundRepo:
    """A repository of the list with its files; without them where the hub does not show them."""
    try:
        return look(one.id, None, fits, work)
    except DownloadError as error:
        if (error.details or {}).get("reason") in ("unreachable", "cancelled"):
            raise
        return _described(one, fits)


def _described(info: Any, fits: Fits) -> FoundRepo:
    files = _model_files(info.siblings or [], fits)
    best = best_fit(files)
    changed = info.last_modified
    return FoundRepo(
        repo=str(info.id),
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        gated=bool(info.gated),
        files=files,
        choice=best.file if best else None,
        updated_at=changed.isoformat() if isinstance(changed, datetime) else None,
    )


def _model_files(siblings: list[Any], fits: Fits) -> list[FoundFile]:
    """The GGUF models among a repository's files, smallest first; numbered ones as one, under their first name."""
    sizes = {str(file.rfilename): file.size or 0 for file in siblings}
    found = []
    for name in sizes:
        if not name.lower().endswith(".gguf") or _is_helper(name.rpartition("/")[2].lower()):
            continue
        shards = shard_names(name)
        if shards is not None and (name != shards[0] or not all(shard in sizes for shard in shards)):
            continue
        size = sum(sizes[shard] for shard in shards or [name])
        found.append(
            FoundFile(
                file=name,
                size=size,
                fits=fits(size),
                quantization=quantization_of(name),
                shards=len(shards) if shards else None,
            )
        )
    return sorted(found, key=lambda file: (file.size, file.file))


def _is_helper(name: str) -> bool:
    """Whether a GGUF file is no model by itself: the eyes of one, or what a quantisation was made with (not what was
    made with it: that has the name of a quantisation, too).
    """
    return "mmproj" in name or ("imatrix" in name and quantization_of(name) is None)
