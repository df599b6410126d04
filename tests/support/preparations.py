"""Preparations of small backbones on the walks, with item vectors of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from support.walks import COLOURS, THINGS, settings
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.item_vectors import ItemVectors, VectorOrigin, VectorSource
from training.model.backbones import load_backbone
from training.prepare.preparation import Prepared, open_prepared, prepare


def code_settings(learner: str, backbone: str, *changes: Mapping[str, Any]) -> TrainConfig:
    """Return settings of a training that learns codes, on the walks."""
    return settings(
        {
            "method": "full",
            "backbone": {"name": backbone, "dropout": 0.0},
            "identifiers": {"scheme": "semantic", "codebooks": (4, 4)},
            "codes": {"learner": learner},
            "optimiser": {"relative": False, "learning_rate": 1e-2, "warmup": 0.0},
            "validation": {"conflict_cases": 0},
        },
        *changes,
    )


def walk_vectors() -> np.ndarray:
    """Return vectors of the walks' items, float32 [30, 11]: their colour, their thing, and noise."""
    colours, things = np.divmod(np.arange(len(COLOURS) * len(THINGS)), len(THINGS))
    shape = np.concatenate([np.eye(len(COLOURS))[colours], 0.8 * np.eye(len(THINGS))[things]], axis=1)
    return (shape + np.random.default_rng(0).normal(0, 0.3, shape.shape)).astype(np.float32)


def prepare_walks(folder: Path, dataset: DataSet, config: TrainConfig) -> Prepared:
    """Prepare a backbone for the walks."""
    source = VectorSource(VectorOrigin("file"), lambda _: ItemVectors(walk_vectors()))
    backbone = load_backbone(config, dataset.catalogue.texts())
    prepare(folder, dataset.catalogue, backbone, source, None, config, Console(quiet=True))
    return open_prepared(folder)
