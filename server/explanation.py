"""Which history entries mattered: each is left out once, and the first item of the answer scored again.

The scores of a model are no sum over the history, so the effects do not add up; what one entry says in the
presence of all the others is what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from index.allowed import Allowed, SlotSet
from index.bundle import Bundle
from index.history import Event
from server.answers import Explanation, HistoryEffect
from server.engine.contract import RankRequest
from server.scheduler import Scheduler


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
    without = await asyncio.gather(
        *(
            scheduler.rank(
                _request(bundle, [*events[:k], *events[k + 1 :]], query, only), timeout, admitted=True
            )
            for k in left_out
        )
    )
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


def _request(bundle: Bundle, events: Sequence[Event], query: str | None, only: Allowed) -> RankRequest:
    return RankRequest(bundle.encoder.prompt(events, query).ids, 1, 1, only, history=0)  # never asked again
