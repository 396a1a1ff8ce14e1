"""Print what the chat and image cells of an executed notebook say and show. Fails where one of them says nothing."""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def text_of(outputs: list[dict[str, Any]]) -> str:
    """The text of a cell's outputs, without colours."""
    parts = []
    for output in outputs:
        data = output.get("data", {})
        text = data.get("text/markdown") or data.get("text/plain") or output.get("text") or ""
        parts.append(ANSI.sub("", "".join(text)).strip())
    return "\n".join(part for part in parts if part)


def pictures_of(outputs: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Width and height of every PNG in a cell's outputs."""
    sizes = []
    for output in outputs:
        if data := output.get("data", {}).get("image/png"):
            sizes.append(struct.unpack(">II", base64.b64decode("".join(data))[16:24]))
    return sizes


def main(path: str) -> int:
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    missing = {"%%genai_chat", "%%genai_image"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        magic = source.split(maxsplit=1)[0] if source.split() else ""
        if magic == "%%genai_chat" and (answer := text_of(cell["outputs"])):
            missing.discard(magic)
            question = source.partition("\n")[2].strip()
            print(f"\nQuestion: {question}\nAnswer:   {answer}")
        elif magic == "%%genai_image" and (sizes := pictures_of(cell["outputs"])):
            missing.discard(magic)
            print(f"Picture:  {', '.join(f'{width} x {height} pixels' for width, height in sizes)}")
    for magic in sorted(missing):
        print(f"No cell with {magic} shows a result.", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
