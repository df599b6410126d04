"""Text identifiers: spelled with the tokens of titles, of different lengths, from the catalogue to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import make_bundle, make_catalogue, make_spelled, make_tokenizer

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from index.identifiers.identifiers import IdentifierError
from index.sequence.events import Event, Task
from index.trie.allowed import Allowed
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.loop.losses import item_losses
from training.loop.parts import pad

TOKENIZER = make_tokenizer(make_catalogue(60).texts())
END = len(TOKENIZER) + 3
LEVELS = 8


def no_vectors(items: Sequence[Item]) -> np.ndarray:
    raise AssertionError("titles are spelled, not embedded")


def read(codes: np.ndarray) -> list[str]:
    return [TOKENIZER.decode([code for code in row if code != END]) for row in codes.tolist()]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("spelled") / "bundle", spelling=LEVELS)


def test_an_identifier_reads_as_the_title_and_ends_where_it_ends() -> None:
    titles = ["Lost Garden", "Lost", "Winter Empire 12", "Señorita 星"]
    identifiers = make_spelled(titles, TOKENIZER, 24)
    assert read(identifiers.codes) == titles
    assert identifiers.spelled
    for row in identifiers.codes:
        tail = row[np.argmax(row == END) :]
        assert (tail == END).all()
        assert len(tail)


@given(st.lists(st.sampled_from(["Lost River", "Lost", "Hidden Letter of the Silent Machine", "星 " * 30])))
@settings(max_examples=50, deadline=None)
def test_items_of_one_title_are_numbered_as_a_person_would(titles: list[str]) -> None:
    if not titles:
        return
    identifiers = make_spelled(titles, TOKENIZER, 12)
    assert len(np.unique(identifiers.codes, axis=0)) == len(titles)
    for row, text in enumerate(read(identifiers.codes)):
        number = titles[:row].count(titles[row]) + 1
        assert text.endswith(f"({number})") == (number > 1)
        assert text[:4] == titles[row].strip()[:4]


def test_titles_that_cannot_be_spelled_are_named() -> None:
    with pytest.raises(IdentifierError, match=r"item row 2 .* no token"):
        make_spelled(["Lost", "\u2003"], TOKENIZER, 8)
    with pytest.raises(IdentifierError, match="more items begin as"):
        make_spelled(["Lost River"] * 200, TOKENIZER, 4)


def test_only_the_first_end_is_written_and_each_written_token_is_a_target(published: Path) -> None:
    bundle = Bundle.open(published)
    events = [Event(3), Event(11, Task.SEARCH, "golden"), Event(3)]
    sample = bundle.encoder.sample(events)
    whole = bundle.encoder.prompt(events[:2]).ids + bundle.encoder.identifier(3)
    assert sample.ids.tolist() == whole
    for item in range(60):
        written = bundle.encoder.identifier(item)
        assert len(written) <= LEVELS
        assert bundle.vocabulary.end not in written[:-1]
        assert (bundle.vocabulary.end == written[-1]) or len(written) == LEVELS
    starts = np.flatnonzero(sample.level == 0)
    for start, event in zip(starts, events, strict=True):
        written = bundle.encoder.identifier(event.item)
        assert sample.ids[start : start + len(written)].tolist() == written
        assert sample.level[start : start + len(written)].tolist() == list(range(len(written)))
    assert (sample.level >= 0).sum() == sum(len(bundle.encoder.identifier(event.item)) for event in events)


@pytest.mark.parametrize("query", [None, "winter machine"])
def test_every_item_is_ranked_by_the_likelihood_of_what_is_written(
    published: Path, query: str | None
) -> None:
    """Score each item with the training loss, one item at a time."""
    bundle = Bundle.open(published)
    model = bundle.load_model()
    history = [Event(8), Event(21, Task.SEARCH, "lost garden")]
    task = Task.RECOMMENDATION if query is None else Task.SEARCH
    expected = []
    for item in range(60):
        sample = bundle.encoder.sample([*history, Event(item, task, query)])
        sample.level[: -len(bundle.encoder.identifier(item))] = -1
        with torch.inference_mode():
            expected.append(-float(item_losses(model, bundle.vocabulary, pad([sample]), "level")[task]))
    engine = TorchEngine.open(bundle)
    prompt = bundle.encoder.prompt(history, query).ids
    ranking = engine.rank([RankRequest(prompt, 60, 60)])[0]
    assert sorted(ranking.items) == list(range(60))
    assert np.allclose(ranking.scores, np.array(expected)[ranking.items], atol=1e-3)
    allowed = Allowed.of(bundle.index.trie, excluded=ranking.items[:5])
    without = engine.rank([RankRequest(prompt, 5, 60, allowed), RankRequest(prompt[-3:], 3, 3)])[0]
    assert without.items == ranking.items[5:10]


def test_later_items_are_spelled_without_any_vector(published: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(published)
    twin = bundle.index.catalogue[7].title
    new = [Item("new-1", twin), Item("new-2", "Comedy of the River")]
    update_index(bundle, new, [], no_vectors)
    after = bundle.refreshed()
    assert read(after.index.trie.codes()[60:]) == [f"{twin} (2)", "Comedy of the River"]
    assert after.encoder.identifier(61)[-1] == bundle.vocabulary.end
