"""The fit of the dense head: it finds what is linear in vectors, and does not see the items that it leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.walks import make_data, settings

from index.bundle.bundle import Bundle
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.dense.fit import fit_dense
from training.dense.states import target_states
from training.fit import fit
from training.pipeline import train

ITEMS, VECTORS, STATES = 300, 16, 8


def drawn(targets: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Draw targets from a model that is linear in the vectors. Returns states, targets and vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(ITEMS, VECTORS, generator=generator)
    true = torch.randn(STATES, VECTORS, generator=generator) / 3
    states = torch.randn(targets, STATES, generator=generator)
    shares = (states @ true @ vectors.T).softmax(1)
    items = torch.multinomial(shares, 1, generator=generator).squeeze(1)
    return states, items, vectors.numpy()


def nll(scores: np.ndarray, items: np.ndarray) -> float:
    return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(items)), items]))


def test_a_model_that_is_linear_in_vectors_is_found_also_for_items_that_were_left_out() -> None:
    states, items, vectors = drawn(20_000, 0)
    index = fit_dense(states[:18_000], items[:18_000], vectors)
    test, targets = states[18_000:].numpy(), items[18_000:].numpy()
    every = np.arange(ITEMS)
    scores = np.stack([index.scores(state, every) for state in test.tolist()])
    # a state says less than a whole nat about its item; the fit finds most of it
    assert nll(scores, targets) < nll(np.zeros_like(scores), targets) - 0.8
    hidden = every % 2 == 0
    held_out = np.stack([index.hiding(hidden, 0).scores(state, every) for state in test.tolist()])
    of_hidden = targets % 2 == 0
    apart = held_out[of_hidden][:, hidden]
    assert nll(apart, targets[of_hidden] // 2) < np.log(hidden.sum()) - 0.6


def test_a_held_out_row_knows_nothing_of_its_half() -> None:
    states, items, vectors = drawn(4_000, 1)
    other = items.clone()
    even = torch.nonzero(items % 2 == 0).squeeze(1)
    other[even] = items[even.flip(0)]  # the events of the even items, mixed up
    first, second = fit_dense(states, items, vectors), fit_dense(states, other, vectors)
    np.testing.assert_array_equal(first.held_out[::2], second.held_out[::2])
    assert (first.held_out[1::2] != second.held_out[1::2]).any()
    assert (first.rows != second.rows).any()


def test_a_catalogue_that_nobody_touched_in_one_half_is_fitted() -> None:
    states, items, vectors = drawn(500, 2)
    index = fit_dense(states, items // 2 * 2, vectors)
    assert np.isfinite(index.held_out).all()


@pytest.mark.parametrize("backbone", ["scratch", "t5-tiger"])
def test_states_are_those_of_the_engine_and_belong_to_their_items(backbone: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    config = settings({"backbone.name": backbone})
    trained = fit(data, tmp_path / "run", config, console=Console(quiet=True))
    assert trained is not None
    encoder = trained.prepared.encoder(config)
    states, items = target_states(trained.prepared.model, trained.batches)
    assert len(states) == len(items)
    samples = [each for batch in trained.batches.samples(0) for each in batch]
    wanted = {}
    for sample in samples:
        starts = np.flatnonzero(sample.level == 0)
        np.testing.assert_array_equal(starts, np.flatnonzero(sample.item >= 0))
        for start, row in zip(starts.tolist(), sample.item[starts].tolist(), strict=True):
            length = len(encoder.identifier(row))
            assert sample.ids[start : start + length].tolist() == encoder.identifier(row)
            prompt = sample.prompt.tolist() or sample.ids[:start].tolist()
            wanted.setdefault(row, []).append(prompt)
    engine = TorchEngine(trained.prepared.model, trained.engine.everything.trie, trained.prepared.vocabulary)
    row = int(items[0])
    prompts = wanted[row]
    found = engine.rank([RankRequest(prompt, 1, 1, state=True) for prompt in prompts])
    nearest = min(np.abs(np.array(each.state) - states[0].numpy()).max() for each in found)
    assert nearest < 1e-3
    assert engine.rank([RankRequest(prompts[0], 1, 1)])[0].state == []


def test_a_bundle_holds_the_head_and_the_origin_of_its_vectors(tmp_path: Path) -> None:
    bundle = train(make_data(tmp_path / "data"), tmp_path / "run", settings(), console=Console(quiet=True))
    assert bundle is not None
    opened = Bundle.open(bundle)
    assert opened.index.pool is not None
    assert opened.index.pool.dense is not None
    assert opened.info.item_embeddings == "text"
