"""Where engines are looked for, in which order, and what is said of a place that holds none."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines import manager, places
from genai_notebook.core.engines.catalog import CATALOG
from genai_notebook.core.engines.engine import KINDS, Kind
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.places import Look
from genai_notebook.core.engines.releases import Releases
from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
from tests.fakes.machine import Machine, card

posix = pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts")

GIB = 1 << 30
NVIDIA = card(8 * GIB, cuda=True, vulkan=True)
#: With a driver, but without the Vulkan loader.
NVIDIA_ONLY = card(8 * GIB, cuda=True, vulkan=False)
APPLE = GPUInfo(available=True, type="apple", name="M4", vram=16 * GIB, vram_available=16 * GIB, metal=True)


def program(path: Path, body: str = "echo 'version: 1 (abc)'") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def engines(home: Path, gpus: list[GPUInfo] | None = None, **settings: Any) -> BinaryManager:
    chosen = Settings(home=home, **settings)
    return BinaryManager(chosen, system=SystemInfo(chosen, probe=Machine(ram=16 * GIB, gpus=gpus)))


def looks(home: Path, kind: Kind, gpus: list[GPUInfo] | None = None, **settings: Any) -> list[Look]:
    return asyncio.run(engines(home, gpus, **settings)._looks(kind))


@pytest.fixture(autouse=True)
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


ORDERS = [
    ("linux-x64", [NVIDIA], ["vulkan", "cpu"], []),
    ("linux-x64", [], ["vulkan", "cpu"], ["vulkan"]),
    ("linux-x64", [NVIDIA_ONLY], ["vulkan", "cpu"], ["vulkan"]),
    ("darwin-arm64", [APPLE], ["metal"], []),
    ("win32-x64", [NVIDIA], ["cuda", "vulkan", "cpu"], []),
    ("win32-x64", [NVIDIA_ONLY], ["cuda", "vulkan", "cpu"], ["vulkan"]),
    ("win32-x64", [], ["cuda", "vulkan", "cpu"], ["cuda", "vulkan"]),
    ("linux-arm64", [NVIDIA], [], []),
    ("win-arm64", [], [], []),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("platform", "gpus", "variants", "unsupported"), ORDERS)
def test_releases_come_before_wheels_and_wheels_before_the_path(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    platform: str,
    gpus: list[GPUInfo],
    variants: list[str],
    unsupported: list[str],
) -> None:
    monkeypatch.setattr(manager, "get_platform_key", lambda: platform)
    found = looks(home, kind, gpus)
    assert [look.variant for look in found] == [*variants, "embedded", "path"]
    assert [look.variant for look in found if look.state == "unsupported"] == unsupported
    assert all(look.state == "available" for look in found[:-2] if look.variant not in unsupported)
    assert all(look.build is not None and look.build.platform == platform for look in found[:-2])


def test_macs_with_intel_have_llama_cpp_for_the_cpu_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "get_platform_key", lambda: "darwin-x64")
    assert [look.variant for look in looks(home, "llama")] == ["cpu", "embedded", "path"]
    assert [look.variant for look in looks(home, "diffusion")] == ["embedded", "path"]


def test_the_user_s_own_comes_before_all(home: Path, tmp_path: Path) -> None:
    own = program(tmp_path / "own" / "llama-server")
    assert looks(home, "llama", llama_server=own)[0].variant == "explicit"
    assert "explicit" not in [look.variant for look in looks(home, "diffusion", llama_server=own)]


@pytest.mark.parametrize(
    ("variant", "gpus", "reason"),
    [
        ("vulkan", [], "no GPU was found"),
        ("vulkan", [NVIDIA_ONLY], "no Vulkan loader was found (on Linux: libvulkan.so.1)"),
        ("vulkan", [NVIDIA], None),
        ("vulkan", [NVIDIA_ONLY, NVIDIA], None),
        ("cuda", [APPLE], "no NVIDIA GPU with a driver was found"),
        ("cuda", [NVIDIA], None),
        ("rocm", [NVIDIA], "no AMD GPU with ROCm was found"),
        ("metal", [NVIDIA], "no GPU with Metal was found"),
        ("metal", [APPLE], None),
        ("cpu", [], None),
    ],
)
def test_why_a_build_is_none_for_this_machine(
    home: Path, variant: Any, gpus: list[GPUInfo], reason: str | None
) -> None:
    system = SystemInfo(Settings(home=home), probe=Machine(ram=GIB, gpus=gpus))
    assert places.unsuitable(variant, asyncio.run(system.detect())) == reason


def test_builds_have_the_names_of_their_releases(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "get_platform_key", lambda: "linux-x64")
    assert looks(home, "llama")[1].name == "llama.cpp b9860 (cpu)"
    assert looks(home, "diffusion")[0].name == "stable-diffusion.cpp master-782-b290693 (vulkan)"


def test_looking_leaves_no_trace(home: Path) -> None:
    for kind in KINDS:
        looks(home, kind)
    assert not home.exists()


# ---- the user's own, and the PATH


@posix
def test_an_sd_cli_speaks_through_an_adapter(home: Path, tmp_path: Path) -> None:
    for name in ("sd-cli", "sd"):
        own = program(tmp_path / name)
        look = places.own("diffusion", str(own))
        assert look.engine is not None
        assert look.engine.argv[0] == sys.executable
        assert look.engine.argv[-2:] == ["--cli", str(own)]
        assert look.program == [str(own)]


@posix
def test_the_better_program_of_the_path_is_taken(empty_path: Path) -> None:
    program(empty_path / "sd-cli")
    assert places.on_path("diffusion").path == str(empty_path / "sd-cli")
    better = program(empty_path / "sd-server")
    assert places.on_path("diffusion").path == str(better)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("llama", "no llama-server in any of its folders"),
        ("diffusion", "no sd-server or sd-cli in any of its folders"),
    ],
)
def test_an_empty_path(kind: Kind, reason: str) -> None:
    look = places.on_path(kind)
    assert (look.state, look.reason) == ("missing", reason)


@posix
def test_what_lies_in_the_current_folder_is_not_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "here" / "llama-server")
    monkeypatch.chdir(tmp_path / "here")
    for entry in (".", "", "../here"):
        monkeypatch.setenv("PATH", entry)
        look = places.on_path("llama")
        assert look.state != "found"
        assert look.engine is None


@posix
@pytest.mark.parametrize(("mode", "reason"), [(None, "there is no such file"), (0o644, "it may not be executed")])
def test_an_own_program_that_cannot_be_run(tmp_path: Path, mode: int | None, reason: str) -> None:
    own = tmp_path / "llama-server"
    if mode is not None:
        program(own).chmod(mode)
    look = places.own("llama", str(own))
    assert (look.state, look.reason) == ("failed", f"{own}: {reason}")


def test_a_folder_is_no_program(tmp_path: Path) -> None:
    assert places.own("llama", str(tmp_path)).reason == f"{tmp_path}: there is no such file"


# ---- wheels


@pytest.mark.parametrize(
    ("kind", "missing", "reason"),
    [
        ("llama", "xllamacpp", "not installed: xllamacpp"),
        ("diffusion", "cyllama", "not installed: cyllama"),
        ("diffusion", "PIL", "not installed: pillow"),
        ("diffusion", "numpy", "not installed: numpy"),
    ],
)
def test_a_wheel_that_lacks_something(monkeypatch: pytest.MonkeyPatch, kind: Kind, missing: str, reason: str) -> None:
    monkeypatch.setattr(places, "is_there", lambda module: module != missing)
    look = places.wheels(kind)
    assert (look.state, look.reason) == ("missing", reason)


def test_a_python_that_does_not_know_itself_runs_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "is_there", lambda module: True)
    monkeypatch.setattr(sys, "executable", "")
    assert places.wheels("llama").reason == "this Python does not know its own executable"


@pytest.mark.parametrize(
    ("version", "platform", "gpu"),
    [("1.0", "linux", False), ("1.0+cu128", "linux", None), ("1.0", "darwin", None), (None, "win32", False)],
)
def test_what_a_wheel_may_compute_on(
    monkeypatch: pytest.MonkeyPatch, version: str | None, platform: str, gpu: bool | None
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert places._may_use_gpu(version) is gpu


def test_wheels_are_told_apart_by_what_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = places.wheels_identity("llama")
    assert before == places.wheels_identity("llama")
    assert before != places.wheels_identity("diffusion")
    monkeypatch.setattr(places, "_version_of", lambda package: "99")
    assert before != places.wheels_identity("llama")


def test_the_version_of_a_wheel_is_the_one_that_is_installed_now(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, str] = {"xllamacpp": "1", "pillow": "2"}
    monkeypatch.setattr(places, "_version_of", versions.get)
    assert (places.wheels_version("llama"), places.wheels_version("diffusion")) == ("1", None)
    versions["xllamacpp"] = "2"
    assert places.wheels_version("llama") == "2"


def test_modules_are_looked_for_without_importing_them() -> None:
    assert places.is_there("msgspec")
    for nothing in ("there_is_no_such_module", "", "."):
        assert not places.is_there(nothing)


# ---- builds that are here


def test_a_build_for_no_gpu_is_known_to_use_none(home: Path) -> None:
    machine = asyncio.run(SystemInfo(Settings(home=home), probe=Machine(ram=GIB)).detect())
    builds = [build for build in CATALOG if build.kind == "llama" and build.platform == "linux-x64"]
    found = list(places.released("llama", builds, Releases(home / "engines"), machine))
    assert [(look.variant, look.state, look.release) for look in found] == [
        ("vulkan", "unsupported", "b9860"),
        ("cpu", "available", "b9860"),
    ]
