"""Batches: the parts of a step, made from logged histories.

A step takes `batch_size` logged sequences, in a new order each epoch, and samples of other tasks. Every part is one
forward and backward pass, and the gradients of the parts add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from index.catalogue import Catalogue
from index.sequence.encoder import TASKS, TEXT, Sample, SequenceEncoder
from index.sequence.events import Event, Task
from training.config import TrainConfig
from training.config.extra_task import ExtraTask
from training.loop.extra_tasks import ExtraTasks, LoggedEvents
from training.loop.pairs import Pairs
from training.loop.parts import Part, parts_of
from training.loop.word_queries import WordQueries

GROUP = 65_536  # histories that are cut and mixed at a time, so that neither memory nor the first step wait for a log


@dataclass(frozen=True)
class Batch:
    """Training data of one step.

    targets: number of items and texts to be predicted, by task.
    tokens: number of tokens without padding.
    """

    parts: list[Part]
    targets: dict[Task, int]
    tokens: int


class BatchSource:
    """Batches of each epoch, a pure function of (seed, epoch), so that a resumed run sees the same ones."""

    def __init__(
        self,
        encoder: SequenceEncoder,
        histories: Sequence[Sequence[Event]],
        *,
        batch_size: int,
        part_tokens: int,
        query_dropout: float = 0.0,
        event_dropout: float = 0.0,
        word_queries: WordQueries | None = None,
        tasks: Collection[Task] = tuple(Task),
        seed: int = 0,
        min_parts: int = 1,
        pairs: Pairs | None = None,
        extra: ExtraTasks | None = None,
        log_after: float = 0.0,
    ) -> None:
        """Cut the histories into windows and count them.

        histories: events of each user.
        word_queries: queries for events that have none; drawn again each epoch.
        tasks: tasks whose items are targets. Events of others are only read.
        min_parts: smallest number of parts of a step, so that every process has one to compute.
        pairs: makes the samples of an encoder-decoder.
        extra: further tasks.
        log_after: share of the training after which the logged sequences are trained.
        """
        self._min_parts = min_parts
        self._pairs = pairs
        self._encoder = encoder
        self._histories = histories
        self._group = max(GROUP, batch_size)  # every group has a step
        self._batch_size = batch_size
        self._part_tokens = part_tokens
        self._query_dropout = query_dropout
        self._event_dropout = event_dropout
        self._word_queries = word_queries
        self._tasks = tasks
        self._seed = seed
        self._extra = extra
        self._log_after = log_after
        counted = next(self._groups(np.random.default_rng(seed)))  # the whole log, or a sample of it
        windows = [window for history in counted for window in self._windows(history)]
        targets = [len(life) - begin for life, begin in windows]
        if pairs is not None:
            targets = [min(count, pairs.targets) for count in targets]
        whole = len(histories) / max(1, min(len(histories), self._group))
        self.steps_per_epoch = max(1, math.ceil(whole * len(windows) / batch_size))
        self._targets_per_step = whole * sum(targets) / self.steps_per_epoch

    def epoch(self, epoch: int, done: Callable[[], float] = lambda: 1.0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        done: returns the share of the training that lies behind, by which tasks begin and end. It is asked before each
            batch, and changes nothing else of it.
        """
        yield from map(self._batch, self.samples(epoch, done))

    def samples(self, epoch: int, done: Callable[[], float] = lambda: 1.0) -> Iterator[list[Sample]]:
        """Yield the samples of each batch."""
        rng = np.random.default_rng([self._seed, epoch])
        groups = max(1, math.ceil(len(self._histories) / self._group))
        for k, histories in enumerate(self._groups(rng)):
            first = self.steps_per_epoch * k // groups
            steps = self.steps_per_epoch * (k + 1) // groups - first
            logged = LoggedEvents.of(histories) if self._extra is not None and self._extra.reads_log else None
            varied = (self._varied(history, rng) for history in histories)
            windows = [window for history in varied for window in self._windows(history, rng)]
            order = rng.permutation(len(windows))
            for step in range(steps):  # jitter may make a few windows more
                chosen = order[step * len(order) // steps : (step + 1) * len(order) // steps]
                drawn = [windows[k] for k in chosen]
                samples = [each for life, begin in drawn for each in self._samples(life, begin, rng)]
                share = done()
                # the log's samples are drawn all the same: later draws depend on it
                kept = samples if share >= self._log_after else []
                if self._extra is not None:
                    seeds = (self._seed, epoch, first + step)
                    kept = kept + self._extra.draw(logged, self._targets_per_step, share, seeds)
                yield kept

    def _groups(self, rng: np.random.Generator) -> Iterator[list[Sequence[Event]]]:
        """Yield all histories that are not empty, in groups of random ones if they are more than one group."""
        count = len(self._histories)
        order = np.arange(count) if count <= self._group else rng.permutation(count)
        for part in np.array_split(order, max(1, math.ceil(count / self._group))):
            yield [history for k in part.tolist() if (history := self._histories[k])]

    def _windows(
        self, history: Sequence[Event], rng: np.random.Generator | None = None
    ) -> list[tuple[Sequence[Event], int]]:
        """Cut a history into windows that fit the model; with `rng`, at other places each epoch.

        Returns for each window all events up to its end, and the number of events before it.
        """
        size = self._encoder.max_events
        first = size if rng is None else int(rng.integers(size // 2 + 1, size + 1))
        windows = self._encoder.windows(history, size if len(history) <= size else first)
        ends = accumulate(map(len, windows))
        return [(history[:end], end - len(window)) for window, end in zip(windows, ends, strict=True)]

    def _samples(self, life: Sequence[Event], begin: int, rng: np.random.Generator) -> list[Sample]:
        if self._pairs is not None:
            return self._pairs.draw(life, begin, rng, self._tasks)
        return [self._only_trained(self._encoder.sample(life[begin:]))]

    def _only_trained(self, sample: Sample) -> Sample:
        """Leave only the items of the trained tasks as targets."""
        trained = np.isin(sample.task, [TASKS.index(task) for task in self._tasks])
        level, item = sample.level.copy(), sample.item.copy()
        level[~trained] = item[~trained] = -1
        return replace(sample, level=level, item=item)

    def _varied(self, events: Sequence[Event], rng: np.random.Generator) -> list[Event]:
        """Leave some events out, hide the queries of some searches, and search for some items that were recommended.

        Without some events, an item follows others than the one that came just before it. Of a history that loses
        all, the last event stays.
        """
        if self._event_dropout:
            kept = rng.random(len(events)) >= self._event_dropout
            events = [event for event, keep in zip(events, kept, strict=True) if keep] or events[-1:]
        varied = list(events)
        if self._word_queries is not None:
            varied = self._word_queries.add(varied, rng)
        if self._query_dropout:
            hidden = rng.random(len(events)) < self._query_dropout
            varied = [
                Event(event.item) if hide and event.query is not None else new
                for event, new, hide in zip(events, varied, hidden, strict=True)
            ]
        return varied

    def _batch(self, samples: list[Sample]) -> Batch:
        starts = [s.task[s.level == 0] for s in samples] + [s.task[s.level == TEXT][:1] for s in samples]
        count = np.bincount(np.concatenate([np.zeros(0, np.int8), *starts]), minlength=len(TASKS))
        targets = {task: int(count[k]) for k, task in enumerate(TASKS)}
        parts = parts_of(samples, self._part_tokens, self._min_parts) if samples else []
        return Batch(parts, targets, sum(map(len, samples)))


def logged_batches(
    encoder: SequenceEncoder,
    histories: Sequence[Sequence[Event]],
    catalogue: Catalogue,
    config: TrainConfig,
    pairs: Pairs | None,
    *,
    beside: Sequence[ExtraTask],
    log_after: float = 0.0,
    min_parts: int = 1,
) -> BatchSource:
    """Return the batches that the settings of a training ask for.

    beside: tasks beside the log.
    Others: see `BatchSource`.
    """
    sequence = config.sequence
    return BatchSource(
        encoder,
        histories,
        batch_size=config.optimiser.batch_size,
        part_tokens=config.optimiser.part_tokens,
        query_dropout=sequence.query_dropout,
        event_dropout=sequence.event_dropout,
        word_queries=WordQueries(catalogue, sequence.word_queries),
        tasks=sequence.trained_tasks,
        seed=config.seed,
        min_parts=min_parts,
        pairs=pairs,
        extra=ExtraTasks(beside, catalogue, encoder, pairs, sequence.trained_tasks),
        log_after=log_after,
    )
