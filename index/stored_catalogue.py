"""A catalogue that stays on disk: a server needs ids and titles of its items, and hardly ever the rest.

    items.jsonl                          the items, as `Catalogue.save` writes them
    columns/id_*.npy, title_*.npy        ids and titles by row (`Texts`)
    columns/lines.npy                    int64 [items + 1], where each line of items.jsonl begins
    columns/columns.json                 the SHA-256 of the items.jsonl that the columns were made from

A million items are a few hundred bytes each in memory, in place of some thousand as Python objects, and are open in a
second. Columns of another items.jsonl, or none, as in older bundles, are not used: the lines are read then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from index.catalogue import (
    MAX_ID_CHARS,
    MAX_TITLE_CHARS,
    Catalogue,
    CatalogueError,
    Item,
    has_control,
    line_of,
)
from index.files import read_array
from index.records import Record, parse_json
from index.texts import Texts

ITEMS = "items.jsonl"
COLUMNS = "columns"
RECORD = "columns.json"
_BLOCK = 1 << 24  # bytes that are read at once


class StoredCatalogue(Catalogue):
    """A catalogue whose items are read from their file when they are asked for; see `open_catalogue`.

    ids, titles: of all rows. lines: where each line of the file begins. file: stays open, and must not be changed.
    """

    def __init__(self, ids: Texts, titles: Texts, lines: NDArray[np.int64], file: BinaryIO) -> None:
        self._ids = list(ids)
        self._titles = titles
        self._lines = lines
        self._file = file
        self._rows = dict(zip(self._ids, range(len(self._ids)), strict=True))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Item]:
        for row, line in enumerate(self._written()):
            yield self._item(row, line)

    def __getitem__(self, row: int) -> Item:  # type: ignore[override]
        if isinstance(row, slice):
            return [self[k] for k in range(len(self))[row]]
        row = range(len(self))[row]
        begin, end = self._lines[row : row + 2].tolist()
        return self._item(row, os.pread(self._file.fileno(), end - begin, begin))

    @property
    def item_ids(self) -> list[str]:
        return list(self._ids)

    @property
    def titles(self) -> Sequence[str]:
        return self._titles

    def item_id(self, row: int) -> str:
        return self._ids[row]

    def title(self, row: int) -> str:
        return self._titles[row]

    def texts(self) -> list[str]:
        return [item.text() for item in self]

    def updated(self, changed: Mapping[int, Item], new: Sequence[Item]) -> Catalogue:
        return UpdatedCatalogue(self, changed, new)

    def lines(self) -> Iterator[bytes]:
        yield from self._written()

    def _written(self) -> Iterator[bytes]:
        """Yield the lines in order, from the file in large pieces."""
        ends = self._lines
        start = 0
        while start < len(self):
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] + _BLOCK, "right")) - 1)
            place = int(ends[start])
            block = os.pread(self._file.fileno(), int(ends[stop]) - place, place)
            for begin, end in pairwise(ends[start : stop + 1].tolist()):
                yield block[begin - place : end - place]
            start = stop

    def _item(self, row: int, line: bytes) -> Item:
        try:
            item = Item.from_json(parse_json(line.decode()))
        except ValueError as error:
            raise CatalogueError(f"{self._file.name}, line {row + 1}: {error}") from error
        if item.item_id != self._ids[row]:
            raise CatalogueError(f"{self._file.name}, line {row + 1}: it is not item {self._ids[row]!r}")
        return item


class UpdatedCatalogue(Catalogue):
    """A catalogue with some changed items, and with later ones behind it.

    changed: items by row. new: items of the rows behind. Raises `CatalogueError` if two items have one id.
    """

    def __init__(self, before: StoredCatalogue, changed: Mapping[int, Item], new: Sequence[Item]) -> None:
        self._before = before
        self._changed = {**changed, **dict(enumerate(new, len(before)))}
        self._count = len(before) + len(new)
        self._rows = {item.item_id: row for row, item in self._changed.items()}
        kept = [before.row(item_id) for item_id in self._rows]
        if len(self._rows) < len(self._changed) or any(
            row is not None and row not in changed for row in kept
        ):
            raise CatalogueError("two items have one item_id; ids must be unique")
        self.check_attributes(self._changed.values())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for row, item in enumerate(self._before):
            yield self._changed.get(row, item)
        yield from (self._changed[row] for row in range(len(self._before), self._count))

    def __getitem__(self, row: int) -> Item:  # type: ignore[override]
        if isinstance(row, slice):
            return [self[k] for k in range(self._count)[row]]
        row = range(self._count)[row]
        found = self._changed.get(row)
        return self._before[row] if found is None else found

    def row(self, item_id: str) -> int | None:
        if (row := self._rows.get(item_id)) is not None:
            return row
        row = self._before.row(item_id)
        return None if row in self._changed else row

    @property
    def item_ids(self) -> list[str]:
        return [self.item_id(row) for row in range(self._count)]

    @cached_property
    def titles(self) -> Sequence[str]:
        return [self.title(row) for row in range(self._count)]

    def item_id(self, row: int) -> str:
        found = self._changed.get(row)
        return self._before.item_id(row) if found is None else found.item_id

    def title(self, row: int) -> str:
        found = self._changed.get(row)
        return self._before.title(row) if found is None else found.title

    def texts(self) -> list[str]:
        return [item.text() for item in self]

    def lines(self) -> Iterator[bytes]:
        for row, line in enumerate(self._before.lines()):
            found = self._changed.get(row)
            yield line if found is None else line_of(found)
        yield from (line_of(self._changed[row]) for row in range(len(self._before), self._count))


def save_catalogue(catalogue: Catalogue, folder: Path) -> None:
    """Write a catalogue and its columns into an existing folder."""
    digest = hashlib.sha256()
    ends = [0]
    with (folder / ITEMS).open("wb") as file:
        for line in catalogue.lines():
            digest.update(line)
            file.write(line)
            ends.append(ends[-1] + len(line))
    columns = folder / COLUMNS
    columns.mkdir()
    Texts.of(catalogue.item_ids).save(columns, "id")
    Texts.of(catalogue.titles).save(columns, "title")
    np.save(columns / "lines.npy", np.array(ends, np.int64))
    record = {"items_sha256": digest.hexdigest(), "items": len(catalogue)}
    (columns / RECORD).write_text(json.dumps(record) + "\n", "utf-8")


def open_catalogue(folder: Path) -> Catalogue:
    """Open what `save_catalogue` wrote; read all lines if there are no columns of them.

    Raises `CatalogueError` that names the line, and `ValueError` that names the file of a wrong column.
    """
    path = folder / ITEMS
    columns = folder / COLUMNS
    if not columns.is_dir():
        return Catalogue.load(path)
    record = Record.read(columns / RECORD)
    count = record.whole("items", 1, 2**31 - 1)
    file = path.open("rb")
    if hashlib.file_digest(file, "sha256").hexdigest() != record.text("items_sha256"):
        file.close()
        return Catalogue.load(path)
    ids, titles = Texts.open(columns, "id", count), Texts.open(columns, "title", count)
    lines = read_array(columns / "lines.npy", np.int64)
    size = os.fstat(file.fileno()).st_size
    if len(lines) != count + 1 or lines[0] != 0 or lines[-1] != size or (np.diff(lines) <= 0).any():
        raise CatalogueError(f"{columns / 'lines.npy'} is damaged: it must hold where {count:,} lines begin")
    _check_texts(columns, ids, MAX_ID_CHARS, "id")
    _check_texts(columns, titles, MAX_TITLE_CHARS, "title")
    if has_control(ids.letters.decode()):
        raise CatalogueError(f"{columns / 'id_letters.npy'}: an item_id holds a control character")
    catalogue = StoredCatalogue(ids, titles, lines, file)
    if len(set(catalogue.item_ids)) < count:
        raise CatalogueError(f"{columns / 'id_letters.npy'}: two items have one item_id")
    return catalogue


def _check_texts(folder: Path, texts: Texts, most: int, name: str) -> None:
    length = np.diff(texts.first)
    if length.min() < 1 or length.max() > 4 * most:  # bytes of a character
        raise CatalogueError(f"{folder / name}_first.npy: a text must have 1 to {most:,} characters")
