"""How results look: MIME bundles with HTML for notebooks and plain text for everything else.

Every text that comes from outside (names, paths, errors) is escaped for HTML and stripped of terminal escapes here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import Any

Bundle = dict[str, Any]

_ESCAPES = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # strings: titles, links, device control
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # control sequences: colours, cursor
    r"|\x1b[ -/]*[0-~]?"  # all the shorter ones
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CELL = 'style="text-align:left;vertical-align:top;padding:2px 14px 2px 0"'
_BOX = "max-width:60em;margin:2px 0;font-family:var(--jp-ui-font-family,sans-serif)"
_BAR = "width:100%;max-width:34em;height:1em"
_WARNING = "border-left:3px solid var(--jp-warn-color1,#e08e0b);padding-left:8px;margin-top:4px"
_QUIET = "color:var(--jp-ui-font-color2,#666);font-size:90%"


def clean(text: object) -> str:
    """`text` without terminal escapes, control characters and direction marks; newlines and tabs stay."""
    return _CONTROL.sub("", _ESCAPES.sub("", str(text)))


def html(text: object) -> str:
    """`clean` text, safe inside HTML and attributes."""
    return escape(clean(text), quote=True)


def note(text: str, *, detail: str = "", warning: str = "") -> Bundle:
    """One line about what happened, an optional quieter one, and an optional one that must not be overlooked."""
    lines = [clean(text)] + [f"  {clean(line)}" for line in (detail, warning) if line]
    second = f'<div style="{_QUIET}">{html(detail)}</div>' if detail else ""
    third = f'<div style="{_WARNING}">{html(warning)}</div>' if warning else ""
    return {"text/plain": "\n".join(lines), "text/html": f'<div style="{_BOX}">{html(text)}{second}{third}</div>'}


def caption(text: str, detail: str = "") -> Bundle:
    """A quiet line under a picture."""
    words = " · ".join(part for part in (text, detail) if part)
    return {"text/plain": clean(words), "text/html": f'<div style="{_BOX};{_QUIET}">{html(words)}</div>'}


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", empty: str = "") -> Bundle:
    """A table; `empty` is shown where there are no rows."""
    if not rows:
        return note(empty or "Nothing here.")
    texts = [[_one_line(cell) for cell in row] for row in rows]
    caption = f'<caption style="text-align:left;font-weight:600">{html(title)}</caption>' if title else ""
    head = "".join(f'<th scope="col" {_CELL}>{html(cell)}</th>' for cell in headers)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{html(cell)}</td>" for cell in row) + "</tr>" for row in texts)
    return {
        "text/plain": (f"{clean(title)}\n" if title else "")
        + _columns([[_one_line(header) for header in headers], *texts], underline=True),
        "text/html": f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
    }


def facts(title: str, rows: Sequence[tuple[str, object]]) -> Bundle:
    """Names and values, one under the other; rows whose value is None or '' are left out."""
    shown = [(_one_line(name), _one_line(value)) for name, value in rows if value is not None and value != ""]
    body = "".join(
        f'<tr><th scope="row" {_CELL}>{html(name)}</th><td {_CELL}>{html(value)}</td></tr>' for name, value in shown
    )
    caption = f'<caption style="text-align:left;font-weight:600">{html(title)}</caption>'
    return {
        "text/plain": f"{clean(title)}\n" + _columns([[f"  {name}", value] for name, value in shown]),
        "text/html": f"<table>{caption}<tbody>{body}</tbody></table>",
    }


def progress(title: str, fraction: float | None, status: str) -> Bundle:
    """A bar with its state in words beside it; `fraction` None while the end is unknown."""
    value = "" if fraction is None else f' value="{100 * fraction:.1f}"'
    bar = f'<progress max="100"{value} aria-label="{html(title)}" style="{_BAR}">'
    percent = "" if fraction is None else f"{100 * fraction:.0f} %"
    words = " · ".join(part for part in (percent, status) if part)
    return {
        "text/plain": clean(f"{title} {_bar(fraction)} {words}".strip()),
        "text/html": (
            f'<div style="{_BOX}"><div>{html(title)}</div>'
            f"{bar}{percent}</progress>"
            f'<div style="{_QUIET}">{html(words)}</div></div>'
        ),
    }


def picture(
    png: bytes, *, alt: str, width: int, height: int, parameters: dict[str, Any]
) -> tuple[Bundle, dict[str, Any]]:
    """A PNG as an ordinary output: bundle and metadata (alternative text, size, and how it was made)."""
    data = {"image/png": base64.b64encode(png).decode("ascii"), "text/plain": f"<{clean(alt)}>"}
    metadata = {"image/png": {"alt": clean(alt), "width": width, "height": height}, "genai_notebook": parameters}
    return data, metadata


def duration(seconds: float) -> str:
    """A time for people: ``0.8 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(bytes_: int | None) -> str:
    """A size for people, or '' for None."""
    # Here, because loading the extension must stay light, and that module brings asyncio and ssl with it.
    from genai_notebook.core.utilities import format_bytes

    return "" if bytes_ is None else format_bytes(bytes_)


def _one_line(text: object) -> str:
    return " ".join(clean(text).splitlines())


def _bar(fraction: float | None, width: int = 24) -> str:
    if fraction is None:
        return "[" + "." * width + "]"
    filled = int(width * min(1.0, max(0.0, fraction)))
    return "[" + "#" * filled + "." * (width - filled) + "]"


def _columns(rows: Sequence[Sequence[str]], *, underline: bool = False) -> str:
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if underline:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
