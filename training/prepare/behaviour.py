"""Vectors of behaviour: what a SASRec of item IDs has learned from the training events, for identifiers that follow it.

An item that nobody chose in training has none: its row is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from training.baselines.sequences import item_rows
from training.baselines.settings import SASRecSettings
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectorError
from training.data.splits import Split
from training.prepare.trained_beside import kept_folder, train_beside

BehaviourSource = Callable[[Console], NDArray[np.float32]]


def behaviour_source(
    config: TrainConfig, data: Path, dataset: DataSet, split: Split, beside: Path
) -> BehaviourSource:
    """Return a function that trains the recommender, or finds it, and returns its vectors: float32 [N, k].

    data: folder of the data set; only `split.train` of the leave-one-out split is learned from.
    beside: folder next to which the training is kept.
    Raises `ItemVectorError` if there is nothing to learn from.
    """
    settings = SASRecSettings(
        hidden=config.identifiers.fused_hidden,
        epochs=config.identifiers.fused_epochs,
        seed=config.seed,
        threads=config.threads,
    )
    scheme = config.identifiers.scheme
    what = "scheme gensar" if scheme == "gensar" else f"quantiser {config.identifiers.quantiser}"
    chosen = chosen_items(split, f"--identifiers.{what}")
    folder = kept_folder("behaviour", beside, settings, dataset)

    def make(console: Console) -> NDArray[np.float32]:
        console.print(f"behaviour of the items is learned in {folder / settings.name}", soft_wrap=True)
        learned = train_beside(data, folder, settings, dataset, console)
        vectors = np.full_like(learned, np.nan)
        vectors[chosen] = learned[chosen]
        return vectors

    return make


def chosen_items(split: Split, setting: str) -> NDArray[np.int64]:
    """Return the rows of items of histories with two training events or more, ascending.

    setting: what needs them, for the message.
    Raises `ItemVectorError` if there are none.
    """
    histories = item_rows(split.train)
    if not histories:
        raise ItemVectorError(
            f"{setting}: nobody has two training events (four, with those that are held out), so there is no behaviour "
            "to learn from; use the default"
        )
    return np.unique(np.concatenate(histories))
