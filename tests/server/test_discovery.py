"""Finding the server that owns a kernel: only with proof, and never another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.client.discovery import Owner, find_owner
from genai_notebook.errors import InvalidRequestError, ServerError
from tests.jupyter import TOKEN, JupyterServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    folder = tmp_path_factory.mktemp("discovery")
    with JupyterServer(folder / "jupyter", {"GENAI_NOTEBOOK_HOME": str(folder / "home")}) as server:
        yield server


@pytest.fixture(scope="module")
def kernel_id(server: JupyterServer) -> str:
    id: str = server.request("POST", "api/kernels")["id"]
    return id


@pytest.fixture(autouse=True)
def _no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")


def runtime_dir(server: JupyterServer) -> Path:
    return Path(server.environ["JUPYTER_RUNTIME_DIR"])


def find(server: JupyterServer, kernel_id: str, environ: dict[str, str] | None = None, **more: Any) -> Owner:
    given = {"kernel_id": kernel_id, "ancestors": [4, server.pid, 1], "runtime_dir": runtime_dir(server), **more}
    return find_owner(environ or {}, **given)


def copy(server: JupyterServer, folder: Path, **changes: Any) -> Path:
    """The server's own file in another folder, changed."""
    name = f"jpserver-{server.pid}.json"
    described = {**json.loads((runtime_dir(server) / name).read_text()), **changes}
    (folder / name).write_text(json.dumps(described))
    return folder


FORMS = ("{url}", "{base}", "{url}lab", "{url}lab/tree/x.ipynb?token={token}", "{url}tree?token={token}", "{url}genai/")


class Bare:
    """A notebook server that knows a kernel and has no extension, as far as two questions can tell."""

    def __init__(self, kernel_id: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == f"/api/kernels/{kernel_id}"
                self.send_response(200 if known else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"id": kernel_id} if known else {"message": "Not Found"}).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class TestProof:
    def test_the_server_that_started_this_kernel(self, server: JupyterServer, kernel_id: str) -> None:
        owner = find(server, kernel_id)
        assert owner.url == server.url
        assert owner.token == TOKEN
        assert str(server.pid) in owner.reason

    def test_no_parent_has_a_server(self, server: JupyterServer, kernel_id: str) -> None:
        owner = find(server, kernel_id, ancestors=[1, os.getpid()])
        assert owner.url is None
        assert "parent" in owner.reason

    def test_a_kernel_that_the_server_does_not_know(self, server: JupyterServer) -> None:
        owner = find(server, str(uuid.uuid4()))
        assert owner.url is None
        assert "Kernel does not exist" in owner.reason

    def test_a_server_without_the_extension(self, kernel_id: str, server: JupyterServer, tmp_path: Path) -> None:
        bare = Bare(kernel_id)
        try:
            folder = copy(server, tmp_path, url=bare.url)
            owner = find(server, kernel_id, runtime_dir=folder)
            assert owner.url is None
            assert "has no genai_notebook" in owner.reason
        finally:
            bare.close()

    def test_no_kernel(self, server: JupyterServer) -> None:
        owner = find_owner({}, ancestors=[server.pid], runtime_dir=runtime_dir(server))
        assert owner.url is None
        assert "kernel" in owner.reason

    def test_a_wrong_token(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        owner = find(server, kernel_id, runtime_dir=copy(server, tmp_path, token="wrong"))
        assert owner.url is None
        assert "token" in owner.reason

    def test_a_url_of_another_machine(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        for url in (
            "http://evil.example:80/",
            "http://10.0.0.1/",
            "file:///etc/passwd",
            "http://localhost.evil.example/",
            "",
        ):
            folder = copy(server, tmp_path, url=url)
            assert find(server, kernel_id, runtime_dir=folder).url is None, url

    def test_a_file_of_another_process(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        assert find(server, kernel_id, runtime_dir=copy(server, tmp_path, pid=1)).url is None

    @pytest.mark.parametrize("content", ["", "[]", "null", "{", "\0"])
    def test_a_broken_file(self, server: JupyterServer, kernel_id: str, tmp_path: Path, content: str) -> None:
        (tmp_path / f"jpserver-{server.pid}.json").write_text(content)
        assert find(server, kernel_id, runtime_dir=tmp_path).url is None

    @pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can make another user's file")
    def test_a_file_of_another_user(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        folder = copy(server, tmp_path)
        os.chown(folder / f"jpserver-{server.pid}.json", 65534, 65534)
        owner = find(server, kernel_id, runtime_dir=folder)
        assert owner.url is None
        assert "another user" in owner.reason

    @pytest.mark.skipif(os.name != "posix", reason="symlinks")
    def test_a_planted_link(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        name = f"jpserver-{server.pid}.json"
        (tmp_path / name).symlink_to(runtime_dir(server) / name)
        assert find(server, kernel_id, runtime_dir=tmp_path).url is None

    def test_a_server_on_all_interfaces(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        folder = copy(server, tmp_path, url=f"http://this-machine:{server.port}/", hostname="0.0.0.0")
        assert find(server, kernel_id, runtime_dir=folder).url == f"http://127.0.0.1:{server.port}/"

    def test_the_hubs_token(self, server: JupyterServer, kernel_id: str, tmp_path: Path) -> None:
        folder = copy(server, tmp_path, token="")
        assert find(server, kernel_id, runtime_dir=folder).url is None
        owner = find(server, kernel_id, {"JUPYTERHUB_API_TOKEN": TOKEN}, runtime_dir=folder)
        assert owner.token == TOKEN


class TestWishes:
    def test_local(self, server: JupyterServer, kernel_id: str) -> None:
        owner = find(server, kernel_id, {"GENAI_NOTEBOOK_RUNTIME": "local"})
        assert owner.url is None
        assert "GENAI_NOTEBOOK_RUNTIME=local" in owner.reason

    def test_server(self, server: JupyterServer, kernel_id: str) -> None:
        assert find(server, kernel_id, {"GENAI_NOTEBOOK_RUNTIME": "server"}).url == server.url
        with pytest.raises(ServerError) as caught:
            find(server, kernel_id, {"GENAI_NOTEBOOK_RUNTIME": "server"}, ancestors=[1])
        assert caught.value.hint

    @pytest.mark.parametrize(
        "form",
        [
            "{url}",
            "{base}",
            "{url}lab",
            "{url}lab/tree/x.ipynb?token={token}",
            "{url}tree?token={token}",
            "{url}genai/",
        ],
    )
    def test_a_url_as_it_is_copied_from_a_browser(self, server: JupyterServer, form: str) -> None:
        wish = form.format(url=server.url, base=server.url.rstrip("/"), token=TOKEN)
        environ = {"GENAI_NOTEBOOK_RUNTIME": wish}
        if "token" not in form:
            environ["GENAI_NOTEBOOK_TOKEN"] = TOKEN
        owner = find_owner(environ)
        assert owner.url == server.url
        assert owner.token == TOKEN
        assert TOKEN not in owner.reason

    def test_a_url_without_a_server(self) -> None:
        with pytest.raises(ServerError) as caught:
            find_owner({"GENAI_NOTEBOOK_RUNTIME": "http://127.0.0.1:1/"})
        assert caught.value.code == "SERVER_UNREACHABLE"
        assert "GENAI_NOTEBOOK_RUNTIME" in (caught.value.hint or "")

    def test_a_url_with_a_wrong_token(self, server: JupyterServer) -> None:
        with pytest.raises(ServerError) as caught:
            find_owner({"GENAI_NOTEBOOK_RUNTIME": server.url, "GENAI_NOTEBOOK_TOKEN": "wrong"})
        assert caught.value.code == "FORBIDDEN"

    @pytest.mark.parametrize("wish", ["remote", "http//x", "ftp://x/", "http://"])
    def test_nonsense(self, wish: str) -> None:
        with pytest.raises((InvalidRequestError, ServerError)):
            find_owner({"GENAI_NOTEBOOK_RUNTIME": wish})


def test_without_a_server_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, time\n"
        "from genai_notebook.client.discovery import find_owner\n"
        "owner = find_owner({})\n"
        "assert owner.url is None, owner\n"
        "print(sorted({'httpx', 'tornado', 'jupyter_server', 'ipykernel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_in_a_real_kernel(server: JupyterServer, tmp_path: Path) -> None:
    from jupyter_client.blocking import BlockingKernelClient

    id = server.request("POST", "api/kernels")["id"]
    connection = runtime_dir(server) / f"kernel-{id}.json"
    client = BlockingKernelClient(connection_file=str(connection))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        target = tmp_path / "said"
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from genai_notebook.client.discovery import find_owner\n"
            f"open({str(target)!r}, 'w').write(repr(find_owner()))"
        )
        reply = client.execute_interactive(code, timeout=60, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok", reply["content"]
        assert f"(pid {server.pid}) owns the engines" in target.read_text()
    finally:
        client.stop_channels()
        server.request("DELETE", f"api/kernels/{id}")
