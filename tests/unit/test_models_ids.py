"""Ids and file names, made from whatever people and servers write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.models.ids import is_model_id, model_id, numbered, safe_file_name


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("SmolLM2 135M Instruct", None, "smollm2-135m-instruct"),
        ("Llama-2 7B (chat)!", None, "llama-2-7b-chat"),
        ("Café  Modèle", None, "cafe-modele"),
        ("模型", "Qwen2.5-0.5B.Q4_K_M.gguf", "qwen2-5-0-5b-q4-k-m"),
        ("../../etc/passwd", None, "etc-passwd"),
        ("CON", None, "con-model"),
        ("a" * 300, None, "a" * 64),
        ("‮evil", None, "evil"),
    ],
)
def test_ids(name: str, file: str | None, expected: str) -> None:
    assert model_id(name, file) == expected


def test_names_without_any_letter_get_a_hash() -> None:
    assert model_id("模型", "文件.gguf").startswith("model-")
    assert model_id("模型") != model_id("型模")
    assert model_id("模型") == model_id("模型")
    assert is_model_id(model_id("\ud800"))


@given(st.text(max_size=400), st.one_of(st.none(), st.text(max_size=50)))
def test_every_id_is_a_safe_folder_name(name: str, file: str | None) -> None:
    made = model_id(name, file)
    assert is_model_id(made)
    assert is_model_id(numbered(made, 9999))


@pytest.mark.parametrize("text", ["", "a/b", "..", "a--b", "-a", "A", "a.b", "a" * 100, None, 3, "a\0", "a\n"])
def test_what_is_no_id(text: object) -> None:
    assert not is_model_id(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.Q4_K_M.gguf", "model.Q4_K_M.gguf"),
        ("../../x.gguf", "x.gguf"),
        ("C:\\dir\\x.gguf", "x.gguf"),
        ("a b\n;c.gguf", "a-b-c.gguf"),
        ("con.gguf", "con-model.gguf"),
        (".hidden", "hidden"),
        ("", "model.gguf"),
        ("..", "model.gguf"),
        ("文件.gguf", "gguf"),
        ("x" * 300 + ".gguf", "x" * 120 + ".gguf"),
    ],
)
def test_file_names(name: str, expected: str) -> None:
    assert safe_file_name(name) == expected


@given(st.text(max_size=400))
def test_every_file_name_is_safe(name: str) -> None:
    made = safe_file_name(name)
    assert made
    assert len(made) <= 137
    assert not set(made) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert made[0] not in ".-"
    assert safe_file_name(made) == made
