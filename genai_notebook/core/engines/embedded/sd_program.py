"""What the two image servers do alike: look at their files, bind their port, serve until they are ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from genai_notebook.core.engines.embedded.flags import FlagError

if TYPE_CHECKING:
    from genai_notebook.core.engines.embedded.sd_http import JobServer, Paints
    from genai_notebook.core.engines.embedded.sd_jobs import JobBoard


class SdProgram:
    """One image server on its way up.

    Args:
        name: what stands in its log lines.
        options: the values of its command line.
        files: the keys of those that are files.
    """

    def __init__(self, name: str, options: dict[str, Any], files: Iterable[str]) -> None:
        self._name = name
        self._given = {key: options[key] for key in files if key in options}
        self._has_model = bool(options.get("model_path") or options.get("diffusion_model_path"))
        self._host, self._port = options.get("IP", "127.0.0.1"), options.get("PORT", 1234)

    def check_files(self) -> None:
        """Raises:
        FlagError: a file is missing, or no model is named.
        """
        if not self._has_model:
            raise FlagError("the following arguments are required: -m (or --diffusion-model)")
        for path in self._given.values():
            if not os.path.isfile(path):
                raise FlagError(f"no such file: {path}")

    def bind(self) -> JobServer:
        """The port first: a busy one is found in milliseconds, not after a model has been loaded."""
        from genai_notebook.core.engines.embedded.sd_http import JobServer

        try:
            return JobServer(self._host, self._port)
        except OSError as error:
            self._no_port(error)

    def check_whole(self) -> None:
        """End the program if a model's file is cut short."""
        from genai_notebook.core.engines.embedded.model_files import CutShortError, check_whole

        for path in self._given.values():
            try:
                check_whole(path)
            except (CutShortError, OSError) as error:
                self.fail(f"new_sd_ctx_t failed: {error}")

    def serve(self, server: JobServer, painter: Paints, board: JobBoard, told: dict[str, Any]) -> NoReturn:
        """Answer until the end. `told`: the capabilities."""
        from genai_notebook.core.engines.embedded.sd_painter import say

        try:
            server.open_for(painter, board, told)
        except OSError as error:
            self._no_port(error)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        say(f"[INFO ] {self._name}  - listening on http://{shown}:{server.port}\n")
        server.serve_forever(poll_interval=3600.0)
        sys.exit(0)

    def fail(self, message: str) -> NoReturn:
        from genai_notebook.core.engines.embedded.sd_painter import say

        say(f"[ERROR] {self._name}  - {message}\n", error=True)
        sys.exit(1)

    def _no_port(self, error: OSError) -> NoReturn:
        self.fail(f"couldn't bind {self._host}:{self._port}: {error.strerror or error}")
