"""settings: the environment's variables, sizes, and folders that only the user can enter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_notebook.core.settings import OFF, Settings, parse_size, private_folder
from genai_notebook.errors import FileSystemError, InvalidRequestError


def test_everything_lies_below_the_home(tmp_path: Path) -> None:
    settings = Settings.from_environment({"GENAI_NOTEBOOK_HOME": str(tmp_path)})
    assert settings.home == tmp_path
    for folder in (settings.models, settings.engines, settings.logs, settings.run, settings.cache):
        assert folder.parent == tmp_path


def test_the_home_may_be_relative_or_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.from_environment({"GENAI_NOTEBOOK_HOME": "here"}).home == tmp_path / "here"
    assert Settings.from_environment({"GENAI_NOTEBOOK_HOME": "~/there"}).home == tmp_path / "there"


@pytest.mark.skipif(os.name != "posix", reason="other platform: XDG folders are for POSIX")
def test_without_a_word_the_home_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    home = Settings.from_environment({}).home
    assert home.name == "genai-notebook"
    assert tmp_path in home.parents


def test_this_process_environment_is_the_default(home: Path) -> None:
    assert Settings.from_environment().home == home


def test_limits_and_engines_are_read(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "GENAI_NOTEBOOK_HOME": str(tmp_path),
            "GENAI_NOTEBOOK_MEMORY_LIMIT": "8GiB",
            "GENAI_NOTEBOOK_VRAM_LIMIT": "512m",
            "GENAI_NOTEBOOK_LLAMA_SERVER": str(tmp_path / "llama"),
            "GENAI_NOTEBOOK_SD_SERVER": "~/sd",
        }
    )
    assert (settings.memory_limit, settings.vram_limit) == (8 << 30, 512 << 20)
    assert (settings.llama_server, settings.sd_server) == (tmp_path / "llama", Path("~/sd").expanduser())


def test_an_empty_variable_counts_as_absent(tmp_path: Path) -> None:
    names = ("MEMORY_LIMIT", "VRAM_LIMIT", "LLAMA_SERVER", "SD_SERVER")
    env = {"GENAI_NOTEBOOK_HOME": str(tmp_path), **{f"GENAI_NOTEBOOK_{name}": "" for name in names}}
    assert Settings.from_environment(env) == Settings(home=tmp_path)


@pytest.mark.parametrize("text", ["lots", "-1", "8 gallons", "0", "0GiB", "1e9", "8GiB8"])
@pytest.mark.parametrize("name", ["GENAI_NOTEBOOK_MEMORY_LIMIT", "GENAI_NOTEBOOK_VRAM_LIMIT"])
def test_a_size_that_is_none_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Settings.from_environment({"GENAI_NOTEBOOK_HOME": str(tmp_path), name: text})
    assert name in str(caught.value)
    assert caught.value.details == {"field": name}
    assert "8GiB" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 1 << 30),
        ("8GiB", 8 << 30),
        ("8GB", 8 << 30),
        ("8g", 8 << 30),
        (" 1.5 KiB ", 1536),
        ("512M", 512 << 20),
        ("2T", 2 << 40),
        ("7b", 7),
        ("", None),
        ("GiB", None),
        ("1.2.3", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_none(text: str) -> None:
    size = parse_size(text)
    assert size is None or size >= 0


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("https://mirror.example/github", "https://mirror.example/github"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" https://mirror.example/ ", "https://mirror.example/"),
        ("off", OFF),
        (" OFF ", OFF),
        ("none", OFF),
        ("No", OFF),
        ("0", OFF),
        ("", None),
        ("  ", None),
    ],
)
def test_a_mirror_for_engines(tmp_path: Path, text: str, mirror: str | None) -> None:
    environ = {"GENAI_NOTEBOOK_HOME": str(tmp_path), "GENAI_NOTEBOOK_MIRROR": text}
    assert Settings.from_environment(environ).mirror == mirror


@pytest.mark.parametrize(
    "text",
    [
        "mirror.example",
        "ftp://mirror.example",
        "file:///mirror",
        "https://",
        "https://a b",
        "https://a\\b",
        "yes",
        "on",
        "https://mirror.example:port",
        "https://mirror.example:99999",
        "https://mirror.example:-1",
        "https://:80",
        "https://[::1",
        "https://a]b",
    ],
)
def test_a_mirror_that_is_no_address_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="GENAI_NOTEBOOK_MIRROR") as caught:
        Settings.from_environment({"GENAI_NOTEBOOK_HOME": str(tmp_path), "GENAI_NOTEBOOK_MIRROR": text})
    assert caught.value.details == {"field": "GENAI_NOTEBOOK_MIRROR"}
    assert "'off'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@mirror.example:port",
        "https://user:secret@[::1",
        "https://user:sec@secret@mirror.example:99999",
        "https://user:/secret@mirror example",
        "https://user:\nsecret@mirror.example",
        "HTTPS:/user:secret@mirror.example",
        "ftp://user:secret@mirror.example",
        "user:secret@mirror.example",
    ],
)
def test_a_password_for_the_mirror_is_never_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="GENAI_NOTEBOOK_MIRROR") as caught:
        Settings.from_environment({"GENAI_NOTEBOOK_HOME": str(tmp_path), "GENAI_NOTEBOOK_MIRROR": text})
    error = caught.value
    for said in (str(error), repr(error), repr(error.details), str(error.hint)):
        assert "secret" not in said
        assert "user" not in said
    assert error.__context__ is None


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="other platform: folder modes are for POSIX")
class TestPrivateFolder:
    def test_it_is_made_for_the_user_alone(self, tmp_path: Path) -> None:
        assert private_folder(tmp_path / "a") == tmp_path / "a"
        assert mode(tmp_path / "a") == 0o700

    def test_also_where_everything_is_allowed(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            private_folder(tmp_path / "home" / "run" / "deep")
        finally:
            os.umask(before)
        for folder in ("home", "home/run", "home/run/deep"):
            assert mode(tmp_path / folder) == 0o700, folder

    def test_an_open_one_is_closed(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a").chmod(0o777)
        private_folder(tmp_path / "a")
        assert mode(tmp_path / "a") == 0o700

    def test_twice_is_fine(self, tmp_path: Path) -> None:
        assert private_folder(private_folder(tmp_path / "a")).is_dir()

    def test_a_file_in_its_place_is_an_error_with_a_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        with pytest.raises(FileSystemError) as caught:
            private_folder(tmp_path / "a")
        assert caught.value.path == str(tmp_path / "a")
        assert "GENAI_NOTEBOOK_HOME" in (caught.value.hint or "")

    def test_somebody_elses_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").mkdir()
        monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
        with pytest.raises(FileSystemError, match="belongs to user id"):
            private_folder(tmp_path / "a")
