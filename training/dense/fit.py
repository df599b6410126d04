"""The fit of the dense head: item vectors and hidden states → maps into one space, by maximum likelihood.

    loss(B) = −Σ_t log softmax_j(h'_t · B x_j)[i_t]        over targets t: state h', item i

j runs over all items where they are few; otherwise over the targets of the batch and items that are drawn at random.

h' = A h are the coordinates of the hidden state in the subspace that holds most of the states' energy: A has the
leading right singular vectors of the states as its rows, so that the maps stay small for wide models. Item rows follow
from vectors alone, with nothing of an item's own: only so is the row of an item that comes later worth as much. The
fit is made three times: to all items, and to each half of them, see `DenseIndex`.

LIGER (arXiv 2411.18814) trains such a head beside the codes and by cosine; fitted afterwards, the plain product found
more new items on Amazon Beauty (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel

from index.pool.dense import HALVES, DenseHead, DenseIndex
from training.dense.states import target_states
from training.loop.batches import BatchSource

WIDTH = 128  # most dimensions of a row
BATCH, RATE, DECAY = 512, 3e-3, 0.01
PASSES, LEAST_STEPS, MOST_STEPS = 4, 100, 400  # over the targets
DRAWN = 4096  # items of a softmax besides the targets of the batch


def dense_index(
    model: PreTrainedModel,
    batches: BatchSource,
    vectors: NDArray[np.float32],
    *,
    seed: int,
    console: Console,
) -> DenseIndex:
    """Fit the head of a trained model to its training data, and return the rows of all items.

    vectors: item vectors, float32 [N, d_x].
    """
    with Progress(console=console) as bar:
        row = bar.add_task("dense head", total=None)
        states, items = target_states(model, batches)
        return fit_dense(
            states,
            items,
            vectors,
            seed=seed,
            progress=lambda share: bar.update(row, total=1, completed=share),
        )


def fit_dense(
    states: Tensor,
    items: Tensor,
    vectors: NDArray[np.float32],
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> DenseIndex:
    """Fit the head, and return the rows of all items.

    states: float32 [n, d_h]. items: int64 [n], the row of each target. vectors: float32 [N, d_x].
    progress: called with the share that is done.
    """
    mean = vectors.mean(axis=0)
    spread = max(float((vectors - mean).std()), 1e-6)
    centred = torch.from_numpy((vectors - mean) / spread)
    _, _, directions = torch.linalg.svd(states.T @ states / len(states))
    state_map = directions[:WIDTH] / max(float(states.std()), 1e-6)
    queries = states @ state_map.T
    generator = torch.Generator().manual_seed(seed)
    maps: list[Tensor] = []
    for left_out in (None, *range(HALVES)):
        known = torch.arange(len(vectors))
        if left_out is not None:
            known = known[known % HALVES != left_out]
        maps.append(_fit(queries, items, centred, known, generator) / spread)
        progress(len(maps) / (1 + HALVES))
    heads = [DenseHead(state_map.numpy(), item_map.numpy(), mean) for item_map in maps]
    held_out = np.empty((len(vectors), len(state_map)), np.float16)
    for half in range(HALVES):
        held_out[half::HALVES] = heads[1 + half].rows(vectors[half::HALVES])
    return DenseIndex(heads[0], heads[0].rows(vectors), held_out, len(vectors))


def _fit(
    queries: Tensor, items: Tensor, vectors: Tensor, known: Tensor, generator: torch.Generator
) -> Tensor:
    """Return B, float32 [k, d_x], fitted to the targets that are known items.

    queries: h', float32 [n, k]. vectors: centred, float32 [N, d_x]. known: rows of items, ascending, int64 [m].
    """
    place = torch.full((len(vectors),), -1)
    place[known] = torch.arange(len(known))
    chosen = place[items] >= 0
    queries, items, vectors = queries[chosen], place[items[chosen]], vectors[known]
    item_map = torch.zeros(queries.shape[1], vectors.shape[1], requires_grad=True)
    if not len(items):
        return item_map.detach()
    optimiser = torch.optim.AdamW([item_map], lr=RATE, weight_decay=DECAY)
    steps = min(MOST_STEPS, max(LEAST_STEPS, PASSES * len(items) // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(0, len(items), (BATCH,), generator=generator)
        target, rows = items[batch], vectors
        if len(vectors) > BATCH + DRAWN:
            drawn = torch.randint(0, len(vectors), (DRAWN,), generator=generator)
            among, target = torch.unique(torch.cat([target, drawn]), return_inverse=True)
            rows, target = vectors[among], target[:BATCH]
        loss = F.cross_entropy(queries[batch] @ (rows @ item_map.T).T, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return item_map.detach()
