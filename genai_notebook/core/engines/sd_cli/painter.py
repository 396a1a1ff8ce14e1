"""One run of sd-cli for each job: its command line, its output, its end."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from genai_notebook.core.engines.embedded.sd_jobs import Painted
from genai_notebook.core.engines.embedded.sd_requests import MAX_SIDE, ImageRequest, RequestError, image_bytes
from genai_notebook.core.engines.sd_cli.pictures import measure
from genai_notebook.core.engines.sd_cli.program import Program

_PREFIX = "genai-notebook-sd-cli-"
_OLD = 3600.0
_SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}
# What says why a run has failed; behind a crash there may be many lines of a backtrace.
_REASON = re.compile(r"\[ERROR|GGML_ASSERT|what\(\):|error", re.IGNORECASE)
_MOST_REASON = 500


class CliPainter:
    """Paints with an sd-cli. `paint` on one thread; `cancel` and `close` on any.

    The pictures and whatever else a run writes go to a temporary folder of its own. A prompt is an argument of the
    program (it reads prompts from nowhere else), so other users of the machine can see it while it is painted.

    Args:
        program: the sd-cli.
        flags: its flags for the model, the same for all jobs; paths in them are absolute.
        vae_tiling: decode in tiles unless a request says otherwise.
    """

    def __init__(self, program: Program, flags: Sequence[str], *, vae_tiling: bool = False) -> None:
        self.samplers = program.samplers
        self.schedulers = program.schedulers
        self._program = program
        self._flags = [*flags]
        self._vae_tiling = vae_tiling
        self._lock = threading.RLock()
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        self._unwanted = False
        self._closed = False

    def check_images(self, request: ImageRequest) -> None:
        """Find what is wrong with a request's pictures before it is queued.

        Raises:
            RequestError: one is no picture, or too large.
        """
        for field, text in (("init_image", request.init_image), ("mask_image", request.mask_image)):
            if text:
                try:
                    _, width, height = measure(image_bytes(field, text))
                except ValueError as error:
                    raise RequestError(field, f"is no picture that can be read: {error}") from None
                if not 0 < width * height <= MAX_SIDE * MAX_SIDE:
                    raise RequestError(field, f"must not be larger than {MAX_SIDE}x{MAX_SIDE}")

    def paint(self, request: ImageRequest) -> Painted:
        """Make the pictures of a request. Blocks until sd-cli has ended.

        Raises:
            RuntimeError: it failed, or was cancelled; with its exit code and its last error line.
        """
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**31)
        prefix = f"{_PREFIX}{os.getpid()}-"
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
            with self._lock:
                self._folder = folder
            self._run(self._words(request, seed, Path(folder)), folder)
            images = _pictures_in(Path(folder))
        if len(images) != request.batch_count:
            raise RuntimeError(f"sd-cli ended well, but wrote {len(images)} of {request.batch_count} pictures")
        encoded = [base64.b64encode(image).decode("ascii") for image in images]
        return Painted(encoded, [seed + index for index in range(len(images))])

    def cancel(self, asked: bool) -> None:
        """True: end the running `paint`, or the one that is about to begin. False: forget that this was ever asked."""
        with self._lock:
            self._unwanted = asked
            if asked and self._child is not None:
                self._child.kill()

    def close(self) -> None:
        """End what runs, for good, and leave nothing behind."""
        with self._lock:
            self._closed = True
            child, folder = self._child, self._folder
        if child is not None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    # ---- the command line -------------------------------------------------------------------------------------------

    def _words(self, request: ImageRequest, seed: int, folder: Path) -> list[str]:
        """All arguments. Each value is an argument of its own, which sd-cli takes as it is, a leading "-" included."""
        wanted = request.sample_params
        words = [self._program.path, *self._flags, "-o", f"picture.{_SUFFIXES[request.output_format]}"]
        pairs = {
            "--prompt": request.prompt,
            "--negative-prompt": request.negative_prompt,
            "--width": request.width,
            "--height": request.height,
            "--seed": seed,
            "--batch-count": request.batch_count,
            "--steps": wanted.sample_steps,
            "--cfg-scale": wanted.guidance.txt_cfg,
            "--clip-skip": request.clip_skip if request.clip_skip > 0 else None,
            "--sampling-method": wanted.sample_method,
            "--scheduler": wanted.scheduler,
            "--eta": wanted.eta,
            "--flow-shift": wanted.flow_shift,
            "--timestep-shift": wanted.shifted_timestep or None,
            "--img-cfg-scale": wanted.guidance.img_cfg,
            "--guidance": wanted.guidance.distilled_guidance,
            "--strength": request.strength if request.init_image else None,
            "--init-img": _write(folder, "init_image", request.init_image),
            "--mask": _write(folder, "mask_image", request.mask_image),
        }
        words += [word for flag, value in pairs.items() if value is not None for word in (flag, str(value))]
        tiling = request.vae_tiling_params
        if tiling.enabled if tiling else self._vae_tiling:
            words.append("--vae-tiling")
        return words if request.embed_image_metadata else [*words, "--disable-image-metadata"]

    # ---- the run ----------------------------------------------------------------------------------------------------

    def _run(self, words: list[str], folder: str) -> None:
        child = self._start(words, folder)
        reason = last = ""
        assert child.stderr is not None
        try:
            for line in child.stderr:
                os.write(2, line)
                text = line.decode("utf-8", "replace").strip()
                last = text or last
                reason = text if _REASON.search(text) else reason
        except BaseException:
            child.kill()
            raise
        finally:
            code = child.wait()
            child.stderr.close()
            with self._lock:
                self._child = None
        if self._unwanted:
            raise RuntimeError("cancelled")
        if code:
            raise RuntimeError(": ".join(filter(None, (f"sd-cli {_ending(code)}", (reason or last)[:_MOST_REASON]))))

    def _start(self, words: list[str], folder: str) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._unwanted or self._closed:
                raise RuntimeError("cancelled")
            try:
                # Its stdout is ours: progress bars arrive as they are printed. Its errors are ours to read, too.
                self._child = subprocess.Popen(
                    [_argument(word) for word in words], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder
                )
            except OSError as error:
                raise RuntimeError(f"sd-cli cannot be started: {error.strerror or error}") from None
            return self._child


def remove_leftovers() -> None:
    """Remove the folders of adapters that were killed; those of live ones stay, and young ones, to be sure."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            if time.time() - folder.stat().st_mtime < _OLD or not owner.isdecimal():
                continue
        except OSError:
            continue
        import psutil

        if not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, field: str, text: str | None) -> str | None:
    """A request's picture as a file in the folder: its name."""
    if not text:
        return None
    data = image_bytes(field, text)
    name = f"{field}.{measure(data)[0]}"
    (folder / name).write_bytes(data)
    return name


def _pictures_in(folder: Path) -> list[bytes]:
    """What was written, in order: one has no number, of several the first may have none either."""

    def number(path: Path) -> int:
        found = re.search(r"_(\d+)$", path.stem)
        return int(found[1]) if found else -1

    return [path.read_bytes() for path in sorted(folder.glob("picture*"), key=number)]


def _argument(word: str) -> str | bytes:
    # sd-cli reads UTF-8 whatever the locale says, and so do file systems.
    return word if os.name == "nt" else word.encode("utf-8", "surrogateescape")


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
