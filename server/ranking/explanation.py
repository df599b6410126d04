"""Which history entries mattered: each is left out once, and the first item of the answer scored again.

The scores of a model are no sum over the history, so the effects do not add up; what one entry says in the
presence of all the others is what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from index.bundle.bundle import Bundle
from index.sequence.events import Event
from index.trie.allowed import Allowed, SlotSet
from server.api.responses import Explanation, HistoryEffect
from server.engine.contract import RankRequest
from server.serving.scheduler import Ranked, Scheduler

AT_ONCE = 4  # entries that are left out at the same time: explanations are not to fill the queue


async def explain(
    row: int,
    score: float,
    events: Sequence[Event],
    positions: Sequence[int],
    query: str | None,
    bundle: Bundle,
    scheduler: Scheduler,
    *,
    most: int,
    timeout: float,
) -> Explanation:
    """Explain why catalogue row `row` came first, with `score`.

    events: those that the prompt holds, oldest first. positions: of each in the history as it was sent. most: the
    newest so many entries are left out in turn. Raises what `Scheduler.rank` raises.
    """
    trie = bundle.index.trie
    only = Allowed.of(trie, SlotSet.of_members(trie.slot_of_item[[row]], trie.items))
    first = max(0, len(events) - most)
    left_out = range(first, len(events))
    deadline = time.monotonic() + timeout
    without: list[Ranked] = []
    for start in range(first, len(events), AT_ONCE):
        requests = [
            _request(bundle, [*events[:k], *events[k + 1 :]], query, only, deadline)
            for k in left_out[start - first : start - first + AT_ONCE]
        ]
        without += await _all(scheduler, requests, deadline - time.monotonic())
    effects = [
        HistoryEffect(
            position=positions[k],
            item_id=bundle.index.catalogue[events[k].item].item_id,
            effect=score - ranked.ranking.scores[0],
        )
        for k, ranked in zip(left_out, without, strict=True)
    ]
    effects.sort(key=lambda each: abs(each.effect), reverse=True)
    return Explanation(item_id=bundle.index.catalogue[row].item_id, history=effects, unexplained=first)


async def _all(scheduler: Scheduler, requests: Sequence[RankRequest], timeout: float) -> list[Ranked]:
    """Rank them together. If one fails, the others are given up. Raises what the first that fails raises."""
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
    return RankRequest(ids, 1, 1, only, history=0, deadline=deadline)  # never asked again: nothing to keep
