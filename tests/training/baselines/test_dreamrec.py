"""DreamRec: exact diffusion, guidance, noise of each case, vectors at full width, runs that learn and resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from support.walks import COLOURS, THINGS, make_data

from index.identifiers.alphafuse import SemanticSpace
from index.sequence.events import Event, Task
from training.baselines.dreamrec import case_noise, dreamrec
from training.baselines.networks.diffusion import Denoiser, Noise
from training.baselines.run import run_baseline
from training.baselines.settings import BaselineError, DreamRecSettings, settings_from
from training.data.dataset import DataSet
from training.data.splits import Case, leave_one_out
from training.data.vectors import read_vectors, save_vectors

QUIET = Console(quiet=True)
SMALL = {
    "hidden": 32, "layers": 1, "batch_size": 8, "threads": 1, "dropout": 0.1, "epochs": 30, "patience": 30,
    "learning_rate": 3e-3, "final_rate": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def language(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return vectors of 20 dimensions in which colour and thing are."""
    rng = np.random.default_rng(0)
    colours, things = rng.standard_normal((len(COLOURS), 20)), rng.standard_normal((len(THINGS), 20))
    vectors = (colours[:, None] + things[None]).reshape(-1, 20) + 0.1 * rng.standard_normal((30, 20))
    file = tmp_path_factory.mktemp("language") / "vectors.parquet"
    save_vectors(file, DataSet.load(data).catalogue.item_ids, vectors.astype(np.float32))
    return file


def test_the_levels_lead_from_a_vector_to_noise() -> None:
    torch.manual_seed(0)
    noise = Noise(100)
    vectors, drawn = torch.randn(4, 8), torch.randn(4, 8)
    assert torch.equal(noise.added(vectors, drawn, torch.zeros(4, dtype=torch.int64)), vectors)
    assert torch.allclose(noise.added(vectors, drawn, torch.full((4,), 100)), drawn, atol=0.05)
    assert (noise.kept[1:] < noise.kept[:-1]).all()


class Gaussian(Denoiser):
    """The exact denoiser of vectors ~ N(guide, s² I)."""

    s = 0.5

    def forward(self, noisy: torch.Tensor, level: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        kept = self.noise.kept[level, None]
        share = self.s**2 * kept.sqrt() / (self.s**2 * kept + 1 - kept)
        return guide + share * (noisy - kept.sqrt() * guide)


def test_an_exact_denoiser_leads_noise_to_the_distribution_of_the_vectors() -> None:
    torch.manual_seed(0)
    model = Gaussian(6, 2000)
    guide, drawn = torch.randn(50, 6), torch.randn(50, 6)
    made = model.generate(guide, drawn, steps=2000, guidance=0.0)
    assert torch.allclose(made, guide + model.s * drawn, atol=0.05)  # the solution of the flow in closed form
    with torch.no_grad():
        model.unguided.zero_()
        further = model.generate(guide, drawn, steps=2000, guidance=2.0)
    assert torch.allclose(further, 3 * guide + model.s * drawn, atol=0.15)  # away from N(∅, s² I)


def test_it_finds_the_next_item_of_a_walk_and_denoises_better_than_the_mean(
    data: Path, tmp_path: Path
) -> None:
    wanted = DreamRecSettings(**SMALL)
    result = run_baseline(data, tmp_path / "run", wanted, console=QUIET)
    assert result["recommendation"]["hit@5"] > 0.9
    assert result["recommendation"]["ndcg@10"] > 0.8
    dataset = DataSet.load(data)
    split = leave_one_out(dataset)
    baseline = dreamrec(wanted, dataset, split, None, QUIET)
    baseline.model.load_state_dict(load_file(tmp_path / "run" / "weights.safetensors"))
    baseline.model.eval()
    exported = read_vectors(tmp_path / "run" / "item_vectors.parquet", dataset.catalogue.item_ids)
    batches = baseline.batches(1)
    targets = torch.cat([b.targets[b.targets >= 0] for b in batches]).numpy()
    with torch.no_grad():
        loss = np.mean([float(baseline.loss_of(batch)) for batch in batches])
    mean = exported[targets].mean(0)
    assert loss < 0.5 * float(((exported[targets] - mean) ** 2).mean())
    # The loss is not small because the vectors fell together.
    assert np.allclose(exported.std(0), 1, atol=1e-4)

    cases = list(split.test[:40])
    score = baseline.scores[Task.RECOMMENDATION]
    guided = score(cases)
    assert np.array_equal(guided, score(cases))
    assert np.allclose(guided[7:8], score(cases[7:8]), atol=1e-3)  # alone as among others
    answers = baseline.model.answers(cases)
    expected = F.cosine_similarity(answers[:, None], torch.from_numpy(exported)[None], dim=-1).numpy()
    assert np.allclose(guided, expected, atol=1e-5)
    for change in ({"guidance": 0.0}, {"seed": 1}):
        other = dreamrec(wanted.model_copy(update=change), dataset, split, None, QUIET)
        other.model.load_state_dict(baseline.model.state_dict())
        other.model.eval()
        assert not np.allclose(other.scores[Task.RECOMMENDATION](cases), guided, atol=0.01)


def test_each_case_has_noise_of_its_own() -> None:
    cases = [Case(name, (Event(1),), 2, None) for name in ("a", "b", "a")]
    noise = case_noise(cases, 5, seed=0)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(case_noise(cases[1:2], 5, seed=0)[0], noise[1])


def test_alphafuse_has_the_full_width_and_a_gaussian_start(
    data: Path, language: Path, tmp_path: Path
) -> None:
    dataset = DataSet.load(data)
    wanted = DreamRecSettings(items="alphafuse", null=8, **SMALL | {"epochs": 2})
    torch.manual_seed(0)
    before = dreamrec(wanted, dataset, leave_one_out(dataset), language, QUIET).vectors()
    assert before.shape == (30, 20)  # 12 of the row space, and all 8 of the null space
    space = SemanticSpace.of(read_vectors(language, dataset.catalogue.item_ids), semantic=12)
    frozen = space.standardised(read_vectors(language, dataset.catalogue.item_ids))
    assert np.array_equal(before[:, :12], frozen)
    assert np.allclose(before[:, 12:].std(0), 1, atol=1e-4)
    result = run_baseline(data, tmp_path / "run", wanted, language=language, console=QUIET)
    assert (result["training"]["semantic"], result["training"]["null"]) == (12, 8)
    after = read_vectors(tmp_path / "run" / "item_vectors.parquet", dataset.catalogue.item_ids)
    assert np.array_equal(after[:, :12], frozen)
    assert not np.array_equal(after[:, 12:], before[:, 12:])
    by_threshold = DreamRecSettings(items="alphafuse", threshold=0.01, **SMALL)
    other = dreamrec(by_threshold, dataset, leave_one_out(dataset), language, QUIET)
    assert other.vectors().shape == (30, 20)
    with pytest.raises(BaselineError, match="do not divide among 3 heads"):
        dreamrec(wanted.model_copy(update={"heads": 3}), dataset, leave_one_out(dataset), language, QUIET)


def test_a_diffusion_that_was_stopped_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = DreamRecSettings(**SMALL | {"epochs": 3, "exclude_history": True})
    whole = run_baseline(data, tmp_path / "whole", wanted, console=QUIET)
    saved = torch.save
    count = 0

    def stop_after_two(content: object, file: Path) -> None:
        nonlocal count
        saved(content, file)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_baseline(data, tmp_path / "stopped", wanted, console=QUIET)
    monkeypatch.undo()
    again = run_baseline(data, tmp_path / "stopped", wanted, resume=True, console=QUIET)
    assert again["recommendation"] == whole["recommendation"]
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "stopped" / "weights.safetensors")[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"hidden": 15}, "does not divide"), ({"null": 4, "threshold": 0.1}, "not both")],
)
def test_settings_of_a_diffusion_that_do_not_fit_are_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        settings_from(DreamRecSettings, changed)
