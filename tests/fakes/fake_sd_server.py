"""A fake sd-server: its flags, its /sdcpp/v1 job API, its progress bars, and a plain coloured PNG as the picture.

Beside the words of `engine.py` the control file may hold:

    step_seconds  how long one denoising step takes (default 0.005)
    fail_job      text: jobs end as failed with it
    hang_job      jobs stay in "generating"
    no_result     jobs end as completed, with nothing in them
    die_in_job    {"signal": …} or {"exit": …}: die in the middle of a job, after `die_log`
    load_errors   lines to write instead of loading the model, before it ends as the real one does
    no_room_with  a pid: while that process lives, the model does not fit
    params        MB of VRAM and of RAM that the parameters are said to take
"""

import base64
import os
import struct
import sys
import threading
import time
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from engine import Engine, say

OPTIONS = """
    --listen-ip -l --listen-port -m --model --diffusion-model --high-noise-diffusion-model --clip_l --clip_g
    --clip_vision --t5xxl --llm --llm_vision --vae --taesd --control-net --lora-model-dir -t --threads --max-vram
    --type --rng --sampler-rng --prediction --embd-dir --upscale-model --tensor-type-rules -W --width -H --height
    --steps --cfg-scale -s --seed --sampling-method --scheduler
"""
SWITCHES = """
    --diffusion-fa --clip-on-cpu --vae-on-cpu --control-net-cpu --offload-to-cpu --vae-tiling --mmap -v --verbose
    --color --diffusion-conv-direct --vae-conv-direct --force-sdxl-vae-conv-scale --vae-tile-size
"""
JOBS = "/sdcpp/v1/jobs/"


class FakeSdServer(Engine):
    health_path = "/sdcpp/v1/capabilities"
    options = frozenset(OPTIONS.split())
    switches = frozenset(SWITCHES.split())

    def __init__(self, control):
        super().__init__(control)
        self.jobs = {}
        self.queue = []
        self.wake = threading.Condition()

    def version(self):
        return "usage: sd-server [options]\n\nstable-diffusion.cpp fake for tests\n  --listen-ip <string>  address"

    def address(self):
        self.check_model(self.flag("-m", "--model", "--diffusion-model", default=""))
        threading.Thread(target=self.work, daemon=True).start()
        return self.flag("-l", "--listen-ip", default="127.0.0.1"), int(self.flag("--listen-port", default=1234))

    def load(self, host, port):
        model = self.flag("-m", "--model", "--diffusion-model")
        say(f"[INFO ] stable-diffusion.cpp:212  - loading model from '{model}'")
        bar(269, 543, "281.98MB/s")
        bar(543, 543, "281.98MB/s")
        say("")
        if lines := self.control.get("load_errors"):
            for line in [*lines, "[ERROR] main.cpp:92   - new_sd_ctx_t failed"]:
                say(line)
            self.control.note("exit", code=1)
            os._exit(1)
        if (other := self.control.get("no_room_with")) and os.path.exists(f"/proc/{other}"):
            say("[ERROR] ggml_extend.hpp:1900 - failed to allocate the params buffer")
            self.control.note("exit", code=1)
            os._exit(1)
        say("[INFO ] model.cpp:993  - loading tensors completed, taking 0.01s")
        if params := self.control.get("params"):
            vram, ram = params
            say(
                f"[INFO ] stable-diffusion.cpp:985  - total params memory size = {vram + ram:.2f}MB "
                f"(VRAM {vram:.2f}MB, RAM {ram:.2f}MB): text_encoders {ram:.2f}MB(RAM)"
            )
        super().load(host, port)

    def listening(self, host, port):
        say(f"[INFO ] main.cpp:2100 - listening on: http://{host}:{port}")

    def route(self, request, method, path):
        if not self.loaded():
            return request.answer(503, {"error": {"code": "loading", "message": "the model is being loaded"}})
        if (method, path) == ("GET", "/sdcpp/v1/capabilities"):
            return request.answer(
                200, {"model": {"name": "fake"}, "samplers": ["euler", "euler_a"], "modes": ["img_gen"]}
            )
        if (method, path) == ("POST", "/sdcpp/v1/img_gen"):
            return self.submit(request)
        if path.startswith(JOBS):
            identifier, _, action = path[len(JOBS) :].partition("/")
            job = self.jobs.get(identifier)
            if job is None:
                return request.answer(404, {"error": {"code": "not_found", "message": "no such job"}})
            if (method, action) == ("POST", "cancel"):
                return self.cancel(request, job)
            if (method, action) == ("GET", ""):
                return request.answer(200, job["public"])
        return request.answer(404, {"error": {"code": "not_found", "message": "no such route"}})

    def submit(self, request):
        body = request.json_body()
        if body is None or not isinstance(body.get("prompt"), str):
            return request.answer(400, {"error": {"code": "invalid_request", "message": "prompt is required"}})
        self.control.note("job", body=body)
        identifier = f"job_{len(self.jobs) + 1:08x}"
        public = {"id": identifier, "kind": "img_gen", "status": "queued", "created": int(time.time())}
        with self.wake:
            self.jobs[identifier] = {"public": public, "body": body}
            self.queue.append(identifier)
            self.wake.notify()
        return request.answer(202, {"id": identifier, "status": "queued", "poll_url": JOBS + identifier})

    def cancel(self, request, job):
        with self.wake:
            if job["public"]["status"] != "queued":  # as the real one: a running job ends only with its process
                error = {"code": "not_cancellable", "message": "job is already running"}
                return request.answer(409, {"error": error})
            self.queue.remove(job["public"]["id"])
            job["public"]["status"] = "cancelled"
        return request.answer(200, job["public"])

    def work(self):
        while True:
            with self.wake:
                self.wake.wait_for(lambda: self.queue)
                job = self.jobs[self.queue.pop(0)]
                job["public"]["status"] = "generating"
            self.generate(job["public"], job["body"])

    def generate(self, public, body):
        sample = body.get("sample_params", {})
        steps, count = int(sample.get("sample_steps", 20)), int(body.get("batch_count", 1))
        width, height, seed = int(body.get("width", 512)), int(body.get("height", 512)), int(body.get("seed", 42))
        while self.control.get("hang_job"):
            time.sleep(0.02)
        if how := self.control.get("die_in_job"):
            self.die(how)
            time.sleep(60)  # not a word more
        if message := self.control.get("fail_job"):
            say(f"[ERROR] stable-diffusion.cpp:3000 - {message}")
            public.update(status="failed", error={"code": "generation_failed", "message": message})
            return
        images = []
        for number in range(count):
            say(f"[INFO ] stable-diffusion.cpp:3401 - generating image: {number + 1}/{count} - seed {seed + number}")
            for step in range(1, steps + 1):
                time.sleep(float(self.control.get("step_seconds", 0.005)))
                bar(step, steps, "6.28it/s")
            say("")
            say("[INFO ] stable-diffusion.cpp:3432 - sampling completed, taking 0.01s")
        say(f"[INFO ] stable-diffusion.cpp:3192 - decoding {count} latents")
        for number in range(count):
            data = picture(width, height, seed + number)
            images.append({"index": number, "b64_json": base64.b64encode(data).decode()})
            say(f"[INFO ] stable-diffusion.cpp:3200 - latent {number + 1} decoded, taking 0.01s")
        say("[INFO ] stable-diffusion.cpp:3212 - decode_first_stage completed, taking 0.01s")
        images = [] if self.control.get("no_result") else images
        public.update(status="completed", result={"output_format": "png", "images": images})


def bar(step, steps, speed):
    done = "=" * (50 * step // steps) + ">"
    say(f"\r  |{done:<50}| {step}/{steps} - {speed}\x1b[K", end="")


def picture(width, height, seed):
    """A valid PNG of one colour, which depends on the seed."""

    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    colour = zlib.crc32(str(seed).encode()).to_bytes(4, "big")[:3]
    rows = (b"\0" + colour * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


if __name__ == "__main__":
    control, arguments = sys.argv[1], sys.argv[2:]
    FakeSdServer(control).main(arguments)
