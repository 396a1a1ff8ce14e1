"""%%genai_image, with the real engine and with a fake that misbehaves."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.fakes import eventually
from tests.notebook.conftest import FakeKernel
from tests.notebook.kernels import Kernel, Result

SMALL = "--width 64 --height 64 --steps 2 --cfg 1"


def pictures(result: Result) -> list[dict]:
    return [output for output in result.outputs if "image/png" in output["data"]]


def decoded(output: dict) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
    image.load()
    return image


@pytest.mark.engines
class TestRealPicture:
    def test_bar_then_picture_with_its_parameters(self, real_kernel: Kernel):
        result = real_kernel.ok(f"%%genai_image {SMALL} --seed 7 --negative 'rain, fog'\na <b>fox</b> in {{the}} snow")
        (picture,) = pictures(result)
        assert decoded(picture).size == (64, 64)
        assert decoded(picture).format == "PNG"
        bars = [
            update["data"]["text/html"]
            for update in result.updates
            if "<progress" in update["data"].get("text/html", "")
        ]
        assert len(bars) >= 2
        assert any("step 1 of 2" in bar or "step 2 of 2" in bar for bar in bars)
        assert not any("<progress" in output["data"].get("text/html", "") for output in result.outputs)
        made = picture["metadata"]["genai_notebook"]
        assert made["prompt"] == "a <b>fox</b> in {the} snow"
        assert made["negative_prompt"] == "rain, fog"
        assert (made["seed"], made["steps"], made["cfg_scale"], made["sampler"]) == (7, 2, 1.0, "euler_a")
        assert made["model"] == "check-model"
        assert picture["metadata"]["image/png"]["alt"] == "Generated picture: a <b>fox</b> in {the} snow (seed 7)"
        caption = result.outputs[-1]["data"]
        assert "seed 7" in caption["text/plain"]
        assert "64×64" in caption["text/plain"]

    def test_several_are_saved_and_kept(self, real_kernel: Kernel, tmp_path):
        target = tmp_path / "out" / "fox.png"
        target.parent.mkdir()
        result = real_kernel.ok(f"%%genai_image {SMALL} --seed 5 --count 2 --into batch --save {target}\na fox")
        seeds = [picture["metadata"]["genai_notebook"]["seed"] for picture in pictures(result)]
        assert seeds == [5, 6]
        assert sorted(file.name for file in target.parent.iterdir()) == ["fox-1.png", "fox-2.png"]
        assert Image.open(target.parent / "fox-1.png").size == (64, 64)
        assert real_kernel.value("[image.seed for image in batch]") == "[5, 6]"

    def test_the_same_seed_gives_the_same_picture(self, real_kernel: Kernel):
        one, two, other = (
            pictures(real_kernel.ok(f"%%genai_image {SMALL} --seed {seed}\na fox"))[0]["data"]["image/png"]
            for seed in (11, 11, 12)
        )
        assert one == two != other

    def test_interrupt_cancels_the_generation_in_the_engine(self, real_kernel: Kernel):
        result = real_kernel.run(
            "%%genai_image --width 256 --height 256 --steps 200 --cfg 1\na fox",
            when=lambda so_far: "step 2 of 200" in so_far.text,
            then=real_kernel.interrupt,
        )
        assert result.error is not None
        assert result.error["ename"] == "Interrupted"
        assert len(result.error["traceback"]) == 1
        assert "interrupted" in result.text
        assert not pictures(result)
        real_kernel.ok("from genai_notebook import diffusion_server")
        assert real_kernel.value("diffusion_server.get_info().busy") == "False"
        # The engine is free: the next picture does not wait for the 198 steps that were left.
        assert pictures(real_kernel.ok(f"%%genai_image {SMALL}\na fox"))


class TestFaults:
    def start(self, kernel: FakeKernel) -> None:
        kernel.ok("%genai start tiny-picture --port auto")

    def test_an_engine_that_dies_in_the_middle(self, fake_kernel: FakeKernel):
        self.start(fake_kernel)
        fake_kernel.images.set(step_seconds=0.3)
        result = fake_kernel.run(
            "%%genai_image --steps 40\na fox",
            when=lambda so_far: "step 2 of 40" in so_far.text,
            then=lambda: fake_kernel.images.set(die={"signal": "SIGKILL"}),
        )
        assert result.error is not None
        assert result.error["ename"] == "ServerError"
        assert "failed" in result.text
        fake_kernel.images.reset()
        after = fake_kernel.run("%%genai_image --steps 2\na fox")
        assert "%genai start --images starts it again" in after.traceback
        fake_kernel.ok("%genai start --images --port auto")
        assert pictures(fake_kernel.ok("%%genai_image --steps 2\na fox"))

    def test_a_failed_job_is_one_error_with_its_reason(self, fake_kernel: FakeKernel):
        self.start(fake_kernel)
        fake_kernel.images.set(fail_job="tensor 'x' not in model file")
        result = fake_kernel.run("%%genai_image --steps 2\na fox")
        assert result.error is not None
        assert result.error["ename"] == "ServerError"
        assert "tensor 'x' not in model file" in result.traceback

    def test_interrupt_leaves_nothing_busy(self, fake_kernel: FakeKernel):
        self.start(fake_kernel)
        fake_kernel.images.set(hang_job=True)
        result = fake_kernel.run(
            "%%genai_image --steps 4\na fox",
            when=lambda so_far: "Painting" in so_far.text and bool(fake_kernel.images.journal("job")),
            then=fake_kernel.interrupt,
        )
        assert result.error is not None
        assert result.error["ename"] == "Interrupted"
        fake_kernel.images.set(hang_job=None)
        fake_kernel.ok("from genai_notebook import diffusion_server")
        eventually(lambda: fake_kernel.value("diffusion_server.get_info().busy") == "False", "an idle engine")
        assert pictures(fake_kernel.ok("%%genai_image --steps 2\na fox"))

    def test_nothing_is_painted_when_the_picture_could_not_be_saved(self, fake_kernel: FakeKernel):
        self.start(fake_kernel)
        result = fake_kernel.run("%%genai_image --save nowhere/fox.png\na fox")
        assert result.status == "error"
        assert not fake_kernel.images.starts
