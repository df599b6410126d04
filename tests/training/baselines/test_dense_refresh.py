"""Hard negatives of the dense baseline come from an index that is encoded again while the encoder learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.walks import make_data

from training.baselines.dense import Batch, BiEncoder, EncodedCatalogue, Pairs, Round, contrastive_loss
from training.baselines.run import run_baseline
from training.baselines.settings import DenseSettings
from training.data import assets
from training.data.dataset import DataSet
from training.data.splits import leave_one_out

MINED = 3


class Training:
    """A bi-encoder that is trained on the batches of a round, and what it would rank high at any moment."""

    def __init__(self, data: Path) -> None:
        dataset = DataSet.load(data)
        self.texts = dataset.catalogue.texts()
        self.pairs = Pairs.of(leave_one_out(dataset))
        self.model = BiEncoder(assets.fetch("minilm"), max_tokens=16, frozen_layers=4)
        self.encoded = EncodedCatalogue(self.model, self.texts)
        self._optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)

    def hard(self) -> dict[int, set[int]]:
        """Return the hard negatives of every query under the weights of this moment."""
        now = EncodedCatalogue(self.model, self.texts)
        found = now.hard_negatives(self.pairs, np.arange(len(self.pairs.queries)), MINED)
        return {query: set(items.tolist()) for query, items in found.items()}

    def learn(self, batch: Batch) -> None:
        """Take a step."""
        asked = self.model([self.pairs.queries[q] for q in batch.query])
        items = self.model([self.texts[i] for i in batch.items])
        known = torch.tensor([[int(i) in self.pairs.chosen[q] for i in batch.items] for q in batch.query])
        self._optimizer.zero_grad()
        contrastive_loss(asked, items, known, 0.05).backward()
        self._optimizer.step()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.mark.parametrize("refresh_every", [2, None])
def test_negatives_are_hard_under_the_weights_of_the_last_refresh(
    refresh_every: int | None, data: Path
) -> None:
    training = Training(data)
    settings = DenseSettings(steps=4, batch_size=8, mined=MINED, refresh_every=refresh_every)
    start = hard = training.hard()
    stale = 0
    for step, batch in enumerate(Round(settings, training.pairs, training.encoded, 2)):
        if refresh_every and step % refresh_every == 0:
            hard = training.hard()  # of this moment
        assert len(batch.items) == 2 * len(batch.query)  # a negative for each pair
        for query, item in zip(batch.query.tolist(), batch.items[len(batch.query) :].tolist(), strict=True):
            assert item in hard[query]
            assert item not in training.pairs.chosen[query]
            stale += item not in start[query]
        training.learn(batch)
    assert training.hard() != start  # the weights moved far enough to tell one index from another
    assert (stale > 0) == (refresh_every is not None)


def test_the_first_round_has_no_mined_negatives(data: Path) -> None:
    training = Training(data)
    settings = DenseSettings(steps=3, batch_size=8, refresh_every=1)
    batches = list(Round(settings, training.pairs, training.encoded, 1))
    assert len(batches) == 3
    assert all(len(batch.items) == len(batch.query) for batch in batches)


def test_a_round_with_refreshes_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(quiet=True)
    wanted = DenseSettings(rounds=2, steps=3, batch_size=8, refresh_every=2, max_tokens=16, threads=1)
    run_baseline(data, tmp_path / "whole", wanted, console=console)
    saved = torch.save
    count = 0

    def stop_after_one(content: object, file: Path) -> None:
        nonlocal count
        saved(content, file)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run_baseline(data, tmp_path / "stopped", wanted, console=console)
    monkeypatch.undo()
    run_baseline(data, tmp_path / "stopped", wanted, resume=True, console=console)
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "stopped" / "weights.safetensors")[name])
