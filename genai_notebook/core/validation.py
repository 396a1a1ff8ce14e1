"""Untrusted or mistyped arguments become structs, or an InvalidRequestError that names the field."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from genai_notebook.errors import InvalidRequestError

S = TypeVar("S", bound=msgspec.Struct)

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"contains unknown field `([^`]+)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def from_keywords(cls: type[S], config: Any = None, keywords: dict[str, Any] | None = None) -> S:
    """Build a `cls` from Python arguments: a struct or dict of that shape, keywords on top of it.

    Names are snake_case. Keywords whose value is Ellipsis were not given.

    Raises:
        InvalidRequestError: an unknown, missing or wrong field; `details["field"]` names it.
    """
    given = _as_dict(cls, config)
    given.update({name: value for name, value in (keywords or {}).items() if value is not ...})
    wire_names = {f.name: f.encode_name for f in msgspec.structs.fields(cls)}
    _refuse_unknown(given, wire_names)
    return _convert(cls, {wire_names[name]: value for name, value in given.items()}, _snake_names(wire_names))


def from_call(cls: type[S], config: Any, keywords: dict[str, Any]) -> S:
    """As `from_keywords`, for a method whose signature spells out the defaults of `cls`.

    Beside a configuration object, a keyword at its default was not given: the object speaks.
    """
    if config is not None:
        defaults = {field.name: field.default for field in msgspec.structs.fields(cls)}
        keywords = {name: value for name, value in keywords.items() if name not in defaults or value != defaults[name]}
    return from_keywords(cls, config, keywords)


def from_json(cls: type[S], body: bytes) -> S:
    """Decode a JSON body (camelCase) into a `cls`.

    Raises:
        InvalidRequestError: no JSON, not an object, or a wrong field.
    """
    try:
        value = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not JSON: {error}", {"field": None}) from None
    return from_wire(cls, value)


def from_wire(cls: type[S], value: Any) -> S:
    """Convert decoded JSON (camelCase) into a `cls`; errors as `from_json`."""
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.", {"field": None})
    wire_names = {f.encode_name: f.encode_name for f in msgspec.structs.fields(cls)}
    if cls.__struct_config__.forbid_unknown_fields:
        _refuse_unknown(value, wire_names)
    return _convert(cls, value, wire_names)


def _as_dict(cls: type[msgspec.Struct], config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, msgspec.Struct):
        return {name: getattr(config, name) for name in config.__struct_fields__ if name in cls.__struct_fields__}
    if isinstance(config, dict):
        return dict(config)
    raise InvalidRequestError(
        f"The configuration must be a {cls.__name__} or a dict, not {type(config).__name__}.", {"field": "config"}
    )


def _snake_names(wire_names: dict[str, str]) -> dict[str, str]:
    return {wire: name for name, wire in wire_names.items()}


def _refuse_unknown(given: dict[str, Any], valid: dict[str, str]) -> None:
    for name in given:
        if name not in valid:
            raise InvalidRequestError(
                f"There is no option {name!r}.",
                {"field": str(name), "valid": sorted(valid)},
                hint="Valid options: " + ", ".join(sorted(valid)) + ".",
            )


def _convert(cls: type[S], value: dict[str, Any], names: dict[str, str]) -> S:
    for name, item in value.items():
        if reason := _unfit(item):
            raise InvalidRequestError(f"{names.get(name, name)}: {reason}.", {"field": names.get(name, name)})
    try:
        return msgspec.convert(value, cls)
    except msgspec.ValidationError as error:
        raise _explain(cls, str(error), names) from None


def _unfit(item: Any) -> str | None:
    """Why `item` could go neither into JSON nor into a command line, or None; types are msgspec's affair."""
    if isinstance(item, float) and not math.isfinite(item):
        return "must be a finite number"
    if isinstance(item, str):
        if "\0" in item:
            return "must not contain NUL"
        if any("\ud800" <= letter <= "\udfff" for letter in item):
            return "must be valid Unicode"
    if isinstance(item, (list, tuple)):
        return next(filter(None, map(_unfit_word, item)), None)
    if isinstance(item, dict):
        return next(filter(None, map(_unfit_word, (*item, *item.values()))), None)
    return None


def _unfit_word(item: Any) -> str | None:
    """`_unfit` one level down; no field nests deeper, so that wild input cannot send us deeper either."""
    return None if isinstance(item, (list, tuple, dict)) else _unfit(item)


def _explain(cls: type[msgspec.Struct], text: str, names: dict[str, str]) -> InvalidRequestError:
    """Turn msgspec's message into one that begins with the field's name as the caller wrote it."""
    if missing := _MISSING.search(text):
        field = names.get(missing[1], missing[1])
        return InvalidRequestError(f"{field}: is required.", {"field": field})
    place = _PATH.search(text)
    wire = re.split(r"[.\[]", place[1])[0] if place else ""
    field = names.get(wire, wire)
    if unknown := _UNKNOWN.search(text):
        inside = f"{field}: there" if field else "There"
        return InvalidRequestError(f"{inside} is no option {unknown[1]!r}.", {"field": field or unknown[1]})
    reason = _PATH.sub("", text).replace("`", "")
    hint = None
    if reason.startswith("Invalid enum value"):
        kinds = {one.encode_name: one.type for one in msgspec.structs.fields(cls)}
        hint = f"Valid ones: {', '.join(_literals(kinds.get(wire)))}."
    return InvalidRequestError(
        f"{field}: {reason[:1].lower()}{reason[1:]}." if field else reason, {"field": field or None}, hint=hint
    )


def _literals(kind: Any) -> list[str]:
    """Every fixed value in a type, as text."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [text for part in get_args(kind) for text in _literals(part)]
