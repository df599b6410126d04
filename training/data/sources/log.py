"""A log of a public source, in columns that are read when they are needed, and the data set that filters make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.catalogue import MAX_TITLE_CHARS, Catalogue, Item
from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.importing.items import check_item
from training.data.importing.plain_items import VISIBLE, plain_items
from training.data.importing.tables import RowError
from training.data.importing.times import UNITS
from training.data.interactions import encoded_histories
from training.data.schema import SIMULATED_QUERY, DataError, DataInfo
from training.data.sources.filters import CatalogueOf, Filters, kept_events
from training.data.sources.log_files import unreadable
from training.data.sources.writing import notes_on_writing

EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "query", SIMULATED_QUERY)


@dataclass(frozen=True)
class Part:
    """Interactions of one kind of a log.

    place: their file, for messages. times: the column of their time stamps, for messages. queries: that of the queries.
    events: lazy columns `user_id`, `item_id`, `query` and optionally `simulated_query` (text), `timestamp` (number)
        and `chosen`: whether the person chose the item, which was at least shown.
    behaviour: of all of them; None where an event with a query is a search.
    """

    place: str
    events: pl.LazyFrame
    behaviour: Task | None = None
    times: str = "timestamp"
    queries: str = "query"


@dataclass(frozen=True)
class Log:
    """A log as its source publishes it.

    items: lazy columns `item_id`, `title` (text, null where there is none), `description`, `categories` (lists of
        text) and attributes.
    titles: where the titles come from, for messages.
    time_unit: of the time stamps, if it is not to be told by their size.
    simulation, notes: as in `DataInfo`.
    """

    name: str
    source: str
    items: pl.LazyFrame
    titles: str
    parts: Sequence[Part]
    time_unit: str = ""
    simulation: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def data_set_of(log: Log, filters: Filters) -> DataSet:
    """Read a log and return what the filters keep of it; `left_out` counts every interaction that is dropped.

    Raises `DataError` if a file cannot be read, times are of several units, or nothing is kept.
    """
    left_out: dict[str, int] = {}
    try:
        events, unit = _events(log, left_out)
        shown = _shown(log) if filters.catalogue is CatalogueOf.SHOWN else events.select("item_id").unique()
        items = _items(log, None if filters.catalogue is CatalogueOf.ALL else shown, left_out)
        known = events["item_id"].is_in(items["item_id"].implode())
        left_out["interactions with items that have no title or no row"] = int((~known).sum())
        events = events.filter(known)
        repeated = ~events.select(pl.struct(EVENT_COLUMNS).is_first_distinct()).to_series()
        if filters.deduplicate:
            left_out["repeated interactions (--deduplicate)"] = int(repeated.sum())
            events = events.filter(~repeated)
        events, dropped = _filtered(events, filters)
        left_out |= dropped
        if not len(events):
            counts = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
            raise DataError(
                f"no interaction of {log.source} is left; left out: {counts or 'nothing, it has none'}"
            )
        items = items.filter(_in_catalogue(log, filters, items["item_id"], events))
        catalogue = Catalogue(_checked(log, items))
        histories = encoded_histories(events.lazy(), pl.Series(catalogue.item_ids, dtype=pl.String))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(log.titles, error) from error
    notes = [
        f"time stamps are {f'{unit} since 1970' if unit in UNITS else unit or 'of no known unit'}",
        *log.notes,
    ]
    asked = [
        f"{part.place}: {part.queries}" for part in log.parts if part.behaviour is not Task.RECOMMENDATION
    ]
    notes += notes_on_writing(catalogue, log.titles, histories, asked)
    if not filters.deduplicate and (count := int(repeated.sum())):
        notes.append(
            f"{count:,} interactions repeat an earlier one in every column; --deduplicate leaves them out"
        )
    info = DataInfo(
        log.name, log.source, log.simulation, {k: n for k, n in left_out.items() if n}, notes=notes
    )
    return DataSet(info, catalogue, histories)


def _events(log: Log, left_out: dict[str, int]) -> tuple[pl.DataFrame, str]:
    """Return the usable interactions in the columns of a data set, and the unit of their times."""
    frames: list[pl.DataFrame] = []
    units: list[str] = []
    for part in log.parts:
        frames.append(_chosen(part, left_out, dated=not log.time_unit))
        units.append(log.time_unit or _unit(part, frames[-1]["timestamp"]))
    return _in_one_unit(frames, units, log)


def _chosen(part: Part, left_out: dict[str, int], dated: bool) -> pl.DataFrame:
    """Return the usable interactions of a part, and count the others.

    dated: whether a time of 0 stands for none.
    Raises `DataError` if the part cannot be read.
    """
    columns = part.events.collect_schema().names()
    simulated = pl.col(SIMULATED_QUERY) if SIMULATED_QUERY in columns else pl.lit(None, pl.String)
    chosen = pl.col("chosen").fill_null(False)
    whole = pl.all_horizontal(
        pl.col("user_id", "item_id").is_not_null() & (pl.col("user_id", "item_id") != ""),
        (pl.col("timestamp").is_finite() & ((pl.col("timestamp") != 0) | (not dated))).fill_null(False),
    )
    visible = pl.col("query").str.contains(VISIBLE).fill_null(False)
    search = visible if part.behaviour is None else pl.lit(part.behaviour is Task.SEARCH)
    usable = chosen & whole & (~search | visible)
    counts = part.events.select(
        (~chosen).sum().alias("items that were shown and not chosen"),
        (chosen & ~whole).sum().alias("interactions without a person, an item or a time"),
        (chosen & whole & ~usable).sum().alias("searches without a query"),
    )
    query = pl.when(search).then(pl.col("query")).alias("query")
    kept = part.events.filter(usable).select(
        "user_id", "item_id", "timestamp", query, simulated.alias(SIMULATED_QUERY)
    )
    try:
        found, frame = pl.collect_all([counts, kept], engine="streaming")  # the file is read once
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(part.place, error) from error
    for reason, count in found.row(0, named=True).items():
        left_out[reason] = left_out.get(reason, 0) + int(count)
    return frame


def _unit(part: Part, times: pl.Series) -> str:
    """Return the unit of time stamps; "" if it is not known. Raises `DataError` for several."""
    places = np.searchsorted(list(UNITS.values()), np.abs(times.to_numpy()), side="right")
    counts = np.bincount(places, minlength=len(UNITS) + 1).tolist()
    found = {unit: count for unit, count in zip(("", *UNITS), counts, strict=True) if count}
    if len(found) > 1:
        listed = ", ".join(f"{unit or 'small numbers'} ({count:,})" for unit, count in found.items())
        raise DataError(
            f"{part.place}: column {part.times!r} holds times of several units: {listed}; write one unit"
        )
    return next(iter(found), "")


def _in_one_unit(frames: list[pl.DataFrame], units: list[str], log: Log) -> tuple[pl.DataFrame, str]:
    """Join the parts, with the times in the finest of their units, as whole numbers where all of them are."""
    known = list(UNITS)
    used = {unit for unit, frame in zip(units, frames, strict=True) if len(frame)}
    if len(used) > 1 and not used <= UNITS.keys():
        raise DataError(
            f"{log.source}: the parts have times of several units, and not all are known: {sorted(used)}"
        )
    finest = max(used, key=known.index) if len(used) > 1 else next(iter(used), "")
    scaled = []
    for frame, unit in zip(frames, units, strict=True):
        steps = known.index(finest) - known.index(unit) if len(used) > 1 and len(frame) else 0
        scaled.append(frame.with_columns(pl.col("timestamp") * 1000**steps))
    events = pl.concat(scaled)
    if len(events) and bool((events["timestamp"] == events["timestamp"].round()).all()):
        events = events.with_columns(pl.col("timestamp").cast(pl.Int64))
    return events, finest


def _shown(log: Log) -> pl.DataFrame:
    return (
        pl.concat([part.events.select("item_id") for part in log.parts]).unique().collect(engine="streaming")
    )


def _items(log: Log, wanted: pl.DataFrame | None, left_out: dict[str, int]) -> pl.DataFrame:
    """Return the items that have a title, each once, in the order of the source. wanted: ids; None for all."""
    items = (
        log.items
        if wanted is None
        else log.items.join(wanted.lazy(), on="item_id", how="semi", maintain_order="left")
    )
    frame = items.filter(pl.col("item_id").is_not_null()).collect(engine="streaming")
    titled = frame.filter(pl.col("title").str.contains(VISIBLE).fill_null(False))
    once = titled.unique("item_id", keep="first", maintain_order=True)
    left_out["items without a title"] = len(frame) - len(titled)
    left_out["repeated rows of an item"] = len(titled) - len(once)
    return once.with_columns(pl.col("title").str.slice(0, MAX_TITLE_CHARS))


def _filtered(events: pl.DataFrame, filters: Filters) -> tuple[pl.DataFrame, dict[str, int]]:
    people, items = (_numbers(events[name]) for name in ("user_id", "item_id"))
    searches, times = events["query"].is_not_null().to_numpy(), events["timestamp"].to_numpy()
    kept, dropped = kept_events(people, items, searches, times, filters)
    behaviour = pl.when(pl.col("query").is_null()).then(pl.lit(Task.RECOMMENDATION.value))
    return events[kept].with_columns(behaviour=behaviour.otherwise(pl.lit(Task.SEARCH.value))), dropped


def _numbers(ids: pl.Series) -> NDArray[np.int64]:
    """Number ids from 0 in the order of their texts, so that a draw of people does not depend on the order of rows."""
    distinct = pl.Enum(ids.unique().sort())
    return ids.cast(distinct).to_physical().to_numpy().astype(np.int64)


def _in_catalogue(log: Log, filters: Filters, item_ids: pl.Series, events: pl.DataFrame) -> pl.Series:
    """Whether each item is in the catalogue, bool [n]."""
    wanted = [events["item_id"].unique()]
    if filters.catalogue is CatalogueOf.ALL:
        wanted.append(item_ids)
    if filters.catalogue is CatalogueOf.SHOWN:
        people = events.select("user_id").unique().lazy()
        wanted += [
            part.events.join(people, on="user_id", how="semi")
            .select("item_id")
            .unique()
            .collect(engine="streaming")["item_id"]
            for part in log.parts
        ]
    return item_ids.is_in(pl.concat(wanted).unique().implode())


def _checked(log: Log, items: pl.DataFrame) -> list[Item]:
    checked: list[Item] = []
    for k, item in enumerate(plain_items(items)):
        try:
            checked.append(item or check_item(items.row(k, named=True)))
        except RowError as error:
            raise DataError(f"{log.titles}: {error}") from error
    return checked
