"""Memory as people see it: one stacked bar for RAM and one a GPU, with names and sizes in words beside it.

Colours are fixed and of middle brightness, so that they can be told apart on white and on black, and inline, so that
they are there in a saved or exported notebook too. Nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import cycle
from typing import TYPE_CHECKING

from msgspec import Struct

from genai_notebook.display import views
from genai_notebook.display.words import describe

if TYPE_CHECKING:
    from genai_notebook.core.schema import GPUInfo, MemoryHolder, MemoryInfo, MemoryUse, ServerInfo, SystemCapabilities

#: Holders in the order in which they are drawn, with their colours and characters; several of a kind take turns.
_LOOKS = {
    "llm": (("#3b7dd8", "#"), ("#7a5fd0", "@"), ("#2f8fb4", "&")),
    "images": (("#b5589b", "*"), ("#c2506c", "%")),
    "kernel": (("#2a9080", "k"),),
    "owner": (("#b8730a", "o"),),
    "others": (("#808080", "+"),),
}
_CHARACTERS = 50
_BOX = "max-width:60em;margin:6px 0;font-family:var(--jp-ui-font-family,sans-serif);line-height:1.5"
_BAR = (
    "display:flex;gap:1px;width:100%;max-width:40em;height:1.1em;margin:2px 0;overflow:hidden;"
    "border:1px solid #808080;border-radius:3px"
)
_LEGEND = "display:flex;flex-wrap:wrap;gap:0 16px"
_QUIET = "color:var(--jp-ui-font-color2,#666);font-size:90%"


class Part(Struct, frozen=True):
    """One segment: what it is, bytes, its colour and its character."""

    name: str
    size: int
    color: str
    mark: str


def machine(found: SystemCapabilities, memory: MemoryInfo, gpus: Sequence[GPUInfo]) -> views.Bundle:
    """What the machine is and can hold, with memory and GPUs as they are now."""
    advice = found.recommendations
    cores = f"{found.cpu.cores} cores"
    rows: list[tuple[str, object]] = [
        ("Processor", " · ".join(part for part in (found.cpu.model, cores, found.cpu.architecture) if part)),
        ("Memory", f"{views.size(memory.total)}, {views.size(memory.available)} free"),
    ]
    rows += [("GPU", gpu_words(gpu)) for gpu in gpus if gpu.available] or [("GPU", "none that can be used")]
    rows += [
        ("Platform", found.platform),
        ("Largest model", advice.max_model_size),
        ("Quantisation", ", ".join(advice.recommended_quantization)),
        ("Threads", advice.threads),
        ("GPU layers", advice.gpu_layers),
    ]
    return views.facts("What this machine can hold", rows)


def gpu_words(gpu: GPUInfo) -> str:
    """Name, memory, driver and compute capability, as far as they are known."""
    memory = views.size(gpu.vram)
    if gpu.vram is not None and gpu.vram_available is not None:
        memory += f", {views.size(gpu.vram_available)} free"
    parts = (
        gpu.name or gpu.type,
        memory,
        "shares the machine's memory" if gpu.unified else "",
        f"driver {gpu.driver}" if gpu.driver else "",
        f"compute capability {gpu.compute_capability}" if gpu.compute_capability else "",
    )
    return " · ".join(part for part in parts if part)


def engines(use: MemoryUse, llm: ServerInfo, images: ServerInfo) -> views.Bundle:
    """Who runs the engines, what they run, and since when."""
    rows: list[tuple[str, object]] = [
        ("Belong to", "the Jupyter server" if llm.owner == "jupyter-server" else "this kernel"),
        ("Language model", _status(llm)),
        ("Image generation", _status(images)),
    ]
    known = {llm.pid, images.pid}
    for holder in use.holders:
        if holder.kind in ("llm", "images") and holder.pid not in known:
            rows.append(("Beside them", f"{holder.name} · pid {holder.pid}"))
    return views.facts("Engines in use", rows)


def _status(info: ServerInfo) -> str:
    if info.started_at is None:
        return describe(info)
    since = datetime.fromisoformat(info.started_at.replace("Z", "+00:00")).astimezone()
    return f"{describe(info)} · since {since:%Y-%m-%d %H:%M}"


def bars(use: MemoryUse) -> views.Bundle:
    """The bar of the RAM, and one for each GPU whose memory is known."""
    drawn = [_ram(use)]
    gpus = [gpu for gpu in use.gpus if gpu.available and gpu.vram and gpu.vram_available is not None]
    shares = _vram_parts(use.holders)
    for number, gpu in enumerate(gpus, 1):
        name = gpu.name or gpu.type or ""
        if len(gpus) == 1 and not gpu.unified:
            known = all(holder.vram is not None for holder in use.holders)
            rest = "other programs" if known else "in use; by whom is not known"
            drawn.append(_gpu(f"GPU ({name})", gpu, shares, rest))
        else:  # who holds how much is known over all GPUs only
            drawn.append(_gpu(f"GPU {number} ({name})" if len(gpus) > 1 else f"GPU ({name})", gpu, [], "in use"))
    if len(gpus) > 1 and shares:
        drawn.append(views.note("Over all GPUs", detail=_words(shares)))
    return stack(drawn)


def line(use: MemoryUse) -> str:
    """The RAM and its holders in one line."""
    return f"Memory: {_summary(use.memory.total, use.memory.available)} · {_words(_ram_parts(use.holders))}"


def stack(bundles: Sequence[views.Bundle]) -> views.Bundle:
    """Bundles as one, one under the other."""
    return {
        "text/plain": "\n\n".join(bundle["text/plain"] for bundle in bundles),
        "text/html": "".join(bundle["text/html"] for bundle in bundles),
    }


def _ram(use: MemoryUse) -> views.Bundle:
    parts = _ram_parts(use.holders)
    free = max(0, min(use.memory.available, use.memory.total - sum(part.size for part in parts)))
    remark = ""
    if (more := use.memory.available - free) > 0:
        # Pages of model files count as held by the engine, and as available all the same.
        remark = f"{views.size(more)} of what is held is file content that the system takes back when it is needed"
    return _bar("Memory", parts, use.memory.total, free, remark)


def _gpu(title: str, gpu: GPUInfo, shares: Sequence[Part], rest_name: str) -> views.Bundle:
    total, free = gpu.vram or 0, gpu.vram_available or 0
    rest = max(0, total - free - sum(part.size for part in shares))
    color, mark = _LOOKS["others"][0]
    parts = [*shares, Part(rest_name, rest, color, mark)] if rest else list(shares)
    return _bar(title, parts, total, free, "its memory is a share of the machine's" if gpu.unified else "")


def _looks_of(holders: Sequence[MemoryHolder]) -> Iterator[tuple[MemoryHolder, tuple[str, str]]]:
    """The holders in the order of drawing, each with its colour and character: the same in every bar."""
    looks = {kind: cycle(choices) for kind, choices in _LOOKS.items()}
    for holder in sorted(holders, key=lambda holder: list(_LOOKS).index(holder.kind)):
        yield holder, next(looks[holder.kind])


def _ram_parts(holders: Sequence[MemoryHolder]) -> list[Part]:
    return [Part(holder.name, holder.ram, *look) for holder, look in _looks_of(holders)]


def _vram_parts(holders: Sequence[MemoryHolder]) -> list[Part]:
    """What is known to be held on GPUs, without 'others', which are what remains."""
    return [
        Part(holder.name, holder.vram, *look)
        for holder, look in _looks_of(holders)
        if holder.vram and holder.kind != "others"
    ]


def _summary(total: int, free: int) -> str:
    return f"{views.size(total - free)} of {views.size(total)} in use, {views.size(free)} free"


def _words(parts: Sequence[Part]) -> str:
    return " · ".join(f"{_flat(part.name)} {views.size(part.size)}" for part in parts)


def _bar(title: str, parts: Sequence[Part], total: int, free: int, remark: str = "") -> views.Bundle:
    summary = _summary(total, free)
    drawn = [*parts, Part("free", free, "transparent", ".")]
    segments = "".join(_segment(part, total) for part in drawn if part.size)
    legend = "".join(_key(part) for part in drawn)
    label = f"{title}: {summary}. {_words(drawn)}"
    second = f'<div style="{_QUIET}">{views.html(remark)}</div>' if remark else ""
    return {
        "text/plain": _plain(title, summary, drawn, remark),
        "text/html": (
            f'<div style="{_BOX}"><div><b>{views.html(title)}</b>: {views.html(summary)}</div>'
            f'<div role="img" aria-label="{views.html(label)}" style="{_BAR}">{segments}</div>'
            f'<div style="{_LEGEND}">{legend}</div>{second}</div>'
        ),
    }


def _segment(part: Part, total: int) -> str:
    width = 100 * part.size / total if total else 0
    tip = f"{part.name}: {views.size(part.size)}"
    # Whatever is there can be seen: at least three pixels.
    style = f"width:{width:.2f}%;min-width:3px;background-color:{part.color}"
    return f'<div title="{views.html(tip)}" style="{style}"></div>'


def _key(part: Part) -> str:
    square, color = ("□", "inherit") if part.color == "transparent" else ("■", part.color)
    return (
        f'<span><span aria-hidden="true" style="color:{color}">{square}</span> '
        f"{views.html(part.name)} {views.size(part.size)}</span>"
    )


def _plain(title: str, summary: str, parts: Sequence[Part], remark: str) -> str:
    cells = _cells([part.size for part in parts], _CHARACTERS)
    drawing = "".join(part.mark * count for part, count in zip(parts, cells, strict=True))
    width = max(len(_flat(part.name)) for part in parts)
    legend = [f"  {part.mark} {_flat(part.name).ljust(width)}  {views.size(part.size)}" for part in parts]
    lines = [f"{_flat(title)}: {summary}", f"  [{drawing}]", *legend]
    return "\n".join([*lines, f"  {remark}"] if remark else lines)


def _flat(text: str) -> str:
    return " ".join(views.clean(text).split())


def _cells(sizes: Sequence[int], width: int) -> list[int]:
    """`width` characters shared out by size; whatever is there gets at least one, at the cost of the largest."""
    total = sum(sizes)
    if not total:
        return [0] * len(sizes)
    counts = [max(1, size * width // total) if size else 0 for size in sizes]
    counts[sizes.index(max(sizes))] += width - sum(counts)
    return counts
