"""Stands in for sd-cli: the lines it prints, the files it writes, and failures that a prompt asks for.

A prompt with `crash` ends it in the middle by SIGSEGV, `fail` with exit code 1 and an error line, `empty` without a
picture; `slow` makes each step take a quarter of a second. `$FAKE_SD_CLI_RECORD` names a file for its arguments.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image, PngImagePlugin

HELP = """stable-diffusion.cpp version fake-1, commit 0123abc
Usage: sd-cli [options]

CLI Options:
  -o, --output <string>                    path to write result image to (default: ./output.png) (eg. output_%03d.png)
  -M, --mode                               run mode, one of [img_gen, vid_gen, upscale, convert, metadata], default:
                                           img_gen
  -v, --verbose                            print extra info
Context Options:
  -m, --model <string>                     path to full model
  --diffusion-model <string>               path to the standalone diffusion model
  --vae <string>                           path to standalone vae model
  --lora-model-dir <string>                lora model directory
  -t, --threads <int>                      number of threads to use during computation (default: -1)
  --max-vram <float>                       maximum VRAM budget in GiB
  --clip-on-cpu                            keep clip in cpu (for low vram)
  --vae-on-cpu                             keep vae in cpu (for low vram)
Generation Options:
  -p, --prompt <string>                    the prompt to render
  -n, --negative-prompt <string>           the negative prompt (default: "")
  -i, --init-img <string>                  path to the init image
  --mask <string>                          path to the mask image
  -H, --height <int>                       image height, in pixel space (default: 512)
  -W, --width <int>                        image width, in pixel space (default: 512)
  --steps <int>                            number of sample steps (default: 20)
  -b, --batch-count <int>                  batch count
  --cfg-scale <float>                      unconditional guidance scale: (default: 7.0)
  --strength <float>                       strength for noising/unnoising (default: 0.75)
  --disable-image-metadata                 do not embed generation metadata on image files
  --vae-tiling                             process vae in tiles to reduce memory usage
  -s, --seed                               RNG seed (default: 42, use random seed for < 0)
  --sampling-method                        sampling method, one of [euler, euler_a, heun, dpm2, dpm++2s_a, dpm++2m,
                                           dpm++2mv2, lcm] (default: euler for Flux/SD3/Wan, euler_a otherwise)
  --high-noise-sampling-method             (high noise) sampling method, one of [euler, tcd]
  --scheduler                              denoiser sigma scheduler, one of [discrete, karras, sgm_uniform],
                                           default: discrete
"""
SWITCHES = {"--clip-on-cpu", "--vae-on-cpu", "--vae-tiling", "--disable-image-metadata", "-v", "--verbose"}


def main() -> None:
    words = sys.argv[1:]
    if words == ["--version"]:
        print("stable-diffusion.cpp version fake-1, commit 0123abc")
        return
    if words == ["--help"]:
        print(HELP)
        return
    options = parse(words)
    record(words, options)
    folder = Path(options["-o"]).parent
    load(options)
    for number in range(int(options["--batch-count"])):
        paint(options, number)
    say("sampling completed, taking 0.65s")
    say("decoding 1 latents")
    say("decode_first_stage completed, taking 0.26s")
    if "empty" in options["--prompt"]:
        return
    save(options, folder)


def parse(words: list[str]) -> dict[str, str]:
    """The values by flag, as sd-cli reads them: what follows a flag is its value, whatever it begins with."""
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        options[word] = "" if word in SWITCHES else next(rest)
    return options


def record(words: list[str], options: dict[str, str]) -> None:
    if name := os.environ.get("FAKE_SD_CLI_RECORD"):
        inputs = {flag: len(Path(options[flag]).read_bytes()) for flag in ("--init-img", "--mask") if flag in options}
        run = {"pid": os.getpid(), "cwd": os.getcwd(), "words": words, "inputs": inputs}
        with open(name, "a") as file:
            file.write(json.dumps(run) + "\n")


def load(options: dict[str, str]) -> None:
    say(f"loading model from '{options['--model']}'")
    for done in (269, 543):
        bar(done, 543, "281.98MB/s")
    print()
    say("loading tensors completed, taking 1.41s (process: 0.00s, read: 0.13s)")
    say("total params memory size = 495.53MB (VRAM 0.00MB, RAM 495.53MB): text_encoders 66.61MB(RAM)")
    if "fail" in options["--prompt"]:
        print("[ERROR] stable-diffusion.cpp:1696 - diffusion model compute failed", file=sys.stderr, flush=True)
        print("a line that says nothing", file=sys.stderr, flush=True)
        sys.exit(1)


def paint(options: dict[str, str], number: int) -> None:
    say(f"generating image: {number + 1}/{options['--batch-count']} - seed {int(options['--seed']) + number}")
    steps = int(options["--steps"])
    for step in range(1, steps + 1):
        if "slow" in options["--prompt"]:
            time.sleep(0.25)
        if "crash" in options["--prompt"] and step == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        bar(step, steps, "6.28it/s")
    print()


def save(options: dict[str, str], folder: Path) -> None:
    count = int(options["--batch-count"])
    name = Path(options["-o"])
    for number in range(count):
        path = folder / (f"{name.stem}_{number}{name.suffix}" if count > 1 else name.name)
        image = Image.new("RGB", (int(options["--width"]), int(options["--height"])), (number, 100, 200))
        info = PngImagePlugin.PngInfo()
        if "--disable-image-metadata" not in options:
            info.add_text("parameters", f"{options['--prompt']}\nSteps: {options['--steps']}, Version: fake sd-cli")
        image.save(path, pnginfo=info)
        say(f"save result image {number} to '{path}' (success)")


def say(text: str) -> None:
    print(f"[INFO ] stable-diffusion.cpp:3401 - {text}", flush=True)


def bar(done: int, all: int, rate: str) -> None:
    filled = 50 * done // all
    print(f"\r  |{'=' * filled}>{' ' * (50 - filled)}| {done}/{all} - {rate}\x1b[K", end="", flush=True)


if __name__ == "__main__":
    main()
