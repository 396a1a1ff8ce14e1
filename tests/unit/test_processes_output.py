from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.processes.output import MAX_LINE, LineSplitter, clean


def feed(*reads: bytes) -> list[tuple[str, bool]]:
    splitter = LineSplitter()
    lines = [line for read in reads for line in splitter.feed(read)]
    return lines + splitter.close()


def test_a_line_cut_by_a_read_stays_one_line() -> None:
    assert feed(b"hel", b"lo\nwor", b"ld\n") == [("hello", False), ("world", False)]


def test_a_carriage_return_at_the_end_of_a_read_waits_for_its_line_feed() -> None:
    assert feed(b"one\r", b"\ntwo\r\n") == [("one", False), ("two", False)]


def test_a_character_cut_by_a_read_survives() -> None:
    raw = "naïve ✓\n".encode()
    for cut in range(len(raw)):
        assert feed(raw[:cut], raw[cut:]) == [("naïve ✓", False)]


def test_escapes_and_controls_are_removed() -> None:
    assert clean(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x08bell\x07") == "red bell"
    assert clean(b"\x1b]8;;http://evil\x1b\\link") == "link"


def test_a_line_without_end_is_cut() -> None:
    lines = feed(b"x" * (3 * MAX_LINE))
    assert lines
    assert all(len(text) <= MAX_LINE for text, _ in lines)


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_any_bytes_become_printable_lines(reads: list[bytes]) -> None:
    for text, _ in feed(*reads):
        assert text
        assert "\n" not in text
        assert "\x1b" not in text
        assert "\r" not in text


@given(st.lists(st.sampled_from([b"abc", b"\n", b"\r\n", b"d e", "é".encode()]), max_size=20), st.data())
def test_lines_do_not_depend_on_how_the_bytes_were_cut(parts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(parts)
    cut = data.draw(st.integers(0, len(raw)))
    assert feed(raw[:cut], raw[cut:]) == feed(raw)
