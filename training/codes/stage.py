"""The stage in which codes are learned with the language model: from one preparation to another.

RUN/codes/checkpoints/   the newest checkpoint, until the stage is done
RUN/codes/figures.json   figures of the stage
RUN/codes/prepared/      the learned codes and weights, as a preparation that the training goes on from
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from index.files import atomic_folder
from index.identifiers.schemes.semantic import numbered
from training.codes.diger import Diger
from training.codes.genret import GenRet
from training.codes.learner import CodeLearner
from training.codes.loop import learn, save_figures
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.splits import Split
from training.errors import UserError
from training.model.growth import grow_last_level
from training.prepare.preparation import Prepared, is_prepared, open_prepared, save_prepared


class CodesError(UserError):
    """Codes cannot be learned from this data. The message says why, and what to do."""


def check_codes(config: TrainConfig, dataset: DataSet, split: Split) -> None:
    """Raise `CodesError` if the data lacks what the learner of codes needs."""
    learner = config.codes.learner
    if learner == "diger" and not any(len(history) > 1 for history in split.train):
        raise CodesError(
            "codes.learner 'diger' learns codes from histories, and nobody has two training events (four, with those "
            "that are held out): leave it out, so that codes come from the items' vectors alone"
        )
    if learner == "genret":
        bare = [row for row, item in enumerate(dataset.catalogue) if item.text() == item.item_id]
        if 2 * len(bare) > len(dataset.catalogue):
            raise CodesError(
                f"codes.learner 'genret' learns codes from texts, and {len(bare)} of {len(dataset.catalogue)} items "
                f"have none but their id (the first is {dataset.catalogue[bare[0]].item_id!r}, row {bare[0] + 1}): "
                "give them titles, or leave codes.learner out"
            )


def learn_codes(
    start: Path,
    folder: Path,
    config: TrainConfig,
    dataset: DataSet,
    split: Split,
    device: torch.device,
    console: Console,
) -> None:
    """Learn codes, or go on after a kill, or find them learned. Write `folder/prepared`.

    start: folder of a preparation with semantic identifiers.
    Raises `IdentifierError` if too many items end with the same codes, and what `learn` raises.
    """
    result = folder / "prepared"
    if is_prepared(result):
        return
    prepared = open_prepared(start)
    prepared.model.to(device)
    torch.manual_seed(config.seed)
    learner = _learner(prepared, config, dataset, split).to(device)
    progress = learn(learner, folder, config, console)
    with console.status("learned codes"):
        known, codes, figures = learner.finish()
        identifiers = numbered(known, codes)
        before = prepared.vocabulary
        last = max(before.codebook_sizes[-1], identifiers.codebook_sizes[-1])
        sizes = (*identifiers.codebook_sizes[:-1], last)
        identifiers, vocabulary = (
            replace(identifiers, codebook_sizes=sizes),
            replace(before, codebook_sizes=sizes),
        )
        model = learner.model.cpu()
        if vocabulary != before:
            grow_last_level(model, prepared.tokenizer, before, vocabulary)
        save_figures(folder, progress, figures)
        with atomic_folder(result, single_writer=True, replace=True) as draft:
            save_prepared(
                draft, identifiers, vocabulary, model, prepared.tokenizer, prepared.origin, _vectors(prepared)
            )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    console.print(
        f"codes by {config.codes.learner}: {progress.step} steps in {progress.seconds:.0f} s; "
        + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    )


def _learner(prepared: Prepared, config: TrainConfig, dataset: DataSet, split: Split) -> CodeLearner:
    kind = Diger if config.codes.learner == "diger" else GenRet
    return kind(prepared, config, split.train, dataset.catalogue)


def _vectors(prepared: Prepared) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(prepared.vectors, allow_pickle=False)
    return vectors
