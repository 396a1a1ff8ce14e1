"""Previews: what a picture looks like while it is being painted.

The engine shows a picture at a step in a buffer of its own, and waits meanwhile. So its thread only copies the pixels;
another one makes a PNG of the latest copy, and drops what came before it. A preview that fails is no reason for a
generation to fail.
"""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: Pixels along the longer side at most: a preview is looked at for a second, and asked for again and again.
MOST_SIDE = 256

Show = Callable[[int, str], None]


class Previews:
    """The previews of one engine.

    Args:
        engine: the module cyllama.sd.
        complain: told once, in words, when a preview fails.
    """

    def __init__(self, engine: Any, complain: Callable[[str], None]) -> None:
        self._engine = engine
        self._complain = complain
        self._changed = threading.Condition()
        self._show: Show | None = None
        self._turn = 0
        self._latest: tuple[int, Any] | None = None
        self._encoder: threading.Thread | None = None
        self._failed = False

    @property
    def modes(self) -> list[str]:
        """What may be asked for; `none` is always there."""
        if not hasattr(self._engine, "set_preview_callback") or not hasattr(self._engine, "PreviewMode"):
            return ["none"]
        return [mode.name.lower() for mode in self._engine.PreviewMode if mode.name != "COUNT"]

    @contextlib.contextmanager
    def during(self, mode: str, interval: int, show: Show | None) -> Iterator[None]:
        """Hand previews of the generation inside to `show`, which is not called any more once this has ended.

        Args:
            mode: one of `modes`.
            interval: steps from one preview to the next.
            show: takes the step and a PNG as base64; called by another thread, one call at a time.
        """
        if mode == "none" or show is None or not self._begin(mode, interval, show):
            yield
            return
        try:
            yield
        finally:
            with self._changed:
                self._show = self._latest = None
            with contextlib.suppress(Exception):
                self._engine.set_preview_callback(None)

    def _begin(self, mode: str, interval: int, show: Show) -> bool:
        def see(step: int, frames: list[Any], noisy: bool) -> None:
            # Some versions of the engine come at every step, whatever they were told.
            if frames and step % interval == 0:
                self._offer(step, frames[0])

        try:
            self._engine.set_preview_callback(see, getattr(self._engine.PreviewMode, mode.upper()), interval)
        except Exception as error:
            self._say(error)
            return False
        with self._changed:
            self._show = show
            self._turn += 1
        if self._encoder is None:
            self._encoder = threading.Thread(target=self._encode, name="previews", daemon=True)
            self._encoder.start()
        return True

    def _offer(self, step: int, frame: Any) -> None:
        import numpy as np

        try:
            pixels = np.array(frame.to_numpy(), copy=True)
            with self._changed:
                if self._show is not None:
                    self._latest = (step, pixels)
                    self._changed.notify()
        except Exception as error:
            self._say(error)

    def _encode(self) -> None:
        while True:
            with self._changed:
                while self._latest is None:
                    self._changed.wait()
                (step, pixels), self._latest = self._latest, None
                turn = self._turn
            try:
                png = _small_png(pixels)
                with self._changed:
                    # Under the lock: none arrives after its generation has ended, or in the next one.
                    if self._show is not None and turn == self._turn:
                        self._show(step, png)
            except Exception as error:
                self._say(error)

    def _say(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._complain(f"a preview failed, and others may: {error!r}")


def _small_png(pixels: Any) -> str:
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")
