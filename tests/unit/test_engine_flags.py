"""The command line of the embedded engines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.engines.embedded import llama_server, sd_server
from genai_notebook.core.engines.embedded.flags import Flag, FlagError, choice, help_text, integer, number, parse, text

FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", integer(0, 100), help="the context"),
    Flag(("--on",), "switch", help="on"),
    Flag(("--off",), "switch", value=False),
    Flag(("--ratio",), "ratio", number(0.5)),
    Flag(("--mode",), "mode", choice({"a": 1, "b": 2})),
    Flag(("--name",), "name", text),
)


def test_values() -> None:
    argv = ["-c", "7", "--on", "--ratio", "0.75", "--mode", "b", "--name", "-x"]
    assert parse(FLAGS, argv) == {"n_ctx": 7, "switch": True, "ratio": 0.75, "mode": 2, "name": "-x"}
    assert parse(FLAGS, []) == {}


def test_the_last_one_wins() -> None:
    assert parse(FLAGS, ["--on", "--off", "-c", "1", "--ctx-size", "2"]) == {"switch": False, "n_ctx": 2}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--foo"], "invalid argument: --foo"),
        (["--ctx"], "invalid argument: --ctx"),
        (["-c7"], "invalid argument: -c7"),
        (["--ctx-size=7"], "invalid argument: --ctx-size=7"),
        (["stray"], "invalid argument: stray"),
        (["-c"], "-c: expected value for argument"),
        (["-c", "seven"], "-c: invalid value 'seven': a whole number is needed"),
        (["-c", "101"], "-c: invalid value '101': must be between 0 and 100"),
        (["--ratio", "nan"], "--ratio: invalid value 'nan': must be a number of at least 0.5"),
        (["--ratio", "inf"], "--ratio: invalid value 'inf': must be a number of at least 0.5"),
        (["--ratio", "0.1"], "--ratio: invalid value '0.1': must be a number of at least 0.5"),
        (["--mode", "c"], "--mode: invalid value 'c': must be one of a, b"),
        (["--name", ""], "--name: invalid value '': must not be empty"),
    ],
)
def test_what_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(FLAGS, argv)
    assert str(caught.value) == said


@given(st.lists(st.text(max_size=8)))
def test_any_words_are_taken_or_refused(argv: list[str]) -> None:
    try:
        found = parse(FLAGS, argv)
    except FlagError:
        return
    assert set(found) <= {flag.key for flag in FLAGS}


@pytest.mark.parametrize("flags", [llama_server.FLAGS, sd_server.FLAGS])
def test_no_name_is_given_twice(flags: tuple[Flag, ...]) -> None:
    names = [name for flag in flags for name in flag.names]
    assert len(names) == len(set(names))
    assert all(name.startswith("-") for name in names)
    shown = help_text("program", "about", flags)
    assert all(name in shown for name in names)
    assert all(flag.help for flag in flags)


def test_layers() -> None:
    found = [parse(llama_server.FLAGS, ["-ngl", word])["n_gpu_layers"] for word in ("0", "99", "auto", "all", "-1")]
    assert found == [0, 99, -1, -2, -1]
