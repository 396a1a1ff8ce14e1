"""A process that downloads is killed at any byte: the next one fetches what is missing, next to nothing twice, and what
it ends up with is the file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_notebook.core.downloads.fetch import peek
from tests.fakes import eventually
from tests.fakes.file_server import FileServer, ServedFile, file_server
from tests.faults.conftest import ROOT
from tests.processes import assert_none_left
from tests.soak import rounds

MB = 1 << 20
SIZE = 64 * MB
#: Downloads, and kills of each. Here, because tests do not see the variable that asks for more of them.
DOWNLOADS, KILLS = rounds(3, 50), rounds(1, 3)
#: What may come twice: a hundredth, and what the journal is written again after.
TWICE = SIZE // 100 + MB
#: Downloads, and counts in a file that survives it how many bytes it has put on the disk.
PROGRAM = """if True:
    import mmap, struct, sys
    from pathlib import Path
    from genai_notebook.core.downloads import transfer
    from genai_notebook.core.downloads.fetch import Fetch, fetch
    from genai_notebook.core.downloads.part import Part
    from genai_notebook.core.downloads.work import Work

    url, target, sha256, count, connections = sys.argv[1:]
    transfer.CONNECTIONS = int(connections)
    if transfer.CONNECTIONS == 1:
        transfer.WORTHWHILE = 1 << 60
    with open(count, "r+b") as file:
        counted, put = mmap.mmap(file.fileno(), 8), Part._put

    def counting(part, offset, view):
        put(part, offset, view)
        counted[:] = struct.pack("<q", struct.unpack("<q", counted[:])[0] + len(view))

    Part._put = counting
    print(fetch(Fetch(url=url, target=Path(target), sha256=sha256 or None), Work()).sha256)
"""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


class Downloads:
    """One download after the other of one file to one place, each in a process of its own."""

    def __init__(self, file: ServedFile, folder: Path, *, promise: bool, slow: bool) -> None:
        self.file, self.target = file, folder / "a.bin"
        self.sha256 = file.sha256
        self._promise = self.sha256 if promise else ""
        self._slow = slow
        self._count = folder.parent / "count"
        self._count.write_bytes(bytes(8))

    @property
    def written(self) -> int:
        """Bytes that all of them have put on the disk."""
        with open(self._count, "r+b") as file, mmap.mmap(file.fileno(), 8) as counted:
            return int(struct.unpack("<q", counted[:])[0])

    def start(self, *, connections: int) -> subprocess.Popen[str]:
        words = [self.file.url, str(self.target), self._promise, str(self._count), str(connections)]
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def kill_at(self, sent: int, seconds: float) -> None:
        """Start one, and kill it when the server has sent so many bytes more, and so long after."""
        self.file.sent, self.file.pause = 0, 0.004 if self._slow else 0.0
        with self.start(connections=8 if self._slow else 1) as process:
            while self.file.sent < sent and process.poll() is None:
                time.sleep(0.001)
            time.sleep(seconds)
            process.kill()
            process.wait()
        eventually(lambda: not self.file.open)

    def finish(self) -> None:
        self.file.sent, self.file.pause = 0, 0.0
        with self.start(connections=1) as process:
            output = process.communicate(timeout=60)[0]
        assert process.returncode == 0
        assert output.strip() == self.sha256


@pytest.mark.soak
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_byte(server: FileServer, tmp_path: Path) -> None:
    chance = random.Random()
    file = server.add_file("/a", os.urandom(MB) * 63 + os.urandom(MB))
    file.piece = 256 << 10
    for number in range(DOWNLOADS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        downloads = Downloads(file, folder, promise=bool(chance.getrandbits(1)), slow=number % 2 == 1)
        for _ in range(KILLS):
            left = SIZE - (peek(downloads.target) or (0, None))[0]
            # Not only while bytes come: also in the first ones, while it hashes, and while it renames.
            at = chance.choice([chance.randrange(left + 1), chance.randrange(left + 1), 0, left])
            downloads.kill_at(at, chance.choice([0.0, 0.0, chance.random() / 10]))
            where = f"{number}: killed after {at} of {left}, slow: {number % 2}"
            if downloads.target.exists():
                break
        written = downloads.written
        downloads.finish()
        assert hashlib.sha256(downloads.target.read_bytes()).hexdigest() == file.sha256, where
        assert downloads.written <= SIZE + KILLS * TWICE, where
        assert file.sent <= SIZE - written + KILLS * TWICE, where
        assert [path.name for path in folder.iterdir()] == ["a.bin"]
        downloads.target.unlink()
    assert_none_left(tmp_path)
