"""How memory is drawn: what the bars say, that it adds up, and that names from outside stay text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.schema import GPUInfo, MemoryHolder, MemoryInfo, MemoryUse, ServerInfo
from genai_notebook.display import memory, views
from tests.notebook.test_views import EVIL, Tags

GIB = 1 << 30
LLM = MemoryHolder(kind="llm", name="tiny", ram=3 * GIB, vram=2 * GIB, pid=10)
KERNEL = MemoryHolder(kind="kernel", name="this kernel", ram=GIB, vram=0, pid=11)
OWNER = MemoryHolder(kind="owner", name="Jupyter server", ram=GIB, vram=0, pid=12)
OTHERS = MemoryHolder(kind="others", name="other programs", ram=2 * GIB, vram=GIB)


def use(*holders: MemoryHolder, free: int = 9 * GIB, gpus: tuple[GPUInfo, ...] = ()) -> MemoryUse:
    memory_info = MemoryInfo(total=16 * GIB, available=free, used=16 * GIB - free)
    return MemoryUse(
        memory=memory_info, gpus=list(gpus), holders=list(holders or (OTHERS, OWNER, KERNEL, LLM)), measured_at=1
    )


def card(free: int | None = 5 * GIB, **more: Any) -> GPUInfo:
    return GPUInfo(available=True, type="nvidia", name="Card", vram=8 * GIB, vram_available=free, **more)


def widths(html: str) -> list[float]:
    return [float(number) for number in re.findall(r"width:([\d.]+)%;min-width", html)]


def labels(html: str) -> list[str]:
    return re.findall(r'role="img" aria-label="([^"]*)"', html)


def test_the_bar_of_the_ram() -> None:
    bundle = memory.bars(use())
    assert bundle["text/plain"].splitlines() == [
        "Memory: 7 GB of 16 GB in use, 9 GB free",
        "  [#########kkkooo++++++.............................]",
        "  # tiny            3 GB",
        "  k this kernel     1 GB",
        "  o Jupyter server  1 GB",
        "  + other programs  2 GB",
        "  . free            9 GB",
    ]
    html = bundle["text/html"]
    assert widths(html) == [18.75, 6.25, 6.25, 12.5, 56.25]
    assert labels(html) == [
        "Memory: 7 GB of 16 GB in use, 9 GB free. tiny 3 GB · this kernel 1 GB · Jupyter server 1 GB · "
        "other programs 2 GB · free 9 GB"
    ]
    for words in ("tiny 3 GB", "other programs 2 GB", "free 9 GB"):
        assert words in Tags(html).text


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=9))
def test_every_character_of_a_bar_is_given_out_once(sizes: list[int]) -> None:
    cells = memory._cells(sizes, 50)
    assert sum(cells) == (50 if any(sizes) else 0)
    assert all((count > 0) == (size > 0) for count, size in zip(cells, sizes, strict=True))


def test_what_files_hold_is_in_use_and_available_at_once() -> None:
    bundle = memory.bars(use(LLM, OWNER, OTHERS, free=14 * GIB))
    assert "Memory: 6 GB of 16 GB in use, 10 GB free" in bundle["text/plain"]
    assert "4 GB of what is held is file content that the system takes back" in bundle["text/plain"]
    assert sum(widths(bundle["text/html"])) == pytest.approx(100)
    assert "4 GB of what is held" in bundle["text/html"]


def test_more_is_held_than_there_is() -> None:
    bundle = memory.bars(use(LLM, *[OTHERS] * 9, free=GIB))
    assert "21 GB of 16 GB" not in bundle["text/plain"]
    assert "16 GB of 16 GB in use, 0 Bytes free" in bundle["text/plain"]


def test_a_gpu_with_its_holders() -> None:
    text = memory.bars(use(gpus=(card(),)))["text/plain"].split("\n\n")[1]
    assert text.splitlines()[0] == "GPU (Card): 3 GB of 8 GB in use, 5 GB free"
    assert text.splitlines()[2:] == [
        "  # tiny            2 GB",
        "  + other programs  1 GB",
        "  . free            5 GB",
    ]


def test_a_gpu_whose_holders_are_not_known() -> None:
    holders = (MemoryHolder(kind="llm", name="tiny", ram=GIB), MemoryHolder(kind="others", name="x", ram=0))
    html = memory.bars(use(*holders, gpus=(card(),)))["text/html"]
    assert "in use; by whom is not known 3 GB" in labels(html)[1]
    assert len(labels(memory.bars(use(*holders, gpus=(card(free=None),)))["text/html"])) == 1


def test_several_gpus_have_a_bar_each_and_holders_over_all() -> None:
    bundle = memory.bars(use(gpus=(card(), card(free=8 * GIB))))
    assert [label.split(":")[0] for label in labels(bundle["text/html"])] == ["Memory", "GPU 1 (Card)", "GPU 2 (Card)"]
    assert "Over all GPUs\n  tiny 2 GB" in bundle["text/plain"]


def test_a_gpu_that_shares_the_ram_says_so() -> None:
    text = memory.bars(use(gpus=(card(unified=True),)))["text/plain"]
    assert "its memory is a share of the machine's" in text
    assert "tiny            2 GB" not in text


def test_engines_of_one_kind_look_different() -> None:
    second = MemoryHolder(kind="llm", name="other", ram=GIB, pid=20)
    assert len(set(re.findall(r"background-color:(#\w+)", memory.bars(use(LLM, second))["text/html"]))) == 2


def test_names_stay_text() -> None:
    def shown(name: str) -> str:
        holder = MemoryHolder(kind="llm", name=name, ram=GIB, vram=GIB)
        gpu = GPUInfo(available=True, name=name, vram=GIB, vram_available=0)
        return str(memory.bars(use(holder, OTHERS, gpus=(gpu,)))["text/html"])

    seen = Tags(shown(EVIL))
    assert seen.tags == Tags(shown("harmless")).tags
    assert EVIL in seen.text


@given(st.text())
def test_any_name_can_be_shown(name: str) -> None:
    holder = MemoryHolder(kind="llm", name=name, ram=GIB)
    bundle = memory.bars(use(holder, gpus=(GPUInfo(available=True, name=name, vram=GIB, vram_available=0),)))
    for text in (*bundle.values(), memory.line(use(holder))):
        assert "\x1b" not in text
        assert "\r" not in text
    assert "\n" not in memory.line(use(holder))


def test_one_line_for_terminals() -> None:
    assert memory.line(use()) == (
        "Memory: 7 GB of 16 GB in use, 9 GB free · "
        "tiny 3 GB · this kernel 1 GB · Jupyter server 1 GB · other programs 2 GB"
    )


def test_what_is_known_of_a_gpu() -> None:
    gpu = card(driver="570.1", compute_capability="9.0", unified=True)
    assert memory.gpu_words(gpu) == (
        "Card · 8 GB, 5 GB free · shares the machine's memory · driver 570.1 · compute capability 9.0"
    )
    assert memory.gpu_words(GPUInfo(available=True, type="vulkan")) == "vulkan"


def test_engines_in_use() -> None:
    running = ServerInfo(
        status="running",
        health="ok",
        owner="jupyter-server",
        pid=10,
        model_id="tiny",
        started_at="2026-01-02T03:04:05.678Z",
    )
    stopped = ServerInfo(status="stopped", health="unknown", owner="jupyter-server")
    second = MemoryHolder(kind="llm", name="<other>", ram=1, pid=77)
    bundle: views.Bundle = memory.engines(use(LLM, second), running, stopped)
    text = bundle["text/plain"]
    assert "the Jupyter server" in text
    assert re.search(r"running · tiny · .*pid 10 · since 2026-01-0\d \d\d:04", text)
    assert "<other> · pid 77" in text
    assert "<other>" not in bundle["text/html"]
