"""DIGER: the loss of the recommender reaches the codes, through choices that are soft where it matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.preparations import code_settings, prepare_walks, walk_vectors
from support.walks import make_data

from index.identifiers.quantisers import kmeans, rqvae
from index.sequence.events import Task
from training.codes.diger import Diger
from training.codes.soft_codebooks import KEPT, LAMBDA, SoftCodebooks, sharpness_of
from training.data.dataset import DataSet
from training.data.splits import leave_one_out
from training.loop.batches import BatchSource
from training.loop.extra_tasks import ExtraTasks
from training.loop.losses import item_losses
from training.loop.pairs import Pairs

BACKBONES = ("scratch", "t5-tiger")


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return DataSet.load(make_data(tmp_path_factory.mktemp("data") / "walks", users=40))


def make(folder: Path, walks: DataSet, backbone: str, **codes: object) -> Diger:
    config = code_settings("diger", backbone, {"codes": codes}, {"optimiser.batch_size": 8})
    prepared = prepare_walks(folder, walks, config)
    return Diger(prepared, config, leave_one_out(walks).train, walks.catalogue)


def gradients(learner: Diger) -> list[float]:
    """Return the norms of the gradients that the loss of the recommender alone has in the codes and their encoder."""
    batch = next(learner.batches(0))
    learner.zero_grad()
    learner.losses(batch.parts[0], 1.0)[0].backward()
    weights = [*learner.soft.levels, *learner.soft.layers.parameters()]
    return [0.0 if each.grad is None else float(each.grad.norm()) for each in weights]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_of_the_recommender_reaches_codes_that_are_not_hard(
    backbone: str, walks: DataSet, tmp_path: Path
) -> None:
    learner = make(tmp_path / "p", walks, backbone)
    for level in range(2):
        learner.soft.get_buffer(f"use_{level}").fill_(1.0)  # all are popular
    torch.manual_seed(0)
    assert min(gradients(learner)) > 1e-5
    for level in range(2):
        learner.soft.get_buffer(f"use_{level}").zero_()  # all are rare, and so hard
    assert max(gradients(learner)) == 0


@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_hard_codes_the_loss_is_that_of_the_training(
    backbone: str, normalisation: str, walks: DataSet, tmp_path: Path
) -> None:
    config = code_settings("diger", backbone, {"identifiers.normalisation": normalisation})
    prepared = prepare_walks(tmp_path / "p", walks, config)
    learner = Diger(prepared, config, leave_one_out(walks).train, walks.catalogue)
    learner.eval()
    for level in range(2):
        learner.soft.get_buffer(f"use_{level}").zero_()
    encoder = prepared.encoder(config)  # writes the tokens of codes
    pairs = Pairs.of(prepared.model, encoder, config.sequence.targets)
    plain = BatchSource(
        encoder,
        leave_one_out(walks).train,
        batch_size=16,
        part_tokens=8192,
        pairs=pairs,
        extra=ExtraTasks(config.sequence.tasks_beside_log, walks.catalogue, encoder, pairs),
    )
    soft, hard = next(learner.batches(0)), next(plain.epoch(0))
    own = sum(float(learner.losses(part, 1.0)[0].detach()) for part in soft.parts)
    expected = sum(
        float(loss.detach())
        for part in hard.parts
        for loss in item_losses(prepared.model, prepared.vocabulary, part, normalisation).values()
    )
    assert own == pytest.approx(expected, rel=1e-4)


def test_codes_are_learned_from_the_samples_that_the_training_draws(walks: DataSet, tmp_path: Path) -> None:
    wanted = {"sequence": {"word_queries": 1.0, "log_after": 0.5}}
    config = code_settings("diger", "scratch", wanted)
    prepared = prepare_walks(tmp_path / "p", walks, config)
    batch = next(Diger(prepared, config, leave_one_out(walks).train, walks.catalogue).batches(0))
    assert batch.targets[Task.SEARCH] > 0 == batch.targets[Task.RECOMMENDATION]


def test_rare_codes_are_chosen_hard_and_popular_ones_sampled() -> None:
    vectors = walk_vectors()
    start = rqvae.fit(vectors, (4, 4), 2.0, 0)
    soft = SoftCodebooks(start, vectors, 2.0, "use")
    every = torch.from_numpy(vectors)
    use = np.bincount(start.quantise(vectors)[:, 0], minlength=4) / len(vectors)
    assert np.allclose(soft.get_buffer("use_0").numpy(), use)
    use = np.array([0.5, 0.36, 0.14, 0.0], np.float32)
    soft.get_buffer("use_0").copy_(torch.from_numpy(use))
    found = soft(every, 1.0)
    assert np.array_equal(found.nearest[:, 0].numpy(), start.quantise(vectors)[:, 0])
    popular = found.nearest[:, 0].numpy() == 0  # used more than 1.5 times as often as a quarter
    assert popular.any()
    assert not popular.all()
    assert np.array_equal(found.sampled[:, 0].numpy(), popular)
    largest = found.shares[0].max(1).values.detach().numpy()
    assert (largest[~popular] == 1).all()
    assert (largest[popular] < 1).all()
    assert np.array_equal(soft(every, 1.0, hard=True).nearest.numpy(), start.quantise(vectors))


def test_popularity_follows_use() -> None:
    vectors = walk_vectors()
    soft = SoftCodebooks(kmeans.fit(vectors, (4, 4), 2.0, 0), vectors, 2.0, "use")
    for _ in range(400):
        soft.count([torch.tensor([[1, 2], [1, 2]]), torch.tensor([[1, 3]])])
    assert soft.get_buffer("use_0").tolist() == pytest.approx([0, 1, 0, 0], abs=0.02)
    assert soft.get_buffer("use_1").tolist() == pytest.approx([0, 0, 2 / 3, 1 / 3], abs=0.02)


def test_full_noise_keeps_the_nearest_code_as_often_as_is_said() -> None:
    torch.manual_seed(0)
    costs = torch.rand(300, 50) * 7
    s = sharpness_of(costs)
    assert float((-s * costs).softmax(1).max(1).values.mean()) == pytest.approx(KEPT, abs=1e-3)
    assert sharpness_of(costs * 100) == pytest.approx(s / 100, rel=1e-3)
    vectors = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    soft = SoftCodebooks(kmeans.fit(vectors, (16,), np.inf, 0), vectors, 1e-3, "sigma")  # all but hard
    every = torch.from_numpy(vectors)
    kept = [(found := soft(every, 1.0)).shares[0].argmax(1) == found.nearest[:, 0] for _ in range(30)]
    assert float(torch.stack(kept).float().mean()) == pytest.approx(KEPT, abs=0.02)
    found = soft(every, 0.0)
    assert torch.equal(found.shares[0].argmax(1), found.nearest[:, 0])


def test_noise_falls_with_the_steps_or_with_the_loss() -> None:
    vectors = walk_vectors()
    start = kmeans.fit(vectors, (4, 4), 2.0, 0)
    by_use = SoftCodebooks(start, vectors, 2.0, "use")
    assert [by_use.noise(share) for share in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert float(by_use.uncertain(torch.tensor(3.0))) == 3.0
    learned = SoftCodebooks(start, vectors, 2.0, "sigma")
    ends = []
    for loss in (9.0, 5.5, 4.0, 2.0):
        with torch.no_grad():
            learned.sigma.fill_(1.0)
        optimiser = torch.optim.SGD([learned.sigma], 0.5)
        for _ in range(300):
            optimiser.zero_grad()
            learned.uncertain(torch.tensor(loss)).backward()
            optimiser.step()
        ends.append(learned.noise(0.0))
    assert ends[:3] == pytest.approx([loss**0.5 - LAMBDA for loss in (9.0, 5.5, 4.0)], abs=1e-3)
    assert ends[3] == 0  # below λ² there is none


def test_codes_follow_the_recommender_and_stay_apart(walks: DataSet, tmp_path: Path) -> None:
    """A large rate moves codes. What the optimiser moves is what `Codebooks` names later items by."""
    learner = make(tmp_path / "p", walks, "scratch", rate=0.2, schedule="sigma")
    before = learner.finish()[1]
    for step, batch in zip(range(12), learner.batches(0), strict=False):
        learner.step(batch, step / 12)
    known, codes, figures = learner.finish()
    assert figures["changed"] == (codes != before).any(1).mean() > 0
    assert np.array_equal(known.quantise(walk_vectors()), codes)
