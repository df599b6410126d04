"""Histories as batches for a sequential recommender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.events import Event
from training.data.splits import Case

POOL = 16  # batches whose windows are sorted by length together, so that there is little padding


@dataclass(frozen=True)
class Batch:
    """Windows of histories.

    rows: catalogue rows of the events, int64 [B, T], 0 on padding.
    targets: catalogue row of the next event, int64 [B, T], −1 on padding.
    """

    rows: Tensor
    targets: Tensor


def item_rows(histories: Sequence[Sequence[Event]]) -> list[NDArray[np.int64]]:
    """Return the catalogue rows of every history of at least two events: int64 [events]."""
    return [np.array([event.item for event in h], np.int64) for h in histories if len(h) > 1]


def thinned(
    histories: Sequence[NDArray[np.int64]], dropout: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return histories without some of their events, so that an item follows others than the one before it.

    histories: catalogue rows, int64 [events] each. dropout: probability with which each event is left out, in [0, 1).
    Of a history that would keep fewer than two, the last two stay.
    """
    kept = [history[rng.random(len(history)) >= dropout] for history in histories]
    return [some if len(some) > 1 else whole[-2:] for some, whole in zip(kept, histories, strict=True)]


def epoch_batches(
    histories: Sequence[NDArray[np.int64]], max_events: int, batch_size: int, rng: np.random.Generator
) -> list[Batch]:
    """Return the batches of an epoch. Every event except the first of a history is a target once.

    Histories of more than `max_events` + 1 events are cut into windows, at random places.

    histories: catalogue rows, int64 [events] each.
    """
    windows = [window for history in histories for window in _windows(history, max_events, rng)]
    order = rng.permutation(len(windows))
    batches = []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda k: len(windows[k]))
        batches += [
            _pad([windows[k] for k in pool[b : b + batch_size]]) for b in range(0, len(pool), batch_size)
        ]
    return [batches[k] for k in rng.permutation(len(batches))]


def _windows(
    history: NDArray[np.int64], max_events: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Cut a history into windows that overlap by one event: the last target of one is the first input of the next."""
    if len(history) <= max_events + 1:
        return [history]
    first = int(rng.integers(1, max_events + 1))
    cuts = [0, *range(first, len(history) - 1, max_events), len(history) - 1]
    return [history[low : high + 1] for low, high in pairwise(cuts)]


def _pad(windows: Sequence[NDArray[np.int64]]) -> Batch:
    longest = max(map(len, windows)) - 1
    rows = np.zeros((len(windows), longest), np.int64)
    targets = np.full((len(windows), longest), -1)
    for k, window in enumerate(windows):
        rows[k, : len(window) - 1], targets[k, : len(window) - 1] = window[:-1], window[1:]
    return Batch(torch.from_numpy(rows), torch.from_numpy(targets))


def read_cases(cases: Sequence[Case], max_events: int) -> tuple[Tensor, Tensor]:
    """Return the latest events of each case and the position of the last one.

    Events: catalogue rows, int64 [B, T], padded with 0 at the end. Positions: int64 [B].
    """
    latest = [[event.item for event in case.history[-max_events:]] for case in cases]
    longest = max(map(len, latest))
    rows = torch.tensor([items + [0] * (longest - len(items)) for items in latest])
    return rows, torch.tensor([len(items) - 1 for items in latest])
