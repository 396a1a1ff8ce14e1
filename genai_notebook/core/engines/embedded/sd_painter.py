"""stable-diffusion.cpp through the wheel `cyllama`: load a model once, paint requests with it."""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Callable
from importlib import metadata
from typing import Any

from genai_notebook.core.engines.embedded.flags import FlagError
from genai_notebook.core.engines.embedded.sd_jobs import Painted
from genai_notebook.core.engines.embedded.sd_preview import Previews, Show
from genai_notebook.core.engines.embedded.sd_requests import MAX_SIDE, ImageRequest, RequestError, image_bytes

# Where newer versions say in one setting what older ones have a switch for.
_PLACEMENTS = {
    "offload_params_to_cpu": ("params_backend", "cpu"),
    "keep_clip_on_cpu": ("backend", "te=cpu"),
    "keep_vae_on_cpu": ("backend", "vae=cpu"),
}


class Painter:
    """The loaded model.

    Args:
        options: values of the command line, by the name of the SDContextParams attribute.
        vae_tiling: decode in tiles unless a request says otherwise.

    Raises:
        FlagError: this version of cyllama lacks a setting.
        RuntimeError: the model cannot be loaded; the log says why.
    """

    def __init__(self, options: dict[str, Any], *, vae_tiling: bool = False) -> None:
        import cyllama.sd as engine

        self._engine = engine
        self._vae_tiling = vae_tiling
        self.samplers = _names(engine.SampleMethod, engine.sample_method_name)
        self.schedulers = _names(engine.Scheduler, engine.scheduler_name)
        if "discrete" in self.schedulers:
            self.schedulers["normal"] = self.schedulers["discrete"]
        self._previews = Previews(engine, lambda words: say(f"[WARN ] sd_preview.py  - {words}\n"))
        self.preview_modes = self._previews.modes
        #: Where previews go; None: nowhere.
        self.show_preview: Show | None = None
        self._model = os.path.basename(options.get("model_path") or options.get("diffusion_model_path") or "")
        self._context = engine.SDContext(_context_params(engine, options))

    @property
    def can_cancel(self) -> bool:
        """Whether this version of the wheel can end a running `paint` (0.7 can)."""
        return hasattr(self._context, "cancel") and hasattr(self._engine, "CancelMode")

    def cancel(self, asked: bool) -> None:
        """True: end the running `paint` at its next step. False: forget that this was ever asked."""
        modes = self._engine.CancelMode
        self._context.cancel(modes.ALL if asked else modes.RESET)

    def check_images(self, request: ImageRequest) -> None:
        """Decode what can be wrong about a request's pictures, before it is queued.

        Raises:
            RequestError: one is no picture.
        """
        for field, text in (("init_image", request.init_image), ("mask_image", request.mask_image)):
            if text:
                _decode(field, text, request, "RGB" if field == "init_image" else "L")

    def paint(self, request: ImageRequest) -> Painted:
        """Make the pictures of a request. Blocks; the engine runs without Python's lock."""
        # Drawn here, where it can be reported; and not the engine's fixed default.
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**31)
        params = self._params(request, seed)
        with self._previews.during(request.preview, request.preview_interval, self.show_preview):
            pictures = self._context.generate_with_params(params)
        if not pictures:
            raise RuntimeError("the engine returned no picture")
        seeds = [seed + index for index in range(len(pictures))]
        return Painted([self._encode(*pair, request) for pair in zip(pictures, seeds, strict=True)], seeds)

    def _params(self, request: ImageRequest, seed: int) -> Any:
        engine, wanted = self._engine, request.sample_params
        params = engine.SDImageGenParams(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            seed=seed,
            batch_count=request.batch_count,
            sample_steps=wanted.sample_steps,
            cfg_scale=wanted.guidance.txt_cfg,
            strength=request.strength,
            clip_skip=request.clip_skip,
        )
        sampling = params.sample_params
        if wanted.sample_method is not None:
            sampling.sample_method = self.samplers[wanted.sample_method]
        if wanted.scheduler is not None:
            sampling.scheduler = self.schedulers[wanted.scheduler]
        for name, value in (
            ("eta", wanted.eta),
            ("flow_shift", wanted.flow_shift),
            ("shifted_timestep", wanted.shifted_timestep or None),
            ("img_cfg_scale", wanted.guidance.img_cfg),
            ("distilled_guidance", wanted.guidance.distilled_guidance),
        ):
            if value is not None:
                setattr(sampling, name, value)
        tiling = request.vae_tiling_params
        params.vae_tiling_enabled = tiling.enabled if tiling else self._vae_tiling
        if request.init_image:
            params.set_init_image(self._picture("init_image", request.init_image, request, "RGB"))
        if request.mask_image:
            params.set_mask_image(self._picture("mask_image", request.mask_image, request, "L"))
        return params

    def _picture(self, field: str, text: str, request: ImageRequest, mode: str) -> Any:
        import numpy as np

        return self._engine.SDImage.from_numpy(np.array(_decode(field, text, request, mode)))

    def _encode(self, picture: Any, seed: int, request: ImageRequest) -> str:
        from PIL import Image, PngImagePlugin

        pixels = picture.to_numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        parameters = self._describe(request, seed, image.size) if request.embed_image_metadata else ""
        file = io.BytesIO()
        if request.output_format == "png":
            info = PngImagePlugin.PngInfo()
            if parameters:
                info.add_text("parameters", parameters)
            image.save(file, "PNG", pnginfo=info, compress_level=4)
        else:
            image.convert("RGB").save(file, request.output_format.upper(), quality=request.output_compression or 1)
        return base64.b64encode(file.getvalue()).decode("ascii")

    def _describe(self, request: ImageRequest, seed: int, size: tuple[int, int]) -> str:
        """The text that image tools read back: prompt, negative prompt, then one line of settings."""
        wanted = request.sample_params
        lines = [request.prompt]
        if request.negative_prompt:
            lines.append(f"Negative prompt: {request.negative_prompt}")
        settings = {
            "Steps": wanted.sample_steps,
            "CFG scale": wanted.guidance.txt_cfg,
            "Seed": seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": self._model,
            "Sampler": wanted.sample_method or "default",
            "Schedule type": wanted.scheduler or "default",
            "Version": f"stable-diffusion.cpp (cyllama {metadata.version('cyllama')})",
        }
        if request.init_image:
            settings["Denoising strength"] = request.strength
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
        return "\n".join(lines)


def wait_politely() -> None:
    """Have OpenMP's threads sleep soon when they wait for each other. To be called before the engine is imported.

    By default they spin, and then a picture takes two to five times as long as soon as anything else wants a core: an
    LLM, a browser, a second notebook. On an idle machine it makes no difference.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def log_to_stdout(verbose: bool) -> None:
    """Have the engine's log printed as sd-server prints it. Its progress bars it prints itself, in the same place."""
    import cyllama.sd as engine

    # By name: the numbers differ between versions.
    names = {int(level): level.name for level in engine.LogLevel}

    def log(level: Any, text: str) -> None:
        name = names.get(int(level), "INFO")
        if verbose or name in ("INFO", "WARN", "ERROR"):
            line = text if text.endswith("\n") else text + "\n"
            say(f"[{name[:5]:<5}] {line}", error=name == "ERROR")

    engine.set_log_callback(log)


def say(text: str, *, error: bool = False) -> None:
    """Write whole lines past Python's buffers: in order with what the engine writes itself, and never torn apart."""
    os.write(2 if error else 1, text.encode("utf-8", "backslashreplace"))


def type_names() -> dict[str, Any]:
    """Weight types for `--type`, by name."""
    import cyllama.sd as engine

    return _names(engine.SDType, engine.type_name)


def _names(enum: Any, name: Callable[[Any], str]) -> dict[str, Any]:
    return {name(member): member for member in enum if member.name != "COUNT"}


def _context_params(engine: Any, options: dict[str, Any]) -> Any:
    params = engine.SDContextParams()
    # A resident engine loads all it has at its start, keeps it for the next picture, and can encode pictures too.
    resident = {"free_params_immediately": False, "vae_decode_only": False, "eager_load": True}
    for name, value in resident.items():
        if hasattr(params, name):
            setattr(params, name, value)
    for name, value in options.items():
        if hasattr(type(params), name):  # to read a value may be an error: some defaults are none of their enum
            setattr(params, name, value)
        elif hasattr(params, "params_backend") and name in _PLACEMENTS:
            attribute, place = _PLACEMENTS[name]
            setattr(params, attribute, ",".join(filter(None, (getattr(params, attribute), place))))
        else:
            raise FlagError(f"this version of cyllama has no setting {name}")
    return params


def _decode(field: str, text: str, request: ImageRequest, mode: str) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    try:
        with Image.open(io.BytesIO(image_bytes(field, text))) as image:
            if image.width * image.height > MAX_SIDE * MAX_SIDE:
                raise RequestError(field, f"must not be larger than {MAX_SIDE}x{MAX_SIDE}")
            picture = image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise RequestError(field, "is no picture that can be read") from None
    size = (request.width, request.height)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
