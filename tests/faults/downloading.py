"""A program that downloads a model, to be watched and killed: `python -m tests.faults.downloading HOME URL`.

It prints how far it is, line by line, and in the end the model's id and path.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from genai_notebook.core.models import ModelManager
from genai_notebook.core.settings import Settings


def progress(done: int, total: int | None) -> None:
    print("progress", done, total, flush=True)


async def main(home: Path, url: str) -> None:
    manager = ModelManager(Settings(home=home))
    model = await manager.download_model(source="url", url=url, on_progress=progress)
    print("model", model.id, model.path, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
