"""Docstrings in plain English: the first word is a verb or part of a noun phrase, never a bare preposition."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from support.paths import ROOT

FOLDERS = ("gems", "index", "server", "training", "bench", "tests")
PREPOSITIONS = (
    "above after around as at before behind below between by during for from in into of on onto over since "
    "through to under until up upon while with within without"
)
PRONOUNS = "how that these this those what when where which who whom whose why"
BAD_STARTS = frozenset(f"{PREPOSITIONS} {PRONOUNS}".split())


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def faults(source: str) -> list[str]:
    """Docstrings that begin with a preposition or a pronoun."""
    return [
        f"line {line}: {text.splitlines()[0]}"
        for line, text in docstrings(source)
        if text.split()[0].strip(".,:;").lower() in BAD_STARTS
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_verb_or_a_noun(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)} {fault}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for fault in faults(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_the_check_can_fail() -> None:
    assert faults('def f():\n    """Of one step."""')
    assert faults('"""What happens."""')
    assert not faults('def f():\n    """Return the seconds of one step."""')
