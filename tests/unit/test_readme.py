"""The front page says nothing that the code does not know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from genai_notebook import __all__ as exported
from genai_notebook.magics.commands import parser

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "genai_notebook").rglob("*.py"))


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def array(name: str) -> set[str]:
    """The package names of one array in pyproject.toml (tomllib is younger than our oldest Python)."""
    text = re.search(rf"^{name} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    assert text
    return set(re.findall(r'"([a-zA-Z0-9_-]+)', text[1]))


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_dependency_has_its_reason() -> None:
    table = section("Dependencies, and why")
    named = {
        name.strip()
        for row in re.findall(r"^\| (?:\*.*?\* )?([^|]+) \|", table, re.MULTILINE)
        for name in row.split(",")
    }
    assert array("dependencies") - named == set()
    assert array("embedded") | array("notebook") <= named


def test_every_variable_exists() -> None:
    variables = set(re.findall(r"`(GENAI_NOTEBOOK_[A-Z_]+)`", README))
    assert len(variables) >= 6
    for variable in variables:
        short = variable.removeprefix("GENAI_NOTEBOOK_")
        assert variable in CODE or f'"{short}"' in CODE, variable


def test_every_command_exists() -> None:
    commands = set(parser().subcommands())
    table = section("Magics")
    named = set(re.findall(r"%genai (\w+)", README)) | set(re.findall(r"`(\w+)`", table.split("| `%%")[0]))
    assert named - commands - {"starter"} == set()
    assert commands - named == {"help"}


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_is_python(block: str) -> None:
    if "%" in block:
        return
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert {alias.name for alias in node.names} <= set(exported)


def test_the_two_commands_are_there() -> None:
    for command in re.findall(r"^sh (\S+)", README, re.MULTILINE):
        assert (ROOT / command).stat().st_mode & 0o111, command
