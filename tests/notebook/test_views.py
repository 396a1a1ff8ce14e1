"""How results look, and that nothing from outside gets into HTML or a terminal."""

from __future__ import annotations

import html.parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.display import views


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


EVIL = "<img src=x onerror=alert(1)>\"'&<script>"


def every_view(text: str) -> list[views.Bundle]:
    return [
        views.note(text, detail=text, warning=text),
        views.table([text], [[text]], title=text),
        views.facts(text, [(text, text)]),
        views.progress(text, 0.5, text),
        views.caption(text, text),
    ]


@pytest.mark.parametrize("number", range(5))
def test_html_from_outside_stays_text(number: int):
    plain, evil = every_view("harmless")[number], every_view(EVIL)[number]
    seen = Tags(evil["text/html"])
    assert seen.tags == Tags(plain["text/html"]).tags
    assert EVIL in seen.text


@given(st.text())
def test_any_text_can_be_shown(text: str):
    for bundle in every_view(text):
        for shown in bundle.values():
            assert "\x1b" not in shown
            assert "\r" not in shown
            assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("50 %\r100 %", "50 %100 %"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("abc\u202egpj.exe", "abcgpj.exe"),
        ("\x9b31mred", "red"),
        ("a\x00b", "ab"),
    ],
)
def test_terminal_escapes_are_taken_out(text: str, expected: str):
    assert views.clean(text) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.84, "0.8 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, expected: str):
    assert views.duration(seconds) == expected


def test_a_bar_says_in_words_what_it_shows():
    bundle = views.progress("Downloading x", 0.5, "1 MB of 2 MB")
    assert bundle["text/plain"] == "Downloading x [############............] 50 % · 1 MB of 2 MB"
    assert 'value="50.0"' in bundle["text/html"]
    assert 'aria-label="Downloading x"' in bundle["text/html"]
    assert "50 % · 1 MB of 2 MB" in bundle["text/html"]


def test_an_unknown_end_has_no_percentage():
    bundle = views.progress("Downloading x", None, "1 MB")
    assert "%" not in bundle["text/plain"]
    assert "value=" not in bundle["text/html"]


def test_a_table_is_aligned_and_an_empty_one_says_so():
    text = views.table(["Id", "Size"], [["a", "1 KB"], ["longer", ""]])["text/plain"]
    assert text.splitlines() == ["Id      Size", "------  ----", "a       1 KB", "longer"]
    assert views.table(["Id"], [], empty="None yet.")["text/plain"] == "None yet."


def test_facts_leave_out_what_is_not_known():
    assert views.facts("T", [("A", 1), ("B", None), ("C", "")])["text/plain"] == "T\n  A  1"
