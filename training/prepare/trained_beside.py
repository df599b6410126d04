"""Baselines that a preparation trains for their item vectors.

The training is kept next to the preparations of the run, under a hash of everything that it depends on, so that runs
may share it and a training that was stopped is continued:

    <kind>-<hash>/.lock
    <kind>-<hash>/<baseline>/    a run of `gems baseline`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from training.baselines.run import VECTORS_FILE, run_baseline
from training.baselines.settings import BaselineSettings
from training.data.dataset import DataSet
from training.data.vectors import read_vectors
from training.run.locks import claim
from training.run.run_folder import fingerprint


def kept_folder(kind: str, beside: Path, settings: BaselineSettings, dataset: DataSet, *more: str) -> Path:
    """Return the folder of a training, next to `beside`.

    more: what the training depends on besides its settings and the data set, its texts included.
    """
    shape = [settings.model_dump(mode="json"), *more, fingerprint(dataset), dataset.catalogue.texts()]
    digest = hashlib.sha256(json.dumps(shape).encode())
    return beside.with_name(f"{kind}-{digest.hexdigest()[:16]}")


def train_beside(
    data: Path,
    folder: Path,
    settings: BaselineSettings,
    dataset: DataSet,
    console: Console,
    language: Path | None = None,
) -> NDArray[np.float32]:
    """Train a baseline in a folder of `kept_folder`, or find it finished, and return its item vectors: float32 [N, k].

    Threads and random state of this process stay as they are.

    data: folder of the data set.
    dataset: on the catalogue whose items are wanted.
    language: file of the items' language vectors, see `run_baseline`.
    Raises `UserError`.
    """
    out = folder / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder / ".lock", wait=True):  # runs of a sweep may share it
        if not (out / "environment.json").exists():  # killed before it was recorded as a run
            shutil.rmtree(out, ignore_errors=True)
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            run_baseline(data, out, settings, language=language, resume=True, console=console)
        torch.set_num_threads(threads)
    return read_vectors(out / VECTORS_FILE, dataset.catalogue.item_ids)
