"""Histories and requests as tokens: exact layout, limits, and no control tokens from user text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import make_catalogue, make_identifiers, make_tokenizer

from index.sequence.encoder import TASKS, SequenceEncoder, SequenceError
from index.sequence.events import Event, Task
from index.sequence.vocabulary import IdentifierVocabulary

CATALOGUE = make_catalogue(60)


def make_encoder(**budgets: Any) -> SequenceEncoder:
    identifiers = make_identifiers(60)
    tokenizer = make_tokenizer(CATALOGUE.texts())
    vocabulary = IdentifierVocabulary.for_tokenizer(tokenizer, identifiers.codebook_sizes)
    vocabulary.add_to(tokenizer)
    return SequenceEncoder(tokenizer, vocabulary, identifiers.codes, **budgets)


ENCODER = make_encoder()
_SMALL = make_encoder(max_tokens=48, max_events=6, max_query_tokens=8)
_WIDE = make_encoder(max_tokens=4096, max_query_tokens=8)
MARKERS = ENCODER.vocabulary.markers
events = st.builds(
    lambda item, query: Event(item, Task.SEARCH if query else Task.RECOMMENDATION, query),
    st.integers(0, 59),
    st.none() | st.sampled_from(["comedy", "silent river 1950s", "西部 drama"]),
)


@given(st.lists(events, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_prompt_holds_no_more_events_than_training_showed(history: list[Event]) -> None:
    answer = Event(9)
    whole = _SMALL.sample([*history, answer]).ids.tolist()
    assert whole == _SMALL.prompt(history).ids + _SMALL.identifier(9)


def test_a_past_query_without_tokens_is_a_recommendation() -> None:
    invisible = Event(3, Task.SEARCH, "x")
    object.__setattr__(invisible, "query", " \u2003")  # white space of another script
    assert ENCODER.prompt([invisible]).ids == ENCODER.prompt([Event(3)]).ids
    assert TASKS[ENCODER.sample([invisible]).task[0]] is Task.RECOMMENDATION


def test_the_layout_of_design_section_3() -> None:
    history = [Event(3), Event(5, Task.SEARCH, "golden")]
    query = list(ENCODER.encode_text("golden"))
    c3, c5 = ENCODER.identifier(3), ENCODER.identifier(5)
    past = [MARKERS["recommendation"], *c3, MARKERS["search"], *query, MARKERS["item"], *c5]
    assert ENCODER.prompt(history).ids == [*past, MARKERS["recommendation"]]
    assert ENCODER.prompt(history, "golden").ids == [*past, MARKERS["search"], *query, MARKERS["item"]]
    sample = ENCODER.sample(history)
    assert sample.ids.tolist() == past
    assert sample.level.tolist() == [-1, 0, 1, 2, -1, *[-1] * len(query), -1, 0, 1, 2]
    assert [TASKS[k] for k in sample.task] == [Task.RECOMMENDATION] * 4 + [Task.SEARCH] * (5 + len(query))


@given(st.lists(events, max_size=12), st.none() | st.sampled_from(["comedy", "a b c d e f g h i j"]))
@settings(max_examples=100, deadline=None)
def test_a_prompt_is_a_prefix_of_the_sequence_that_answers_it(
    history: list[Event], query: str | None
) -> None:
    answer = Event(9, Task.SEARCH if query else Task.RECOMMENDATION, query)
    whole = ENCODER.sample([*history, answer]).ids.tolist()
    assert whole == ENCODER.prompt(history, query).ids + ENCODER.identifier(9)


@given(st.lists(events, max_size=40))
@settings(max_examples=60, deadline=None)
def test_budgets_keep_the_newest_whole_events(history: list[Event]) -> None:
    encoder = _SMALL
    prompt = encoder.prompt(history, "comedy")
    assert len(prompt.ids) + encoder.vocabulary.levels <= encoder.max_tokens
    kept = [history[k] for k in prompt.events]
    assert prompt.events == list(range(len(history) - len(kept), len(history)))
    assert prompt.ids == _WIDE.prompt(kept, "comedy").ids
    assert len(kept) <= encoder.max_events
    assert len(encoder.sample(history)) <= encoder.max_tokens


@given(st.lists(events, max_size=40), st.sets(st.integers(0, 59)))
@settings(max_examples=60, deadline=None)
def test_events_with_items_that_the_model_does_not_know_are_left_out(
    history: list[Event], new: set[int]
) -> None:
    known = np.array([row not in new for row in range(60)])
    encoder = make_encoder(max_tokens=48, max_events=6, max_query_tokens=8, known=known)
    prompt = encoder.prompt(history, "comedy")
    without = [event for event in history if encoder.reads(event.item)]
    assert prompt.ids == _SMALL.prompt(without, "comedy").ids
    assert [history[k] for k in prompt.events] == without[len(without) - len(prompt.events) :]


@given(st.text(min_size=1) | st.lists(st.sampled_from(ENCODER.vocabulary.token_names())).map(" ".join))
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_a_control_or_item_token(text: str) -> None:
    try:
        ids = ENCODER.encode_text(text)
    except SequenceError:
        assert not text.strip()
        return
    assert max(ids) < ENCODER.vocabulary.first_added


def test_every_added_token_typed_by_a_person_stays_text() -> None:
    for name in [*ENCODER.vocabulary.token_names(), "<|endoftext|>"]:
        ids = ENCODER.encode_text(name)
        assert len(ids) > 1
        assert max(ids) < ENCODER.vocabulary.first_added


def test_a_blank_query_and_a_search_event_without_query_are_refused() -> None:
    with pytest.raises(SequenceError, match="no text"):
        ENCODER.prompt([], "   ")
    with pytest.raises(ValueError, match="needs a query"):
        Event(1, Task.SEARCH, " ")
    with pytest.raises(SequenceError, match="no room"):
        make_encoder(max_tokens=20)


def test_identifiers_outside_the_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        ENCODER.vocabulary.tokens(np.array([[0, 0, 99]]))
    with pytest.raises(ValueError, match="shape"):
        ENCODER.vocabulary.tokens(np.array([[0, 0]]))
