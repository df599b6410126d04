"""Filters of a log, as papers choose them: each is one switch, and says how many interactions it drops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# what counts as a choice, in the words of the source
QilinSignal = Literal["click", "like", "collect", "comment", "share", "page_time"]
KuaiSARSignal = Literal["click", "like", "follow", "forward"]
JDsearchSignal = Literal["click", "cart", "purchase"]
AmazonQueries = Literal["category-paths", "none"]


class CatalogueOf(StrEnum):
    """Items of the catalogue: those that somebody chose, also those that were only shown, or all that have a title."""

    CHOSEN = "chosen"
    SHOWN = "shown"
    ALL = "all"


@dataclass(frozen=True)
class Filters:
    """Choice of what is kept of a log. The defaults keep everything that was chosen.

    both_behaviours: only people who have both searches and recommendations.
    core: people and items with fewer interactions are dropped, again and again until there are none; 0: none are.
    newest: interactions kept of each person, the newest; 0: all.
    users: people who are drawn; 0: all. Of `both_behaviours`, they are drawn among those who have both.
    seed: of that draw, and of simulated queries.
    deduplicate: whether interactions that repeat an earlier one in every column are dropped.
    """

    both_behaviours: bool = False
    core: int = 0
    newest: int = 0
    users: int = 0
    seed: int = 0
    deduplicate: bool = False
    catalogue: CatalogueOf = CatalogueOf.CHOSEN


def kept_events(
    people: NDArray[np.integer],
    items: NDArray[np.integer],
    searches: NDArray[np.bool_],
    times: NDArray[np.number],
    filters: Filters,
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the places of the events that are kept, ascending, and how many each filter dropped, by its reason.

    people, items: numbers from 0, [events]. searches: whether each event is a search. times: of any unit.
    First people are chosen, then their newest events, and in the end the core and both behaviours hold together.
    """
    kept = np.arange(len(people))
    dropped: dict[str, int] = {}

    def keep(mask: NDArray[np.bool_], reason: str) -> None:
        nonlocal kept
        dropped[reason] = dropped.get(reason, 0) + int(len(mask) - mask.sum())
        kept = kept[mask]

    both = "interactions of people without both behaviours (--both-behaviours)"
    if filters.both_behaviours:
        keep(_of_both(people, searches), both)
    if filters.users:
        present = np.unique(people[kept])
        drawn = np.random.default_rng(filters.seed).permutation(present)[: filters.users]
        keep(
            np.isin(people[kept], drawn),
            f"interactions of people who were not drawn (--users {filters.users})",
        )
    if filters.newest:
        keep(
            _from_the_end(people[kept], times[kept]) < filters.newest,
            f"interactions before the newest of a person (--newest {filters.newest})",
        )
    while filters.core or filters.both_behaviours:
        before = len(kept)
        if filters.core:
            keep(
                _at_least(people[kept], filters.core) & _at_least(items[kept], filters.core),
                f"interactions of people or items with fewer than {filters.core} (--core {filters.core})",
            )
        if filters.both_behaviours:
            keep(_of_both(people[kept], searches[kept]), both)
        if len(kept) == before:
            break
    return kept, dropped


def _of_both(people: NDArray[np.integer], searches: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the person of each event has a search and a recommendation, bool [events]."""
    number = int(people.max(initial=-1)) + 1
    searched = np.bincount(people[searches], minlength=number)
    recommended = np.bincount(people[~searches], minlength=number)
    both: NDArray[np.bool_] = ((searched > 0) & (recommended > 0))[people]
    return both


def _at_least(subjects: NDArray[np.integer], least: int) -> NDArray[np.bool_]:
    """Whether the subject of each event has so many events, bool [events]."""
    enough: NDArray[np.bool_] = (np.bincount(subjects) >= least)[subjects]
    return enough


def _from_the_end(people: NDArray[np.integer], times: NDArray[np.number]) -> NDArray[np.int64]:
    """Return how many events of the same person are newer than each, int64 [events]; of equal times the last is."""
    order = np.lexsort((np.arange(len(people)), times, people))
    ends = np.cumsum(np.bincount(people, minlength=1))[people[order]]
    newer = np.empty(len(people), np.int64)
    newer[order] = ends - 1 - np.arange(len(people))
    return newer
