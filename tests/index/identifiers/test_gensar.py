"""GenSAR's two identifiers of an item: what they share, what each follows, and items without behaviour."""

from __future__ import annotations

import numpy as np
import pytest

from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import IdentifierError, Identifiers
from index.identifiers.schemes.gensar import gensar_identifiers, shared_levels

ITEMS, SIZES = 240, (2, 12)
CHOSEN = np.arange(ITEMS) % 10 != 0


def views() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Texts that show a theme, behaviour that shows an audience, and both, of items in random combinations."""
    rng = np.random.default_rng(0)
    theme, audience = rng.integers(10, size=ITEMS), rng.integers(10, size=ITEMS)
    texts = rng.normal(size=(10, 24))[theme] + rng.normal(size=(ITEMS, 24)) * 0.2
    behaviour = rng.normal(size=(10, 16))[audience] + rng.normal(size=(ITEMS, 16)) * 0.2
    behaviour[~CHOSEN] = np.nan
    return texts.astype(np.float32), behaviour.astype(np.float32), theme, audience


@pytest.fixture(scope="module")
def named() -> Identifiers:
    texts, behaviour, *_ = views()
    return gensar_identifiers(texts, behaviour, SIZES)


def agreement(codes: np.ndarray, groups: np.ndarray) -> float:
    """Share of the pairs of items with the same codes that are of one group."""
    same = (codes[:, None] == codes[None]).all(axis=2)
    np.fill_diagonal(same, False)
    return float((groups[:, None] == groups[None])[same].mean())


def test_both_identifiers_begin_alike_and_go_on_in_codes_of_their_own(named: Identifiers) -> None:
    assert named.search_codes is not None
    assert np.array_equal(named.codes[:, 0], named.search_codes[:, 0])
    assert not set(named.codes[:, 1]) & set(named.search_codes[:, 1])
    for codes in (named.codes, named.search_codes):
        assert len(np.unique(codes, axis=0)) == ITEMS
        assert (codes < np.array(named.codebook_sizes)).all()
    assert len(np.unique(named.every_code[:, :2], axis=0)) > 24  # both levels are used


def test_the_codes_of_searches_follow_text_and_those_of_recommendations_behaviour(named: Identifiers) -> None:
    _, _, theme, audience = views()
    assert named.search_codes is not None
    by_text, by_behaviour = named.search_codes[CHOSEN, :2], named.codes[CHOSEN, :2]
    theme, audience = theme[CHOSEN], audience[CHOSEN]
    assert agreement(by_text, theme) > 2 * agreement(by_behaviour, theme)
    assert agreement(by_behaviour, audience) > 2 * agreement(by_text, audience)


def test_an_item_without_behaviour_is_named_by_its_text_as_a_later_one_is(named: Identifiers) -> None:
    texts, *_ = views()
    for codes, known in (
        (named.codes, named.codebooks),
        (named.search_codes, named.search_codebooks),
    ):
        assert codes is not None
        assert isinstance(known, Codebooks)
        assert np.array_equal(known.quantise(texts)[~CHOSEN], codes[~CHOSEN, :2])
        assert [known.alternatives(text)[0] for text in texts[~CHOSEN]] == codes[~CHOSEN, 1].tolist()


def test_behaviour_that_texts_foretell_is_expected_of_items_that_nobody_chose() -> None:
    texts, _, theme, _ = views()
    behaviour = texts[:, :8] @ np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    behaviour[~CHOSEN] = np.nan
    named = gensar_identifiers(texts, behaviour, SIZES)
    of_theme = {
        group: set(named.codes[CHOSEN & (theme == group), 1].tolist()) for group in set(theme.tolist())
    }
    unseen = [named.codes[row, 1] in of_theme[theme[row]] for row in np.flatnonzero(~CHOSEN)]
    assert np.mean(unseen) > 0.9
    assert np.mean([len(codes) for codes in of_theme.values()]) < 6  # so that chance would not do


def test_the_same_input_gives_the_same_identifiers_and_codebooks_are_read_as_written(
    named: Identifiers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts, behaviour, *_ = views()
    again = gensar_identifiers(texts, behaviour, SIZES)
    assert np.array_equal(again.every_code, named.every_code)
    assert named.codebooks is not None
    folder = tmp_path_factory.mktemp("codebooks")
    named.codebooks.save(folder)
    read = Codebooks.open(folder)
    assert read.first == named.codebooks.first == (0, named.codebooks.first[1])
    assert np.array_equal(read.quantise(texts), named.codebooks.quantise(texts))


def test_what_cannot_be_named_is_said() -> None:
    texts, behaviour, *_ = views()
    assert [shared_levels((8,) * count) for count in (2, 3, 4, 5)] == [1, 2, 2, 3]
    with pytest.raises(IdentifierError, match="two codebooks or more"):
        gensar_identifiers(texts, behaviour, (8,))
    with pytest.raises(IdentifierError, match="nobody chose any item"):
        gensar_identifiers(texts, np.full_like(behaviour, np.nan), SIZES)
    texts[4, 2] = np.nan
    with pytest.raises(IdentifierError, match="item row 5 is not finite"):
        gensar_identifiers(texts, behaviour, SIZES)
