"""%genai models, import, info, verify, delete: the models that are here."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_notebook.display import views
from genai_notebook.display.live import ticking
from genai_notebook.display.words import KINDS, a_kind
from genai_notebook.magics.arguments import add_into, given
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import ModelInfo


def add(subparsers: Any) -> None:
    models = subparsers.add_parser("models", help="list the models that are installed")
    models.add_argument("--type", choices=list(KINDS), help="only models of this type")
    add_into(models, "the list of models")
    models.set_defaults(run=list_models)

    register = subparsers.add_parser("import", help="register a model file where it lies; nothing is copied")
    register.add_argument("path", metavar="FILE", help="the model file; of numbered files, any of them")
    register.add_argument("--name", help="what to call the model")
    register.add_argument("--type", choices=list(KINDS), help="default: llm")
    add_into(register, "the model")
    register.set_defaults(run=import_model)

    info = subparsers.add_parser("info", help="show what is known about a model")
    info.add_argument("model", metavar="MODEL")
    info.add_argument(
        "--refresh",
        nargs="?",
        const="local-remote",
        choices=["local-remote", "local-only", "remote-only", "remote-local"],
        help="read the header again first: from the file, from where the model came, or either (default: local-remote)",
    )
    add_into(info, "the model")
    info.set_defaults(run=show_model)

    verify = subparsers.add_parser("verify", help="check a model's files against their SHA-256")
    verify.add_argument("model", metavar="MODEL")
    add_into(verify, "True or False")
    verify.set_defaults(run=verify_model)

    delete = subparsers.add_parser("delete", help="delete a model (an imported file itself is left alone)")
    delete.add_argument("model", metavar="MODEL")
    delete.set_defaults(run=delete_model)


def list_models(shell: Shell, arguments: argparse.Namespace) -> list[ModelInfo]:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    found = run(model_manager.inventory(arguments.type))
    rows = [(m.id, KINDS.get(m.type, m.type), views.size(m.size), m.name) for m in found.models]
    empty = "No models yet. %genai download starter fetches a small language model."
    shell.emit(views.table(("Id", "Type", "Size", "Name"), rows, empty=empty))
    if found.broken:
        reasons = "; ".join(f"{model.id}: {model.reason}" for model in found.broken)
        shell.emit(views.note("Some models cannot be used.", warning=f"{reasons}. %genai delete ID removes one."))
    return list(found.models)


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

    if arguments.refresh:
        model = run(model_manager.update_model_metadata(arguments.model, arguments.refresh))
    else:
        model = run(model_manager.get_model_info(arguments.model))
    header = model.gguf_metadata
    source = model.source
    rows: list[tuple[str, object]] = [
        ("Name", model.name),
        ("Type", KINDS.get(model.type, model.type)),
        ("Size", views.size(model.size)),
        ("File", model.path if not model.shards else f"{model.path} and {len(model.shards) - 1} more"),
        *((f"· {role}", path) for role, path in (model.components or {}).items()),
        (
            "From",
            " ".join(
                part for part in (source.repo or source.package or source.url or source.type, source.file) if part
            ),
        ),
        ("SHA-256", (model.checksum or "").removeprefix("sha256:")),
        ("Revision", source.revision),
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


def verify_model(shell: Shell, arguments: argparse.Namespace) -> bool:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    id = arguments.model
    title = f"Verifying {id}"
    began = time.monotonic()
    with shell.working(title) as live:
        model = run(model_manager.get_model_info(id))

        def tick() -> None:
            spent = views.duration(time.monotonic() - began)
            live.update(views.progress(title, None, f"hashing {views.size(model.size)} · {spent}"))

        # A coroutine of our own, so that the clock ticks on the loop it runs on.
        fine = run(ticking(lambda: model_manager.verify_model(id), tick))
        if not fine:
            text = f"{id} is not what it was: its SHA-256 has changed."
            live.finish(views.note(text, warning=f"%genai delete {id}, and download it again."))
        else:
            model = run(model_manager.get_model_info(id))
            detail = f"SHA-256 {(model.checksum or '').removeprefix('sha256:')}."
            live.finish(views.note(f"{id} is unchanged: {views.size(model.size)}.", detail=detail))
    return fine


def delete_model(shell: Shell, arguments: argparse.Namespace) -> None:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import model_manager

    id = arguments.model

    async def work() -> ModelInfo | None:
        broken = {model.id for model in (await model_manager.inventory()).broken}
        model = None if id in broken else await model_manager.get_model_info(id)
        await model_manager.delete_model(id)
        return model

    model = run(work())
    if model is None:
        shell.emit(views.note(f"{id} is deleted.", detail="It could not be used."))
    elif Path(model.path).parent.name == id:  # a folder of ours
        shell.emit(views.note(f"{id} is deleted.", detail=f"{views.size(model.size)}, less what other models share."))
    else:
        shell.emit(views.note(f"{id} is forgotten; the file stays where it is.", detail=model.path))
