"""The LLM server's manager: one behaviour, local and remote."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
from typing import Any

import httpx
import pytest

from genai_notebook.core.schema import LlamaServerConfig, ServerInfo
from genai_notebook.errors import (
    GenaiNotebookError,
    InvalidRequestError,
    ModelNotFoundError,
    PortInUseError,
    ServerError,
)
from tests.contract.conftest import SECRETS, Subject
from tests.contract.waiting import until
from tests.fakes import eventually
from tests.processes import alive

LINE = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[(debug|info|warn|error)\] .*")


async def get(url: str, key: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.get(url, headers=headers)


class TestLife:
    def test_start_tells_everything(self, subject: Subject) -> None:
        async def scenario() -> None:
            assert subject.llama.get_status() == "stopped"
            info = await subject.start_llm()
            assert isinstance(info, ServerInfo)
            assert (info.status, info.health, info.owner) == ("running", "ok", subject.owner)
            assert info.pid == subject.fake_llama.pid
            assert alive(info.pid)
            assert info.model_id == subject.llm_id
            assert info.url == f"http://127.0.0.1:{info.port}"
            assert info.context_size == 2048
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", info.started_at or "")
            assert len(info.api_key or "") >= 20
            assert info.engine
            assert info.error is None
            assert subject.llama.get_info() == info
            assert type(subject.llama.get_status()) is str
            assert subject.llama.get_status() == "running"
            assert await subject.llama.is_healthy() is True

        subject.run(scenario())

    def test_stop_ends_the_engine_and_may_come_twice(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_llm()
            await subject.llama.stop()
            assert not alive(info.pid)
            after = subject.llama.get_info()
            assert (after.status, after.pid, after.port, after.api_key) == ("stopped", None, None, None)
            assert await subject.llama.is_healthy() is False
            await subject.llama.stop()
            assert subject.llama.get_status() == "stopped"

        subject.run(scenario())

    def test_stop_takes_what_the_engine_has_started(self, subject: Subject) -> None:
        subject.fake_llama.set(grandchild=True)

        async def scenario() -> None:
            await subject.start_llm()
            child = subject.fake_llama.journal("grandchild")[-1]["child"]
            assert alive(child)
            await subject.llama.stop()
            await until(lambda: not alive(child), "the end of the grandchild")

        subject.run(scenario())

    def test_restart_keeps_config_port_and_key(self, subject: Subject) -> None:
        async def scenario() -> None:
            before = await subject.start_llm(context_size=512, threads=1)
            after = await subject.llama.restart()
            assert (after.port, after.api_key, after.context_size) == (before.port, before.api_key, 512)
            assert after.pid != before.pid
            assert not alive(before.pid)
            first, second = subject.fake_llama.starts
            assert first["argv"] == second["argv"]

        subject.run(scenario())

    def test_restart_of_what_never_ran(self, subject: Subject) -> None:
        manager = subject.runtime.get_llama_server("fresh")  # the notebook server's default one has run before
        with pytest.raises(ServerError) as caught:
            subject.run(manager.restart())
        assert caught.value.code == "SERVER_NOT_RUNNING"

    def test_a_second_start_is_refused(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_llm()
            with pytest.raises(ServerError) as caught:
                await subject.start_llm()
            assert caught.value.code == "ALREADY_RUNNING"
            assert subject.llama.get_info() == info
            assert len(subject.fake_llama.starts) == 1

        subject.run(scenario())

    def test_two_starts_at_once_make_one_engine(self, subject: Subject) -> None:
        subject.fake_llama.set(load_seconds=0.3)

        async def scenario() -> None:
            results = await asyncio.gather(subject.start_llm(), subject.start_llm(), return_exceptions=True)
            errors = [result for result in results if isinstance(result, ServerError)]
            assert [error.code for error in errors] == ["ALREADY_RUNNING"]
            assert len(subject.fake_llama.starts) == 1

        subject.run(scenario())

    def test_further_llms_run_side_by_side(self, subject: Subject) -> None:
        async def scenario() -> None:
            second = subject.runtime.get_llama_server("second")
            one = await subject.start_llm()
            two = await second.start(model_id=subject.llm_id, port="auto")
            assert one.port != two.port
            assert one.pid != two.pid
            await second.stop()
            assert await subject.llama.is_healthy()
            assert not alive(two.pid)

        subject.run(scenario())


class TestFlags:
    def test_what_the_engine_is_told(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_llm(context_size=1024, threads=1, gpu_layers=0, parallel_requests=2)

        subject.run(scenario())
        fake = subject.fake_llama
        assert fake.flag("--model", "-m") == str(subject.llm_file)
        assert fake.flag("--host") == "127.0.0.1"
        assert fake.flag("--ctx-size", "-c") == "1024"
        assert fake.flag("--threads", "-t") == "1"
        assert fake.flag("--parallel", "-np") == "2"
        assert fake.flag("--n-gpu-layers", "-ngl") == "0"
        assert fake.flag("--fit", "-fit") == "off"
        assert fake.flag("--flash-attn", "-fa") == "auto"
        assert "--kv-unified" in fake.starts[-1]["argv"]

    def test_four_slots_with_the_whole_context_each(self, subject: Subject) -> None:
        async def scenario() -> Any:
            info = await subject.start_llm(context_size=1024)
            return (await get(f"{info.url}/props", info.api_key)).json()

        props = subject.run(scenario())
        assert props["total_slots"] == 4
        assert props["default_generation_settings"]["n_ctx"] == 1024

    @pytest.mark.parametrize(("given", "flag"), [(True, "on"), (False, "off"), ("on", "on"), ("auto", "auto")])
    def test_flash_attention(self, subject: Subject, given: Any, flag: str) -> None:
        subject.run(subject.start_llm(flash_attention=given))
        assert subject.fake_llama.flag("--flash-attn", "-fa") == flag

    def test_extra_arguments_are_passed_on(self, subject: Subject) -> None:
        subject.run(subject.start_llm(extra_args=["--batch-size", "64", "--no-webui"]))
        assert subject.fake_llama.flag("--batch-size") == "64"
        assert "--no-webui" in subject.fake_llama.starts[-1]["argv"]

    def test_a_configuration_object_and_keywords_on_top(self, subject: Subject) -> None:
        config = LlamaServerConfig(model_id=subject.llm_id, port="auto", context_size=1024, threads=1)
        info = subject.run(subject.llama.start(config, context_size=512))
        assert info.context_size == 512
        assert subject.fake_llama.flag("--threads", "-t") == "1"

    def test_a_dict_as_configuration(self, subject: Subject) -> None:
        info = subject.run(subject.llama.start({"model_id": subject.llm_id, "port": "auto", "context_size": 512}))
        assert info.context_size == 512

    def test_the_engine_sees_no_secrets_of_its_owner(self, subject: Subject) -> None:
        subject.run(subject.start_llm())
        env = subject.fake_llama.starts[-1]["env"]
        assert not set(SECRETS.values()) & set(env.values())
        assert not [name for name in env if "TOKEN" in name or "SECRET" in name]


class TestKey:
    def test_a_random_key_is_enforced(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_llm()
            assert (await get(f"{info.url}/props")).status_code == 401
            assert (await get(f"{info.url}/props", "wrong")).status_code == 401
            assert (await get(f"{info.url}/props", info.api_key)).status_code == 200
            assert info.api_key not in " ".join(subject.fake_llama.starts[-1]["argv"])
            await subject.llama.stop()
            assert (await subject.start_llm()).api_key != info.api_key

        subject.run(scenario())

    def test_an_own_key(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_llm(api_key="my-own-key")
            assert info.api_key == "my-own-key"
            assert (await get(f"{info.url}/props", "my-own-key")).status_code == 200

        subject.run(scenario())

    def test_no_key(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_llm(api_key=False)
            assert info.api_key is None
            assert (await get(f"{info.url}/props")).status_code == 200

        subject.run(scenario())

    def test_the_key_stands_in_no_log(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_llama.set(start_log=["0.00.000.001 I the key is my-own-key"])
            await subject.start_llm(api_key="my-own-key")
            await until(lambda: _logs_hold(subject, "the key is"))
            assert "my-own-key" not in "\n".join(await subject.llama.get_logs(None))

        subject.run(scenario())


class TestRefusals:
    def test_an_unknown_model(self, subject: Subject) -> None:
        with pytest.raises(ModelNotFoundError) as caught:
            subject.run(subject.llama.start(model_id="no-such-model", port="auto"))
        assert caught.value.model_id == "no-such-model"
        assert subject.llama.get_status() == "stopped"

    def test_a_model_of_the_other_kind(self, subject: Subject) -> None:
        with pytest.raises(ModelNotFoundError):
            subject.run(subject.llama.start(model_id=subject.image_id, port="auto"))

    @pytest.mark.parametrize(
        ("keywords", "field"),
        [
            ({"frobnicate": 1}, "frobnicate"),
            ({"contextSize": 512}, "contextSize"),
            ({"port": 0}, "port"),
            ({"port": "any"}, "port"),
            ({"threads": 0}, "threads"),
            ({"context_size": -1}, "context_size"),
            ({"context_size": math.nan}, "context_size"),
            ({"gpu_layers": "all"}, "gpu_layers"),
            ({"parallel_requests": 2.5}, "parallel_requests"),
            ({"flash_attention": "maybe"}, "flash_attention"),
            ({"api_key": ""}, "api_key"),
            ({"api_key": "two\nlines"}, "api_key"),
            ({"extra_args": ["--port", "1"]}, "extra_args"),
            ({"extra_args": ["--host=0.0.0.0"]}, "extra_args"),
            ({"extra_args": "--verbose"}, "extra_args"),
            ({"model_id": 3}, "model_id"),
        ],
        ids=str,
    )
    def test_a_wrong_option_is_named(self, subject: Subject, keywords: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            subject.run(subject.start_llm(**keywords))
        assert (caught.value.details or {})["field"] == field
        assert field in str(caught.value)
        assert subject.llama.get_status() == "stopped"
        assert subject.fake_llama.starts == []

    def test_an_unknown_option_lists_the_valid_ones(self, subject: Subject) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            subject.run(subject.start_llm(frobnicate=1))
        assert "context_size" in (caught.value.hint or "")

    def test_a_missing_model_id(self, subject: Subject) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            subject.run(subject.llama.start(port="auto"))
        assert (caught.value.details or {})["field"] == "model_id"

    def test_a_port_in_use_names_its_holder(self, subject: Subject) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(PortInUseError) as caught:
                subject.run(subject.start_llm(port=port))
        assert caught.value.port == port
        assert str(os.getpid()) in (caught.value.holder or "")
        assert subject.llama.get_status() != "running"
        assert subject.fake_llama.starts == []


class TestFailingStarts:
    def test_an_exit_during_start_fails_at_once_with_code_and_log(self, subject: Subject) -> None:
        subject.fake_llama.set(exit_at_start=7, start_log=[f"0.00.000.00{n} E line {n}" for n in range(5)])
        with pytest.raises(ServerError) as caught:
            subject.run(subject.start_llm(), limit=30)
        details = caught.value.details or {}
        assert details["exit_code"] == 7
        assert "7" in str(caught.value)
        assert any("line 4" in line for line in details["log"])
        assert "line 4" in (caught.value.hint or "")
        info = subject.llama.get_info()
        assert (info.status, info.pid) == ("crashed", None)
        assert info.error

    def test_the_next_start_is_free_again(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_llama.set(exit_at_start=1)
            with pytest.raises(ServerError):
                await subject.start_llm()
            subject.fake_llama.set(exit_at_start=None)
            info = await subject.start_llm()
            assert (info.status, info.error) == ("running", None)

        subject.run(scenario())

    def test_death_by_signal_while_loading(self, subject: Subject) -> None:
        subject.fake_llama.set(load_seconds=300)

        async def scenario() -> None:
            start = asyncio.ensure_future(subject.start_llm())
            await until(lambda: subject.fake_llama.starts)
            subject.fake_llama.set(die={"signal": "SIGSEGV"})
            with pytest.raises(ServerError) as caught:
                await start
            assert (caught.value.details or {})["signal"] == "SIGSEGV"

        subject.run(scenario())

    def test_a_file_that_is_no_model(self, subject: Subject) -> None:
        subject.llm_file.write_bytes(b"<html>not found</html>")
        with pytest.raises(GenaiNotebookError) as caught:
            subject.run(subject.start_llm(), limit=30)
        assert isinstance(caught.value, (ServerError, InvalidRequestError))
        assert subject.llama.get_status() in ("stopped", "crashed")

    def test_a_file_that_has_gone(self, subject: Subject) -> None:
        subject.llm_file.unlink()
        with pytest.raises(GenaiNotebookError):
            subject.run(subject.start_llm(), limit=30)
        assert subject.llama.get_status() in ("stopped", "crashed")

    def test_stop_during_start(self, subject: Subject) -> None:
        subject.fake_llama.set(load_seconds=300)

        async def scenario() -> None:
            start = asyncio.ensure_future(subject.start_llm())
            await until(lambda: subject.fake_llama.starts)
            assert subject.llama.get_status() == "starting"
            await subject.llama.stop()
            with pytest.raises(ServerError) as caught:
                await start
            assert caught.value.code == "START_CANCELLED"
            assert subject.llama.get_status() == "stopped"
            assert not alive(subject.fake_llama.pid)

        subject.run(scenario())

    def test_a_cancelled_start_leaves_nothing(self, subject: Subject) -> None:
        subject.fake_llama.set(load_seconds=300)

        async def scenario() -> None:
            start = asyncio.ensure_future(subject.start_llm())
            await until(lambda: subject.fake_llama.starts)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            await until(lambda: not alive(subject.fake_llama.pid), "the end of the engine")
            await until(lambda: subject.llama.get_status() == "stopped", "the state stopped")
            subject.fake_llama.set(load_seconds=None)
            assert (await subject.start_llm()).status == "running"

        subject.run(scenario())


class TestCrash:
    @pytest.mark.parametrize(
        ("how", "code", "signal"),
        [({"signal": "SIGKILL"}, None, "SIGKILL"), ({"exit": 3}, 3, None), ({"exit": 0}, 0, None)],
        ids=["SIGKILL", "exit 3", "exit 0"],
    )
    def test_the_end_of_a_running_engine_is_told(
        self, subject: Subject, how: dict[str, Any], code: int | None, signal: str | None
    ) -> None:
        async def scenario() -> None:
            errors: list[ServerError] = []
            subject.llama.on("crashed", errors.append)
            await subject.start_llm()
            subject.fake_llama.set(die=how, die_log=[f"0.09.000.000 E last word {n}" for n in range(30)])
            await until(lambda: errors, "the event")
            subject.llama.off("crashed", errors.append)
            assert isinstance(errors[0], ServerError)
            details = errors[0].details or {}
            assert (details.get("exit_code"), details.get("signal")) == (code, signal)
            assert len(details["log"]) == 20
            assert "last word 29" in details["log"][-1]
            assert len(errors) == 1
            info = subject.llama.get_info()
            assert (info.status, info.pid) == ("crashed", None)
            assert info.error
            assert await subject.llama.is_healthy() is False

        subject.run(scenario())

    def test_a_crashed_server_can_be_started_restarted_and_stopped(self, subject: Subject) -> None:
        async def crash() -> None:
            subject.fake_llama.set(die={"signal": "SIGABRT"})
            await until(lambda: subject.llama.get_status() == "crashed", "the state crashed")
            subject.fake_llama.set(die=None)

        async def scenario() -> None:
            first = await subject.start_llm()
            await crash()
            second = await subject.llama.restart()
            assert (second.port, second.api_key) == (first.port, first.api_key)
            await crash()
            assert (await subject.start_llm()).status == "running"
            await crash()
            await subject.llama.stop()
            assert subject.llama.get_status() == "stopped"

        subject.run(scenario())

    def test_a_hanging_engine_is_not_healthy(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_llm()
            subject.fake_llama.set(hang_health=True)
            assert await subject.llama.is_healthy() is False
            subject.fake_llama.set(hang_health=None)
            assert await subject.llama.is_healthy() is True

        subject.run(scenario())


class TestEvents:
    def test_started_and_stopped(self, subject: Subject) -> None:
        async def scenario() -> None:
            seen: list[Any] = []

            def started(info: ServerInfo) -> None:
                seen.append(info)

            def stopped() -> None:
                seen.append("stopped")

            subject.llama.on("started", started)
            subject.llama.on("stopped", stopped)
            info = await subject.start_llm()
            await subject.llama.stop()
            await until(lambda: len(seen) == 2)
            assert seen == [info, "stopped"]
            subject.llama.off("started", started)
            subject.llama.off("stopped", stopped)
            await subject.start_llm()
            await subject.llama.stop()
            await asyncio.sleep(0.1)
            assert len(seen) == 2

        subject.run(scenario())

    def test_once_is_once(self, subject: Subject) -> None:
        async def scenario() -> None:
            seen: list[Any] = []
            subject.llama.once("started", seen.append)
            for _ in range(2):
                await subject.start_llm()
                await subject.llama.stop()
            await until(lambda: seen)
            await asyncio.sleep(0.1)
            assert len(seen) == 1

        subject.run(scenario())

    def test_an_unknown_event_is_refused(self, subject: Subject) -> None:
        with pytest.raises(InvalidRequestError, match="frobnicated"):
            subject.llama.on("frobnicated", print)

    def test_a_failing_listener_disturbs_nobody(self, subject: Subject) -> None:
        async def scenario() -> None:
            def bad(_: Any) -> None:
                raise RuntimeError("a listener's own bug")

            subject.llama.once("started", bad)
            assert (await subject.start_llm()).status == "running"

        subject.run(scenario())


async def _logs_hold(subject: Subject, text: str) -> bool:
    return any(text in line for line in await subject.llama.get_logs(None))


class TestLogs:
    def test_lines_have_time_level_and_message(self, subject: Subject) -> None:
        subject.fake_llama.set(start_log=["0.00.000.001 W a warning", "0.00.000.002 E an error", "no prefix at all"])

        async def scenario() -> None:
            await subject.llama.clear_logs()
            await subject.start_llm()
            await until(lambda: _logs_hold(subject, "listening on"))
            lines = await subject.llama.get_logs(None)
            assert all(LINE.fullmatch(line) for line in lines), lines
            assert any(re.search(r"\[warn\] .*a warning$", line) for line in lines)
            assert any(re.search(r"\[error\] .*an error$", line) for line in lines)
            assert await subject.llama.get_logs(2) == lines[-2:]
            assert await subject.llama.get_logs(math.inf) == lines
            assert await subject.llama.get_logs(0) == []
            structured = await subject.llama.get_structured_logs(None)
            assert len(structured) == len(lines)
            assert {"timestamp", "level", "message"} <= set(structured[-1])
            await subject.llama.clear_logs()
            assert await subject.llama.get_logs(None) == []

        subject.run(scenario())

    def test_a_flood_is_read_whole(self, subject: Subject) -> None:
        subject.fake_llama.set(flood=3000)

        async def scenario() -> None:
            await subject.start_llm()
            await until(lambda: _logs_hold(subject, "flood 2999"))
            assert len([line for line in await subject.llama.get_logs(None) if "flood" in line]) == 3000
            assert len(await subject.llama.get_logs()) == 100

        subject.run(scenario())

    def test_a_line_cut_in_two_stays_one(self, subject: Subject) -> None:
        subject.fake_llama.set(half_line=0.3)

        async def scenario() -> None:
            await subject.start_llm()
            await until(lambda: _logs_hold(subject, "one line cut in two"))

        subject.run(scenario())

    def test_control_characters_and_bad_bytes_are_disarmed(self, subject: Subject) -> None:
        raw = b"0.00.000.001 I evil \x1b]0;title\x07 \x1b[31mred \xff\xfe end"
        subject.fake_llama.set(bytes_line=raw.hex())

        async def scenario() -> None:
            await subject.start_llm()
            await until(lambda: _logs_hold(subject, "evil"))
            (line,) = [line for line in await subject.llama.get_logs(None) if "evil" in line]
            assert "end" in line
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line)

        subject.run(scenario())

    def test_a_crash_is_explained_by_the_tail(self, subject: Subject) -> None:
        subject.fake_llama.set(exit_at_start=1, start_log=["0.00.000.001 E out of luck"])
        with pytest.raises(ServerError) as caught:
            subject.run(subject.start_llm())
        assert "out of luck" in "\n".join((caught.value.details or {})["log"])
        eventually(lambda: subject.run(_logs_hold(subject, "out of luck")))
