"""Who may import whom (DESIGN §2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "gems": set(),
    "index": set(),
    "server": {"index"},
    "training": {"gems", "index", "server.engine"},
}
ROOMS = set(ALLOWED)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ROOMS}


def is_allowed(room: str, name: str) -> bool:
    return any(name == a or name.startswith(a + ".") for a in {room, *ALLOWED[room]})


@pytest.mark.parametrize(
    "path", [p for room in ALLOWED for p in sorted((ROOT / room).rglob("*.py"))], ids=str
)
def test_the_arrows_hold(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    wrong = {name for name in imported(path) if not is_allowed(room, name)}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {sorted(wrong)}"


def test_the_check_can_fail() -> None:
    assert is_allowed("training", "server.engine.contract")
    assert not is_allowed("training", "server.app")
    assert not is_allowed("training", "server")
    assert not is_allowed("server", "training.config")
    assert not is_allowed("index", "server.engine")
