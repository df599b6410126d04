"""Items from whole columns, where these leave no doubt that the rows are good: five times as fast as one by one."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from index.catalogue import FIELDS, MAX_ID_CHARS, MAX_TITLE_CHARS, Item

VISIBLE = r"[^\s\p{C}\p{Z}]"  # a text that has such a letter is not blank, whoever asks
_CONTROL = r"\p{C}"


def plain_items(frame: pl.DataFrame) -> Iterator[Item | None]:
    """Yield the item of each row; None for one that must be looked at.

    frame: all columns of the file, those of `REQUIRED_FIELDS` among them.
    """
    good = _good(frame)
    if good is None:
        yield from [None] * len(frame)
        return
    named = {name: frame[name].to_list() for name in FIELDS if name in frame.columns}
    empty = [None] * len(frame)
    others = [(name, frame[name].to_list()) for name in frame.columns if name not in FIELDS]
    columns = (named.get(name, empty) for name in FIELDS)
    for k, (sure, item_id, title, text, labels) in enumerate(zip(good.to_list(), *columns, strict=True)):
        if sure:
            attributes = {name: value for name, values in others if (value := values[k]) is not None}
            yield Item(str(item_id), title.strip(), text or "", tuple(labels or ()), attributes)
        else:
            yield None


def _good(frame: pl.DataFrame) -> pl.Series | None:
    """Return which rows are surely good, bool [n]; None if a column has a type that leaves doubts about all."""
    schema = frame.schema
    if not (_is_id(schema["item_id"]) and schema["title"] == pl.String):
        return None
    item_id, title = pl.col("item_id").cast(pl.String), pl.col("title")
    checks = [
        item_id.str.contains(VISIBLE),
        ~item_id.str.contains(_CONTROL),
        item_id.str.len_chars() <= MAX_ID_CHARS,
        title.str.contains(VISIBLE),
        title.str.len_chars() <= MAX_TITLE_CHARS,
    ]
    for name, kind in schema.items():
        column = pl.col(name)
        if name in ("item_id", "title"):
            continue
        if name == "description":
            fits = kind in (pl.String, pl.Null)
        elif name == "categories":
            fits = kind in (pl.List(pl.String), pl.Null)
        else:
            fits = _is_attribute(kind)
        if not fits:
            return None
        if kind.is_float():
            checks.append(column.is_finite() | column.is_null())
        elif isinstance(kind, pl.List):
            checks.append(~column.list.contains(None, nulls_equal=True) | column.is_null())
    return frame.select(pl.all_horizontal(checks).fill_null(False)).to_series()


def _is_id(kind: pl.DataType) -> bool:
    return kind == pl.String or kind.is_integer()


def _is_attribute(kind: pl.DataType) -> bool:
    if isinstance(kind, pl.List):
        return _is_id(kind.inner)  # type: ignore[arg-type]
    return _is_id(kind) or kind.is_float() or kind in (pl.Boolean, pl.Null)
