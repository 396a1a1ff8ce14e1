from __future__ import annotations

import os
import socket

import pytest

from genai_notebook.core.processes.ports import free_port, holder_of, require_free
from genai_notebook.errors import PortInUseError


def test_a_free_port_is_free() -> None:
    require_free(free_port())


def test_the_holder_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            require_free(port)
        assert caught.value.port == port
        assert f"(pid {os.getpid()})" in str(caught.value)
        assert holder_of(port) == caught.value.holder


def test_closed_connections_do_not_block_a_port() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as engines do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()  # the side that closes first is left in TIME_WAIT
        client.close()
    require_free(port)
