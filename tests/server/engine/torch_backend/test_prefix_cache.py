"""The prefix cache, compared with a plain list of its entries."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.torch_backend.prefix_cache import BLOCK, PrefixCache


def states(ids: list[int]) -> torch.Tensor:
    """Return stand-ins for keys and values that identify their prompt: [1 layer, 2, 1 head, tokens, 1]."""
    return torch.tensor(ids, dtype=torch.float32).expand(1, 2, 1, -1).unsqueeze(-1)


def shared(one: list[int], other: list[int]) -> int:
    return next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@given(st.lists(prompts, max_size=12), prompts)
@settings(max_examples=200, deadline=None)
def test_the_longest_known_prefix_is_found_and_its_states_are_those_of_the_prompt(
    known: list[list[int]], ids: list[int]
) -> None:
    cache = PrefixCache(1 << 20)
    for each in known:
        cache.put(each, states(each))
    found = cache.longest(ids)
    length = 0 if found is None else found.shape[3]
    longest = max((shared(each, ids) for each in known), default=0)
    # whole blocks of it at least; one token must be left to compute
    assert min(longest // BLOCK * BLOCK, len(ids) - 1) <= length <= min(longest, len(ids) - 1)
    if found is not None:
        assert found[0, 0, 0, :, 0].tolist() == ids[:length]


@given(st.lists(prompts, max_size=30), st.integers(0, 3000))
@settings(max_examples=100, deadline=None)
def test_bytes_stay_within_the_capacity_and_are_counted_right(known: list[list[int]], capacity: int) -> None:
    cache = PrefixCache(capacity)
    for each in known:
        cache.put(each, states(each).clone())
        assert cache.bytes <= capacity
        assert cache.bytes == sum(entry.states.nbytes for entry in cache._entries.values())
    for entry in list(cache._entries.values()):
        cache._drop(entry)
    assert cache.bytes == 0
    assert not cache._by_block


def test_the_least_recently_used_goes_first_and_a_longer_prompt_replaces_its_prefix() -> None:
    one, two, three = ([k] * 32 for k in range(3))
    size = states(one).clone().nbytes
    cache = PrefixCache(2 * size)
    cache.put(one, states(one).clone())
    cache.put(two, states(two).clone())
    assert cache.longest([*one, 9]) is not None  # used again
    cache.put(three, states(three).clone())
    assert cache.longest([*two, 9]) is None
    assert cache.longest([*one, 9]) is not None
    roomy = PrefixCache(100 * size)
    for length in (20, 40, 60):
        roomy.put([7] * length, states([7] * length).clone())
    assert len(roomy) == 1


def test_prompts_that_share_their_blocks_and_come_in_turn_are_counted_once() -> None:
    one, two = ([7] * 16 + [tail] * 4 for tail in (1, 2))
    size = states(one).clone().nbytes
    cache = PrefixCache(2 * size)
    for _ in range(20):
        for ids in (one, two):
            found = cache.longest([*ids, 9])
            if found is None or found.shape[3] < len(ids):
                cache.put(ids, states(ids).clone())
            assert cache.bytes == sum(entry.states.nbytes for entry in cache._entries.values())
    assert len(cache) == 2
    for ids in (one, two):
        found = cache.longest([*ids, 9])
        assert found is not None
        assert found.shape[3] == len(ids)
    cache.put([3] * 40, states([3] * 40).clone())
    assert len(cache) == 1
