"""Fusion: fitted weights that turn the signals about a candidate into one score, and into its relevance.

    score      u_i = Σ_s w_s x_is                              of candidate i, in nats
    nothing    u_0 = Σ_s w_s z_s                               the person takes none of the pool
    relevance  p_i = exp(u_i) / (exp(u_0) + Σ_j exp(u_j))      the probability that the person takes i

This is a conditional logit with an outside option (McFadden, 1974). Signals of evidence have weights of at least zero:
more evidence never lowers a score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.records import Record, RecordError
from index.sequence.events import Task

Link = Literal["transitions", "co_occurrence"]
LINKS: tuple[Link, ...] = ("transitions", "co_occurrence")
WORDS = ("bm25", "all_words", "title_share", "exact_title", "exact_attribute", "exact_category")
FRESH = ("fresh", "fresh_likeness", "fresh_dense", *(f"fresh_{name}" for name in WORDS))

# Signals about an item. `code`: log p(identifier | prompt); `popularity`: log(1 + events in training); `query_log`:
# log(1 + people who chose it for this query); `transitions`, `co_occurrence`: see `index.pool.linked`; `likeness`: of
# its title to those of the history, see `LexicalIndex.likeness`; `dense`: see `index.pool.dense`; `WORDS`: see
# `index.pool.lexical`.
# The model knows no fresh item (added after training): its words, likeness and vector count with weights of their own,
# and `fresh` stands for the other signals. A recommendation leaves popularity to the model, which has learned it: as a
# signal of its own it ranked worse on test cases. So it does with the vectors of known items, which added nothing.
ITEM_SIGNALS: Mapping[Task, tuple[str, ...]] = {
    Task.SEARCH: ("code", "popularity", "query_log", *LINKS, "likeness", "dense", *WORDS, *FRESH),
    Task.RECOMMENDATION: ("code", *LINKS, "likeness", "fresh", "fresh_likeness", "fresh_dense"),
}
# Signals that nothing fits: a constant, and the share of the query's words that the catalogue does not hold.
NOTHING_SIGNALS: Mapping[Task, tuple[str, ...]] = {
    Task.SEARCH: ("nothing", "unknown_words"),
    Task.RECOMMENDATION: ("nothing",),
}
UNBOUNDED = ("fresh", "nothing")  # weights that may be negative
LATER = (
    *LINKS,
    "likeness",
    "dense",
    "fresh_likeness",
    "fresh_dense",
    "exact_category",
    "fresh_exact_category",
)  # signals that came later: without a weight they count nothing
MAX_WEIGHT = 1e4


@dataclass(frozen=True)
class TaskFusion:
    """Weights of one task.

    weights: weight by signal, of items and of nothing.
    cutoff: suggested `min_relevance`; 0 if none was found.
    figures: how the weights were fitted, for people.
    """

    weights: Mapping[str, float]
    cutoff: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fusion:
    """Weights of both tasks. A task without weights is ranked by the beam alone."""

    tasks: Mapping[Task, TaskFusion]

    def has(self, task: Task) -> bool:
        """Whether there are weights for a task."""
        return task in self.tasks

    def item_weights(self, task: Task) -> NDArray[np.float64]:
        """Return the weights of `ITEM_SIGNALS`, float64 [signals]."""
        return np.array([self.tasks[task].weights[name] for name in ITEM_SIGNALS[task]])

    def nothing_weights(self, task: Task) -> NDArray[np.float64]:
        """Return the weights of `NOTHING_SIGNALS`, float64 [signals]."""
        return np.array([self.tasks[task].weights[name] for name in NOTHING_SIGNALS[task]])

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        record = {task.value: asdict(fusion) for task, fusion in self.tasks.items()}
        path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")

    @classmethod
    def open(cls, path: Path) -> Fusion:
        """Read a file that `save` wrote. Raises `RecordError` for a weight that is missing or out of bounds."""
        record = Record.read(path)
        unknown = set(record.names) - {task.value for task in Task}
        if unknown:
            raise RecordError(f"{path}: {min(unknown)} is no task")
        return cls({task: _read(record, task) for task in Task if task.value in record.names})


def relevance(scores: NDArray[np.float64], nothing: float) -> NDArray[np.float64]:
    """Return the relevance of each candidate of a pool, float64 [n]; see above."""
    top = max(nothing, float(scores.max(initial=-math.inf)))
    shares: NDArray[np.float64] = np.exp(scores - top)
    shares /= shares.sum() + math.exp(nothing - top)
    return shares


def _read(record: Record, task: Task) -> TaskFusion:
    part = Record(record.path, record.mapping(task.value))
    weights = Record(record.path, part.mapping("weights"))
    read = {
        name: weights.number(name, -MAX_WEIGHT if name in UNBOUNDED else 0.0, MAX_WEIGHT)
        for name in (*ITEM_SIGNALS[task], *NOTHING_SIGNALS[task])
        if name not in LATER or name in weights.names
    }
    return TaskFusion(
        {name: 0.0 for name in LATER if name in ITEM_SIGNALS[task]} | read,
        part.number("cutoff", 0.0, 1.0),
        part.mapping("figures"),
    )
