"""`gems fuse`: fit the fusion of a published bundle again, on a newer log or after an update of the items."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from index.bundle.bundle import Bundle
from index.bundle.update import replace_pool
from index.pool.fusion import Fusion
from index.pool.pool_index import PoolIndex
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from training.data.dataset import DataSet
from training.data.schema import DataError
from training.data.splits import leave_one_out
from training.errors import EvaluationError
from training.fusion.fit import FRESH_SHARE
from training.fusion.fitted_pool import fitted_pool
from training.run.device import engine_device
from training.settings import DeviceName


def fuse_bundle(
    folder: Path,
    data: Path,
    *,
    search_attributes: Sequence[str] | None = None,
    fresh_share: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: DeviceName = "auto",
    console: Console | None = None,
) -> tuple[str, Fusion]:
    """Publish the next version of a bundle's index, with a pool made from a data set. Returns its name and weights.

    data: holds all living items that the model was trained on.
    search_attributes: None for those that the bundle has.
    fresh_share: share of new items among those that people take, in (0, 1); None for that of the bundle's weights.
    Raises `EvaluationError` if bundle and data set do not fit together.
    """
    bundle = Bundle.open(folder)
    dataset = DataSet.load(data)
    catalogue, before = bundle.index.catalogue, bundle.index.pool
    held = np.array([dataset.catalogue.row(item_id) is not None for item_id in catalogue.item_ids])
    try:
        dataset = dataset.on(catalogue)
    except DataError as error:
        raise EvaluationError(
            f"{folder} and {data} have different catalogues: {error}; fuse a bundle on the data set it was trained on"
        ) from error
    trained = int(held.sum()) if before is None else before.trained
    needed = np.ones(trained, bool)
    needed[[row for row in bundle.index.removed if row < trained]] = False
    if (lacking := int((needed & ~held[:trained]).sum())) > 0:
        raise EvaluationError(
            f"{data} holds {needed.sum() - lacking:,} of the {needed.sum():,} items that {folder} was trained on; the "
            "others would lose their popularity and their queries. Fuse it on the whole data set, or a later log of it"
        )
    on = EngineOptions(device=engine_device(device))
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if search_attributes is None:
        search_attributes = () if before is None else before.lexical.attributes
    if fresh_share is None:
        fresh_share = _fresh_share(before)
    pool = fitted_pool(
        TorchEngine.open(bundle, on), bundle.encoder, catalogue, leave_one_out(dataset), search_attributes,
        dense=None if before is None else before.dense, trained=trained, fresh_share=fresh_share,
        later=np.flatnonzero(~held).tolist(), seed=seed, console=console,
    )  # fmt: skip
    assert pool.fusion is not None
    return replace_pool(bundle, pool), pool.fusion


def _fresh_share(pool: PoolIndex | None) -> float:
    """Return the share of new items that the weights of a pool were fitted for."""
    fitted = [] if pool is None or pool.fusion is None else list(pool.fusion.tasks.values())
    shares = [each.figures.get("fresh_share") for each in fitted]
    return max((each for each in shares if isinstance(each, float) and 0 < each < 1), default=FRESH_SHARE)
