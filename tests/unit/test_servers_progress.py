"""The parser against real lines of stable-diffusion.cpp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.core.servers.progress import Calibration, ProgressTracker

REAL = [
    "[INFO ] stable-diffusion.cpp:212  - loading model from 'tiny.gguf'",
    "  |======>            | 269/543 - 281.98MB/s",
    "  |==================>| 543/543 - 281.98MB/s",
    "[INFO ] model.cpp:993  - loading tensors completed, taking 1.41s",
    "[INFO ] stable-diffusion.cpp:3401 - generating image: 1/1 - seed 42",
    "  |======>            | 1/4 - 6.28it/s",
    "  |==================>| 4/4 - 6.28it/s",
    "[INFO ] stable-diffusion.cpp:3432 - sampling completed, taking 0.65s",
    "[INFO ] stable-diffusion.cpp:3192 - decoding 1 latents",
    "[INFO ] stable-diffusion.cpp:3212 - decode_first_stage completed, taking 0.26s",
]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tracker(clock: Clock, *, loaded: bool = False, **fields: int) -> ProgressTracker:
    config = ImageGenerationConfig(**{"prompt": "p", "steps": 4, "width": 64, "height": 64, **fields})
    return ProgressTracker(config, Calibration(), loaded=loaded, clock=clock)


def test_the_stages_of_a_real_log() -> None:
    clock = Clock()
    progress = tracker(clock)
    seen = []
    for line in REAL:
        clock.now += 0.1
        progress.feed(line)
        now = progress.current()
        seen.append((now.stage, now.current_step, now.total_steps))
    assert seen == [
        ("loading", 0, 1),
        ("loading", 269, 543),
        ("loading", 543, 543),
        ("diffusion", 0, 4),
        ("diffusion", 0, 4),
        ("diffusion", 1, 4),
        ("diffusion", 4, 4),
        ("decoding", 0, 1),
        ("decoding", 0, 1),
        ("decoding", 1, 1),
    ]
    assert progress.finish().percentage == 100.0


def test_percentages_never_fall_and_stay_below_100() -> None:
    clock = Clock()
    progress = tracker(clock)
    last = 0.0
    for line in [*REAL[:5], "  | | 3/4 - 1.00s/it", "  | | 1/4 - 1.00s/it", *REAL[6:]]:
        clock.now += 5.0
        progress.feed(line)
        percentage = progress.current().percentage
        assert percentage is not None
        assert last <= percentage <= 99
        last = percentage


def test_steps_are_not_read_from_a_byte_rate() -> None:
    clock = Clock()
    progress = tracker(clock, loaded=True)
    assert not progress.feed("  |====>   | 2/4 - 281.98MB/s")
    assert progress.current().current_step == 0
    assert progress.feed("  |====>   | 2/4 - 1.50s/it")
    assert progress.current().current_step == 2


def test_finished_runs_calibrate_the_next() -> None:
    clock = Clock()
    calibration = Calibration()
    config = ImageGenerationConfig(prompt="p", steps=4, width=1024, height=1024)
    progress = ProgressTracker(config, calibration, loaded=False, clock=clock)
    progress.feed(REAL[0])
    clock.now = 10.0
    progress.loaded()
    clock.now = 30.0
    progress.feed("  | | 4/4 - 1.00it/s")
    progress.feed(REAL[7])
    clock.now = 33.0
    progress.feed(REAL[9])
    assert calibration.load == pytest.approx(10_000)
    assert calibration.step_per_megapixel == pytest.approx(20_000 / 4 / 1.048576)
    assert calibration.decode_per_megapixel == pytest.approx(3_000 / 1.048576)


def test_a_batch_counts_its_images() -> None:
    clock = Clock()
    progress = tracker(clock, loaded=True, count=2)
    first = progress.current()
    assert (first.current_image, first.total_images) == (1, 2)
    progress.feed("  | | 4/4 - 1.00it/s")
    progress.feed(REAL[7])
    progress.begin_image(2)
    second = progress.current()
    assert (second.stage, second.current_image) == ("diffusion", 2)
    assert second.percentage is not None
    assert second.percentage >= 49


def test_a_single_long_step_moves() -> None:
    clock = Clock()
    progress = tracker(clock, loaded=True, steps=1, width=1024, height=1024)
    seen = []
    for _ in range(8):
        clock.now += 0.2
        seen.append(progress.current().percentage)
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    progress.feed("  |====| 1/1 - 2.00s/it")
    after = progress.current().percentage
    assert after is not None
    assert seen[-1] is not None
    assert after >= seen[-1]


def test_bars_of_other_releases() -> None:
    clock = Clock()
    progress = tracker(clock)
    assert progress.feed("  |########                  | 269/543 - 1.28GB/s")
    assert (progress.current().stage, progress.current().current_step) == ("loading", 269)


@given(st.lists(st.one_of(st.sampled_from(REAL), st.text(max_size=60)), max_size=60))
def test_any_log_gives_sane_progress(lines: list[str]) -> None:
    clock = Clock()
    progress = tracker(clock)
    last = 0.0
    for line in lines:
        clock.now += 0.5
        progress.feed(line)
        percentage = progress.current().percentage
        assert percentage is not None
        assert last <= percentage <= 99
        last = percentage
