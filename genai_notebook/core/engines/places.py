"""The places where engines are looked for, and what is there. Nothing is run or fetched here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.engine import PROGRAMS, PROJECTS, Engine, Kind, Variant
from genai_notebook.core.engines.releases import Installed, Releases
from genai_notebook.core.schema import SystemCapabilities

#: The wheel that holds the engine, then what its program needs besides, by import name and by package name.
WHEELS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "llama": (("xllamacpp", "xllamacpp"),),
    "diffusion": (("cyllama", "cyllama"), ("PIL", "pillow"), ("numpy", "numpy")),
}
_MODULES: dict[Kind, str] = {
    "llama": "genai_notebook.core.engines.embedded.llama_server",
    "diffusion": "genai_notebook.core.engines.embedded.sd_server",
}
#: Speaks sd-server's API for builds that have only sd-cli.
_CLI_MODULE = "genai_notebook.core.engines.sd_cli"
# OpenMP's threads spin while they wait for each other, and then a picture takes several times as long as soon as
# anything else wants a core.
_PATIENCE: dict[Kind, dict[str, str]] = {"diffusion": {"GOMP_SPINCOUNT": "1000"}}
_CLI_NAMES = frozenset({"sd-cli", "sd"})


class Look(Struct, frozen=True, kw_only=True):
    """What one place holds.

    Attributes:
        name: for people.
        state: 'found' (with `engine`), 'available' (a release that can be fetched), or why there is none: 'missing',
            'unsupported' (not for this machine), 'failed' (it cannot be used; `reason` says why).
        checks: the flags of which one must end with exit code 0.
        program: what `checks` are given to, where that is not the engine itself.
        release: its tag, where it is a build of one.
    """

    name: str
    kind: Kind
    variant: Variant
    state: Literal["found", "available", "missing", "unsupported", "failed"]
    engine: Engine | None = None
    build: Build | None = None
    installed: Installed | None = None
    path: str | None = None
    reason: str | None = None
    checks: tuple[str, ...] = ("--version", "--help")
    program: list[str] | None = None

    @property
    def release(self) -> str | None:
        if self.installed is not None:
            return self.installed.manifest.tag
        return self.build.tag if self.build is not None else None


# ---- the user's own, and the PATH -----------------------------------------------------------------------------------


def own(kind: Kind, path: str) -> Look:
    """The program that a setting names."""
    return _file(kind, path, "explicit", path)


def on_path(kind: Kind) -> Look:
    """The first program of that kind in the folders of the PATH."""
    import shutil

    names = PROGRAMS[kind]
    name = f"{names[0]} on the PATH"
    path = next((found for program in names if (found := shutil.which(program))), None)
    if path is None:
        missing = " or ".join(names)
        return Look(name=name, kind=kind, variant="path", state="missing", reason=f"no {missing} in any of its folders")
    if not os.path.isabs(path):
        # An entry such as "." means: whatever lies where the notebook happens to be.
        reason = f"{path}: found by a relative entry, which is not used"
        return Look(name=name, kind=kind, variant="path", state="failed", path=path, reason=reason)
    return _file(kind, path, "path", name)


def _file(kind: Kind, path: str, variant: Variant, name: str) -> Look:
    problem = None
    if not os.path.isfile(path):
        problem = "there is no such file"
    elif not os.access(path, os.X_OK):
        problem = "it may not be executed"
    if problem is not None:
        reason = f"{path}: {problem}"
        return Look(name=name, kind=kind, variant=variant, state="failed", path=path, reason=reason)
    return _found(kind, path, variant, name)


def _found(
    kind: Kind, path: str, variant: Variant, name: str, *, env: dict[str, str] | None = None, gpu: bool | None = None
) -> Look:
    argv, env, program = [path], {**_PATIENCE.get(kind, {}), **(env or {})}, None
    if kind == "diffusion" and Path(path).stem in _CLI_NAMES:
        argv, env, program = [sys.executable, "-m", _CLI_MODULE, "--cli", path], {**env, **_python_path()}, [path]
    engine = Engine(name=name, kind=kind, argv=argv, version=None, variant=variant, env=env, gpu=gpu)
    return Look(name=name, kind=kind, variant=variant, state="found", engine=engine, path=path, program=program)


def named(look: Look, version: str | None) -> Engine:
    """The engine of a look, once its version is known."""
    assert look.engine is not None
    if look.variant not in ("explicit", "path"):
        return msgspec.structs.replace(look.engine, version=look.engine.version or version)
    shown = " ".join(filter(None, (os.path.basename(str(look.path)), version, f"({look.variant})")))
    return msgspec.structs.replace(look.engine, name=shown, version=version)


# ---- releases -------------------------------------------------------------------------------------------------------


def released(kind: Kind, builds: list[Build], releases: Releases, machine: SystemCapabilities) -> Iterator[Look]:
    """The builds for this platform in their order, each followed by older releases of it that are still here."""
    here = releases.all_of(kind)
    for build in builds:
        name = release_name(kind, build.tag, build.variant)
        look = Look(name=name, kind=kind, variant=build.variant, build=build, state="available", reason="not installed")
        if (problem := unsuitable(build.variant, machine)) is not None:
            yield msgspec.structs.replace(look, state="unsupported", reason=problem)
            continue
        found = releases.find(build)
        yield look if found is None else installed_look(found, build)
        for older in here:
            if older.manifest.variant == build.variant and older.manifest.tag != build.tag:
                yield installed_look(older)


def installed_look(installed: Installed, build: Build | None = None) -> Look:
    """A build that is on this disk; `build` where it is a pinned one."""
    manifest = installed.manifest
    env = {}
    if installed.libraries is not None:
        # Windows looks for libraries beside the program, then in the PATH.
        variable = "PATH" if os.name == "nt" else "LD_LIBRARY_PATH"
        env[variable] = os.pathsep.join(filter(None, (str(installed.libraries), os.environ.get(variable))))
    name = release_name(manifest.kind, manifest.tag, manifest.variant)
    gpu = False if manifest.variant == "cpu" else None
    look = _found(manifest.kind, str(installed.program), manifest.variant, name, env=env, gpu=gpu)
    return msgspec.structs.replace(look, build=build, installed=installed)


def release_name(kind: Kind, tag: str, variant: str) -> str:
    """E.g. ``llama.cpp b9860 (vulkan)``."""
    return f"{PROJECTS[kind]} {tag} ({variant})"


def unsuitable(variant: Variant, machine: SystemCapabilities) -> str | None:
    """Why a build for a make of GPU is none for this machine, or None where it is."""
    gpus = machine.gpus
    if variant == "vulkan":
        if not gpus:
            return "no GPU was found"
        return None if any(gpu.vulkan for gpu in gpus) else "no Vulkan loader was found (on Linux: libvulkan.so.1)"
    wanted = {
        "cuda": (any(gpu.cuda for gpu in gpus), "no NVIDIA GPU with a driver was found"),
        "rocm": (any(gpu.rocm for gpu in gpus), "no AMD GPU with ROCm was found"),
        "metal": (any(gpu.metal for gpu in gpus), "no GPU with Metal was found"),
    }
    there, reason = wanted.get(variant, (True, ""))
    return None if there else reason


# ---- wheels ---------------------------------------------------------------------------------------------------------


def wheels(kind: Kind) -> Look:
    """The engine that comes as Python packages, without importing any of them."""
    wheel = WHEELS[kind][0][1]
    name = f"{wheel} (embedded)"
    missing = [package for module, package in WHEELS[kind] if not is_there(module)]
    reason = f"not installed: {', '.join(missing)}" if missing else None
    if not sys.executable:
        reason = "this Python does not know its own executable"
    if reason is not None:
        return Look(name=name, kind=kind, variant="embedded", state="missing", reason=reason)
    version = _version_of(wheel)
    name = " ".join(filter(None, (wheel, version, "(embedded)")))
    engine = Engine(
        name=name,
        kind=kind,
        argv=[sys.executable, "-m", _MODULES[kind]],
        version=version,
        variant="embedded",
        env=_python_path(),
        gpu=_may_use_gpu(version),
    )
    return Look(
        name=name,
        kind=kind,
        variant="embedded",
        state="found",
        engine=engine,
        path=sys.executable,
        checks=("--version",),
    )


def wheels_identity(kind: Kind) -> str:
    """Tells these very packages, under this very Python, from any others: by what their RECORDs say of each file."""
    import hashlib
    from importlib import metadata

    digest = hashlib.sha256(f"{sys.version} {sys.executable}".encode())
    for _, package in WHEELS[kind]:
        try:
            record = metadata.distribution(package).read_text("RECORD") or ""
        except (metadata.PackageNotFoundError, OSError):
            record = ""
        digest.update(f"\n{package} {_version_of(package)}\n{record}".encode())
    return digest.hexdigest()


def wheels_version(kind: Kind) -> str | None:
    """The version of the wheel that is installed now; None: none is."""
    return _version_of(WHEELS[kind][0][1])


def _may_use_gpu(version: str | None) -> bool | None:
    """The index's wheels are built for Metal on macOS and for the CPU elsewhere; GPU builds from other places have a
    local version, such as 0.2.0+cu128.
    """
    return None if sys.platform == "darwin" or "+" in (version or "") else False


def is_there(module: str) -> bool:
    """Whether a top-level module could be imported, without importing it."""
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python_path() -> dict[str, str]:
    """What a child Python needs to find this package: nothing where it is installed the usual way."""
    import genai_notebook

    root = str(Path(genai_notebook.__file__).resolve().parent.parent)
    if os.path.basename(root) in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
