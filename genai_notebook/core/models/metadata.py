"""The header of a model that is installed, read again: from its file, or from where it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec

from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import NotAModelError, inspect_model, supports_reasoning
from genai_notebook.core.models.remote import remote_metadata
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.models.tensors import combined
from genai_notebook.core.schema import GGUFMetadata, MetadataStrategy, ModelInfo, ModelRecord
from genai_notebook.errors import DownloadError, InvalidRequestError

#: What lies behind the vocabulary: the first bytes of a remote file do not tell it.
_BEHIND = ("chat_template", "header_size", "weights", "file_type", "general_name")


def check_strategy(source: str) -> MetadataStrategy:
    """Raises:
    InvalidRequestError: there is no such strategy.
    """
    for known in get_args(MetadataStrategy):
        if source == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequestError(
        f"source: {source!r} is not one of {', '.join(get_args(MetadataStrategy))}.", {"field": "source"}
    )


def update(store: ModelStore, id: str, strategy: MetadataStrategy, work: Work) -> ModelInfo:
    """Read the header by that strategy and keep it. Blocks. What is known stays when nothing can be read.

    Raises:
        ModelNotFoundError: there is no model of that id.
        DownloadError: none of the strategy's ways led to a header; the last way's error, with all of them in the text.
    """
    model = store.get(id)
    ways: dict[str, Callable[[], GGUFMetadata | None]] = {
        "local": lambda: _from_file(model),
        "remote": lambda: _from_source(model, work),
    }
    failures: list[str] = []
    for way in [way for way in strategy.split("-") if way != "only"]:
        work.check()
        try:
            metadata = ways[way]()
        except DownloadError as error:
            work.check()
            failures.append(error.message)
            last = error
            continue
        return _keep(store, model, metadata)
    raise DownloadError(f"No metadata of {id}: {' '.join(failures)}", {"reason": "metadata"}, hint=last.hint) from last


def _keep(store: ModelStore, model: ModelInfo, metadata: GGUFMetadata | None) -> ModelInfo:
    reasoning = supports_reasoning(model.type, Path(model.path).name, metadata)

    def change(record: ModelRecord) -> ModelRecord:
        return msgspec.structs.replace(record, gguf_metadata=metadata, supports_reasoning=reasoning)

    return store.change(model.id, change)


def _from_file(model: ModelInfo) -> GGUFMetadata | None:
    later = [Path(path) for path in (model.shards or []) if path != model.path]
    try:
        first = inspect_model(Path(model.path), model.type)
        return combined([first, *(inspect_model(path, "shard") for path in later)])
    except NotAModelError as error:
        raise DownloadError(f"{model.path} cannot be used: {error}.", {"reason": "not-a-model"}) from error
    except OSError as error:
        raise DownloadError(f"{model.path} cannot be read: {error.strerror}.", {"reason": "unreadable"}) from error


def _from_source(model: ModelInfo, work: Work) -> GGUFMetadata:
    source = model.source
    if source.type == "huggingface":
        from genai_notebook.core.models.hub import address

        url, headers = address(source)
    elif source.type == "url" and source.url:
        url, headers = source.url, {}
    else:
        raise DownloadError(
            f"{model.id} has no address to read from: it came from {_ORIGIN.get(source.type, 'elsewhere')}.",
            {"reason": "no-remote"},
            hint="Use source='local-only'.",
        )
    return _completed(remote_metadata(url, headers, work), model.gguf_metadata)


_ORIGIN = {"pypi": "a Python package", "local": "a file on this machine"}


def _completed(found: GGUFMetadata, known: GGUFMetadata | None) -> GGUFMetadata:
    """`found`, with what only a whole header tells taken from what is `known` of the same file."""
    if known is None or (found.tensor_count, found.kv_count) != (known.tensor_count, known.kv_count):
        return found
    missing = {name: getattr(known, name) for name in _BEHIND if getattr(found, name) is None}
    return msgspec.structs.replace(found, **missing)
