"""A catalogue on disk is the same sequence of items as the one in memory, and is refused where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.catalogue import Catalogue, CatalogueError, Item
from index.stored_catalogue import COLUMNS, ITEMS, StoredCatalogue, open_catalogue, save_catalogue

SOME = [
    Item(
        "a", "Amélie (2001)", "A film", ("Film > Comedy", "Film > Romance"), {"year": 2001, "tags": ["Paris"]}
    ),
    Item("ü", "七人の侍", attributes={"year": 1954.5, "seen": True}),
    Item("3", "Plain"),
    Item("b\u00e9", 'Quoted "title" with \\ and a tab\there', "Two\nlines"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_catalogue(Catalogue(SOME), tmp_path)
    return tmp_path


def assert_same(found: Catalogue, items: list[Item]) -> None:
    expected = Catalogue(items)
    assert list(found) == items == [found[row] for row in range(len(found))]
    assert found[-1] == items[-1]
    assert found[1:3] == items[1:3]
    assert found.item_ids == expected.item_ids
    assert list(found.titles) == list(expected.titles)
    assert found.texts() == expected.texts()
    assert list(found.lines()) == list(expected.lines())
    for row, item in enumerate(items):
        assert (found.item_id(row), found.title(row), found.row(item.item_id)) == (
            item.item_id,
            item.title,
            row,
        )
    assert found.row("nobody") is None
    for beyond in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            found[beyond]


def test_a_stored_catalogue_is_the_one_that_was_saved(folder: Path) -> None:
    found = open_catalogue(folder)
    assert isinstance(found, StoredCatalogue)
    assert_same(found, SOME)


def test_a_changed_catalogue_is_stored_like_one_that_is_made_anew(folder: Path, tmp_path: Path) -> None:
    changed = {1: replace(SOME[1], title="Seven Samurai"), 2: Item("removed-2", "Plain")}
    new = [Item("3", "Another product of that id"), Item("z", "New")]
    updated = open_catalogue(folder).updated(changed, new)
    expected = [SOME[0], changed[1], changed[2], SOME[3], *new]
    assert_same(updated, expected)
    (tmp_path / "later").mkdir()
    save_catalogue(updated, tmp_path / "later")
    (tmp_path / "anew").mkdir()
    save_catalogue(Catalogue(expected), tmp_path / "anew")
    files = [path.relative_to(tmp_path / "anew") for path in (tmp_path / "anew").rglob("*") if path.is_file()]
    assert all((tmp_path / "later" / f).read_bytes() == (tmp_path / "anew" / f).read_bytes() for f in files)
    assert_same(open_catalogue(tmp_path / "later"), expected)


@pytest.mark.parametrize("twice", [[Item("a", "Again")], [Item("z", "One"), Item("z", "Two")]])
def test_an_update_with_an_id_twice_is_refused(folder: Path, twice: list[Item]) -> None:
    with pytest.raises(CatalogueError, match="unique"):
        open_catalogue(folder).updated({}, twice)


def test_a_catalogue_without_columns_is_read_line_by_line(folder: Path) -> None:
    """A bundle of an older program has none."""
    for path in (folder / COLUMNS).iterdir():
        path.unlink()
    (folder / COLUMNS).rmdir()
    assert_same(open_catalogue(folder), SOME)


def test_columns_of_another_file_are_not_used(folder: Path) -> None:
    with (folder / ITEMS).open("a") as file:
        file.write(json.dumps({"item_id": "later", "title": "Later"}) + "\n")
    assert_same(open_catalogue(folder), [*SOME, Item("later", "Later")])
    (folder / ITEMS).write_text('{"item_id": 7}\n')
    with pytest.raises(CatalogueError, match="line 1"):
        open_catalogue(folder)


DAMAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # type: ignore[type-arg]
    "lines": lambda lines: lines[:-1],
    "id_first": lambda first: first + 1,
    "title_first": lambda first: first[::-1],
    "title_letters": lambda letters: letters | 0x80,
    "id_letters": lambda letters: letters * 0 + ord("a"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_columns_are_refused_by_name(folder: Path, name: str) -> None:
    path = folder / COLUMNS / f"{name}.npy"
    np.save(path, DAMAGE[name](np.load(path)))
    with pytest.raises(ValueError, match=name.split("_")[0]):
        open_catalogue(folder)


def test_an_id_of_another_line_is_noticed_when_the_item_is_read(folder: Path) -> None:
    path = folder / COLUMNS / "id_letters.npy"
    letters = np.load(path)
    letters[0] = ord("q")
    np.save(path, letters)
    with pytest.raises(CatalogueError, match="line 1: it is not item 'q'"):
        open_catalogue(folder)[0]
