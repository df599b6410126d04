"""From logged histories to padded parts of a step.

A step takes `batch_size` logged sequences, drawn anew each epoch, and a share of title queries. Its
samples are sorted by length and cut into parts of alike lengths, so that little is computed on
padding; every part is one forward and backward pass, and their gradients add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index.history import Event, Task
from index.sequence import TASKS, Sample, SequenceEncoder


@dataclass(frozen=True)
class Part:
    """Samples of alike length, padded on the right.

    ids: int64 [B, T]; level: int8 [B, T], -1 on padding; task: int8 [B, T].
    """

    ids: Tensor
    level: Tensor
    task: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step trains on; `targets` counts the items to be predicted, by task."""

    parts: list[Part]
    targets: dict[Task, int]
    tokens: int


class BatchSource:
    """The batches of each epoch, a pure function of (seed, epoch): a resumed run sees the same ones."""

    def __init__(
        self,
        encoder: SequenceEncoder,
        histories: Sequence[Sequence[Event]],
        titles: Sequence[str],
        *,
        batch_size: int,
        part_tokens: int,
        title_queries: float = 0.0,
        query_dropout: float = 0.0,
        seed: int = 0,
        min_parts: int = 1,
    ) -> None:
        """min_parts: parts that a step has at least, so that every process has some to compute."""
        self._min_parts = min_parts
        self._encoder = encoder
        self._histories = [history for history in histories if history]
        self._titles = [(row, title) for row, title in enumerate(titles) if encoder.has_tokens(title)]
        self._batch_size = batch_size
        self._part_tokens = part_tokens
        self._query_dropout = query_dropout
        self._seed = seed
        windows = sum(len(self._windows(history)) for history in self._histories)
        interactions = sum(len(history) for history in self._histories)
        self.steps_per_epoch = max(1, math.ceil(windows / batch_size))
        self._titles_per_step = title_queries * interactions / self.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self._seed, epoch])
        windows = [window for history in self._histories for window in self._windows(history, rng)]
        order = rng.permutation(len(windows))
        for step in range(self.steps_per_epoch):  # jitter may make a few windows more
            chosen = order[
                step * len(order) // self.steps_per_epoch : (step + 1) * len(order) // self.steps_per_epoch
            ]
            samples = [self._encoder.sample(self._hide_queries(windows[k], rng)) for k in chosen]
            titles = int(self._titles_per_step + rng.random())
            if self._titles:
                samples += [self._title_sample(int(k)) for k in rng.integers(0, len(self._titles), titles)]
            yield self._batch(samples)

    def _windows(
        self, history: Sequence[Event], rng: np.random.Generator | None = None
    ) -> list[Sequence[Event]]:
        """Cut a long history into windows that fit the model; with `rng`, at other places each epoch."""
        size = self._encoder.max_events
        first = size if rng is None else int(rng.integers(size // 2 + 1, size + 1))
        return self._encoder.windows(history, size if len(history) <= size else first)

    def _hide_queries(self, events: Sequence[Event], rng: np.random.Generator) -> list[Event]:
        """Query dropout: what was searched for was also wanted, so it may be recommended."""
        if not self._query_dropout:
            return list(events)
        hidden = rng.random(len(events)) < self._query_dropout
        return [Event(e.item) if hide else e for e, hide in zip(events, hidden, strict=True)]

    def _title_sample(self, k: int) -> Sample:
        row, title = self._titles[k]
        return self._encoder.sample([Event(row, Task.SEARCH, title)])

    def _batch(self, samples: list[Sample]) -> Batch:
        samples.sort(key=len)
        parts: list[list[Sample]] = []
        for sample in samples:
            # A new part where padding would exceed an eighth, unless the part is still too small to be
            # computed efficiently, and where the part would grow too large.
            part = parts[-1] if parts else []
            tokens = len(sample) * (len(part) + 1)
            padded = tokens - sum(map(len, part)) - len(sample)
            if not part or tokens > self._part_tokens or (padded > tokens / 8 and tokens > 2048):
                parts.append([])
            parts[-1].append(sample)
        while len(parts) < min(self._min_parts, len(samples)):
            largest = max(parts, key=len)
            parts[parts.index(largest)] = largest[::2]
            parts.append(largest[1::2])
        starts = [(s.task[s.level == 0]) for s in samples]
        count = np.bincount(np.concatenate(starts), minlength=len(TASKS))
        targets = {task: int(count[k]) for k, task in enumerate(TASKS)}
        return Batch([pad(part) for part in parts], targets, sum(map(len, samples)))


def pad(samples: Sequence[Sample]) -> Part:
    """Samples as one part; the padding holds token 0, and no target."""
    length = max(map(len, samples))
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    level = torch.full((len(samples), length), -1, dtype=torch.int8)
    task = torch.zeros(len(samples), length, dtype=torch.int8)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = torch.from_numpy(sample.ids)
        level[row, : len(sample)] = torch.from_numpy(sample.level)
        task[row, : len(sample)] = torch.from_numpy(sample.task)
    return Part(ids, level, task)
