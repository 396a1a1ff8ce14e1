"""The command line of the embedded engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.engines.embedded import llama_options, llama_params, sd_server
from genai_notebook.core.engines.embedded.flags import (
    Flag,
    FlagError,
    choice,
    help_text,
    integer,
    json_object,
    number,
    numbers,
    parse,
    positive,
    scaled,
    text,
    words,
)

FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", integer(0, 100), help="the context"),
    Flag(("--on",), "switch", help="on"),
    Flag(("--off",), "switch", value=False),
    Flag(("--ratio",), "ratio", number(0.5)),
    Flag(("--mode",), "mode", choice({"a": 1, "b": 2})),
    Flag(("--name",), "name", text),
    Flag(("--more",), "more", positive),
    Flag(("--parts",), "parts", numbers(0)),
    Flag(("--kinds",), "kinds", words(("a", "b"))),
    Flag(("--scaled",), "scaled", scaled),
    Flag(("--json",), "json", json_object),
)


def test_values() -> None:
    argv = ["-c", "7", "--on", "--ratio", "0.75", "--mode", "b", "--name", "-x"]
    assert parse(FLAGS, argv) == {"n_ctx": 7, "switch": True, "ratio": 0.75, "mode": 2, "name": "-x"}
    assert parse(FLAGS, []) == {}


def test_lists_and_objects() -> None:
    argv = [
        "--more",
        "0.5",
        "--parts",
        "3,1/2",
        "--kinds",
        "b,a",
        "--scaled",
        r"C:\x.gguf:0.5,y:-2",
        "--json",
        '{"a": 1}',
    ]
    assert parse(FLAGS, [*argv, "--json", '{"a": 1}']) == {
        "more": 0.5,
        "parts": [3.0, 1.0, 2.0],
        "kinds": ["b", "a"],
        "scaled": [(r"C:\x.gguf", 0.5), ("y", -2.0)],
        "json": {"a": 1},
    }


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
        (["--more", "0"], "--more: invalid value '0': must be more than 0"),
        (["--parts", "1,,2"], "--parts: invalid value '1,,2': a number is needed"),
        (["--parts", "1,-2"], "--parts: invalid value '1,-2': must be a number of at least 0"),
        (["--kinds", "a,c"], "--kinds: invalid value 'a,c': must be one of a, b"),
        (
            ["--scaled", ":1"],
            "--scaled: invalid value ':1': must be FILE:SCALE, or several of them with commas between",
        ),
        (["--scaled", "x:y"], "--scaled: invalid value 'x:y': a number is needed"),
        (["--json", "[1]"], "--json: invalid value '[1]': must be a JSON object"),
        (["--json", "{" * 9999], f"--json: invalid value {'{' * 9999!r}: must be a JSON object"),
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


@pytest.mark.parametrize("flags", [llama_options.FLAGS, sd_server.ALL_FLAGS])
def test_no_name_is_given_twice(flags: tuple[Flag, ...]) -> None:
    names = [name for flag in flags for name in flag.names]
    assert len(names) == len(set(names))
    assert all(name.startswith("-") for name in names)
    shown = help_text("program", "about", flags)
    assert all(name in shown for name in names)
    assert all(flag.help for flag in flags)


def test_layers() -> None:
    found = [parse(llama_options.FLAGS, ["-ngl", word])["n_gpu_layers"] for word in ("0", "99", "auto", "all", "-1")]
    assert found == [0, 99, -1, -2, -1]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.touch()
    missing = str(tmp_path / "missing")
    llama_params.check_files(parse(llama_options.FLAGS, ["-m", str(here), "--lora", str(here), "-md", str(here)]))
    for flag, value in (("--lora", f"{here},{missing}"), ("--lora-scaled", f"{missing}:1"), ("-md", missing)):
        with pytest.raises(FlagError, match=r"no such file: .*missing"):
            llama_params.check_files(parse(llama_options.FLAGS, ["-m", str(here), flag, value]))


def test_a_setting_that_the_wheel_lacks_is_refused_by_its_flags_name() -> None:
    """Not ignored: an older wheel must not start with other settings than were asked for."""
    params = SimpleNamespace(cors_origins="", cpuparams=SimpleNamespace(n_threads=1))
    engine = SimpleNamespace(CommonParams=lambda: params)
    for argv in (["-cmoe"], ["-ts", "1,2"], ["--cache-reuse", "4"], ["-md", "x"], ["-rea", "on"]):
        with pytest.raises(FlagError, match="this version of xllamacpp"):
            llama_params.configure(engine, parse(llama_options.FLAGS, argv))
