"""%%genai_image: make pictures from the cell's text, with a live bar, then the PNGs as ordinary outputs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from genai_notebook.display import views
from genai_notebook.display.live import Live, ticking
from genai_notebook.display.words import output_of, progress_words
from genai_notebook.errors import FileSystemError, GenaiNotebookError, ServerError
from genai_notebook.magics.arguments import HelpShown, Parser, add_into, given, split
from genai_notebook.magics.shell import Shell

if TYPE_CHECKING:
    from genai_notebook.core.schema import ImageBatchResult, ImageGenerationConfig, ImageGenerationResult, ModelInfo

_DESCRIPTION = """\
Make a picture of what the cell describes (%genai start --images).

  %%genai_image --width 512 --height 512 --steps 20 --seed 7
  a red fox in the snow, morning light

Turbo, Lightning, LCM and SDXS models want --cfg 1 and 1 to 8 steps.
"""


@functools.lru_cache(maxsize=1)
def parser() -> Parser:
    parser = Parser(prog="%%genai_image", description=_DESCRIPTION)
    parser.add_argument("--width", type=int, metavar="N", help="pixels, a multiple of 64 (default: 512)")
    parser.add_argument("--height", type=int, metavar="N", help="pixels, a multiple of 64 (default: 512)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument("--cfg", type=float, metavar="X", dest="cfg_scale", help="guidance (default: 7.5)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same picture (default: random)")
    parser.add_argument("--sampler", metavar="NAME", choices=_samplers(), help=f"one of {', '.join(_samplers())}")
    parser.add_argument("--negative", metavar="TEXT", dest="negative_prompt", help="what must not be in it")
    parser.add_argument("--count", type=int, metavar="N", help="how many, with seeds one after the other")
    parser.add_argument("--save", metavar="FILE", help="write the PNG here too (FILE-1.png, FILE-2.png, … for several)")
    add_into(parser, "the result")
    return parser


def _samplers() -> list[str]:
    from typing import get_args

    from genai_notebook.core.schema import ImageSampler

    return list(get_args(ImageSampler))


def run_cell(shell: Shell, line: str, cell: str) -> None:
    """Carry out one `%%genai_image` cell.

    Raises:
        UsageError: the line is wrong, or the cell is empty.
        GenaiNotebookError: image generation does not run, or it failed.
        Interrupted: the user interrupted; the generation has been cancelled.
    """
    try:
        arguments = parser().parse_args(split(line))
    except HelpShown:
        return
    prompt = " ".join(cell.split())
    if not prompt:
        raise UsageError("%%genai_image: the cell is empty; describe the picture below the first line.")
    result = _paint(shell, prompt, arguments)
    shell.store(arguments.into, result)


def _paint(shell: Shell, prompt: str, arguments: argparse.Namespace) -> ImageGenerationResult | ImageBatchResult:
    from genai_notebook.client.bridge import run
    from genai_notebook.core.models.check_model import CHECK_MODEL_NAME
    from genai_notebook.core.schema import ImageBatchResult, ImageGenerationConfig
    from genai_notebook.core.validation import from_keywords

    fields = given(arguments, "width", "height", "steps", "cfg_scale", "seed", "sampler", "negative_prompt", "count")
    config = from_keywords(ImageGenerationConfig, {"prompt": prompt, **fields})
    target = _target(arguments.save)
    model = run(_running_model())
    title = f"Painting {config.count} pictures" if config.count > 1 else "Painting"
    with shell.working(title) as live:
        progress = ImageProgress(title, live)
        result = generate(config, progress)
        images = list(result) if isinstance(result, ImageBatchResult) else [result]
        for index, image in enumerate(images):
            bundle, metadata = output_of(config, image, model.id)
            if index == 0:
                live.finish(bundle, metadata)
            else:
                shell.emit(bundle, metadata)
    saved = _save(images, target)
    seeds = f"seed {images[0].seed}" if len(images) == 1 else f"seeds {images[0].seed} to {images[-1].seed}"
    facts = [seeds, f"{config.width}×{config.height}", f"{config.steps} step{'s' * (config.steps != 1)}"]
    facts += [f"cfg {config.cfg_scale:g}", views.duration(result.time_taken / 1000), model.id]
    if model.name == CHECK_MODEL_NAME:
        facts.append("its weights are random, so this is noise")
    shell.emit(views.caption(" · ".join(facts), saved))
    return result


def generate(config: ImageGenerationConfig, progress: ImageProgress) -> ImageGenerationResult | ImageBatchResult:
    """Generate and wait. An interrupt cancels the generation before it goes on to the caller."""
    from genai_notebook.client.bridge import run
    from genai_notebook.current import diffusion_server

    async def work() -> Any:
        # A coroutine of our own, so that progress is reported on the loop it runs on and not on the blocked cell's.
        return await diffusion_server.generate_image(config, on_progress=progress, on_start=progress.start)

    try:
        return run(ticking(work, progress.draw))  # type: ignore[no-any-return]
    except KeyboardInterrupt:
        # The cancelled wait has asked for this already; here it is made sure of, whoever owns the engine.
        if progress.id is not None:
            with contextlib.suppress(GenaiNotebookError, TimeoutError):
                run(diffusion_server.cancel_image_generation(progress.id), timeout=10)
        raise


class ImageProgress:
    """A generation's callbacks that draw: stage, step, picture, time left."""

    def __init__(self, title: str, live: Live) -> None:
        self._title = title
        self._live = live
        self._began = time.monotonic()
        self._last: tuple[int, int, str, float | None] | None = None
        self.id: str | None = None

    def start(self, id: str) -> None:
        self.id = id

    def __call__(self, step: int, steps: int, stage: str, percentage: float | None) -> None:
        self._last = (step, steps, stage, percentage)
        self.draw()

    def draw(self) -> None:
        """Show the last that was reported, and the time that has gone by."""
        gone = time.monotonic() - self._began
        if self._last is None:
            self._live.update(views.progress(self._title, None, f"waiting · {views.duration(gone)}"))
            return
        step, steps, stage, percentage = self._last
        parts = [progress_words(step, steps, stage), views.duration(gone)]
        if percentage and percentage > 5 and gone > 1:
            parts.append(f"about {views.duration(gone * (100 - percentage) / percentage)} left")
        fraction = None if percentage is None else percentage / 100
        self._live.update(views.progress(self._title, fraction, " · ".join(parts)))


async def _running_model() -> ModelInfo:
    """The image model that runs.

    Raises:
        ServerError: none does (code SERVER_NOT_RUNNING).
    """
    from genai_notebook.current import diffusion_server, model_manager

    # In a thread: the first use of a handle finds the owner, which must not happen on the loop.
    info = await asyncio.to_thread(diffusion_server.get_info)
    if info.status == "running" and info.model_id:
        return await model_manager.get_model_info(info.model_id)
    models = await model_manager.list_models("diffusion")
    hint = "%genai start --images starts it."
    if not models:
        hint = f"%genai download starter-image fetches a small image model, {hint}"
    elif info.status == "crashed":
        hint = "%genai logs images shows what happened; %genai start --images starts it again."
    message = "Image generation has crashed." if info.status == "crashed" else "Image generation is not running."
    raise ServerError(message, {"status": info.status}, code="SERVER_NOT_RUNNING", hint=hint)


def _target(text: str | None) -> Path | None:
    """Where to save, checked before the work: an unwritable place must not cost a picture."""
    if text is None:
        return None
    path = Path(text).expanduser()
    path = path if path.suffix.lower() == ".png" else path.with_name(path.name + ".png")
    if not path.parent.is_dir():
        raise UsageError(f"%%genai_image: --save: there is no folder {str(path.parent)!r}.")
    return path


def _save(images: list[ImageGenerationResult], path: Path | None) -> str:
    """Write the pictures; returns the names for the caption.

    Raises:
        FileSystemError: the disk refused it.
    """
    if path is None:
        return ""
    several = len(images) > 1
    names = []
    for number, image in enumerate(images, 1):
        file = path.with_name(f"{path.stem}-{number}{path.suffix}") if several else path
        try:
            file.write_bytes(image.image)
        except OSError as error:
            raise FileSystemError("save the picture as", str(file), error) from error
        names.append(str(file))
    return "Saved as " + ", ".join(names) + "."
