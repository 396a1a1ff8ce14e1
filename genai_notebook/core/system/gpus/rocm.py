"""What AMD's own program adds to the kernel's files: a name for people, and memory figures where those are missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.system.bounded import REST, Bounded
from genai_notebook.core.system.numbers import amount, free_of, whole_number
from genai_notebook.core.system.tools import find_tool, run_tool, trusted_folders

log = logging.getLogger("genai_notebook")

_program: Bounded[str] = Bounded("rocm-smi", rest=REST)
#: What it called the card at a PCI address; '' where it has been asked and knows no name.
_names: dict[str, str] = {}


class Report(msgspec.Struct, frozen=True):
    """One card in the program's output; what it does not tell is None."""

    address: str | None
    name: str | None
    total: int | None
    used: int | None


def supplemented(gpus: list[GPUInfo]) -> list[GPUInfo]:
    """The same GPUs with more known about AMD's. The program is slow, so it runs only where something is missing.

    It numbers cards its own way: they are matched by PCI address, and by order only where there is none to match and
    both lists are of the same length.
    """
    gpus = [_remembered(gpu) for gpu in gpus]
    amd = [gpu for gpu in gpus if gpu.type == "amd"]
    if not any(gpu.vram is None or (_nameless(gpu) and gpu.id not in _names) for gpu in amd):
        return gpus
    program = find_tool("rocm-smi", trusted_folders())
    reports = _ask(program) if program else []
    for number, gpu in enumerate(amd):
        report = _matching(gpu, number, len(amd), reports)
        if reports and gpu.id:
            _names[gpu.id] = (report and report.name) or ""
        if report is not None:
            gpus = [_more(other, report) if other is gpu else other for other in gpus]
    return gpus


def parse(text: str) -> list[Report]:
    """The cards in the output of `rocm-smi … --json`, by key. Its keys changed case and wording over the years."""
    start = text.find("{")  # warnings may come first
    try:
        cards = msgspec.json.decode(text[start:]) if start >= 0 else {}
    except (ValueError, RecursionError):
        return []
    if not isinstance(cards, dict):
        return []
    rows = [(name, row) for name, row in cards.items() if re.fullmatch(r"card\d{1,6}", name) and isinstance(row, dict)]
    return [_report(row) for _, row in sorted(rows, key=lambda item: int(item[0][4:]))]


def _ask(program: Path) -> list[Report]:
    command = [str(program), "--showbus", "--showmeminfo", "vram", "--showproductname", "--json"]
    try:
        return parse(_program.ask(lambda: run_tool(command)))
    except OSError as error:  # TimeoutError is one
        log.debug("rocm-smi: %s", error)
        return []


def _report(row: Mapping[str, object]) -> Report:
    values = {key.strip().lower(): value for key, value in row.items()}
    address = values.get("pci bus")
    # "Card Model" is a name in some versions, and the number of the device in others.
    names = [values.get(key) for key in ("card series", "card model", "market name", "device name")]
    return Report(
        address=address.strip().lower() if isinstance(address, str) else None,
        name=next((name.strip()[:200] for name in names if isinstance(name, str) and _is_name(name)), None),
        total=amount(values.get("vram total memory (b)")),
        used=whole_number(values.get("vram total used memory (b)")),
    )


def _is_name(text: str) -> bool:
    text = text.strip().lower()
    return bool(text) and not text.startswith("0x") and text not in ("n/a", "unknown", "none")


def _matching(gpu: GPUInfo, number: int, count: int, reports: Sequence[Report]) -> Report | None:
    if gpu.id is not None and any(report.address for report in reports):
        return next((report for report in reports if report.address == gpu.id), None)
    return reports[number] if len(reports) == count else None


def _more(gpu: GPUInfo, report: Report) -> GPUInfo:
    if report.name and _nameless(gpu):
        gpu = msgspec.structs.replace(gpu, name=report.name)
    if gpu.vram is None and report.total:
        free = free_of(report.total, report.used)
        gpu = msgspec.structs.replace(gpu, available=True, vram=report.total, vram_available=free)
    return gpu


def _remembered(gpu: GPUInfo) -> GPUInfo:
    name = _names.get(gpu.id or "")
    return msgspec.structs.replace(gpu, name=name) if name and _nameless(gpu) else gpu


def _nameless(gpu: GPUInfo) -> bool:
    return re.fullmatch(r"AMD GPU(?: 0x[0-9a-f]+)?", gpu.name or "AMD GPU") is not None
