"""Import of a user's own files as a data set: JSON Lines, CSV or Parquet, every row checked.

Items: `item_id` (string or integer), `title`, optional `description`, `categories` (list of strings);
further fields become attributes (string, number, boolean, list of strings or of integers).
Interactions: `user_id` and `item_id` (string or integer), `timestamp` (a finite number, or a date), `behaviour`
(`search` or `recommendation`), `query` (required for a search, otherwise ignored) and optionally `simulated_query` (see
`schema`). Other fields of interactions are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from index.catalogue import Catalogue
from training.data.dataset import DataSet
from training.data.importing.bad_rows import BadRow, BadRowsError, RowsError, summed_up
from training.data.importing.interactions import InteractionLog
from training.data.importing.items import checked_items, converted, values_as_text
from training.data.importing.times import DATES
from training.data.schema import DataInfo


def import_files(
    items: Path,
    interactions: Path,
    name: str,
    skip_bad: bool = False,
    *,
    infer: bool = False,
    deduplicate: bool = False,
    called: Path | None = None,
) -> tuple[DataSet, list[BadRow]]:
    """Read and check both files. Return the data set and the skipped rows, which its info counts, too.

    An interaction with an item that was refused is left out and counted, and not blamed a second time.
    infer: whether attributes whose texts are all numbers, or all truth values, become such.
    deduplicate: whether an interaction that is in the log before, the same in every column, is left out.
    called: how messages name the interactions, if not by their path: for those that were exported from a store.
    Raises `BadRowsError` if there are bad rows and `skip_bad` is not set.
    Raises `DataError` if a file cannot be read, a file lacks a column, time stamps are of several units, or no row is
    left.
    """
    kept, bad, refused = checked_items(items)
    bad_items = len(bad)
    _check_some(items, len(kept), bad, skip_bad)
    log = InteractionLog(interactions, list(kept), refused, called)
    log.read()
    bad += log.bad
    if bad and not skip_bad:
        raise BadRowsError(bad)
    _check_some(called or interactions, len(log), bad, skip_bad)
    as_text = values_as_text(kept.values())
    catalogue = (
        Catalogue(converted(item, as_text) for item in kept.values()) if infer else Catalogue(kept.values())
    )
    histories = log.histories()
    repeated = histories.repeated()
    if deduplicate:
        histories = histories.without(repeated)
    left_out = {
        "bad item rows": bad_items, "bad interaction rows": len(log.bad),
        "interactions with bad items": log.of_refused, "repeated interactions": len(repeated) if deduplicate else 0,
    }  # fmt: skip
    info = DataInfo(
        name,
        f"imported from {items.name} and {called or interactions.name}",
        left_out={what: count for what, count in left_out.items() if count},
        notes=[
            _unit(log.unit),
            *_text_notes(as_text, infer),
            *([] if deduplicate or not len(repeated) else [_repeated(len(repeated))]),
        ],
    )
    return DataSet(info, catalogue, histories), bad


def _check_some(path: Path, usable: int, bad: list[BadRow], skip_bad: bool) -> None:
    if not usable:
        if bad and not skip_bad:
            raise BadRowsError(bad)
        listed = f"{summed_up(bad)}\n" if bad else ""
        raise RowsError(f"{listed}no usable row in {path}; nothing was written")


def _unit(unit: str) -> str:
    if unit == DATES:
        return "time stamps are dates, kept as microseconds since 1970"
    return (
        f"time stamps are {unit} since 1970"
        if unit
        else "time stamps are of no known unit; only their order counts"
    )


def _text_notes(attributes: Mapping[str, str], inferred: bool) -> list[str]:
    if inferred:
        return [f"attribute {name!r} was text and is now read as values" for name in attributes]
    return [
        f"attribute {name!r} holds values as text, such as {text!r}: no filter by range or by number finds "
        "them; --infer reads them as values"
        for name, text in attributes.items()
    ]


def _repeated(count: int) -> str:
    return f"{count:,} interactions repeat an earlier one in every column; --deduplicate leaves them out"
