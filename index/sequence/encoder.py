"""A person's history as one token sequence; a request continues it (docs/architecture.md).

    history  =  [<|recommendation|> c1 .. cL]  [<|search|> query tokens <|item|> c1 .. cL]  ...
    request  =  history <|recommendation|>                  → the model writes c1 .. cL
    request  =  history <|search|> query tokens <|item|>    → the model writes c1 .. cL

Spelled identifiers may end before L (see `IdentifierVocabulary`). User text never becomes a control or item token: it
is tokenised separately, with special tokens disabled (see `plain_text`). Where each task has identifiers of its own, an
event is written with that of its behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from index.sequence.events import Event, Task
from index.sequence.plain_text import plain_tokens
from index.sequence.vocabulary import IdentifierVocabulary


class SequenceError(ValueError):
    """Text or history that cannot be written as tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a request.

    ids: token ids.
    events: positions in the history of the events that are written, oldest first: the newest known ones that fit.
    history: number of first tokens that are the history; the next request of this person begins with them, too.
    """

    ids: list[int]
    events: list[int]
    history: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence.

    ids:    int64 [T], token ids; for an encoder-decoder, those of the decoder.
    level:  int8 [T], identifier level that token t writes, -1 for markers and text that is read, `TEXT` for text that
            is written.
    task:   int8 [T], index into `TASKS` of the event that token t belongs to.
    item:   int64 [T], catalogue row of the item whose identifier begins with token t, -1 for other tokens.
    prompt: int64 [P], the tokens that an encoder reads; empty for a decoder-only model.
    knowledge: whether it is made of the catalogue alone, and not of what people did.
    """

    ids: NDArray[np.int64]
    level: NDArray[np.int8]
    task: NDArray[np.int8]
    item: NDArray[np.int64]
    prompt: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    knowledge: bool = False

    def __len__(self) -> int:
        return len(self.ids) + len(self.prompt)


TASKS: tuple[Task, ...] = (Task.SEARCH, Task.RECOMMENDATION)
TEXT = -2  # level of a token of text that the model learns to write


@dataclass(frozen=True, slots=True)
class _Names:
    """The identifiers of all items. tokens: int64 [N, L]. lengths: int64 [N], how many of them are written."""

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]


class SequenceEncoder:
    """Encoder of histories and requests as token ids.

    tokenizer: the bundle's tokenizer, with identifier tokens and markers.
    codes: int [N, L], the identifiers of the catalogue's items.
    search_codes: int [N, L], those that searches write, if they have their own; `codes` are then of recommendations.
    known: bool [N], items that the model knows by their identifiers; all if not given. Prompts leave out the others.
    max_tokens: most tokens of a sequence; the oldest events are dropped to fit.
    max_events: most events of a sequence, together with the event that answers a request; training used no more.
    max_query_tokens: most tokens of a query; longer queries are cut.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocabulary: IdentifierVocabulary,
        codes: NDArray[np.integer],
        *,
        search_codes: NDArray[np.integer] | None = None,
        known: NDArray[np.bool_] | None = None,
        max_tokens: int = 1024,
        max_events: int = 50,
        max_query_tokens: int = 32,
    ) -> None:
        # +2: the markers around the query; L: the identifier itself
        if max_tokens < max_query_tokens + 2 + vocabulary.levels:
            raise SequenceError(
                f"max_tokens={max_tokens} has no room for one query of {max_query_tokens} tokens and its item"
            )
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.max_events = max_events
        self.max_query_tokens = max_query_tokens
        names = _Names(vocabulary.tokens(codes), vocabulary.lengths(codes))
        self._names = dict.fromkeys(Task, names)
        if search_codes is not None:
            self._names[Task.SEARCH] = _Names(
                vocabulary.tokens(search_codes), vocabulary.lengths(search_codes)
            )
        self._known = known
        self._tokenizer = tokenizer
        self._encode = lru_cache(maxsize=8192)(self._encode_uncached)

    def write_items_as(self, tokens: NDArray[np.int64]) -> None:
        """Write the items of every task in other tokens from now on, int64 [N, L], while their codes are still open."""
        self._names = {task: replace(names, tokens=tokens) for task, names in self._names.items()}

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the token ids of user text, cut to `max_query_tokens`, without control or item tokens.

        Raises `SequenceError` for a text without any token.
        """
        ids = self._encode(text)
        if not ids:
            raise SequenceError("the query holds no text")
        return ids

    def forget(self) -> None:
        """Drop the texts that were encoded so far, which are kept to be fast."""
        self._encode.cache_clear()

    def has_tokens(self, text: str) -> bool:
        """Whether the text has a token."""
        return bool(self._encode(text))

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        ids = plain_tokens(self._tokenizer, text, self.vocabulary.first_added)
        return tuple(ids[: self.max_query_tokens])

    def identifier(self, item: int, task: Task = Task.RECOMMENDATION) -> list[int]:
        """Return the tokens of the identifier that a task writes for an item, at most L. item: catalogue row."""
        names = self._names[task]
        written: list[int] = names.tokens[item, : names.lengths[item]].tolist()
        return written

    def _event(self, event: Event) -> list[int]:
        task = self.task_of(event)
        query = event.query if task is Task.SEARCH else None
        return [*self._request(query), *self.identifier(event.item, task)]

    def task_of(self, event: Event) -> Task:
        """Return the task of a past event.

        A search whose query has no token (for example, only invisible characters) is written as a recommendation.
        """
        return event.behaviour if event.query and self._encode(event.query) else Task.RECOMMENDATION

    def _request(self, query: str | None) -> list[int]:
        markers = self.vocabulary.markers
        if query is None:
            return [markers["recommendation"]]
        return [markers["search"], *self.encode_text(query), markers["item"]]

    def _newest(self, events: Sequence[Event], count: int, budget: int) -> list[list[int]]:
        """Return the tokens of the newest events that fit a number of events and of tokens, the oldest event first."""
        kept: list[list[int]] = []
        for event in reversed(events[max(0, len(events) - count) :]):
            tokens = self._event(event)
            budget -= len(tokens)
            if budget < 0:
                break
            kept.append(tokens)
        return kept[::-1]

    def prompt(self, history: Sequence[Event], query: str | None = None) -> Prompt:
        """Return a request as token ids: a search if a query is given, a recommendation otherwise.

        The prompt leaves room within `max_tokens` for the identifier that the model writes.
        """
        tail = self._request(query)
        read = [k for k, event in enumerate(history) if self._known is None or self._known[event.item]]
        kept = self._newest(
            [history[k] for k in read],
            self.max_events - 1,
            self.max_tokens - len(tail) - self.vocabulary.levels,
        )
        ids = [i for event in kept for i in event]
        return Prompt(ids + tail, read[len(read) - len(kept) :], len(ids))

    def reads(self, item: int) -> bool:
        """Whether prompts hold events with an item. item: catalogue row."""
        return self._known is None or bool(self._known[item])

    def windows(self, events: Sequence[Event], first: int) -> list[Sequence[Event]]:
        """Cut a history into parts that `sample` keeps whole.

        first: most events of the first part. The other parts are as long as `max_events` and `max_tokens` allow.
        """
        windows: list[Sequence[Event]] = []
        start, tokens, count = 0, 0, min(first, self.max_events)
        for position, event in enumerate(events):
            length = len(self._event(event))
            if position > start and (position - start == count or tokens + length > self.max_tokens):
                windows.append(events[start:position])
                start, tokens, count = position, 0, self.max_events
            tokens += length
        return [*windows, events[start:]]

    def sample(self, events: Sequence[Event]) -> Sample:
        """Return the newest events that fit, as one training sequence in which every item is a target."""
        kept = self._newest(events, self.max_events, self.max_tokens)
        answered = events[len(events) - len(kept) :]
        ids = np.fromiter((i for event in kept for i in event), np.int64)
        level = np.full(len(ids), -1, np.int8)
        item = np.full(len(ids), -1, np.int64)
        ends = np.cumsum([len(tokens) for tokens in kept])
        tasks = [self.task_of(event) for event in answered]
        # each event ends with its identifier
        for event, task, end in zip(answered, tasks, ends, strict=True):
            written = self._names[task].lengths[event.item]
            level[end - written : end] = np.arange(written)
            item[end - written] = event.item
        places = np.array([TASKS.index(task) for task in tasks], np.int8)
        return Sample(ids, level, np.repeat(places, [len(tokens) for tokens in kept]), item)

    def pair(self, history: Sequence[Event], event: Event, start: int) -> Sample:
        """Return a training sample for an encoder-decoder.

        The encoder reads the request that `event` answers; the decoder writes the item of `event` after its token
        `start`.
        """
        task = self.task_of(event)
        written = self.identifier(event.item, task)
        length = 1 + len(written)
        item = np.full(length, -1, np.int64)
        item[1] = event.item
        return Sample(
            np.array([start, *written], np.int64),
            np.arange(-1, length - 1).astype(np.int8),
            np.full(length, TASKS.index(task), np.int8),
            item,
            np.array(self.prompt(history, event.query if task is Task.SEARCH else None).ids, np.int64),
        )

    def writing(
        self, read: Sequence[Event] | str, text: str, marker: str, task: Task, start: int | None = None
    ) -> Sample:
        """Return a training sample whose target is a text, cut to `max_query_tokens`.

            history <|search|> query tokens                  <|item|> text tokens <|search|> query tokens
            history <|item|> title tokens

        read: a history, or what the catalogue says of an item.
        marker: `search` before a query, `item` before a title.
        task: whose loss the text counts to.
        start: start token of the decoder of an encoder-decoder, whose encoder reads what stands before the text.
        Raises `SequenceError` for a text without any token.
        """
        markers, written = self.vocabulary.markers, self.encode_text(text)
        if isinstance(read, str):
            head = [markers["item"], *self.encode_text(read)]
        else:
            budget = self.max_tokens - len(written) - 1
            head = [i for event in self._newest(read, max(1, self.max_events - 1), budget) for i in event]
        head.append(markers[marker])
        before = head if start is None else [start]
        ids = np.array([*before, *written], np.int64)
        level = np.full(len(ids), TEXT, np.int8)
        level[: len(before)] = -1
        nothing = np.full(len(ids), -1, np.int64)
        prompt = np.array([] if start is None else head, np.int64)
        return Sample(ids, level, np.full(len(ids), TASKS.index(task), np.int8), nothing, prompt)
