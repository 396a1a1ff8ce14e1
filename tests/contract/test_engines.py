"""Engines that are fetched, tested, chosen and removed: the same here and through a notebook server."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook import current, engine_manager, run
from genai_notebook.client.remote import RemoteRuntime
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.schema import EngineCandidate, EngineProgress
from genai_notebook.core.settings import Settings
from genai_notebook.errors import BinaryError, ChecksumError, DownloadError, InvalidRequestError
from genai_notebook.server.standalone import listen
from tests.contract.conftest import Subject
from tests.contract.waiting import until
from tests.fakes import eventually
from tests.fakes.release_server import ReleaseServer
from tests.jupyter import JupyterServer
from tests.processes import alive, assert_none_left
from tests.released import GPU, GPU_REASON, LLAMA_CPU, SD_CPU, Released

#: Bytes a second at which an archive arrives so slowly that it can be watched.
SLOWLY = 1 << 20


class Remote:
    """The notebook server of this file's remote tests, with builds of its own to fetch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.releases = ReleaseServer()
        self.released = Released(self.releases, folder / "fakes")
        self.released.pin_for_jupyter(folder / "jupyter" / "jupyter_config_dir")
        environ = {"GENAI_NOTEBOOK_HOME": str(folder / "home"), **self.released.environ}
        self.server = JupyterServer(folder / "jupyter", environ)

    def close(self) -> None:
        self.server.stop()
        self.releases.close()
        assert_none_left(self.folder)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    remote = Remote(tmp_path_factory.mktemp("remote-engines"))
    yield remote
    remote.close()


class EngineSubject(Subject):
    """A Runtime whose engines have still to be fetched."""

    released: Released

    @property
    def engines(self) -> Any:
        return self.runtime.engine_manager

    @property
    def home(self) -> Path:
        return self.folder / "home"

    async def named(self, name: str) -> EngineCandidate:
        (found,) = [each for each in await self.engines.list() if each.name == name]
        return found  # type: ignore[no-any-return]

    def partials(self) -> list[Path]:
        """What has arrived of archives."""
        incoming = self.home / "engines" / ".incoming"
        return [path for path in incoming.rglob("*.tar.gz*") if path.stat().st_size]


@pytest.fixture(params=["local", "remote"])
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineSubject]:
    if request.param == "local":
        releases = ReleaseServer()
        released, folder = Released(releases, tmp_path / "fakes"), tmp_path
        monkeypatch.setitem(BinaryManager.__init__.__kwdefaults__, "catalog", released.catalog)
        settings = Settings(home=tmp_path / "home", mirror=releases.url)
        subject = EngineSubject("local", folder, released.llama, released.sd)
        made = subject.run(_on_loop(lambda: Runtime(settings, listen=listen)))
    else:
        shared: Remote = request.getfixturevalue("remote")
        released, folder = shared.released, shared.folder
        released.reset(folder / "home")
        subject = EngineSubject("remote", folder, released.llama, released.sd)
        made = subject.run(_on_loop(lambda: RemoteRuntime(shared.server.url, shared.server.token)))
    subject.released, subject.runtime = released, made
    try:
        subject.run(subject.open())
        yield subject
    finally:
        subject.run(subject.close())
        subject.loop.close()
        if request.param == "local":
            releases.close()
            assert_none_left(tmp_path)


async def _on_loop(make: Any) -> Any:
    return make()


async def refused(work: Coroutine[Any, Any, Any], error: type[Exception]) -> Any:
    with pytest.raises(error) as caught:
        await work
    return caught.value


# ---- list -----------------------------------------------------------------------------------------------------------


def test_all_engines_are_listed_in_their_order(subject: EngineSubject) -> None:
    async def scenario() -> None:
        llama = [each for each in await subject.engines.list() if each.kind == "llama"]
        assert [each.variant for each in llama] == [GPU, "cpu", "embedded", "path"]
        gpu, cpu = llama[:2]
        assert (gpu.state, gpu.reason) == ("unsupported", GPU_REASON)
        assert (cpu.name, cpu.state, cpu.path, cpu.in_use) == (LLAMA_CPU, "available", None, None)
        assert not subject.released.server.seen

    subject.run(scenario())


# ---- install and remove ---------------------------------------------------------------------------------------------


def test_an_engine_is_installed_and_removed(subject: EngineSubject) -> None:
    async def scenario() -> None:
        installed = await subject.engines.install("llama")
        assert (installed.name, installed.state, installed.in_use) == (LLAMA_CPU, "usable", True)
        assert Path(installed.path).is_relative_to(subject.home)
        assert await subject.named(LLAMA_CPU) == installed
        subject.released.server.seen.clear()
        assert (await subject.engines.install("llama", "cpu")) == installed
        assert not subject.released.server.seen
        removed = await subject.engines.remove("llama", LLAMA_CPU)
        assert (removed.name, removed.state) == (LLAMA_CPU, "available")
        assert not Path(installed.path).exists()

    subject.run(scenario())


def test_progress_is_told_to_a_function(subject: EngineSubject) -> None:
    async def scenario() -> None:
        subject.released.serve(bytes_per_second=SLOWLY)
        told: list[EngineProgress] = []
        await subject.engines.install("diffusion", "cpu", on_progress=told.append)
        assert {each.engine for each in told} == {SD_CPU}
        assert {each.kind for each in told} == {"diffusion"}
        downloading = [each for each in told if each.stage == "downloading" and each.done]
        assert len(downloading) >= 2
        assert [each.done for each in downloading] == sorted(each.done or 0 for each in downloading)
        assert all(each.total and each.done <= each.total for each in downloading if each.done is not None)

    subject.run(scenario())


def test_progress_is_told_to_a_coroutine_function(subject: EngineSubject) -> None:
    async def scenario() -> None:
        subject.released.serve(bytes_per_second=SLOWLY)
        told: list[tuple[asyncio.AbstractEventLoop, str]] = []

        async def hear(news: EngineProgress) -> None:
            await asyncio.sleep(0)
            told.append((asyncio.get_running_loop(), news.stage))

        await subject.engines.install("llama", "cpu", on_progress=hear)
        assert "downloading" in {stage for _, stage in told}
        assert {loop for loop, _ in told} == {asyncio.get_running_loop()}

    subject.run(scenario())


def test_a_listener_that_fails_does_no_harm(subject: EngineSubject) -> None:
    async def scenario() -> None:
        def fail(news: EngineProgress) -> None:
            raise ValueError("not my day")

        assert (await subject.engines.install("llama", on_progress=fail)).state == "usable"

    subject.run(scenario())


def test_everybody_hears_of_an_installation(subject: EngineSubject) -> None:
    async def scenario() -> None:
        heard: list[tuple[str, dict[str, Any]]] = []
        unsubscribe = subject.runtime.subscribe(lambda name, data: heard.append((name, data)))
        subject.released.serve(bytes_per_second=SLOWLY)
        await subject.engines.install("llama")
        await until(lambda: heard, "the news")
        unsubscribe()
        name, data = heard[0]
        assert name == "binary-progress"
        assert data["server"] == "engines"
        assert (data["kind"], data["engine"], data["stage"]) == ("llama", LLAMA_CPU, "downloading")

    subject.run(scenario())


def test_who_stops_waiting_ends_the_installation_and_the_next_one_goes_on(subject: EngineSubject) -> None:
    async def scenario() -> None:
        subject.released.serve(stall_after=600_000)
        seen = asyncio.Event()

        def hear(news: EngineProgress) -> None:
            if (news.done or 0) > 100_000:
                seen.set()

        installing = asyncio.ensure_future(subject.engines.install("llama", on_progress=hear))
        await seen.wait()
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
        subject.released.serve()
        subject.released.server.seen.clear()
        # It waits for the lock that the other one holds until it has let go of its files.
        assert (await subject.engines.install("llama")).state == "usable"
        (request,) = subject.released.server.requests
        assert request[2] is not None, "it began anew"

    subject.run(scenario())


# ---- use ------------------------------------------------------------------------------------------------------------


def test_a_choice_holds_until_it_is_taken_back(subject: EngineSubject) -> None:
    async def scenario() -> None:
        chosen = await subject.engines.use("llama", "embedded")
        assert (chosen.variant, chosen.in_use) == ("embedded", True)
        await subject.engines.install("llama", "cpu")
        assert (await subject.named(chosen.name)).in_use
        for name in (None, "auto"):
            assert (await subject.engines.use("llama", name)).name == LLAMA_CPU
            assert (await subject.named(LLAMA_CPU)).in_use

    subject.run(scenario())


def test_choosing_what_is_not_here_fetches_it(subject: EngineSubject) -> None:
    async def scenario() -> None:
        chosen = await subject.engines.use("diffusion", "cpu")
        assert (chosen.name, chosen.state, chosen.in_use) == (SD_CPU, "usable", True)

    subject.run(scenario())


# ---- test -----------------------------------------------------------------------------------------------------------


def test_a_test_computes_with_an_installed_model(subject: EngineSubject) -> None:
    async def scenario() -> None:
        await subject.engines.install("llama")
        tested = await subject.engines.test("llama")
        assert (tested.name, tested.state) == (LLAMA_CPU, "works")
        assert not tested.gpu
        assert str(subject.llm_file) in subject.fake_llama.starts[-1]["argv"]

    subject.run(scenario())


def test_a_test_without_a_model_says_what_was_left_out(subject: EngineSubject) -> None:
    async def scenario() -> None:
        await subject.engines.install("diffusion")
        await subject.models.delete_model(subject.image_id)
        tested = await subject.engines.test("diffusion", "cpu")
        assert tested.state == "usable"
        assert tested.reason == "it runs; it was not asked to compute: no image model is installed"

    subject.run(scenario())


def test_a_test_that_fails_is_an_answer_with_the_last_lines(subject: EngineSubject) -> None:
    async def scenario() -> None:
        await subject.engines.install("llama")
        subject.fake_llama.set(exit_at_start=5, start_log=["E \x1b[31mno <script>alert(1)</script>\x1b[0m"])
        tested = await subject.engines.test("llama")
        assert tested.state == "failed"
        assert tested.reason
        assert "no <script>alert(1)</script>" in "\n".join(tested.log or [])
        listed = await subject.named(LLAMA_CPU)
        assert (listed.state, listed.reason) == ("failed", tested.reason)
        subject.fake_llama.reset()
        assert (await subject.engines.test("llama", "cpu")).state == "works"

    subject.run(scenario())


def test_who_stops_waiting_for_a_test_ends_the_engine_under_test(subject: EngineSubject) -> None:
    async def scenario() -> None:
        await subject.engines.install("llama")
        subject.fake_llama.set(load_seconds=600)
        testing = asyncio.ensure_future(subject.engines.test("llama"))
        await until(lambda: subject.fake_llama.starts, "the engine under test")
        testing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await testing
        await until(lambda: not alive(subject.fake_llama.pid), "the end of the engine")

    subject.run(scenario())


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["use", "test", "install", "remove"])
def test_an_unknown_engine_is_named_with_the_ones_there_are(subject: EngineSubject, action: str) -> None:
    async def scenario() -> None:
        act = getattr(subject.engines, action)
        error = await refused(act("llama", "quantum"), InvalidRequestError)
        assert (error.code, error.details["field"]) == ("INVALID_REQUEST", "name")
        assert error.details["valid"] == [GPU, "cpu", "embedded", "path"]
        assert "'quantum'" in error.message
        assert "cpu" in error.hint
        error = await refused(act("toaster", "cpu"), InvalidRequestError)
        assert error.details["field"] == "kind"

    subject.run(scenario())


def test_what_cannot_be_done_with_an_engine_is_refused(subject: EngineSubject) -> None:
    async def scenario() -> None:
        engines = subject.engines
        for work in (
            engines.install("llama", GPU),
            engines.install("llama", "embedded"),
            engines.remove("llama", "cpu"),
            engines.remove("llama", "embedded"),
            engines.test("llama", "cpu"),
            engines.test("llama", GPU),
        ):
            error = await refused(work, InvalidRequestError)
            assert error.details["field"] == "name", error
        error = await refused(engines.use("llama", GPU), BinaryError)
        assert error.code == "BINARY_ERROR"
        assert error.details["reason"] == GPU_REASON
        assert not subject.released.server.seen

    subject.run(scenario())


def test_an_engine_that_runs_is_not_removed(subject: EngineSubject) -> None:
    async def scenario() -> None:
        await subject.engines.install("llama")
        info = await subject.start_llm()
        assert info.engine == LLAMA_CPU
        error = await refused(subject.engines.remove("llama", "cpu"), BinaryError)
        assert "is running" in error.message
        assert error.hint == "Stop it first: %genai stop"
        await subject.llama.stop()
        assert (await subject.engines.remove("llama")).state == "available"

    subject.run(scenario())


def test_an_archive_that_is_not_there_or_not_the_pinned_one(subject: EngineSubject) -> None:
    async def scenario() -> None:
        subject.released.serve(status=404)
        assert (await refused(subject.engines.install("llama"), DownloadError)).code == "DOWNLOAD_FAILED"
        subject.released.serve(corrupt=True)
        error = await refused(subject.engines.install("llama"), ChecksumError)
        assert error.expected != error.actual
        subject.released.serve()
        assert (await subject.engines.install("llama")).state == "usable"

    subject.run(scenario())


# ---- a start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["llama", "diffusion"])
def test_a_start_fetches_and_tests_and_tells_it(subject: EngineSubject, server: str) -> None:
    async def scenario() -> None:
        subject.released.serve(bytes_per_second=SLOWLY)
        manager = subject.llama if server == "llama" else subject.diffusion
        progress: list[dict[str, Any]] = []
        said: list[dict[str, Any]] = []
        manager.on("binary-progress", progress.append)
        manager.on("binary-log", said.append)
        info = await (subject.start_llm() if server == "llama" else subject.start_images())
        name = LLAMA_CPU if server == "llama" else SD_CPU
        assert info.engine == name
        await until(lambda: any(each["message"] == f"engine: {name}" for each in said), "the last log message")
        assert {each["level"] for each in said} <= {"debug", "info", "warn"}
        assert f"fetching {name}" in [each["message"] for each in said]
        stages = [each["stage"] for each in progress]
        assert stages[0] == "downloading"
        assert stages[-2:] == ["testing", "done"]
        assert {each["engine"] for each in progress} == {name}
        assert "server" not in progress[0]
        logs = "\n".join(await manager.get_logs())
        assert f"engine: {name}" in logs
        count = len(progress)
        await manager.stop()
        await (subject.start_llm() if server == "llama" else subject.start_images())
        assert len(progress) == count  # it has been tested, once and for all
        manager.off("binary-progress", progress.append)
        manager.off("binary-log", said.append)

    subject.run(scenario())


def test_a_start_that_is_cancelled_ends_the_download(subject: EngineSubject) -> None:
    async def scenario() -> None:
        subject.released.serve(stall_after=300_000)
        seen = asyncio.Event()
        subject.llama.on("binary-progress", hear := (lambda news: seen.set() if news.get("done") else None))
        starting = asyncio.ensure_future(subject.start_llm())
        await seen.wait()
        await subject.llama.stop()
        with pytest.raises(Exception, match="cancelled") as caught:
            await starting
        assert caught.value.code == "START_CANCELLED"  # type: ignore[attr-defined]
        assert subject.llama.get_status() == "stopped"
        subject.llama.off("binary-progress", hear)

    subject.run(scenario())


# ---- from a script --------------------------------------------------------------------------------------------------


def test_an_interrupt_ends_an_installation_that_a_script_waits_for(
    subject: EngineSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a handle, as `run(engine_manager.install("llama"))` in a script or a cell."""
    subject.released.serve(stall_after=600_000)
    if subject.kind == "local":
        made: Any = lambda: Runtime(Settings(home=subject.home, mirror=subject.released.server.url))  # noqa: E731
    else:
        connection = subject.runtime._connection
        made = lambda: RemoteRuntime(connection.url, "a-token-for-tests")  # noqa: E731
    runtime = run(_on_loop(made))
    run(runtime.open())
    monkeypatch.setattr(current, "_current", current.Current(subject.kind, "a test", runtime))
    main = threading.get_ident()
    interrupted = threading.Event()

    def interrupt(news: EngineProgress) -> None:
        if (news.done or 0) > 100_000 and not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(engine_manager.install("llama", on_progress=interrupt))
    try:
        assert interrupted.is_set()
        eventually(subject.partials, "what has arrived")
        subject.released.serve()
        subject.released.server.seen.clear()
        assert run(engine_manager.install("llama")).state == "usable"
        assert subject.released.server.requests[0][2] is not None, "it began anew"
    finally:
        run(runtime.close())
