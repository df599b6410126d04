"""The pool of random catalogues and items, compared with sums over plain tuples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from index.trie.trie import Trie
from server.engine.pool import Pool

END = 3


def log_probs(prefix: tuple[int, ...]) -> np.ndarray:
    """Return random log-probabilities after a prefix."""
    return np.random.default_rng([7, *prefix]).normal(size=4).astype(np.float32)


@given(st.data())
def test_scores_are_sums_over_the_written_codes(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    codes = data.draw(arrays(np.int32, shape, elements=st.integers(0, 3)))
    end = data.draw(st.sampled_from([None, END]))
    if end is not None:  # all that follows an end is padding
        codes[:, 1:][np.cumsum(codes == end, axis=1)[:, :-1] > 0] = end
    levels = data.draw(st.integers(1, shape[1]))
    rows = data.draw(st.lists(st.integers(0, shape[0] - 1), unique=True))
    trie = Trie.build(codes)
    pool = Pool(rows, trie, levels, end)
    for level in range(levels):
        nodes, items = pool.prefixes(level)
        written = [tuple(codes[rows[item], :level].tolist()) for item in items]
        open_ = [
            prefix for prefix in (tuple(codes[row, :level].tolist()) for row in rows) if end not in prefix
        ]
        assert sorted(written) == sorted(set(open_))  # each once
        assert np.array_equal(pool.nodes[items, level], nodes)
        assert np.array_equal(
            pool.codes[items, :level],
            np.array([codes[rows[k], :level] for k in items]).reshape(len(items), level),
        )
        pool.add(level, np.array([log_probs(prefix) for prefix in written]).reshape(-1, 4))
    for row, score in zip(rows, pool.scores, strict=True):
        path = codes[row, :levels].tolist()
        length = path.index(end) + 1 if end in path else levels
        expected = sum(float(log_probs(tuple(path[:k]))[path[k]]) for k in range(length))
        assert np.isclose(score, expected)
    assert len(pool.scores) == len(rows)
