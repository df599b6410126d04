"""Rankings of the fitting cases, as the signals that their pools hold.

Nothing was added to the catalogue yet, so that fresh items are simulated: a case is ranked once more with a tenth of
the catalogue hidden from the model, as if these items had been added after training. Half of these cases hide their
target, and both halves are weighted so that a given share of all targets is hidden: the share that new items have of
what people take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.pool.dense import HALVES
from index.pool.pool import Pool
from index.pool.pool_index import PoolIndex
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from index.trie.allowed import Allowed, SlotSet
from server.engine.contract import Engine, RankRequest
from training.fusion.cases import FitCase
from training.fusion.logit import Choice

FOLDS = 10  # one of them is hidden
HIDDEN_TARGETS = 0.5  # share of the simulated cases whose target is hidden
BATCH = 256


@dataclass(frozen=True, eq=False)
class _Setting:
    """A catalogue in which some items are fresh. beam: slots of the items that the model knows; None for all."""

    index: PoolIndex
    beam: SlotSet | None


@dataclass(frozen=True, eq=False)
class _Job:
    """One ranking of a fitting case. weight: how much it counts."""

    case: FitCase
    setting: _Setting
    weight: float
    simulated: bool


@dataclass(frozen=True, eq=False)
class Ranked:
    """A fitting case with its signals. simulated: whether fresh items were."""

    case: FitCase
    choice: Choice
    simulated: bool


def rank_choices(
    engine: Engine,
    encoder: SequenceEncoder,
    index: PoolIndex,
    task: Task,
    cases: Sequence[FitCase],
    *,
    beam_width: int,
    exclude_history: bool,
    fresh_share: float,
    later: Sequence[int] = (),
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Ranked]:
    """Rank the cases, and those with a target once more with simulated fresh items.

    exclude_history: whether items of the history are left out.
    fresh_share: share of the targets that are new items, in (0, 1).
    later: rows of items that came after the log. No case can choose them, which would teach that nobody does: they are
        left out.
    progress: called with the numbers of finished rankings and of all.
    """
    rng = np.random.default_rng([seed, len(cases)])
    # A fold lies within one half of the items: their dense rows come from a fit to the other half.
    rows = np.arange(len(index.catalogue))
    fold = rng.integers(0, FOLDS // HALVES, len(rows)) * HALVES + rows % HALVES
    everything = engine.everything_for(task)
    hidden = [_with_fresh(index, everything, fold == k, k % HALVES) for k in range(FOLDS)]
    today = _Setting(index, everything.chosen)
    jobs = [_Job(case, today, 1.0, False) for case in cases]
    for case in cases:
        if case.target is not None:
            hide = bool(rng.random() < HIDDEN_TARGETS)
            own, step = int(fold[case.target]), int(rng.integers(1, FOLDS))
            weight = fresh_share / HIDDEN_TARGETS if hide else (1 - fresh_share) / (1 - HIDDEN_TARGETS)
            jobs.append(_Job(case, hidden[own if hide else (own + step) % FOLDS], weight, True))
    found: list[Ranked] = []
    for start in range(0, len(jobs), BATCH):
        found += _rank(engine, encoder, task, jobs[start : start + BATCH], beam_width, exclude_history, later)
        progress(len(found), len(jobs))
    return found


def _with_fresh(index: PoolIndex, everything: Allowed, hidden: NDArray[np.bool_], half: int) -> _Setting:
    fresh = index.fresh | hidden
    known = np.ones(everything.trie.items, bool)
    known[everything.trie.slot_of_item[fresh]] = False
    slots = SlotSet.of(known)
    if everything.chosen is not None:
        slots &= everything.chosen
    dense = None if index.dense is None else index.dense.hiding(hidden, half)
    return _Setting(replace(index, fresh=fresh, dense=dense), slots)


def _rank(
    engine: Engine,
    encoder: SequenceEncoder,
    task: Task,
    jobs: Sequence[_Job],
    beam_width: int,
    exclude_history: bool,
    later: Sequence[int],
) -> list[Ranked]:
    pools, requests = [], []
    for job in jobs:
        case = job.case.case
        query = case.query if task is Task.SEARCH else None
        history = [event.item for event in case.history]
        left_out = [*(history if exclude_history else []), *later]
        allowed = engine.everything_for(task).without(left_out)
        pools.append(Pool.gather(job.setting.index, allowed, query, history))
        beam = Allowed.of(allowed.trie, job.setting.beam, left_out)
        events = case.history
        if encoder.vocabulary.one_code:  # as in the prompts of a bundle with such items
            events = tuple(event for event in events if not job.setting.index.fresh[event.item])
        prompt = encoder.prompt(events, query).ids
        requests.append(
            RankRequest(
                prompt,
                beam_width,
                beam_width,
                beam,
                siblings=beam_width,
                pool=pools[-1].to_score,
                state=pools[-1].needs_state,
            )
        )
    found = []
    for job, pool, ranking in zip(jobs, pools, engine.rank(requests), strict=True):
        rows, signals = pool.signals(ranking)
        places = {row: place for place, row in enumerate(rows.tolist())}
        target = None if job.case.target is None else places.get(job.case.target)
        choice = Choice(signals, pool.nothing(), target, job.weight)
        found.append(Ranked(job.case, choice, job.simulated))
    return found
