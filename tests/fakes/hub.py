"""A hub on loopback that speaks Hugging Face's protocol to the real huggingface_hub.

Two servers, as in life: one knows repositories, revisions and files, the other has the bytes and wants no token. What
each was asked is kept. A file is given as its bytes, or as a size: then it exists in listings only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.models import hub as client
from genai_notebook.core.schema import ModelInfo
from genai_notebook.core.settings import Settings
from genai_notebook.core.system import SystemInfo

T = TypeVar("T")
Content = bytes | int
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/(?P<revision>[^/]+))?")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
#: What the real hub keeps in LFS unless told otherwise; everything else lies in git.
_LARGE = (".gguf", ".safetensors", ".bin")


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    #: Bytes of the body that went out.
    sent: int = 0

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Repo:
    """A repository. `readers`: tokens that may read it, where it is gated or private."""

    id: str
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: str | bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)
    downloads: int = 0
    likes: int = 0
    tags: tuple[str, ...] = ("gguf",)
    #: Files that are kept in git though they would be large.
    small: set[str] = field(default_factory=set)

    def in_lfs(self, file: str) -> bool:
        return file.lower().endswith(_LARGE) and file not in self.small


class Server:
    """An HTTP/1.1 server that keeps connections open, and closes them when it closes."""

    def __init__(self, answer: Callable[[Answer], None]) -> None:
        self.seen: list[Asked] = []
        connections: set[socket.socket] = set()
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                place = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(place.query, keep_blank_values=True).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, unquote(place.path), query, headers)
                seen.append(asked)
                with contextlib.suppress(ConnectionError):
                    answer(Answer(self, asked, place.path))

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, client_address: Any) -> None:
                connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client has gone away

        self._connections = connections
        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, args=(0.005,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Answer:
    """What to say to one request. `raw`: its path as it came."""

    def __init__(self, handler: BaseHTTPRequestHandler, asked: Asked, raw: str) -> None:
        self._handler, self.asked, self.raw = handler, asked, raw

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        handler = self._handler
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if self.asked.method != "HEAD":
            self.asked.sent += len(body)
            handler.wfile.write(body)

    def error(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        told = {"X-Error-Message": message, **(headers or {})} | ({"X-Error-Code": code} if code else {})
        self.send(status, json.dumps({"error": message}).encode(), told)

    def json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def part(self, data: bytes, headers: Mapping[str, str], etag: str) -> None:
        """The body, or the range of it that was asked for, if it is still the same one."""
        wanted = _RANGE.fullmatch(self.asked.headers.get("range", ""))
        if wanted is None or self.asked.headers.get("if-range", etag) != etag:
            self.send(200, data, {"Accept-Ranges": "bytes", "ETag": etag, **headers})
            return
        begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if begin >= len(data):
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        place = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        self.send(206, data[begin:end], {"Accept-Ranges": "bytes", "ETag": etag, **place, **headers})


class FakeHub:
    """Repositories on one server, their bytes on another."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        #: Old names of repositories.
        self.renamed: dict[str, str] = {}
        #: Tokens that are somebody's.
        self.tokens: set[str] = set()
        #: Bytes by their SHA-256, on the storage server.
        self.bytes: dict[str, bytes] = {}
        #: An answer to everything: status, X-Error-Code, X-Error-Message.
        self.trouble: tuple[int, str | None, str] | None = None
        #: The hub takes questions and says nothing, until this is set.
        self.silence: threading.Event | None = None
        #: What the storage server refuses to give, by SHA-256.
        self.refused: set[str] = set()
        #: What the storage server does before it sends a body; it gets the SHA-256.
        self.before_body: Callable[[str], object] = lambda sha256: None
        #: The most entries of one page of a listing.
        self.page = 1000
        self._hub = Server(self._answer)
        self._storage = Server(self._store)
        self.url, self.storage_url = self._hub.url, self._storage.url

    def close(self) -> None:
        if self.silence is not None:
            self.silence.set()
        self._hub.close()
        self._storage.close()

    # ---- what is there

    def add(self, id: str, files: Mapping[str, Content], **more: Any) -> Repo:
        """A new repository with one commit, on its branch main."""
        self.repos[id] = Repo(id, **more)
        self.commit(id, files)
        return self.repos[id]

    def commit(self, id: str, files: Mapping[str, Content], branch: str = "main") -> str:
        """A commit with these files and no others; returns its hash."""
        repo = self.repos[id]
        commit = hashlib.sha1(f"{id} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[branch] = commit
        for data in files.values():
            if isinstance(data, bytes):
                self.bytes[hashlib.sha256(data).hexdigest()] = data
        return commit

    @property
    def asked(self) -> list[Asked]:
        """What the hub was asked so far, without what the storage server was."""
        return self._hub.seen

    @property
    def fetched(self) -> list[Asked]:
        """What the storage server was asked so far."""
        return self._storage.seen

    def fetched_bytes(self, data: bytes | None = None) -> int:
        """Bytes that left the storage server: of one file, or of all."""
        digest = hashlib.sha256(data).hexdigest() if data is not None else ""
        return sum(asked.sent for asked in self.fetched if asked.path.endswith(digest))

    def forget(self) -> None:
        """Forget what was asked."""
        self.asked.clear()
        self.fetched.clear()

    # ---- the hub

    def _answer(self, answer: Answer) -> None:
        path = answer.raw
        if self.silence is not None:
            self.silence.wait(60)
            return
        if self.trouble is not None:
            answer.error(*self.trouble)
        elif path == "/api/models":
            self._list(answer)
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(answer, *map(unquote, match.group("repo", "revision", "file")))
        elif match := _CACHED.fullmatch(path):
            self._small(answer, *map(unquote, match.group("repo", "revision", "file")))
        elif match := _INFO.fullmatch(path):
            self._describe(answer, match["repo"], unquote(match["revision"] or "main"))
        else:
            answer.error(404, None, "Sorry, we can't find the page you are looking for.")

    def _readable(self, answer: Answer, id: str, *, files: bool) -> Repo | None:
        """The repository, if whoever asks may read it; else the refusal is sent. The list of files of a gated one is
        for everybody.
        """
        token = answer.asked.token
        if token is not None and token not in self.tokens:
            answer.error(401, None, "Invalid credentials in Authorization header")
            return None
        if id in self.renamed:
            new = answer.raw.replace(quote(id), quote(self.renamed[id]), 1)
            answer.send(307, headers={"Location": new})
            return None
        repo = self.repos.get(id)
        allowed = repo is not None and token in repo.readers
        if repo is None or (repo.private and not allowed):
            # The real one sends no code with a 401; huggingface_hub adds it in thought, but for https addresses only.
            status, message = (404, "Repository not found") if token else (401, "Invalid username or password.")
            answer.error(status, "RepoNotFound", message)
            return None
        if repo.gated and files and not allowed:
            restricted = f"Access to model {id} is restricted"
            if token is None:
                answer.error(401, "GatedRepo", f"{restricted}. You must have access to it and be authenticated.")
            else:
                answer.error(403, "GatedRepo", f"{restricted} and you are not in the authorized list.")
            return None
        return repo

    def _commit_of(self, answer: Answer, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit in repo.commits:
            return commit
        answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _resolve(self, answer: Answer, id: str, revision: str, file: str) -> None:
        repo = self._readable(answer, id, files=True)
        commit = self._commit_of(answer, repo, revision) if repo else None
        if repo is None or commit is None:
            return
        told = {"X-Repo-Commit": commit}
        content = repo.commits[commit].get(file)
        if content is None:
            answer.error(404, "EntryNotFound", "Entry not found", told)
            return
        told |= {"X-Linked-Size": str(_size(content)), "Accept-Ranges": "bytes", "Vary": "Origin, Accept"}
        if not repo.in_lfs(file):
            told["X-Linked-Etag"] = told["ETag"] = f'"{_git_hash(_body(content))}"'
            place = f"/api/resolve-cache/models/{id}/{commit}/{quote(file)}"
            answer.send(307, headers={"Location": f"{place}?{urlencode({'etag': told['ETag']})}", **told})
            return
        digest = _sha256(repo, file, content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {_size(content)}\n".encode()
        told |= {"X-Linked-Etag": f'"{digest}"', "ETag": f'"{_git_hash(pointer)}"'}
        signed = urlencode({"response-content-disposition": f'inline; filename="{file}";', "X-Amz-Signature": "0123"})
        answer.send(302, headers={"Location": f"{self.storage_url}/repos/{digest}?{signed}", **told})

    def _small(self, answer: Answer, id: str, commit: str, file: str) -> None:
        """A file out of git itself."""
        repo = self._readable(answer, id, files=True)
        if repo is not None:
            data = _body(repo.commits[commit][file])
            answer.part(data, {"X-Repo-Commit": commit}, f'"{_git_hash(data)}"')

    def _describe(self, answer: Answer, id: str, revision: str) -> None:
        repo = self._readable(answer, id, files=False)
        commit = self._commit_of(answer, repo, revision) if repo else None
        if repo is None or commit is None:
            return
        blobs = answer.asked.query.get("blobs", "").lower() in ("true", "1")
        siblings = [_sibling(repo, file, content, blobs) for file, content in sorted(repo.commits[commit].items())]
        more = {"sha": commit, "siblings": siblings, "usedStorage": sum(map(_size, repo.commits[commit].values()))}
        more |= {"lastModified": "2026-01-02T03:04:05.000Z", "gated": repo.gated, "disabled": False, "spaces": []}
        answer.json(_entry(repo) | more)

    def _list(self, answer: Answer) -> None:
        query = answer.asked.query
        token = answer.asked.token
        if token is not None and token not in self.tokens:
            answer.error(401, None, "Invalid credentials in Authorization header")
            return
        words = query.get("search", "").lower().split()
        found = [
            repo
            for repo in self.repos.values()
            if all(word in repo.id.lower() for word in words)
            and query.get("filter", "") in ("", *repo.tags)
            and (not repo.private or token in repo.readers)
        ]
        if query.get("sort") == "downloads":
            found.sort(key=lambda repo: -repo.downloads)
        begin = int(query.get("cursor", "0"))
        end = begin + min(int(query.get("limit", "1000")), self.page)
        headers = {}
        if end < len(found):
            headers["Link"] = f'<{self.url}/api/models?{urlencode(query | {"cursor": str(end)})}>; rel="next"'
        answer.json([_entry(repo) for repo in found[begin:end]], headers)

    # ---- the storage

    def _store(self, answer: Answer) -> None:
        digest = answer.asked.path.rpartition("/")[2]
        if "authorization" in answer.asked.headers:
            answer.send(400, b"Only one auth mechanism allowed")
            return
        if "X-Amz-Signature" in answer.asked.query and digest in self.bytes.keys() - self.refused:
            self.before_body(digest)
            answer.part(self.bytes[digest], {"Content-Disposition": "inline"}, f'"{digest}"')
        else:
            answer.send(403)


class WebServer(Server):
    """Files by their path, with ranges, for everybody."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        super().__init__(self._give)

    def add(self, path: str, data: bytes) -> str:
        """Serve `data`; returns its address."""
        self.files[path] = data
        return self.url + quote(path)

    def sent(self, path: str | None = None) -> int:
        """Bytes that went out: of one file, or of all."""
        return sum(asked.sent for asked in self.seen if path in (None, asked.path))

    def _give(self, answer: Answer) -> None:
        data = self.files.get(answer.asked.path)
        if data is None:
            answer.send(404)
        else:
            answer.part(data, {}, f'"{_git_hash(data)}"')


def _size(content: Content) -> int:
    return content if isinstance(content, int) else len(content)


def _body(content: Content) -> bytes:
    assert isinstance(content, bytes), "a file that is declared only was asked for"
    return content


def _sha256(repo: Repo, file: str, content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else f"{repo.id}/{file}".encode()).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(repo: Repo, file: str, content: Content, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file}
    told: dict[str, Any] = {"rfilename": file, "blobId": "0" * 40, "size": _size(content)}
    if repo.in_lfs(file):
        told["lfs"] = {"sha256": _sha256(repo, file, content), "size": _size(content), "pointerSize": 134}
    return told


def _entry(repo: Repo) -> dict[str, Any]:
    """A repository as listings show it: without files, and without a word of access."""
    return {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "private": repo.private,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "tags": list(repo.tags),
        "createdAt": "2026-01-01T00:00:00.000Z",
    }


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    try:
        yield server
    finally:
        server.close()


def point_at(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lead this process to `hub`, with a cache in `folder` and without the user's tokens; returns the cache."""
    from huggingface_hub import constants

    cache = folder / "hub"
    folder.mkdir(parents=True, exist_ok=True)
    agents = folder / ".agent_harnesses.json"
    agents.write_text('{"standardEnvVars": [], "harnesses": {}}')  # else huggingface_hub asks the real hub for it
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(agents), raising=False)
    monkeypatch.setattr(client, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "stored_tokens"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    _begin_anew()
    return cache


def switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE does when huggingface_hub is imported, for one test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _begin_anew()


def _begin_anew() -> None:
    """Older versions look at their settings when they open a session, and keep it."""
    from huggingface_hub import utils

    getattr(utils, "reset_sessions", lambda: None)()


def use_manager(home: Path, use: Callable[[ModelManager], Awaitable[T]], system: SystemInfo | None = None) -> T:
    """Run `use` with a manager of its own on an event loop of its own."""

    async def main() -> T:
        manager = ModelManager(Settings(home=home), system=system)
        try:
            return await use(manager)
        finally:
            await manager.shutdown()

    return asyncio.run(main())


def download(home: Path, **config: Any) -> ModelInfo:
    """One download, by a manager of its own."""
    return use_manager(home, lambda manager: manager.download_model(**config))


def on_the_way(home: Path) -> list[str]:
    """What lies in rooms of downloads that did not end well: nothing, but for what a next try can use."""
    rooms = home / "models" / ".incoming"
    return sorted(str(path.relative_to(rooms)) for path in rooms.rglob("*") if path.suffix != ".lock")


def fill_cache(hub: FakeHub, repo: str, file: str, revision: str | None = None, token: str | None = None) -> Path:
    """Have huggingface_hub itself fetch a file into its cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file, revision=revision, endpoint=hub.url, token=token or False))
