"""Bytes of a pipe become clean lines: split, decoded, and stripped of what a terminal would act on."""

from __future__ import annotations

import re

#: A line longer than this is cut; a runaway engine must not fill the memory.
MAX_LINE = 16_384

# Colours, cursor moves, window titles (OSC) and single-character escapes.
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
# A progress bar is rewritten in place: it ends with a carriage return or with "erase to end of line".
_END = re.compile(rb"\r\n|\n|\r|\x1b\[K")


class LineSplitter:
    """Feed it what a pipe read gave; it returns the lines completed so far.

    Each line comes with a flag: True for a progress bar that will be rewritten, which belongs in no log.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        lines = []
        buffer = self._rest + data
        start = 0
        for match in _END.finditer(buffer):
            end = match.group()
            if end == b"\r" and match.end() == len(buffer):
                break  # its line feed may be in the next read
            if text := clean(buffer[start : match.start()]):
                lines.append((text, end in (b"\r", b"\x1b[K")))
            start = match.end()
        self._rest = buffer[start:]
        if len(self._rest) > MAX_LINE:
            lines.append((clean(self._rest), False))
            self._rest = b""
        return lines

    def close(self) -> list[tuple[str, bool]]:
        """What was left without an end of line."""
        rest, self._rest = clean(self._rest), b""
        return [(rest, False)] if rest else []


def clean(raw: bytes) -> str:
    """Text for people and notebooks: valid Unicode, no escape sequences, no control characters, bounded."""
    text = raw[:MAX_LINE].decode("utf-8", "replace")
    return _CONTROLS.sub("", _ESCAPES.sub("", text)).rstrip()
