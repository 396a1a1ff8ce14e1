"""Finding the Jupyter server that owns this kernel, with proof.

A server is believed only when the user names it, or when all of this holds: a parent process of this kernel has left a
``jpserver-<pid>.json`` of the same user, the URL in it leads to this machine, and the server at that URL knows this
very kernel and has the extension. Running servers are never looped over, and none is picked for being the newest.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from msgspec import Struct

from genai_notebook.errors import GenaiNotebookError, InvalidRequestError, ServerError

RUNTIME, TOKEN = "GENAI_NOTEBOOK_RUNTIME", "GENAI_NOTEBOOK_TOKEN"
#: Seconds that each of the questions to a found server may take.
ANSWER_LIMIT = 5.0
_KERNEL_FILE = re.compile(r"kernel-([0-9a-fA-F][0-9a-fA-F-]{7,63})\.json")
# What a browser shows behind the base URL, and users copy along.
_PAGES = re.compile(r"/(?:genai|lab|tree|notebooks|doc|voila|login)(?:/.*)?$")


class Owner(Struct, frozen=True):
    """Who owns the engines.

    Attributes:
        url: the Jupyter server's base URL; None: nobody but this process.
        token: its token, or None.
        reason: why, in one sentence for people.
    """

    url: str | None
    token: str | None
    reason: str


class _NotFoundError(Exception):
    """Why no server can be believed, as the second half of a sentence."""


def find_owner(
    environ: Mapping[str, str] | None = None,
    *,
    kernel_id: str | None = None,
    ancestors: Sequence[int] | None = None,
    runtime_dir: Path | None = None,
) -> Owner:
    """The Jupyter server to use, or the reason why this process is on its own. Blocks for a moment where there is one.

    Args:
        environ: default: the process's environment.
        kernel_id: default: from the connection file of the kernel in this process.
        ancestors: process ids, nearest first; default: this process's parents.
        runtime_dir: default: Jupyter's.

    Raises:
        ServerError: GENAI_NOTEBOOK_RUNTIME demands a server that is not there.
        InvalidRequestError: GENAI_NOTEBOOK_RUNTIME is nonsense.
    """
    env = os.environ if environ is None else environ
    wish = env.get(RUNTIME, "").strip()
    if wish == "local":
        return Owner(None, None, f"{RUNTIME}=local asks for engines of this kernel's own.")
    if "://" in wish:
        return _named(wish, env.get(TOKEN))
    if wish not in ("", "auto", "server"):
        raise InvalidRequestError(
            f"{RUNTIME}={wish!r} is not known.", {"field": RUNTIME}, hint="Use local, server, or a server's URL."
        )
    try:
        return _owning(env, kernel_id, ancestors, runtime_dir)
    except _NotFoundError as error:
        if wish == "server":
            raise ServerError(
                f"{RUNTIME}=server, but {error}.",
                code="SERVER_UNREACHABLE",
                hint=f"Unset {RUNTIME} to run engines in this kernel, or set it to the server's URL.",
            ) from None
        return Owner(None, None, f"This kernel runs its own engines, because {error}.")


def _named(url: str, token: str | None) -> Owner:
    """The server that the user names, in whatever form it was copied from a browser."""
    parts = urlsplit(url)
    if token is None:
        token = next(iter(parse_qs(parts.query).get("token", [])), None)
    path = _PAGES.sub("", parts.path).rstrip("/") + "/"
    base = parts._replace(path=path, query="", fragment="").geturl()
    try:
        _has_extension(base, token)
    except GenaiNotebookError as error:
        error.hint = f"{RUNTIME} names this server. {error.hint or ''}".strip()
        raise
    return Owner(base, token, f"{RUNTIME} names the Jupyter server at {base}.")


def _owning(
    env: Mapping[str, str], kernel_id: str | None, ancestors: Sequence[int] | None, runtime_dir: Path | None
) -> Owner:
    kernel_id = kernel_id or this_kernel()
    if kernel_id is None:
        raise _NotFoundError("it is not a kernel that a Jupyter server started")
    folder = runtime_dir or _runtime_dir()
    pids = _parents() if ancestors is None else ancestors
    pid = next((pid for pid in pids if (folder / f"jpserver-{pid}.json").is_file()), None)
    if pid is None:
        raise _NotFoundError("no Jupyter server is among its parent processes")
    described = _description(folder / f"jpserver-{pid}.json", pid)
    url = _local_url(described, env)
    token = str(described.get("token") or "") or env.get("JUPYTERHUB_API_TOKEN") or None
    try:
        _knows_kernel(url, token, kernel_id)
        _has_extension(url, token)
    except GenaiNotebookError as error:
        raise _NotFoundError(f"the Jupyter server that started it cannot be used: {str(error).rstrip('.')}") from None
    return Owner(url, token, f"The Jupyter server that started this kernel (pid {pid}) owns the engines.")


def this_kernel() -> str | None:
    """The id of the kernel that this process is, from its connection file's name; None where it is none."""
    application = sys.modules.get("ipykernel.kernelapp")
    if application is None:
        return None
    kernel = application.IPKernelApp
    if not kernel.initialized():
        return None
    match = _KERNEL_FILE.fullmatch(os.path.basename(kernel.instance().connection_file or ""))
    return match[1] if match else None


def _runtime_dir() -> Path:
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


def _parents() -> list[int]:
    """The ids of all parent processes, nearest first. (JPY_PARENT_PID is one of them on POSIX; on Windows a handle.)"""
    import psutil

    try:
        return [parent.pid for parent in psutil.Process().parents()]
    except psutil.Error:
        return []


def _description(path: Path, pid: int) -> dict[str, Any]:
    """What the server's own file says.

    Raises:
        _NotFoundError: it is not that process's file, or not this user's.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0))) as file:
            status = os.fstat(file.fileno())
            described = json.loads(file.read(1_000_000))
        if os.name == "posix" and status.st_uid != os.getuid():
            raise _NotFoundError(f"{path.name} belongs to another user")
    except (OSError, ValueError) as error:
        raise _NotFoundError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(described, dict) or described.get("pid") != pid:
        raise _NotFoundError(f"{path.name} describes another process")
    return described


def _local_url(described: dict[str, Any], env: Mapping[str, str]) -> str:
    """The server's URL on this machine.

    Raises:
        _NotFoundError: it does not listen here.
    """
    from genai_notebook.client.transport import is_loopback

    base = str(described.get("base_url") or env.get("JUPYTERHUB_SERVICE_PREFIX") or "/")
    socket = described.get("sock")
    if socket:
        return f"http+unix://{quote(str(socket), safe='')}{base}"
    parts = urlsplit(str(described.get("url") or ""))
    if parts.scheme == "http+unix" and unquote(parts.netloc).startswith("/"):
        return parts.geturl()
    if parts.scheme not in ("http", "https"):
        raise _NotFoundError("its Jupyter server has no URL")
    if is_loopback(parts.hostname or ""):
        return parts._replace(query="", fragment="").geturl()
    # A server on all interfaces writes down this machine's name; it listens on the loopback interface too.
    if str(described.get("hostname")) in ("0.0.0.0", "::", "*", "") and isinstance(described.get("port"), int):
        return f"{parts.scheme}://127.0.0.1:{described['port']}{base}"
    raise _NotFoundError(f"its Jupyter server listens at {parts.hostname}, not on the loopback interface")


def _knows_kernel(url: str, token: str | None, kernel_id: str) -> None:
    answer = _ask(url, token, f"api/kernels/{kernel_id}")
    if not isinstance(answer, dict) or answer.get("id") != kernel_id:
        raise ServerError("it does not know this kernel")


def _has_extension(url: str, token: str | None) -> None:
    try:
        answer = _ask(url, token, "genai/")
    except ServerError as error:
        if error.code != "SERVER_ERROR":
            raise
        answer = None  # it answers, but with something else
    if not isinstance(answer, dict) or answer.get("name") != "genai-notebook":
        raise ServerError(
            f"The Jupyter server at {url} has no genai_notebook.",
            {"url": url},
            code="SERVER_UNREACHABLE",
            hint="Install genai-notebook where that server runs, and restart it.",
        )


def _ask(url: str, token: str | None, path: str) -> Any:
    """One GET below the server's base URL: the decoded answer.

    Raises:
        GenaiNotebookError: no answer, or a refusal.
    """
    from genai_notebook.client.transport import Connection

    return Connection(url, token).get_now(path, ANSWER_LIMIT)
