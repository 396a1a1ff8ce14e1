"""%genai search, download from a hub, downloads, verify, and models that are broken or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import eventually
from tests.fakes.file_server import file_server
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.fakes.hub import FakeHub, fake_hub
from tests.notebook.kernels import Kernel, kernel

REPO = "owner/Tiny-GGUF"


class Scene:
    """A kernel with the extension loaded and an empty home, whose Hugging Face is `hub`."""

    def __init__(self, kernel: Kernel, hub: FakeHub, home: Path) -> None:
        self.kernel, self.hub, self.home = kernel, hub, home


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("models")
    data = tiny_llm(folder / "x.gguf").read_bytes()
    with fake_hub() as hub:
        hub.add(
            REPO,
            {
                "Tiny-Q4_K_M.gguf": data,
                "Tiny-Q8_0.gguf": data + bytes(64),
                "Tiny-BF16.gguf": 1 << 40,
                "Tiny-Q2_K-00001-of-00002.gguf": 30,
                "Tiny-Q2_K-00002-of-00002.gguf": 20,
                "mmproj-Tiny.gguf": 10,
                "README.md": b"hello",
            },
            downloads=1234,
        )
        hub.add("owner/Tiny-other-GGUF", {"<b>x</b>.Q4_0.gguf": 1 << 20}, downloads=9, gated="manual")
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": ""}
        with kernel(folder / "kernel", folder / "home", **environ) as started:
            started.ok("%load_ext genai_notebook")
            yield Scene(started, hub, folder / "home")


def test_search_says_what_fits_and_what_would_be_fetched(scene: Scene) -> None:
    result = scene.kernel.ok("%genai search tiny gguf --into found")
    text = result.text
    assert "owner/Tiny-GGUF (1,234 downloads)" in text
    assert "access must be granted" in text
    lines = {line.split("gguf ", 1)[0].strip(): line for line in text.splitlines() if ".gguf " in line}
    (chosen,) = [line for line in text.splitlines() if "in RAM, the best" in line and "Tiny-Q" in line]
    assert "Tiny-Q8_0.gguf" in chosen
    assert any("Tiny-BF16.gguf" in line and line.endswith("too big") for line in lines.values())
    assert "Tiny-Q2_K-00001-of-00002.gguf and 1 more" in text
    assert "50 Bytes" in text
    assert "mmproj" not in text
    assert "<b>" not in result.outputs[0]["data"]["text/html"]
    assert scene.kernel.value("[repo.choice for repo in found]") == "['Tiny-Q8_0.gguf', '<b>x</b>.Q4_0.gguf']"


def test_search_that_finds_nothing(scene: Scene) -> None:
    assert "Nothing was found for 'walrus'." in scene.kernel.ok("%genai search walrus").text


def test_a_repository_gives_the_best_that_fits_and_says_so(scene: Scene) -> None:
    result = scene.kernel.ok(f"%genai download {REPO} --into model")
    assert "tiny-q8-0 is ready" in result.text
    assert "Tiny-Q8_0.gguf was taken" in result.text
    assert "Q8_0 is the best" in result.text
    assert "verified" in result.text
    assert scene.kernel.value("model.source.file") == "'Tiny-Q8_0.gguf'"
    named = scene.kernel.ok(f"%genai download hf:{REPO}/Tiny-Q4_K_M.gguf")
    assert "was taken" not in named.text


def test_verify_info_and_delete(scene: Scene) -> None:
    scene.kernel.ok(f"%genai download hf:{REPO}/Tiny-Q4_K_M.gguf --name 'To verify'")
    assert "to-verify is unchanged" in scene.kernel.ok("%genai verify to-verify --into fine").text
    assert scene.kernel.value("fine") == "True"
    info = scene.kernel.ok("%genai info to-verify --refresh remote-only").text
    assert "Revision" in info
    assert "2048 tokens" in info
    path = Path(scene.kernel.ok("%genai info to-verify --into model").text and scene.kernel.value("model.path")[1:-1])
    data = path.read_bytes()
    path.unlink()  # other models may share the file
    path.write_bytes(data[:-1] + b"x")
    changed = scene.kernel.ok("%genai verify to-verify --into fine")
    assert "is not what it was" in changed.text
    assert "%genai delete to-verify" in changed.text
    assert scene.kernel.value("fine") == "False"
    assert "to-verify is deleted" in scene.kernel.ok("%genai delete to-verify").text
    assert not path.exists()


def test_a_broken_model_is_shown_and_can_be_deleted(scene: Scene) -> None:
    folder = scene.home / "models" / "broken-one"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("<i>{")
    listed = scene.kernel.ok("%genai models")
    assert "Some models cannot be used" in listed.text
    assert "broken-one" in listed.text
    assert "%genai delete broken-one" in scene.kernel.run("%genai info broken-one").traceback
    assert "broken-one is deleted" in scene.kernel.ok("%genai delete broken-one").text
    assert "cannot be used" not in scene.kernel.ok("%genai models").text


def test_an_image_model_in_parts(scene: Scene, tmp_path: Path) -> None:
    scene.hub.add("owner/parts", {"unet.gguf": tiny_diffusion(tmp_path / "u.gguf").read_bytes()})
    vae = tiny_diffusion(tmp_path / "my vae.gguf")
    line = f'%genai download --name paint --component diffusion_model=hf:owner/parts/unet.gguf --component "vae={vae}"'
    assert "paint is ready: an image model" in scene.kernel.ok(f"{line} --into model").text
    info = scene.kernel.ok("%genai info paint").text
    assert "diffusion_model" in info
    assert str(vae) in info
    scene.kernel.ok("%genai delete paint")
    assert vae.exists()


def test_downloads_in_the_background_are_listed_and_cancelled(scene: Scene) -> None:
    with file_server() as files:
        url = files.add_hanging("/slow.gguf", b"GGUF", 1 << 20)
        started = scene.kernel.ok(f"%genai download {url} --background --into job")
        assert "slow is being downloaded" in started.text
        id = scene.kernel.value("job.id")[1:-1]
        assert id in scene.kernel.ok("%genai downloads").text
        eventually(lambda: "running" in scene.kernel.ok("%genai downloads").text, "the download to run")
        cancelled = scene.kernel.ok(f"%genai downloads --cancel {id} --into jobs")
        assert "cancelled" in cancelled.text
        assert scene.kernel.value(f"[job.status for job in jobs if job.id == {id!r}]") == "['cancelled']"
        wrong = scene.kernel.run("%genai downloads --cancel nothing")
        assert wrong.error is not None
        assert wrong.error["ename"] == "InvalidRequestError"
