"""Explanations: each history entry is left out once, and the first item of the answer is scored again.

The scores of a model are no sum over the history, so the effects do not add up; they measure what one entry adds to all
the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from index.bundle.bundle import Bundle
from index.sequence.events import Event, Task
from index.trie.allowed import Allowed, SlotSet
from server.api.responses import Explanation, HistoryEffect
from server.engine.contract import Ranking, RankRequest
from server.serving.scheduler import Scheduler

AT_ONCE = 4  # prompts that are ranked at the same time: explanations must not fill the queue


async def explain(
    row: int,
    score: float | None,
    events: Sequence[Event],
    positions: Sequence[int],
    query: str | None,
    bundle: Bundle,
    scheduler: Scheduler,
    *,
    most: int,
    timeout: float,
) -> Explanation:
    """Explain why an item came first.

    row: catalogue row of the item.
    score: its log-probability; None if it has to be computed.
    events: events that the prompt holds, oldest first.
    positions: position of each event in the history as it was sent.
    query: text of a search; None for a recommendation.
    most: number of newest events that are left out in turn.
    timeout: seconds for all of it.
    Raises what `Scheduler.rank` raises.
    """
    trie = bundle.index.named(Task.RECOMMENDATION if query is None else Task.SEARCH).trie
    only = Allowed.of(trie, SlotSet.of_members(trie.slot_of_item[[row]], trie.items))
    first = max(0, len(events) - most)
    left_out = range(first, len(events))
    deadline = time.monotonic() + timeout
    if score is None:
        score = (await _all(scheduler, [_request(bundle, events, query, only, deadline)], timeout))[0].scores[
            0
        ]
    without: list[Ranking] = []
    for start in range(first, len(events), AT_ONCE):
        requests = [
            _request(bundle, [*events[:k], *events[k + 1 :]], query, only, deadline)
            for k in left_out[start - first : start - first + AT_ONCE]
        ]
        without += await _all(scheduler, requests, deadline - time.monotonic())
    effects = [
        HistoryEffect(
            position=positions[k],
            item_id=bundle.index.catalogue.item_id(events[k].item),
            effect=score - ranking.scores[0],
        )
        for k, ranking in zip(left_out, without, strict=True)
    ]
    effects.sort(key=lambda each: abs(each.effect), reverse=True)
    return Explanation(item_id=bundle.index.catalogue.item_id(row), history=effects, unexplained=first)


async def _all(scheduler: Scheduler, requests: Sequence[RankRequest], timeout: float) -> list[Ranking]:
    """Rank requests together. If one fails, the others are cancelled, and its error is raised."""
    tasks = [asyncio.create_task(scheduler.rank(each, timeout, admitted=True)) for each in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _request(
    bundle: Bundle, events: Sequence[Event], query: str | None, only: Allowed, deadline: float
) -> RankRequest:
    ids = bundle.encoder.prompt(events, query).ids
    # The same prompt hardly comes again: the prefix cache need not keep it.
    return RankRequest(ids, 1, 1, only, shared_tokens=0, deadline=deadline)
