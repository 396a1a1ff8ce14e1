"""From what stable-diffusion.cpp prints to progress that a person can trust.

The engine says three things: a byte rate while it loads, a step count while it denoises, and one line when it begins
to decode. In between, time since the stage began stands in, measured against what the same stage took last time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from msgspec import Struct

from genai_notebook.core.schema import ImageGenerationConfig, ImageGenerationProgress, ImageStage

_BAR = re.compile(r"\|[^|]*\|\s*(\d+)/(\d+)\s+-\s+([\d.]+)\s*(\S+)")
_LOADING = re.compile(r"loading (?:tensors|model) from")
_DIFFUSION = re.compile(r"generating image: \d+/\d+|(?:get_learned_condition|loading tensors) completed|sampling using")
_DECODING = re.compile(r"sampling completed|decoding \d+ latents?")
_DECODED = re.compile(r"decode_first_stage completed")

#: A stage that lasts longer than expected creeps towards its end but does not reach it.
_CREEP = 0.95


class Calibration(Struct):
    """What the stages took, in milliseconds: the first guesses, replaced by every finished run."""

    load: float = 2000.0
    step_per_megapixel: float = 1000.0
    decode_per_megapixel: float = 8000.0


class ProgressTracker:
    """Progress of one request for one or more images.

    Percentages never fall and stay at 99 or below until `finish`.

    Args:
        config: the request; its size, steps and count give the stages their weights.
        calibration: read for the estimates and updated by what is observed.
        loaded: whether the model is in memory already, so that the first stage takes no time.
        floor: the least percentage to report: where an earlier try of the same request had come.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: ImageGenerationConfig,
        calibration: Calibration,
        *,
        loaded: bool,
        floor: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._calibration = calibration
        self._clock = clock
        self._megapixels = config.width * config.height / 1e6
        self._load = 0.0 if loaded else calibration.load
        self._diffusion = max(1.0, calibration.step_per_megapixel * self._megapixels * config.steps)
        self._decode = max(1.0, calibration.decode_per_megapixel * self._megapixels)
        self._total = self._load + config.count * (self._diffusion + self._decode)
        self._image = 1
        self._stage: ImageStage = "diffusion" if loaded else "loading"
        self._step, self._steps = 0, config.steps if loaded else 1
        self._stage_began = self._step_began = clock()
        self._best = floor

    def feed(self, line: str) -> bool:
        """Read one line of the engine's output; True if it changed anything."""
        if match := _BAR.search(line):
            return self._bar(int(match[1]), int(match[2]), match[4])
        if _DECODED.search(line):
            return self._decoded()
        if _DECODING.search(line):
            return self._enter("decoding")
        if _DIFFUSION.search(line):
            return self._stage == "loading" and self._enter("diffusion")
        if _LOADING.search(line):
            return self._stage == "loading"
        return False

    def loaded(self) -> None:
        """The engine answers: the model is in memory."""
        if self._stage == "loading":
            self._enter("diffusion")

    def begin_image(self, number: int) -> None:
        """Image `number` (from 1) of the batch begins."""
        self._image = number
        if self._stage == "decoding":
            self._enter("diffusion")

    @property
    def best(self) -> float:
        """The highest percentage reported so far."""
        return self._best

    @property
    def decoded(self) -> bool:
        """Whether the current picture is finished, as far as the log tells."""
        return self._stage == "decoding" and self._step == self._steps

    def current(self) -> ImageGenerationProgress:
        """Where the request stands now."""
        elapsed = (self._clock() - self._stage_began) * 1000
        before = self._load + (self._image - 1) * (self._diffusion + self._decode)
        if self._stage == "loading":
            done = self._load * max(self._share(elapsed, self._load), self._step / max(1, self._steps) * _CREEP)
        elif self._stage == "diffusion":
            step = self._diffusion / max(1, self._steps)
            within = self._share((self._clock() - self._step_began) * 1000, step) if self._step < self._steps else 0.0
            done = before + step * (self._step + within)
        else:
            done = before + self._diffusion + self._decode * self._share(elapsed, self._decode)
        self._best = max(self._best, min(99.0, 100.0 * done / self._total))
        return self._progress(self._best)

    def finish(self) -> ImageGenerationProgress:
        """The one report of 100 %."""
        self._step = self._steps
        return self._progress(100.0)

    def _bar(self, step: int, steps: int, unit: str) -> bool:
        if unit.startswith(("it/s", "s/it")) and steps == self._config.steps:
            if self._stage != "diffusion":
                self._enter("diffusion")
            self._step, self._steps = step, steps
            self._step_began = self._clock()
            return True
        if self._stage == "loading":
            self._step, self._steps = step, steps
            return True
        return False

    def _enter(self, stage: ImageStage) -> bool:
        if stage == self._stage:
            return False
        self._measure()
        self._stage = stage
        self._stage_began = self._step_began = self._clock()
        self._step, self._steps = 0, self._config.steps if stage == "diffusion" else 1
        return True

    def _decoded(self) -> bool:
        if self._stage != "decoding":
            return False
        self._measure()
        self._step = self._steps
        return True

    def _measure(self) -> None:
        """Remember what the stage that ends now has taken."""
        took = (self._clock() - self._stage_began) * 1000
        if self._stage == "loading":
            self._calibration.load = took
        elif self._stage == "diffusion" and self._step:
            self._calibration.step_per_megapixel = took / self._megapixels / self._config.steps
        elif self._stage == "decoding":
            self._calibration.decode_per_megapixel = took / self._megapixels

    @staticmethod
    def _share(elapsed: float, expected: float) -> float:
        return min(_CREEP, elapsed / expected) if expected > 0 else _CREEP

    def _progress(self, percentage: float) -> ImageGenerationProgress:
        batch = self._config.count > 1
        return ImageGenerationProgress(
            current_step=self._step,
            total_steps=self._steps,
            stage=self._stage,
            percentage=round(percentage, 1),
            current_image=self._image if batch else None,
            total_images=self._config.count if batch else None,
        )
