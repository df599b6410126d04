"""A small data set that can be learned, and settings to train on it. People walk through the things of one colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataInfo

SETTINGS: dict[str, Any] = {
    "method": "gems", "threads": 1,
    "backbone": {"name": "scratch", "hidden": 32, "heads": 2, "layers": 1, "dropout": 0.1, "text_vocabulary": 400},
    "identifiers": {"codebooks": (4, 4)},
    "sequence": {"max_events": 8, "max_tokens": 128, "title_queries": 0.2},
    "optimiser": {"batch_size": 16, "epochs": 12, "learning_rate": 1e-2},
    "gems": {"rank_share": 0.5, "refresh_every": 20},
    "validation": {"cases": 60, "patience": 100},
}  # fmt: skip
COLOURS = ("red", "green", "blue", "black", "white", "golden")
THINGS = ("shoes", "hat", "scarf", "coat", "gloves")


def settings(*changes: Mapping[str, Any]) -> TrainConfig:
    """Return the settings with changes, in groups or by dotted names: `settings({"optimiser.epochs": 3})`."""
    return TrainConfig.combined(SETTINGS, *changes)


def make_data(folder: Path, users: int = 120) -> Path:
    """Write the data set: people walk through the things of one colour in a fixed order, which can be learned."""
    # Row = colour · 5 + thing.
    catalogue = Catalogue(Item(f"{c}-{t}", f"{c} {t}", categories=(t,)) for c in COLOURS for t in THINGS)
    rng = np.random.default_rng(0)
    people = []
    for user in range(users):
        colour, start = int(rng.integers(6)), int(rng.integers(5))
        rows = [colour * 5 + (start + k) % 5 for k in range(int(rng.integers(4, 9)))]
        searches = rng.random(len(rows)) < 0.5
        events = tuple(
            Event(row, Task.SEARCH, catalogue[row].title) if search else Event(row)
            for row, search in zip(rows, searches, strict=True)
        )
        queries = tuple(catalogue[row].title for row in rows)
        people.append(UserHistory(f"u{user}", events, queries, tuple(range(len(rows)))))
    DataSet(DataInfo("walks", "test"), catalogue, people).save(folder)
    return folder
