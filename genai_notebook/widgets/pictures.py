"""The part of a panel that makes an image: prompt, parameters, a bar with its state in words, Cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from genai_notebook.display import views
from genai_notebook.display.words import output_of, progress_words
from genai_notebook.errors import InvalidRequestError, ServerError
from genai_notebook.widgets.work import Throttle, Worker

_SIZES = [(f"{side} × {side}", side) for side in (256, 512, 768, 1024)]


class PictureForm:
    """Prompt and parameters of one image at a time.

    Args:
        worker: carries out the clicks.
        show: gets the finished picture as MIME bundle and metadata.
    """

    def __init__(self, worker: Worker, show: Callable[[views.Bundle, dict[str, Any]], None]) -> None:
        self._show = show
        self._id: str | None = None
        self._task: asyncio.Task[Any] | None = None
        self.prompt = widgets.Textarea(
            description="Prompt",
            placeholder="a red fox in the snow, morning light",
            rows=2,
            layout=widgets.Layout(width="auto"),
        )
        narrow = widgets.Layout(width="11em")
        self.size = widgets.Dropdown(description="Size", options=_SIZES, value=512, layout=widgets.Layout(width="16em"))
        self.steps = widgets.BoundedIntText(description="Steps", value=20, min=1, max=1000, layout=narrow)
        self.cfg = widgets.BoundedFloatText(description="Guidance", value=7.5, min=0, max=100, step=0.5, layout=narrow)
        self.seed = widgets.Text(description="Seed", placeholder="random", layout=widgets.Layout(width="14em"))
        self.make = widgets.Button(description="Make image", button_style="primary")
        self.cancel = widgets.Button(description="Cancel image", disabled=True)
        self.bar = widgets.FloatProgress(min=0, max=100, layout=widgets.Layout(width="14em", display="none"))
        self.words = widgets.Label()
        worker.on_click(self.make, self._make)
        worker.on_click(self.cancel, self._cancel)
        rows = [
            widgets.HBox([self.size, self.steps, self.cfg, self.seed]),
            widgets.HBox([self.make, self.cancel, self.bar, self.words]),
        ]
        for row in rows:
            row.layout.flex_flow = "row wrap"
        self.view = widgets.VBox([self.prompt, *rows])

    async def _make(self) -> None:
        from genai_notebook.current import diffusion_server

        if self._task is not None:
            raise ServerError("One image at a time.", code="SERVER_BUSY", hint="Wait for this one, or cancel it.")
        config = self._config()
        model = (await asyncio.to_thread(diffusion_server.get_info)).model_id
        self._task = asyncio.current_task()
        self._set_busy(True)
        self._say(0, "waiting")
        try:
            image: Any = await diffusion_server.generate_image(
                config, on_progress=self._progress(), on_start=self._started
            )
        except ServerError as error:
            if error.code != "GENERATION_CANCELLED":
                self._say(0, "failed")
                raise
            self._say(0, "cancelled")
        except BaseException:
            self._say(0, "failed")
            raise
        else:
            self._say(100, f"done in {views.duration(image.time_taken / 1000)}, seed {image.seed}")
            self._show(*output_of(config, image, model))
        finally:
            self._task = self._id = None
            self._set_busy(False)

    def _config(self) -> Any:
        from genai_notebook.core.schema import ImageGenerationConfig
        from genai_notebook.core.validation import from_keywords

        prompt = " ".join(self.prompt.value.split())
        if not prompt:
            raise InvalidRequestError("Write a prompt first.", {"field": "prompt"})
        seed = self.seed.value.strip()
        if seed and not seed.lstrip("-").isdigit():
            raise InvalidRequestError("The seed is a whole number, or empty for a random one.", {"field": "seed"})
        return from_keywords(
            ImageGenerationConfig,
            {
                "prompt": prompt,
                "width": self.size.value,
                "height": self.size.value,
                "steps": self.steps.value,
                "cfg_scale": self.cfg.value,
                "seed": int(seed) if seed else None,
            },
        )

    def _started(self, id: str) -> None:
        self._id = id

    def _progress(self) -> Callable[[int, int, str, float | None], None]:
        throttle = Throttle()

        def progress(step: int, steps: int, stage: str, percentage: float | None) -> None:
            if self._task is not None and throttle.due():
                self._say(percentage or 0.0, progress_words(step, steps, stage))

        return progress

    async def _cancel(self) -> None:
        from genai_notebook.current import diffusion_server

        self.cancel.disabled = True
        if self._id is not None:
            await diffusion_server.cancel_image_generation(self._id)
        elif self._task is not None:
            self._task.cancel()

    def _set_busy(self, busy: bool) -> None:
        self.make.disabled = busy
        self.cancel.disabled = not busy
        self.bar.layout.display = None if busy else "none"

    def _say(self, percentage: float, words: str) -> None:
        self.bar.value = percentage
        self.words.value = f"{percentage:.0f} % · {words}" if 0 < percentage < 100 else words
