"""%genai system, fit: the machine, who holds its memory, and what of a model fits into it."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from genai_notebook.display import memory as drawing
from genai_notebook.display import views
from genai_notebook.magics.arguments import add_into, given
from genai_notebook.magics.server_commands import choose_model
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import MemoryEstimate, MemoryUse, ModelInfo, SystemCapabilities
    from genai_notebook.core.system.plan import Room
    from genai_notebook.display.live import Live

CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072)
#: Seconds between two looks of `--watch`.
EVERY = 1.0
_FITS = {"now": "yes", "alone": "when nothing else is loaded", "no": "no"}
_FIT_HELP = """\
Show how much memory a model takes at which context, and whether that fits: now, or when nothing else is loaded.
"""


def add(subparsers: Any) -> None:
    system = subparsers.add_parser("system", help="show what this machine can hold, and who holds its memory")
    system.add_argument("--refresh", action="store_true", help="look again instead of remembering")
    system.add_argument("--watch", action="store_true", help="go on showing it, until you interrupt")
    add_into(system, "the capabilities")
    system.set_defaults(run=show_system)

    fit = subparsers.add_parser("fit", help="show at which context a model fits", description=_FIT_HELP)
    fit.add_argument("model", metavar="MODEL", help="id of the model")
    fit.add_argument("--context-size", type=int, metavar="N", help="a further context, in tokens")
    fit.add_argument("--cache-type-k", metavar="TYPE", help="type of the cached keys, e.g. q8_0")
    fit.add_argument("--cache-type-v", metavar="TYPE", help="type of the cached values")
    fit.add_argument("--parallel", type=int, metavar="N", dest="parallel_requests", help="requests at a time")
    add_into(fit, "the rows, a list of dicts")
    fit.set_defaults(run=show_fit)


# ---- system ---------------------------------------------------------------------------------------------------------


def show_system(shell: Shell, arguments: argparse.Namespace) -> SystemCapabilities:
    from genai_notebook.client.bridge import run
    from genai_notebook.current import system_info

    found: SystemCapabilities = run(system_info.detect(force=arguments.refresh))
    use = run(system_info.memory_use(os.getpid()))
    if arguments.watch:
        _watch(shell, found, use)
    else:
        shell.emit(_picture(found, use))
    return found


def _picture(found: SystemCapabilities, use: MemoryUse) -> views.Bundle:
    return drawing.stack([drawing.machine(found, use.memory, use.gpus), drawing.bars(use)])


def _watch(shell: Shell, found: SystemCapabilities, use: MemoryUse) -> None:
    """Show the memory anew each second. The interrupt is how this ends, so it is no error."""
    from genai_notebook.client.bridge import run
    from genai_notebook.current import system_info

    def state() -> views.Bundle:
        picture = _picture(found, use)
        return picture if shell.in_notebook else {"text/plain": drawing.line(use)}  # a terminal's line is rewritten

    live: Live = shell.live(state())
    try:
        while True:
            run(asyncio.sleep(EVERY))
            use = run(system_info.memory_use(os.getpid()))
            live.update(state())
    except KeyboardInterrupt:
        watched = views.caption(f"Watched until {time.strftime('%H:%M:%S')}.")
        live.finish(drawing.stack([_picture(found, use), watched]))


# ---- fit ------------------------------------------------------------------------------------------------------------


class _Rooms(Struct, frozen=True):
    """The memory there is: what is free now, and all of it."""

    now: Room
    all: Room

    def verdict(self, need: MemoryEstimate) -> str:
        """'now', 'alone' (when nothing else is loaded), or 'no'."""
        return "now" if _holds(self.now, need) else "alone" if _holds(self.all, need) else "no"


def _holds(room: Room, need: MemoryEstimate) -> bool:
    ram = need.ram + need.vram if room.unified else need.ram
    return ram <= room.ram and need.vram <= _vram(room)


def _vram(room: Room) -> int:
    """What may be taken of the GPUs' memory: some of each stays free, as `start` leaves it."""
    from genai_notebook.core.system.plan import VRAM_RESERVE

    return sum(max(0, gpu - VRAM_RESERVE) for gpu in room.gpus)


def show_fit(shell: Shell, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from genai_notebook.client.bridge import run

    model: ModelInfo = run(choose_model(arguments.model, None))
    with shell.working(f"Working out what {model.id} takes") as live:
        rooms, rows, advice = run(_work_out(model, arguments))
        live.finish(_fit_view(model, rooms, rows, advice))
    return rows


async def _work_out(model: ModelInfo, arguments: argparse.Namespace) -> tuple[_Rooms, list[dict[str, Any]], str]:
    from genai_notebook.current import model_manager, system_info

    rooms = await _look()
    if model.type == "diffusion":
        need = await system_info.estimate_memory(model.id)
        rows = [_row(None, "GPU" if need.vram else "CPU", None, need, rooms)]
    else:
        trained = await model_manager.get_model_context_length(model.id)
        layers = await model_manager.get_model_layer_count(model.id)
        options = {"kv_unified": True, "parallel_requests": 4}  # as `start` makes a server
        options |= given(arguments, "parallel_requests", "cache_type_k", "cache_type_v")
        rows = []
        for context in contexts(trained, arguments.context_size):
            rows += await _placements(model, rooms, layers, {**options, "context_size": context})
    return rooms, rows, _advice(await system_info.get_optimal_config(model.id))


async def _look() -> _Rooms:
    from genai_notebook.core.system.plan import room_of
    from genai_notebook.current import system_info

    found = await system_info.detect(force=True)
    return _Rooms(room_of(found.memory, found.gpus), room_of(found.memory, found.gpus, total=True))


def contexts(trained: int, asked: int | None) -> list[int]:
    """The contexts to show: the usual ones up to the one that the model was trained for, that one where it is not
    larger than all of them, and the one that was asked for.
    """
    usual = {context for context in CONTEXTS if context <= trained} | {min(trained, CONTEXTS[-1])}
    return sorted(usual | ({asked} if asked is not None else set()))


async def _placements(model: ModelInfo, rooms: _Rooms, layers: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """One context's rows: on the CPU, on the GPU, and with as many layers on the GPU as fit now."""
    from genai_notebook.current import system_info

    async def need(gpu_layers: int) -> MemoryEstimate:
        return await system_info.estimate_memory(model.id, gpu_layers=gpu_layers, **options)

    context, whole = options["context_size"], layers + 1  # the output layer counts as one
    rows = [_row(context, "CPU", 0, await need(0), rooms)]
    if not rooms.now.gpus:
        return rows
    everything = await need(whole)
    rows.append(_row(context, "GPU (all layers)", whole, everything, rooms))
    if everything.vram > (vram := _vram(rooms.now)):
        low, high = 0, whole - 1
        while low < high:  # the share grows with the layers, so halving finds the last that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if (await need(middle)).vram <= vram else (low, middle - 1)
        if low:
            rows.append(_row(context, f"GPU ({low} of {whole} layers)", low, await need(low), rooms))
    return rows


def _row(
    context: int | None, placement: str, layers: int | None, need: MemoryEstimate, rooms: _Rooms
) -> dict[str, Any]:
    return {
        "context_size": context,
        "placement": placement,
        "gpu_layers": layers,
        "ram": need.ram,
        "vram": need.vram,
        "fits": rooms.verdict(need),
        "exact": need.exact,
    }


def _fit_view(model: ModelInfo, rooms: _Rooms, rows: list[dict[str, Any]], advice: str) -> views.Bundle:
    now, whole = rooms.now, rooms.all
    shown = [
        (
            "any" if row["context_size"] is None else f"{row['context_size']:,}",
            row["placement"],
            views.size(row["ram"]),
            *([views.size(row["vram"]) if row["vram"] else ""] if now.gpus else []),
            _FITS[row["fits"]],
        )
        for row in rows
    ]
    headers = ("Context", "Where", "RAM", *(["VRAM"] if now.gpus else []), "Fits?")
    free = f"Free now: {views.size(now.ram)} of {views.size(whole.ram)} RAM"
    if now.gpus:
        free += f", {views.size(sum(now.gpus))} of {views.size(sum(whole.gpus))} VRAM, of which some is left free"
    exact = all(row["exact"] for row in rows)
    return drawing.stack(
        [
            views.table(headers, shown, title=f"{model.id} ({views.size(model.size)})"),
            *([] if exact else [views.caption("By size × 1.2: the file tells no more.")]),
            views.caption(f"{free}."),
            views.note(f"%genai start {model.id} would take: {advice}."),
        ]
    )


def _advice(config: dict[str, Any]) -> str:
    """What `start` would choose, in words."""
    layers = config.get("gpu_layers")
    words = (
        f"context {config['context_size']:,}" if "context_size" in config else "",
        "" if layers is None else f"{layers} layers on the GPU" if layers else "all of it on the CPU",
        f"KV cache in {config['cache_type_k']}" if config.get("cache_type_k", "f16") != "f16" else "",
        f"{config['threads']} threads" if "threads" in config else "",
        f"{config['parallel_requests']} requests at a time" if "parallel_requests" in config else "",
    )
    return ", ".join(word for word in words if word)
