"""UnifiedSSR on a data set: one model of both tasks that scores items, from the two views of a joint history.

Source: Xie et al., *UnifiedSSR: A Unified Framework of Sequential Search and Recommendation*, WWW 2024. With the states
p_t and q_t of the product view and of the query view (`networks/two_views.py`), and the vector e_i of an item:

    recommendation:  p_t · e_i
    search:          w p_t · e_i + (1 − w) q_t · e_i,   w ∈ {0.1, .., 0.9} is chosen on the validation cases

Both tasks are trained together, by binary cross-entropy with random negatives: p_t at every event, q_t at searches. A
correlation loss makes the two views of a session know each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.events import Task
from training.baselines.baseline import Baseline, TaskCases
from training.baselines.joint_log import JointBatch, JointLog
from training.baselines.networks.two_views import TwoViews, correlation_loss
from training.baselines.settings import UnifiedSSRSettings
from training.data.dataset import DataSet
from training.data.splits import Case, Split
from training.evaluation.candidates import Candidates
from training.evaluation.metrics import per_case
from training.evaluation.scoring import ranks_in

SHARES = tuple(round(0.1 * k, 1) for k in range(1, 10))  # those that w is chosen from
CASES = 256  # that are scored at a time
SESSION_TEMPERATURE = 0.1


class Scorer:
    """The scores of both tasks, and the choice of the product view's share of a search."""

    def __init__(self, model: TwoViews, log: JointLog, users: dict[str, int], candidates: Candidates) -> None:
        """Score with `model`. users: rows of the user vectors by user id. candidates: rule of the validation."""
        self._model, self._log, self._users, self._candidates = model, log, users, candidates

    @torch.inference_mode()
    def views(self, cases: Sequence[Case], task: Task) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the scores by the product view and by the query view: float32 [cases, N] each."""
        model = self._model
        rows, terms, last = self._log.read_cases(cases, task, model.max_events)
        people = torch.tensor([self._users.get(case.user_id, 0) for case in cases])
        cells = torch.arange(len(cases)), last
        product, query = (model.scores(states[cells]).numpy() for states in model.states(rows, terms, people))
        return product, query

    def recommendation(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Return the scores of recommendations: float32 [cases, N]."""
        return self.views(cases, Task.RECOMMENDATION)[0]

    def search(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Return the scores of searches: float32 [cases, N]."""
        return mixed(*self.views(cases, Task.SEARCH), float(self._model.search_share))

    def choose(self, validation: TaskCases) -> None:
        """Set the share to the one of the best NDCG@10 on the searches of the validation; without any it stays."""
        cases = validation[Task.SEARCH]
        gains = np.zeros(len(SHARES))
        for start in range(0, len(cases), CASES):
            part = cases[start : start + CASES]
            product, query = self.views(part, Task.SEARCH)
            for k, share in enumerate(SHARES):
                ranks = ranks_in(mixed(product, query, share), part, limit=10, candidates=self._candidates)
                gains[k] += per_case(ranks)["ndcg@10"].sum()
        if gains.any():
            self._model.search_share.fill_(SHARES[int(gains.argmax())])


def mixed(product: NDArray[np.float32], query: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Return w · product + (1 − w) · query, for scores of one shape."""
    return share * product + (1 - share) * query


def unified_ssr(settings: UnifiedSSRSettings, dataset: DataSet, split: Split) -> Baseline:
    """Return UnifiedSSR as a baseline of both tasks. Raises `BaselineError` if no training event is a search."""
    items = len(dataset.catalogue)
    log = JointLog(split.train, items)
    users = {
        user_id: row for row, user_id in enumerate(dataset.users.user_ids.to_pylist())
    }  # as in `split.train`, unless people are held out, and then there are no user vectors
    model = TwoViews(
        items, len(log.vocabulary), len(users) if settings.user_vectors else 0, settings.hidden,
        layers=settings.layers, heads=settings.heads, dropout=settings.dropout,
        max_events=settings.max_events,
    )  # fmt: skip
    scorer = Scorer(model, log, users, Candidates(bool(settings.exclude_history)))

    def batches(epoch: int) -> list[JointBatch]:
        rng = np.random.default_rng([settings.seed, epoch])
        return log.batches(settings.max_events, settings.batch_size, rng)

    def loss_of(batch: JointBatch) -> Tensor:
        product, query = model.states(batch.rows, batch.terms, batch.users)
        inside = batch.targets >= 0
        asked = inside & batch.searches
        drawn = torch.randint(items, (*batch.targets.shape, settings.negatives))
        candidates = torch.cat([batch.targets[..., None], drawn], -1)
        loss = choice_loss(model, product[inside], candidates[inside])
        if asked.any():
            loss = loss + choice_loss(model, query[asked], candidates[asked])
        if settings.correlation and len(batch.rows) > 1:
            cells = torch.arange(len(batch.rows)), inside.sum(1) - 1
            chosen, searched = model.sessions(product, query)
            apart = correlation_loss(chosen[cells], searched[cells], SESSION_TEMPERATURE)
            loss = loss + settings.correlation * apart
        return loss

    return Baseline(
        model, settings.epochs, batches, loss_of,
        {Task.SEARCH: scorer.search, Task.RECOMMENDATION: scorer.recommendation},
        choose=scorer.choose, notes=lambda: {"search_share": round(float(model.search_share), 1)},
    )  # fmt: skip


def choice_loss(model: TwoViews, states: Tensor, candidates: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of the chosen items against random ones.

    A random item may be the chosen one; this is rare.

    states: float [n, D]. candidates: catalogue rows, int64 [n, 1 + negatives], the chosen one first.
    """
    answers = (model.items(candidates) @ states[..., None]).squeeze(-1)
    wanted = torch.zeros_like(answers)
    wanted[:, 0] = 1
    return F.binary_cross_entropy_with_logits(answers, wanted)
