"""NVIDIA cards through the driver's program `nvidia-smi`, for machines where the library cannot be loaded."""

from __future__ import annotations

import csv
from pathlib import Path

from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.system.gpus.visible import Card
from genai_notebook.core.system.numbers import amount, whole_number
from genai_notebook.core.system.tools import run_tool

MIB = 1 << 20
_FIELDS = "index uuid name memory.total memory.free driver_version compute_cap".split()  # noqa: SIM905


def cards(program: Path) -> list[Card]:
    """Every card `program` lists. Blocks.

    Raises:
        OSError: it cannot be started.
    """
    query = f"--query-gpu={','.join(_FIELDS)}"
    return parse(run_tool([str(program), query, "--format=csv,noheader,nounits"]))


def parse(text: str) -> list[Card]:
    """The cards in its output; lines that are no whole card (messages, half lines) are skipped."""
    found = []
    for line in text.splitlines()[:256]:
        row = next(csv.reader([line[:1000]], skipinitialspace=True, quoting=csv.QUOTE_NONE), [])
        if len(row) == len(_FIELDS) and (card := _card([field.strip() for field in row])):
            found.append(card)
    return found


def _card(row: list[str]) -> Card | None:
    index, uuid, name, total, free, driver, capability = (None if _says_nothing(field) else field for field in row)
    number = whole_number(index or "")
    if number is None or not name:
        return None
    vram, left = _mebibytes(total), whole_number(free or "")
    gpu = GPUInfo(
        available=vram is not None,
        type="nvidia",
        name=name[:200],
        vram=vram,
        vram_available=None if vram is None or left is None else min(left * MIB, vram),
        cuda=True,
        id=uuid,
        driver=driver,
        compute_capability=capability,
        unified=False if vram else None,
    )
    return Card(index=number, names=(uuid,) if uuid else (), gpu=gpu)


def _says_nothing(field: str) -> bool:
    """'[N/A]', '[Not Supported]', 'N/A', '[Unknown Error]', …"""
    return not field or field.startswith("[") or field.upper() == "N/A"


def _mebibytes(text: str | None) -> int | None:
    number = whole_number(text or "")
    return None if number is None else amount(number * MIB)
