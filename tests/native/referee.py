"""llama.cpp itself as the judge of our estimates: `llama-fit-params` lays a model out and says what it would take.

RPC servers on this machine stand in for GPUs: llama.cpp treats them as such, but no driver takes memory of its own.
`scripts/native` builds the programs.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from genai_notebook.core.models.gguf import read_gguf
from genai_notebook.core.schema import ModelInfo, ModelSource
from genai_notebook.core.system.estimate import DRIVER_CONTEXT, MIB, Load, estimate, estimate_on
from tests.native.shapes import write_model

_ROOT = Path(__file__).resolve().parents[2]
_LINE = re.compile(r"^(\S+) (\d+) (\d+) (\d+) ?$", re.MULTILINE)

#: Contexts and options that the error table is made of.
CONTEXTS = (1024, 8192, 32_768, 131_072)
OPTIONS = {
    "as it comes": Load(),
    "4 slots": Load(parallel_requests=4),
    "q8_0 cache": Load(cache_type_k="q8_0", cache_type_v="q8_0"),
    "q4_0 cache": Load(cache_type_k="q4_0", cache_type_v="q4_0"),
    "f32 cache": Load(cache_type_k="f32", cache_type_v="f32"),
    "no flash attention": Load(flash_attention=False),
    "batches of 128": Load(batch_size=128),
    "batches of 2048": Load(batch_size=2048),
    "full windows": Load(swa_full=True),
}


class Case(msgspec.Struct, frozen=True):
    """A model under a load, on so many GPUs that get these shares of its layers."""

    model: str
    load: Load
    shares: tuple[int, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """MiB in RAM and on each GPU: what llama.cpp says, and what we estimate (without a driver's own memory)."""

    case: Case
    measured: list[float]
    estimated: list[float]

    @property
    def error(self) -> float:
        """Of the total, as a share of it; negative: the estimate is too low."""
        return sum(self.estimated) / sum(self.measured) - 1

    @property
    def share_errors(self) -> list[float]:
        """Of RAM and of each GPU, as shares of the total."""
        total = sum(self.measured)
        return [(ours - theirs) / total for ours, theirs in zip(self.estimated, self.measured, strict=True)]


def native_folder(program: str = "llama-fit-params") -> Path:
    """The folder of a native program, or where it would be; `GENAI_NOTEBOOK_NATIVE` names other folders."""
    folders = native_folders()
    return next((folder for folder in folders if (folder / program).exists()), folders[0])


@lru_cache
def native_folders() -> list[Path]:
    """Where native programs are, or would be: llama.cpp's first."""
    given = os.environ.get("GENAI_NOTEBOOK_NATIVE")
    if given:
        return [Path(folder) for folder in given.split(os.pathsep)]
    command = ["sh", str(_ROOT / "scripts" / "native"), "--where"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [Path(line) for line in shown.splitlines()]


class Referee:
    """Lays models out with llama.cpp. `folder` keeps the models, which are written when they are first asked for."""

    def __init__(self, programs: Path, folder: Path, servers: Sequence[str] = ()) -> None:
        self._program = programs / "llama-fit-params"
        self._folder = folder
        self._servers = servers
        self._models: dict[str, ModelInfo] = {}

    def model(self, name: str) -> ModelInfo:
        if name not in self._models:
            path = write_model(self._folder / f"{name}.gguf", name)
            self._models[name] = model_at(path)
        return self._models[name]

    def judge(self, case: Case) -> Verdict:
        """Raises:
        AssertionError: llama.cpp does not run that case.
        """
        model = self.model(case.model)
        if case.shares:
            placed = estimate_on(model, case.load, [share << 30 for share in case.shares])
            ours = [placed.ram, *(each - DRIVER_CONTEXT if each else 0 for each in placed.vram)]
        else:
            ours = [estimate(model, case.load).ram]
        return Verdict(case, self.measure(case), [each / MIB for each in ours])

    def judge_all(self, cases: Sequence[Case]) -> list[Verdict]:
        """All of them, two at a time."""
        for case in cases:
            self.model(case.model)
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.judge, cases))

    def measure(self, case: Case) -> list[float]:
        """MiB in RAM and on each GPU by llama.cpp (which rounds down: half of one is added to each of its numbers)."""
        # Repacked weights take no more memory, but are not in its sums.
        command = [str(self._program), "--fit-print", "on", "--no-repack", "-m", self.model(case.model).path]
        command += arguments(case.load)
        if case.shares:
            servers = self._servers[: len(case.shares)]
            command += ["--rpc", ",".join(servers), "-ts", ",".join(str(share) for share in case.shares)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, f"{case}: {result.stderr[-2000:]}"
        lines = [(found[1], [int(part) for part in found.groups()[1:]]) for found in _LINE.finditer(result.stdout)]
        sums = {name: sum(part + 0.5 for part in parts if part) for name, parts in lines}
        host = sums.pop("Host")
        assert len(sums) == len(case.shares), result.stdout
        return [host, *(sums[name] for name in sorted(sums))]


def arguments(load: Load) -> list[str]:
    """A load as llama.cpp's flags (but for a shared cache, which `llama-fit-params` does not know)."""
    flags = ["-c", str(load.context_size), "-np", str(load.parallel_requests), "-ub", str(load.batch_size)]
    flags += ["-ctk", load.cache_type_k, "-ctv", load.cache_type_v, "-ngl", str(load.gpu_layers)]
    flags += ["-fa", "on" if load.flash_attention else "off"]
    flags += ["--cpu-moe"] if load.cpu_moe else []
    flags += ["--n-cpu-moe", str(load.n_cpu_moe)] if load.n_cpu_moe else []
    return [*flags, "--swa-full"] if load.swa_full else flags


def model_at(path: Path) -> ModelInfo:
    """A file as a model."""
    return ModelInfo(
        id=path.stem,
        name=path.stem,
        type="llm",
        size=path.stat().st_size,
        path=str(path),
        downloaded_at="2026-01-01T00:00:00Z",
        source=ModelSource(type="local"),
        gguf_metadata=read_gguf(path),
    )


def changes(load: Load) -> dict[str, Any]:
    """What a load does not leave at its default."""
    return {key: value for key, value in msgspec.structs.asdict(load).items() if value != getattr(Load(), key)}


def table_of(verdicts: Sequence[Verdict]) -> str:
    """Mean and worst error per model and over all, in percent."""
    rows = []
    for name in dict.fromkeys(verdict.case.model for verdict in verdicts):
        rows.append(_row(name, [verdict for verdict in verdicts if verdict.case.model == name]))
    return "\n".join([*rows, _row("all of them", verdicts)])


def _row(name: str, verdicts: Sequence[Verdict]) -> str:
    worst = max(verdicts, key=lambda verdict: abs(verdict.error))
    mean = sum(abs(verdict.error) for verdict in verdicts) / len(verdicts)
    errors = f"mean {100 * mean:6.3f} %   worst {100 * worst.error:+7.3f} %"
    return f"  {name:<18} {len(verdicts):4} rows   {errors}   {changes(worst.case.load)}"


@contextmanager
def stand_in_gpus(programs: Path, count: int, logs: Path) -> Iterator[list[str]]:
    """So many RPC servers; their addresses."""
    running: list[subprocess.Popen[bytes]] = []
    addresses = []
    try:
        for number in range(count):
            port = _free_port()
            with (logs / f"rpc-{number}.log").open("wb") as log:
                command = [str(programs / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=logs))
            addresses.append(f"127.0.0.1:{port}")
            _await_port(port, running[-1])
        yield addresses
    finally:
        for process in running:
            process.kill()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert process.poll() is None, "the RPC server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"the RPC server does not listen on {port}")
