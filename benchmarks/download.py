"""How fast a verified download is: from an nginx on loopback, beside curl, huggingface_hub and aria2c.

    apt-get install nginx-light curl aria2
    .venv-test/bin/python benchmarks/download.py [MEGABYTES]

Ours ends with the SHA-256 of all bytes; the others hash nothing. Every download is a process of its own, which says how
long it took, what processor time it used and how much its memory grew. nginx runs unprivileged, out of a temporary
folder, and gives each connection all it can, or 20 MB/s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from side_by_side import in_turns, line, verdict

ROUNDS, SLOW_ROUNDS = 7, 3
NEEDED = {"nginx": "nginx-light", "curl": "curl", "aria2c": "aria2"}
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{ }}
http {{
    access_log off; sendfile on; tcp_nopush on;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{
        listen 127.0.0.1:{port}; root {folder}/served;
        location /slow/ {{ alias {folder}/served/; limit_rate 20m; }}
        location /some/model/resolve/main/ {{ alias {folder}/served/; add_header X-Repo-Commit {commit}; }}
    }}
}}
"""
#: What a child runs: `get` is defined by each side; the rest is common.
CHILD = """
import json, os, resource, sys, time
from pathlib import Path
url, target = sys.argv[1], Path(sys.argv[2])
{setup}
def use():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
cpu, memory = use()
began = time.perf_counter()
get()
seconds = time.perf_counter() - began
print(json.dumps([seconds, use()[0] - cpu, use()[1] - memory]))
"""
OURS = """
from genai_notebook.core.downloads.fetch import Fetch, fetch
from genai_notebook.core.downloads.work import Work
def get():
    assert len(fetch(Fetch(url=url, target=target / "ours.bin"), Work()).sha256) == 64
"""
HUB = """
os.environ |= {"HF_ENDPOINT": url.rpartition("/")[0], "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
from huggingface_hub import hf_hub_download
def get():
    hf_hub_download("some/model", url.rpartition("/")[2], cache_dir=target)
"""
HEAD = """
from genai_notebook.core.downloads.fetch import read_head
from genai_notebook.core.downloads.work import Work
def get():
    assert len(read_head(url, {}, lambda data: True, Work()).data) <= 64 << 10
"""


class Bench:
    """nginx, the file it serves, and a folder to download to that is empty every time."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder, self.size = folder, megabytes * 1_000_000
        (folder / "served").mkdir()
        with open(folder / "served" / "file.bin", "wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1_000_000))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/file.bin"
        self.slow = f"http://127.0.0.1:{self._port}/slow/file.bin"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        config = self._folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self._folder, port=self._port, commit="a" * 40))
        for path in (self._folder, self._folder / "served"):
            path.chmod(0o755)  # started by root, nginx works as somebody else
        with subprocess.Popen(["nginx", "-c", str(config), "-p", str(self._folder)], stderr=subprocess.PIPE) as nginx:
            try:
                self._wait_for(nginx)
                yield
            finally:
                nginx.terminate()

    def child(self, setup: str, url: str) -> list[float]:
        """Seconds, seconds of processor time, and megabytes of memory."""
        code = CHILD.format(setup=setup)
        output = self._in_empty_folder([sys.executable, "-c", code, url, "{target}"])[1]
        return [float(value) for value in json.loads(output)]

    def program(self, *words: str) -> float:
        """Seconds that a program takes; `{target}` stands for the folder."""
        return self._in_empty_folder(list(words))[0]

    def _in_empty_folder(self, words: list[str]) -> tuple[float, str]:
        target = self._folder / "target"
        target.mkdir()
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        try:
            began = time.perf_counter()
            done = subprocess.run(
                [word.replace("{target}", str(target)) for word in words],
                check=True, stdout=subprocess.PIPE, text=True, env=environ,
            )  # fmt: skip
            return time.perf_counter() - began, done.stdout
        finally:
            shutil.rmtree(target)

    def _wait_for(self, nginx: subprocess.Popen[Any]) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            if nginx.poll() is not None:
                break
            time.sleep(0.05)
        assert nginx.stderr is not None
        nginx.terminate()
        raise SystemExit(f"nginx does not start: {nginx.stderr.read().decode()}")


def main() -> int:
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        print(f"This compares with programs that are not here: apt-get install {' '.join(missing)}")
        return 2
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), megabytes)
        with bench.serving():
            good = [fast(bench), slow(bench)]
    return 0 if all(good) else 1


def fast(bench: Bench) -> bool:
    """One connection gets all it can take."""
    kept: list[list[float]] = []

    def ours() -> float:
        kept.append(bench.child(OURS, bench.url))
        return rate(bench, kept[-1][0])

    curl = lambda: rate(bench, bench.program("curl", "-s", "-o", "{target}/curl.bin", bench.url))  # noqa: E731
    hub = lambda: rate(bench, bench.child(HUB, bench.url)[0])  # noqa: E731
    mine, theirs, hubs = in_turns([ours, curl, hub], ROUNDS)
    heads = [1000 * bench.child(HEAD, bench.url)[0] for _ in range(ROUNDS)]
    gigabytes = bench.size / 1e9
    print(f"A file of {gigabytes:.1f} GB from loopback:")
    for name, values in (("ours, with its SHA-256", mine), ("curl", theirs), ("hf_hub_download", hubs)):
        line(name, values, "MB/s")
    line("the first 64 KiB, for a header", heads)
    return all(
        [
            verdict("curl ÷ ours", statistics.median(theirs) / statistics.median(mine), 1 / 0.95),
            verdict("huggingface_hub ÷ ours", statistics.median(hubs) / statistics.median(mine), 1 / 2.5),
            verdict("processor time for a GB", statistics.median(cpu for _, cpu, _ in kept) / gigabytes, 1.8, "s"),
            verdict("additional memory", statistics.median(memory for *_, memory in kept), 40, "MB"),
        ]
    )


def slow(bench: Bench) -> bool:
    """Each connection gets 20 MB/s."""
    ours = lambda: rate(bench, bench.child(OURS, bench.slow)[0])  # noqa: E731
    words = ["aria2c", "-q", "-x8", "-s8", "--file-allocation=none", "-d", "{target}", bench.slow]
    aria2: Callable[[], float] = lambda: rate(bench, bench.program(*words))  # noqa: E731
    mine, theirs = in_turns([ours, aria2], SLOW_ROUNDS)
    print("20 MB/s for each connection:")
    line("ours, with its SHA-256", mine, "MB/s")
    line("aria2c -x8 -s8", theirs, "MB/s")
    return verdict("aria2c ÷ ours", statistics.median(theirs) / statistics.median(mine), 1 / 0.95)


def rate(bench: Bench, seconds: float) -> float:
    return bench.size / seconds / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
