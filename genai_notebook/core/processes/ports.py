"""Ports on the loopback interface: is one free, who holds it, which one may we take."""

from __future__ import annotations

import socket
import sys

import psutil

from genai_notebook.errors import PortInUseError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(port: int) -> None:
    """Try to listen on `port`, and let it go again.

    Raises:
        PortInUseError: somebody holds it; the error names the process where the system tells.
    """
    with socket.socket() as probe:
        if sys.platform != "win32":
            # Connections of an earlier engine that still wait to close are no obstacle to a new listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except PermissionError as error:
            raise PortInUseError(port, f"the system ({error.strerror})") from error
        except OSError as error:
            raise PortInUseError(port, holder_of(port)) from error


def holder_of(port: int) -> str | None:
    """``name (pid N)`` of the process that listens on `port`, or None where that cannot be seen."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return None
