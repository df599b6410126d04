"""Rankings of the whole pool for evaluation, like the server's: beam, words, query log and fresh items, fused."""

from __future__ import annotations

from collections.abc import Sequence

from index.pool.pool import Fused, Pool
from index.pool.pool_index import PoolIndex
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Task
from index.trie.allowed import Allowed
from server.engine.contract import Engine, Ranking
from training.data.splits import Case
from training.evaluation.candidates import EVERYTHING, Candidates
from training.evaluation.ranking import Progress, rank_cases


def rank_pools(
    engine: Engine,
    encoder: SequenceEncoder,
    index: PoolIndex,
    cases: Sequence[Case],
    task: Task,
    *,
    beam_width: int = 50,
    limit: int = 50,
    candidates: Candidates = EVERYTHING,
    batch: int = 256,
    progress: Progress | None = None,
) -> tuple[list[Fused], list[Ranking]]:
    """Rank the pool of each case. Returns the fused rankings and those of the beams alone, in the order of `cases`.

    The arguments are those of `rank_cases`. Raises what it raises.
    """
    pools: dict[int, Pool] = {}

    def pool_of(k: int, allowed: Allowed) -> list[int]:
        case = cases[k]
        query = case.query if task is Task.SEARCH else None
        pools[k] = Pool.gather(index, allowed, query, [event.item for event in case.history])
        return pools[k].to_score

    rankings = rank_cases(
        engine, encoder, cases, task, beam_width=beam_width, limit=max(limit, beam_width), candidates=candidates,
        batch=batch, progress=progress, pool_of=pool_of,
        state=index.dense is not None,
    )  # fmt: skip
    fused = [pools[k].fuse(ranking, limit) for k, ranking in enumerate(rankings)]
    return fused, rankings
