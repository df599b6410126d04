"""`docs/architecture.md` agrees with the code: rooms, arrows, paths and types."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT
from test_arrows import ALLOWED, PATHS, TOPS

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MOST_STOPS = 10


def section(title: str) -> str:
    """Return the text below a heading of the second level, up to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


WALKS = {
    part.split("\n")[0]: re.findall(r"^\d+\. (.+?)(?=^\d+\. |\n\n|\Z)", part, re.MULTILINE | re.DOTALL)
    for part in section("Three walks").split("\n### ")[1:]
}


def inside(room: str) -> list[str]:
    """Return a room and the rooms below it."""
    return [other for other in ALLOWED if other == room or other.startswith(f"{room}.")]


def imports(room: str, other: str) -> bool:
    """Whether a room, or one below it, may import another room or one below that."""
    return any(b in ALLOWED[a].split() for a in inside(room) for b in inside(other))


def test_the_table_of_arrows_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+?) \|$", section("Who may import whom"), re.MULTILINE)
    shown = {room: " ".join(re.findall(r"`(\S+?)`", others)) for room, _, others in rows}
    described = {room: words for room, words, _ in rows}
    wrong = [
        f"| `{room}` | {described.get(room, '…')} | {' '.join(f'`{name}`' for name in others.split()) or '–'} |"
        for room, others in ALLOWED.items()
        if shown.get(room) != others
    ]
    assert not wrong, "these rows must be in the table:\n" + "\n".join(wrong)
    assert list(shown) == list(ALLOWED)  # nothing else, in the same order


def test_the_picture_shows_only_arrows_that_exist() -> None:
    names = dict(re.findall(r'^    (\w+)\["(\S+)"\]$', PAGE, re.MULTILINE))
    arrows = [(names[a], names[b]) for a, b in re.findall(r"^  (\w+) --> (\w+)$", PAGE, re.MULTILINE)]
    assert set(names.values()) <= set(ALLOWED)
    assert set(names.values()) == {room for arrow in arrows for room in arrow}
    assert [arrow for arrow in arrows if not imports(*arrow)] == []


def test_the_picture_shows_each_arrow_between_the_four_packages() -> None:
    arrows = re.findall(r"^  ([a-z]+)\w* --> ([a-z]+)\w*$", PAGE, re.MULTILINE)
    pairs = {
        (room.split(".")[0], other.split(".")[0])
        for room, others in ALLOWED.items()
        for other in others.split()
    }
    assert {(a, b) for a, b in arrows if a != b} == {(a, b) for a, b in pairs if a != b}


def test_there_are_three_walks_of_few_stops() -> None:
    assert len(WALKS) == 3
    for name, stops in WALKS.items():
        assert 5 <= len(stops) <= MOST_STOPS, name


@pytest.mark.parametrize("stop", [stop for stops in WALKS.values() for stop in stops])
def test_a_stop_names_a_file_and_what_leaves_it(stop: str) -> None:
    assert re.match(r"`[\w/]+\.py`", stop), stop
    assert " → " in " ".join(stop.split()), stop


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z][a-z]+\w*)`", section("Three walks")))))
def test_every_type_on_a_walk_exists(name: str) -> None:
    defined = rf"^(class {name}\b|{name}(: TypeAlias)? = )"
    assert any(re.search(defined, path.read_text("utf-8"), re.MULTILINE) for path in PATHS)


def test_all_four_packages_are_described() -> None:
    for top in TOPS:
        assert re.search(rf'subgraph \w+ \["{top}: ', PAGE)
