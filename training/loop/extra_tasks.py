"""Samples of the tasks that a training has besides its logged sequences (`training.config.extra_task`).

    title, text, words, query → identifier    <|search|> text tokens <|item|> c1 .. cL
    history → identifier                      history and request, of which only the last item is a target
    identifier, history → query               history <|search|> query tokens
    identifier → title                        <|recommendation|> c1 .. cL <|item|> title tokens
    title, text → query                       <|item|> text tokens <|search|> query tokens

Samples of the catalogue are drawn evenly from its items, those of the log evenly from its events. The draws of a step
are a function of seed, epoch and step alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from index.catalogue import Catalogue
from index.sequence.encoder import TASKS, Sample, SequenceEncoder
from index.sequence.events import Event, Task
from index.words import words
from training.config.extra_task import ExtraTask
from training.errors import UserError
from training.loop.pairs import Pairs
from training.loop.word_queries import WordQueries

Histories = Sequence[Sequence[Event]]


@dataclass(frozen=True)
class LoggedEvents:
    """Some histories, and where their events of each task are.

    places: int64 [n, 2] by task: place of the history, and position in it.
    """

    histories: Histories
    places: dict[Task, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def of(cls, histories: Histories) -> LoggedEvents:
        """Find the events of each task."""
        people = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(each)) for each in histories)])
        searched = np.fromiter((event.query is not None for each in histories for event in each), bool)
        places = np.stack([people, positions], axis=1)
        return cls(histories, {Task.SEARCH: places[searched], Task.RECOMMENDATION: places[~searched]})

    def draw(self, tasks: Collection[Task], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draw events of some tasks, with replacement. Return their places; none if there is no such event."""
        places = [self.places[task] for task in tasks]
        ends = np.cumsum([len(each) for each in places])
        if not ends[-1]:
            return []
        drawn = rng.integers(0, ends[-1], count)
        kinds = np.searchsorted(ends, drawn, side="right")
        starts = ends - [len(each) for each in places]
        return [
            (int(places[kind][k - starts[kind], 0]), int(places[kind][k - starts[kind], 1]))
            for kind, k in zip(kinds.tolist(), drawn.tolist(), strict=True)
        ]


class ExtraTasks:
    """Maker of the samples of extra tasks.

    pairs: makes those of an encoder-decoder.
    trained: tasks that the model learns to answer.
    """

    def __init__(
        self,
        tasks: Sequence[ExtraTask],
        catalogue: Catalogue,
        encoder: SequenceEncoder,
        pairs: Pairs | None = None,
        trained: Collection[Task] = tuple(Task),
    ) -> None:
        self.tasks = tasks
        self._catalogue = catalogue
        self._encoder = encoder
        self._pairs = pairs
        self._trained = trained
        self._words = WordQueries(catalogue, 1.0)

    @property
    def reads_log(self) -> bool:
        """Whether a task is made of logged events."""
        return any(task.of_log for task in self.tasks)

    def draw(
        self, logged: LoggedEvents | None, targets: float, done: float, seeds: Sequence[int]
    ) -> list[Sample]:
        """Return the samples of a step.

        logged: the events that tasks of the log draw from; None if there is no such task.
        targets: items of the log that a step predicts, of which the tasks' shares are.
        done: share of the training that lies behind.
        seeds: numbers that name the step.
        """
        samples: list[Sample] = []
        for k, task in enumerate(self.tasks):
            if not task.active(done) or not len(self._catalogue):
                continue
            rng = np.random.default_rng([*seeds, k])
            count = int(task.share * targets + rng.random())
            if not task.of_log:
                rows = rng.integers(0, len(self._catalogue), count).tolist()
                found = [self._of_item(task, row, rng) for row in rows]
            else:
                assert logged is not None
                places = logged.draw(self._drawn(task), count, rng)
                found = [self._of_event(task, logged.histories[person], at, rng) for person, at in places]
            samples += [sample for sample in found if sample is not None]
        return samples

    def _drawn(self, task: ExtraTask) -> Collection[Task]:
        """Return the tasks whose events a task of the log draws."""
        if task.asks:
            return (Task.SEARCH,)
        return self._trained if task.helps is None else (task.helps,)

    def _of_item(self, task: ExtraTask, row: int, rng: np.random.Generator) -> Sample | None:
        if task.read == "identifier":
            return self._writing(task, [Event(row)], self._catalogue[row].title)
        text = self._text(task, row, rng)
        if not self._encoder.has_tokens(text):  # a text without a token is no query
            return None
        return replace(self._answer(task, [], Event(row, Task.SEARCH, text)), knowledge=True)

    def _of_event(
        self, task: ExtraTask, history: Sequence[Event], position: int, rng: np.random.Generator
    ) -> Sample | None:
        event = history[position]
        earlier = [each for each in history[:position] if task.events in ("both", each.behaviour)]
        if task.write == "identifier":
            return self._answer(task, earlier if task.read == "history" else [], event)
        read: Sequence[Event] | str = earlier
        if task.read != "history":
            read = [Event(event.item)] if task.read == "identifier" else self._text(task, event.item, rng)
        return self._writing(task, read, event.query or "")

    def _text(self, task: ExtraTask, row: int, rng: np.random.Generator) -> str:
        if task.read == "words":
            return self._words.draw(row, rng)
        item = self._catalogue[row]
        return item.title if task.read == "title" else item.text()

    def _writing(self, task: ExtraTask, read: Sequence[Event] | str, text: str) -> Sample | None:
        readable = not isinstance(read, str) or self._encoder.has_tokens(read)
        if not readable or not self._encoder.has_tokens(text):
            return None
        marker = "search" if task.write == "query" else "item"
        start = None if self._pairs is None else self._pairs.start
        sample = self._encoder.writing(read, text, marker, task.helped or Task.SEARCH, start)
        return replace(sample, knowledge=not task.of_log)

    def _answer(self, task: ExtraTask, history: Sequence[Event], event: Event) -> Sample:
        """Return the sample in which the item of the event is the only target."""
        if self._pairs is not None:
            sample = self._pairs.pair(history, event)
        else:
            sample = self._encoder.sample([*history, event])
            written = self._encoder.identifier(event.item, self._encoder.task_of(event))
            before = len(sample.ids) - len(written)
            sample.level[:before] = sample.item[:before] = -1
        if task.helped is None:
            return sample
        return replace(sample, task=np.full_like(sample.task, TASKS.index(task.helped)))


def check_tasks(tasks: Sequence[ExtraTask], catalogue: Catalogue, histories: Histories) -> None:
    """Raise `UserError` if the data lack what a task reads or writes.

    histories: events of each person that are trained on.
    """
    for k, task in enumerate(tasks):
        where = f"sequence.extra_tasks.{k} ({task.read} → {task.write})"
        if task.asks and not any(event.query is not None for history in histories for event in history):
            raise UserError(
                f"{where} needs logged queries, and no training event is a search: leave the task out, or import a log "
                "with searches"
            )
        if task.read == "text" and all(item.text() == item.title.strip() for item in catalogue):
            raise UserError(
                f"{where} needs texts, and the items have titles only: give them categories or descriptions, or read "
                "'title'"
            )
        needs_title = task.read in ("title", "words") or task.write == "title"
        if needs_title and not any(words(item.title) for item in catalogue):
            raise UserError(f"{where} needs titles with words, and no item has one: leave the task out")
