"""`llama-server` from the wheel `xllamacpp`: the same flags, the same HTTP API (it is llama.cpp's own server code).

    python -m genai_notebook.core.engines.embedded.llama_server -m model.gguf --port 0

What differs from the native program: no web UI, no CORS (a foreign Origin is never reflected), and a flag that is not
in the table (`llama_options`) is refused. The log goes to stderr, as there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from genai_notebook.core.engines.embedded.flags import FlagError, help_text, parse, refuse, version_text
from genai_notebook.core.engines.embedded.llama_options import FLAGS
from genai_notebook.core.engines.embedded.llama_params import check_files, configure

PROGRAM = "python -m genai_notebook.core.engines.embedded.llama_server"
ABOUT = "llama.cpp's HTTP server, from the Python package xllamacpp. LLAMA_API_KEY in the environment is a key too."

_LOG_SECONDS = 0.2


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until SIGTERM or SIGINT."""
    try:
        options = parse(FLAGS, sys.argv[1:] if argv is None else argv)
    except FlagError as error:
        refuse(PROGRAM, error)
    if options.get("HELP"):
        print(help_text(PROGRAM, ABOUT, FLAGS))
        sys.exit(0)
    try:
        if options.get("VERSION"):
            print(version_text("xllamacpp", "xllamacpp"))
            sys.exit(0)
        check_files(options)
        import xllamacpp

        params = configure(xllamacpp, options)
    except (FlagError, ImportError) as error:
        refuse(PROGRAM, error)
    _serve(xllamacpp, params)


def _serve(engine: Any, params: Any) -> NoReturn:
    # The constructor loads the model without letting Python run, so a handler of ours could not act meanwhile: until
    # it returns, SIGTERM has its default action and ends the process at once.
    try:
        server = engine.Server(params)
    except (RuntimeError, ValueError) as error:
        # The engine's log says why. A thread of its own writes it: what we print at once lands inside one of its lines.
        time.sleep(_LOG_SECONDS)
        words = f"error: the engine did not start with '{params.model.path}': {error}\n"
        os.write(2, words.encode("utf-8", "backslashreplace"))
        sys.exit(1)
    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        # Not by way of the server's destructor: that waits for the answers that are still being written.
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not asked.wait(3600.0):
        pass
    del server
    sys.exit(0)


if __name__ == "__main__":
    main()
