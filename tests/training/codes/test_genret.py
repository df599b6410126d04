"""GenRet: positions that are learned one after another, by a T5 that makes the codes and retrieves by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.preparations import code_settings, prepare_walks, walk_vectors
from support.t5 import KINDS, make_t5
from support.walks import make_data

from index.catalogue import Catalogue, Item
from index.identifiers.codebooks import costs
from index.sequence.events import Event
from training.codes.documents import DOCUMENT_TOKENS, TOGETHER, Documents, padded
from training.codes.genret import MARKS, GenRet, groups_of
from training.data.dataset import DataSet
from training.data.splits import leave_one_out

STEPS = 60


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return DataSet.load(make_data(tmp_path_factory.mktemp("data") / "walks", users=40))


def make(folder: Path, walks: DataSet) -> GenRet:
    config = code_settings("genret", "t5-tiger")
    prepared = prepare_walks(folder, walks, config)
    return GenRet(prepared, config, leave_one_out(walks).train, walks.catalogue)


def trained(learner: GenRet, steps: Iterable[int]) -> GenRet:
    """Take some of the `STEPS` steps of a stage."""
    learner.train()
    batches = learner.batches(0)
    for step in steps:
        torch.manual_seed(step)
        learner.step(next(batches), step / STEPS)
    return learner


@pytest.fixture(scope="module")
def done(walks: DataSet, tmp_path_factory: pytest.TempPathFactory) -> GenRet:
    learner = trained(make(tmp_path_factory.mktemp("done") / "p", walks), range(STEPS))
    learner.finish()
    learner.eval()
    return learner


def test_reconstruction_falls_position_by_position(done: GenRet) -> None:
    codes = done.codes.numpy()
    first, second = done.reconstruction.tolist()
    assert second < first
    for level, loss in enumerate((first, second)):  # below that of codes that say nothing
        prefix = groups_of(codes[:, :level])
        assert loss < np.log(np.bincount(prefix)[prefix]).mean() - 0.2
    assert len(np.unique(codes[:, 0])) == 4
    assert len(np.unique(codes, axis=0)) > 8


def test_codes_and_rows_of_earlier_positions_stay(walks: DataSet, tmp_path: Path) -> None:
    learner = trained(make(tmp_path / "p", walks), range(STEPS // 2 + 1))
    assert int(learner.position) == 1
    first, last = learner._vocabulary.span(0)
    table = learner.model.get_output_embeddings().weight
    codes, rows, free = learner.codes[:, 0].clone(), table[first:last].clone(), table[last].clone()
    batches = learner.batches(STEPS // 2 + 1)
    for step in range(STEPS // 2 + 1, STEPS // 2 + 15):
        learner.step(next(batches), step / STEPS)
    learner.finish()
    assert torch.equal(learner.codes[:, 0], codes)
    assert torch.equal(table[first:last], rows)
    assert not torch.equal(table[last], free)


def test_queries_have_the_codes_of_their_documents(done: GenRet) -> None:
    titles = [queries[0] for queries in done._texts.queries]  # the pseudo-query comes first
    with torch.no_grad():
        found = done.latents(titles, done.codes[:, :1])
        agreed = [
            float((done._logits(level, found[:, level]).argmax(1) == done.codes[:, level]).float().mean())
            for level in range(2)
        ]
        chance = [float(done.codes[:, level].bincount().max()) / len(done.codes) for level in range(2)]
    assert agreed[0] > chance[0] + 0.2
    assert agreed[1] > chance[1]


def test_later_items_are_named_by_vectors_like_the_documents(done: GenRet) -> None:
    known, codes, _ = done.finish()
    named = known.quantise(walk_vectors())
    for level in range(2):
        chance = np.bincount(codes[:, level]).max() / len(codes)
        assert (named[:, level] == codes[:, level]).mean() > chance
    read = known.encode(walk_vectors())
    width = read.shape[1] // 2
    apart = [
        costs(
            read[:, j * width : (j + 1) * width],
            known.levels[j][:, j * width : (j + 1) * width],
            known.prices[j],
        )
        for j in range(2)
    ]  # the levels share no dimension
    assert np.array_equal(named, np.stack([each.argmin(1) for each in apart], 1))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_read_off_by_the_models_own_head(kind: str, walks: DataSet, tmp_path: Path) -> None:
    """Logits of codes are those of transformers, for tied output rows and for rows of their own."""
    config = code_settings("genret", "t5-tiger")
    prepared = prepare_walks(tmp_path / "p", walks, config)
    prepared = replace(prepared, model=make_t5(prepared.vocabulary.size, kind))
    learner = GenRet(prepared, config, leave_one_out(walks).train, walks.catalogue)
    learner.eval()
    rows = torch.randn(4, 32)
    learner._set_rows(0, rows)
    assert torch.allclose(learner._rows(0), rows, atol=1e-6)
    texts, codes = learner._texts.documents[:6], torch.tensor([[0], [1], [2], [3], [0], [1]])
    ids, attended = padded(texts, torch.device("cpu"))
    written = torch.cat(
        [torch.zeros(6, 1, dtype=torch.long), codes + int(prepared.vocabulary.first_code[0])], 1
    )
    with torch.no_grad():
        found = learner.latents(texts, codes)
        logits = prepared.model(input_ids=ids, attention_mask=attended, decoder_input_ids=written).logits
        for level in range(2):
            first, last = prepared.vocabulary.span(level)
            assert torch.allclose(
                learner._logits(level, found[:, level]), logits[:, level, first:last], atol=1e-4
            )


def test_the_positions_begin_and_end_at_their_marks(walks: DataSet, tmp_path: Path) -> None:
    learner = make(tmp_path / "p", walks)
    seen = []
    for share in (0.0, MARKS[0] / 2 - 1e-6, MARKS[0] / 2, MARKS[1] / 2, 0.499, 0.5, 0.99):
        learner._reach(share)
        seen.append((int(learner.position), int(learner.passed)))
    assert seen == [(0, 0), (0, 0), (0, 1), (0, 2), (0, 2), (1, 0), (1, 2)]
    learner.finish()
    assert int(learner.position) == 2


def test_a_batch_holds_several_documents_of_a_prefix(walks: DataSet) -> None:
    texts = Documents([[0]] * 90, [[[row]] for row in range(90)], 0)
    rng = np.random.default_rng(0)
    rows, queries = texts.draw(32, np.zeros(90, np.int64), rng)
    assert len(set(rows)) == 32
    assert queries == [[row] for row in rows]
    groups = np.repeat(np.arange(9), 10)
    drawn = np.bincount(groups[texts.draw(32, groups, rng)[0]])
    assert drawn.max() == 32 // TOGETHER
    assert (drawn[drawn > 0] == 4).all()
    assert sorted(texts.draw(200, groups, rng)[0]) == list(range(90))


def test_queries_are_those_of_people_and_titles(walks: DataSet, tmp_path: Path) -> None:
    config = code_settings("genret", "t5-tiger")
    prepared = prepare_walks(tmp_path / "p", walks, config)
    encoder, split = prepared.encoder(config), leave_one_out(walks).train
    texts = Documents.of(encoder, prepared.tokenizer, walks.catalogue, split)
    searches = [event for history in split for event in history if event.query is not None]
    assert texts.logged == len(searches) == sum(map(len, texts.queries)) - len(walks.catalogue)
    silent = [[Event(event.item) for event in history] for history in split]
    alone = Documents.of(encoder, prepared.tokenizer, walks.catalogue, silent)
    assert alone.logged == 0
    assert [queries[0] for queries in alone.queries] == [
        encoder.prompt([], item.title).ids for item in walks.catalogue
    ]
    long = Catalogue([Item("long", " ".join(["red hat"] * 200))])
    cut = Documents.of(encoder, prepared.tokenizer, long, [])
    assert len(cut.documents[0]) == DOCUMENT_TOKENS + 2
    assert len(cut.queries[0][0]) == config.sequence.max_query_tokens + 2
