"""Fake engines: executables that speak the flags and the HTTP of the real ones and can be told to crash, hang or lie.

A `FakeEngine` is an executable file to be named as an explicit engine (``Settings(llama_server=fake.path)``). What it
does is set with `fake.set(…)`, before or while it runs; the words are in `engine.py` and the two fakes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from genai_notebook.core.engines.verdicts import Verdict, Verdicts, drivers_of, verdict_key
from genai_notebook.core.schema import GPUInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.probe import MachineProbe

VERSION = "9860"
HERE = Path(__file__).parent
SCRIPTS = {"llama": HERE / "fake_llama_server.py", "sd": HERE / "fake_sd_server.py"}


class FakeEngine:
    """An executable fake in a folder of the test's own.

    In the home beside that folder it counts as proved: its tests have been passed, and a start makes them no more.
    """

    def __init__(self, folder: Path, kind: Literal["llama", "sd"], *, proved: bool = True, **behaviour: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"fake-{kind}-server"
        self.control = folder / f"{kind}.json"
        self._journal = Path(f"{self.control}.journal")
        self._values: dict[str, Any] = {}
        self.set(**behaviour)
        # sh, not a shebang of Python: interpreters may lie in paths with spaces, or too long for a shebang.
        script = f"exec '{sys.executable}' -IS '{SCRIPTS[kind]}' '{self.control}' \"$@\"\n"
        self.path.write_text(f"#!/bin/sh\n{script}")
        self.path.chmod(0o755)
        if proved:
            self.prove(folder.parent / "home")

    def prove(self, home: Path, gpus: Sequence[GPUInfo] | None = None) -> None:
        """Write down below `home` that it has passed its tests, on a machine with these GPUs; default: this one's."""
        if gpus is None:
            gpus = MachineProbe(Settings(home=home)).gpus()
        known = Verdicts(home / "cache")
        key = verdict_key(known.identity_of(self.path), "explicit", None, drivers_of(gpus))
        known.put(key, Verdict(version=VERSION, proved=True))

    def set(self, **behaviour: Any) -> None:
        """Change what the fake does; None takes a word back. Seen by a running fake within some 20 ms."""
        self._values.update(behaviour)
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps({name: value for name, value in self._values.items() if value is not None}))
        os.replace(new, self.control)

    def reset(self) -> None:
        """Behave well again, and forget the journal."""
        self._values.clear()
        self.set()
        self._journal.unlink(missing_ok=True)

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        """What happened so far, oldest first; one kind of event, or all."""
        if not self._journal.exists():
            return []
        entries = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [entry for entry in entries if event is None or entry["event"] == event]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every start: argv, env, cwd, pid."""
        return self.journal("start")

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        return int(self.starts[-1]["pid"])

    def flag(self, *names: str) -> str | None:
        """The value of a flag in the latest start, or None."""
        argv = self.starts[-1]["argv"]
        for name in names:
            if name in argv:
                return str(argv[argv.index(name) + 1])
        return None


def eventually(condition: Callable[[], Any], what: str = "the condition", seconds: float = 10.0) -> Any:
    """Wait until `condition()` is true and return what it said. The limit is generous: it only ends what would hang."""
    end = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.02)
