"""Baselines: exact losses, complete windows, models that do not see the future, runs that learn and resume."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from support.walks import COLOURS, THINGS, make_data

from index.embeddings import TextEncoder
from index.sequence.events import Event, Task
from training.baselines.dense import BiEncoder, EncodedCatalogue, Pairs, contrastive_loss
from training.baselines.item_vectors import item_vectors
from training.baselines.loop import learning_rates
from training.baselines.ncf import NeuMF, score_users
from training.baselines.networks.sasrec import SASRec
from training.baselines.recommender import Score, sasrec
from training.baselines.run import run_baseline
from training.baselines.sequences import epoch_batches, read_cases, thinned
from training.baselines.settings import (
    BaselineError,
    NCFSettings,
    SASRecSettings,
    settings_from,
)
from training.cli.main import main
from training.data import assets
from training.data.dataset import DataSet
from training.data.splits import Case, Split, leave_one_out
from training.data.vectors import read_vectors, save_vectors
from training.run.run_folder import RunError

QUIET = Console(quiet=True)
SMALL = {
    "hidden": 16,
    "layers": 1,
    "batch_size": 16,
    "threads": 1,
    "dropout": 0.1,
    "epochs": 12,
    "patience": 20,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def language(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return vectors that encode the colour and the thing, in 20 dimensions, with noise."""
    rng = np.random.default_rng(0)
    colours, things = rng.standard_normal((len(COLOURS), 20)), rng.standard_normal((len(THINGS), 20))
    vectors = (colours[:, None] + things[None]).reshape(-1, 20) + 0.1 * rng.standard_normal((30, 20))
    file = tmp_path_factory.mktemp("language") / "vectors.parquet"
    save_vectors(file, DataSet.load(data).catalogue.item_ids, vectors.astype(np.float32))
    return file


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_windows_make_every_event_but_the_first_a_target_once(
    lengths: list[int], max_events: int, batch_size: int
) -> None:
    histories = [np.arange(n) + 100 * k for k, n in enumerate(lengths)]
    batches = epoch_batches(histories, max_events, batch_size, np.random.default_rng(0))
    targets = np.concatenate([b.targets[b.targets >= 0].numpy() for b in batches])
    assert sorted(targets) == sorted(np.concatenate([h[1:] for h in histories]))
    for batch in batches:
        assert batch.rows.shape[1] <= max_events
        inside = batch.targets >= 0
        # Each input comes just before its target.
        assert torch.equal(batch.rows[inside] + 1, batch.targets[inside])


def test_thinned_histories_keep_their_order_and_at_least_two_events() -> None:
    histories = [np.arange(n) for n in (2, 3, 400)]
    thin = thinned(histories, 0.25, np.random.default_rng(0))
    assert all(len(events) > 1 and (np.diff(events) > 0).all() for events in thin)
    assert len(thin[2]) == pytest.approx(300, abs=40)
    assert [events.tolist() for events in thinned(histories, 0.99, np.random.default_rng(0))[:2]] == [
        [0, 1],
        [1, 2],
    ]
    again = thinned(histories, 0.25, np.random.default_rng(1))
    assert thin[2].tolist() != again[2].tolist()  # other events each epoch


def test_events_are_left_out_of_each_epoch(data: Path) -> None:
    dataset = DataSet.load(data)

    def targets(dropout: float, epoch: int) -> list[int]:
        wanted = SASRecSettings(event_dropout=dropout)
        baseline = sasrec(wanted, dataset, leave_one_out(dataset), None, QUIET)
        return [len(batch.targets[batch.targets >= 0]) for batch in baseline.batches(epoch)]

    assert sum(targets(0.5, 1)) < 0.7 * sum(targets(0.0, 1))
    assert targets(0.5, 1) == targets(0.5, 1) != targets(0.5, 2)


def test_sasrec_sees_no_future_and_no_padding() -> None:
    torch.manual_seed(0)
    wanted = SASRecSettings(hidden=16, max_events=8)
    model = SASRec(
        item_vectors(wanted, "id", 20, None), 16, layers=2, heads=2, dropout=0.3, max_events=8
    ).eval()
    rows = torch.randint(20, (3, 8))
    states = model.states(model.items(), rows)
    changed = rows.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 20
    other = model.states(model.items(), changed)
    assert torch.allclose(states[:, :5], other[:, :5], atol=1e-6)
    assert not torch.allclose(states[:, 5], other[:, 5], atol=1e-3)
    alone = model.states(model.items(), rows[:1, :4])
    assert torch.allclose(alone, states[:1, :4], atol=1e-6)


def test_cases_are_read_from_their_end() -> None:
    cases = [Case("a", tuple(Event(k) for k in range(6)), 0, None), Case("b", (Event(7),), 0, None)]
    rows, last = read_cases(cases, 4)
    assert rows[0].tolist() == [2, 3, 4, 5]
    assert (rows[1, last[1]], last.tolist()) == (7, [3, 0])


@pytest.mark.parametrize(
    ("items", "scores"),
    [
        ("id", "cosine"),
        ("id", "product"),
        ("language-init", "cosine"),
        ("adapter", "cosine"),
        ("alphafuse", "cosine"),
    ],
)
def test_sasrec_learns_the_walk_with_every_kind_of_item_vectors(
    items: str, scores: str, data: Path, language: Path, tmp_path: Path
) -> None:
    wanted = SASRecSettings(items=items, scores=scores, **SMALL)
    result = run_baseline(data, tmp_path / "run", wanted, language=language, console=QUIET)
    assert result["recommendation"]["hit@5"] > 0.9  # the next thing of the same colour
    assert result["recommendation"]["hit@5"] > result["floors"]["popularity"]["recommendation"]["hit@5"] + 0.4
    catalogue = DataSet.load(data).catalogue
    assert read_vectors(tmp_path / "run" / "item_vectors.parquet", catalogue.item_ids).shape == (30, 16)
    assert result["training"]["parameters"] == sum(
        value.numel()
        for name, value in load_file(tmp_path / "run" / "weights.safetensors").items()
        if name not in ("items.frozen", "items.language")
    )


def test_an_ensemble_adds_the_scores_of_two_models(data: Path, language: Path, tmp_path: Path) -> None:
    wanted = SASRecSettings(items="ensemble", **SMALL | {"epochs": 4})
    result = run_baseline(data, tmp_path / "run", wanted, language=language, console=QUIET)
    assert result["recommendation"]["hit@5"] > 0.6
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"0", "1"}
    assert not (tmp_path / "run" / "item_vectors.parquet").exists()
    dataset = DataSet.load(data)
    split = leave_one_out(dataset)
    torch.manual_seed(0)
    baseline = sasrec(wanted, dataset, split, language, QUIET)
    first, second = baseline.model.eval()
    score = Score(cosines=True, temperature=None)
    cases = split.test[:5]
    expected = score.of_cases(first, cases) + score.of_cases(second, cases)
    assert np.allclose(baseline.scores[Task.RECOMMENDATION](cases), expected)
    batch = baseline.batches(1)[0]
    with torch.no_grad():
        parts = [score.loss(model, batch) for model in (first, second)]
        assert baseline.loss_of(batch).item() == pytest.approx(float(sum(parts)), rel=1e-5)


def test_alphafuse_leaves_the_frozen_part_alone_to_the_bit(
    data: Path, language: Path, tmp_path: Path
) -> None:
    wanted = SASRecSettings(items="alphafuse", null=6, **SMALL | {"epochs": 3})
    vectors = read_vectors(language, DataSet.load(data).catalogue.item_ids)
    before = item_vectors(wanted, "alphafuse", 30, vectors)
    result = run_baseline(data, tmp_path / "run", wanted, language=language, console=QUIET)
    assert (result["training"]["semantic"], result["training"]["null"]) == (10, 6)
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert torch.equal(weights["items.frozen"], before.frozen)
    exported = read_vectors(tmp_path / "run" / "item_vectors.parquet", DataSet.load(data).catalogue.item_ids)
    assert np.array_equal(exported[:, :10], before.frozen.numpy())
    assert np.array_equal(exported[:, 10:], weights["items.learned"].numpy())


def test_a_stopped_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = SASRecSettings(**SMALL | {"epochs": 4, "final_rate": 0.1})
    whole = run_baseline(data, tmp_path / "whole", wanted, console=QUIET)
    saved = torch.save
    count = 0

    def stop_after_two(content: object, file: Path) -> None:
        nonlocal count
        saved(content, file)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_baseline(data, tmp_path / "stopped", wanted, console=QUIET)
    monkeypatch.undo()
    with pytest.raises(RunError, match="--resume"):
        run_baseline(data, tmp_path / "stopped", wanted, console=QUIET)
    with pytest.raises(RunError, match="other settings"):
        run_baseline(
            data, tmp_path / "stopped", wanted.model_copy(update={"epochs": 5}), resume=True, console=QUIET
        )
    whole_checkpoint = (tmp_path / "stopped" / "checkpoint.pt").read_bytes()
    (tmp_path / "stopped" / "checkpoint.pt").write_bytes(whole_checkpoint[:1000])
    with pytest.raises(BaselineError, match="delete it to start that run again"):
        run_baseline(data, tmp_path / "stopped", wanted, resume=True, console=QUIET)
    (tmp_path / "stopped" / "checkpoint.pt").write_bytes(whole_checkpoint)
    again = run_baseline(data, tmp_path / "stopped", wanted, resume=True, console=QUIET)
    assert again["recommendation"] == whole["recommendation"]
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "stopped" / "weights.safetensors")[name])
    assert not (tmp_path / "stopped" / "checkpoint.pt").exists()
    times = (tmp_path / "whole" / "ranks.npz").stat().st_mtime_ns
    read = run_baseline(data, tmp_path / "whole", wanted, resume=True, console=QUIET)
    assert read["recommendation"] == whole["recommendation"]
    assert (tmp_path / "whole" / "ranks.npz").stat().st_mtime_ns == times


def test_the_learning_rate_falls_along_a_cosine_over_all_epochs() -> None:
    falling = SASRecSettings(learning_rate=0.01, final_rate=0.1)
    rates = np.array([rate for done in range(3) for rate in learning_rates(falling, done, 4, 3)])
    progress = np.arange(12) / 12
    assert rates == pytest.approx(0.01 * (0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2))
    constant = SASRecSettings(learning_rate=0.01)
    assert list(learning_rates(constant, 2, 4, 3)) == pytest.approx([0.01] * 4)


def test_the_learning_rate_falls_with_the_clock_and_ends_with_it() -> None:
    """Half of the time is over before the first of ten epochs, all of it before the third step."""
    falling = SASRecSettings(learning_rate=0.01, final_rate=0.1)
    clock = iter((0.5, 0.75, 1.0))
    rates = list(learning_rates(falling, 0, 4, 10, lambda: next(clock)))
    wanted = 0.01 * (0.1 + 0.9 * (1 + np.cos(np.pi * np.array([0.5, 0.75]))) / 2)
    assert rates == pytest.approx(wanted)


def test_minutes_end_a_training_that_its_epochs_would_not(data: Path, tmp_path: Path) -> None:
    wanted = NCFSettings(hidden=8, epochs=10**6, patience=10**6, threads=1, minutes=0.02)
    result = run_baseline(data, tmp_path / "run", wanted, console=QUIET)
    assert 1.2 <= result["training"]["seconds"] < 30
    again = run_baseline(data, tmp_path / "run", wanted, resume=True, console=QUIET)
    assert again["training"]["seconds"] == result["training"]["seconds"]


def test_ncf_scores_all_items_as_one_by_one_and_beats_popularity(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NeuMF(4, 9, 8, 0.2).eval()
    one = torch.stack([model(torch.tensor([[u]]), torch.tensor([[i]])) for u in range(4) for i in range(9)])
    assert np.allclose(score_users(model, torch.arange(4), 9).ravel(), one.detach().ravel(), atol=1e-6)
    wanted = NCFSettings(hidden=16, batch_size=64, epochs=25, patience=25, learning_rate=1e-2, threads=1)
    result = run_baseline(data, tmp_path / "run", wanted, console=QUIET)
    floor = result["floors"]["popularity"]["recommendation"]["hit@10"]
    assert result["recommendation"]["hit@10"] > floor + 0.2
    with pytest.raises(BaselineError, match="did not train on"):
        settings_from(NCFSettings, {"users": "chronological"})


def test_what_somebody_chose_for_a_query_is_no_negative() -> None:
    torch.manual_seed(0)
    queries, items = F.normalize(torch.randn(3, 5), dim=1), F.normalize(torch.randn(5, 5), dim=1)
    known = torch.zeros(3, 5, dtype=torch.bool)
    plain = contrastive_loss(queries, items, known, 0.1)
    assert torch.allclose(plain, F.cross_entropy(queries @ items.T / 0.1, torch.arange(3)))
    known[torch.arange(3), torch.arange(3)] = True
    assert torch.equal(contrastive_loss(queries, items, known, 0.1), plain)  # a pair's own item stays
    known[0, 3] = True
    fewer = torch.cat([queries[0] @ items[:3].T, (queries[0] @ items[4])[None]]) / 0.1
    rest = contrastive_loss(queries, items, known, 0.1) * 3 - F.cross_entropy(fewer, torch.tensor(0))
    assert torch.allclose(
        rest, F.cross_entropy(queries[1:] @ items.T / 0.1, torch.tensor([1, 2]), reduction="sum")
    )


def test_mined_negatives_are_the_best_ranked_items_that_nobody_chose(data: Path) -> None:
    dataset = DataSet.load(data)
    pairs, texts = Pairs.of(leave_one_out(dataset)), dataset.catalogue.texts()
    model = BiEncoder(assets.fetch("minilm"), max_tokens=64, frozen_layers=4)
    encoded = EncodedCatalogue(model, texts)
    scores = encoded.scores(pairs.queries)
    direct = TextEncoder(assets.fetch("minilm"))
    assert np.allclose(scores, direct.encode(pairs.queries) @ direct.encode(texts).T, atol=1e-5)
    mined = encoded.hard_negatives(pairs, np.arange(len(pairs.queries)), 5)
    for query, (row, chosen) in enumerate(zip(scores, pairs.chosen, strict=True)):
        order = [item for item in np.argsort(-row, kind="stable") if item not in chosen]
        assert mined[query].tolist() == order[:5]
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[3] for name in trained} == {"4", "5"}  # the layers above the frozen ones


def test_searches_become_pairs_and_a_data_set_without_any_is_refused() -> None:
    history = (
        Event(3, Task.SEARCH, "red"),
        Event(4),
        Event(5, Task.SEARCH, "blue"),
        Event(1, Task.SEARCH, "red"),
    )
    pairs = Pairs.of(Split([history], [], []))
    assert pairs.queries == ["blue", "red"]
    assert pairs.chosen == [{5}, {1, 3}]
    assert [(pairs.queries[q], i) for q, i in zip(pairs.query, pairs.item, strict=True)] == [
        ("red", 3), ("blue", 5), ("red", 1)
    ]  # fmt: skip
    with pytest.raises(BaselineError, match="no training event is a search"):
        Pairs.of(Split([(Event(1),)], [], []))


def test_item_vectors_survive_a_file_in_any_order(data: Path, tmp_path: Path) -> None:
    catalogue = DataSet.load(data).catalogue
    vectors = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    file = tmp_path / "vectors.parquet"
    save_vectors(file, catalogue.item_ids, vectors)
    pl.read_parquet(file).reverse().write_parquet(file)
    assert np.array_equal(read_vectors(file, catalogue.item_ids), vectors)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 15}, "does not divide"),
        ({"null": 16, "hidden": 16}, "no row space"),
        ({"null": 4, "threshold": 0.1}, "not both"),
        ({"colour": "red"}, "colour"),
        ({"items": "words"}, "items"),
    ],
)
def test_settings_that_do_not_fit_are_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        settings_from(SASRecSettings, changed)


def test_vectors_that_alphafuse_cannot_split_are_refused_through_the_command(
    data: Path,
    language: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*options: str) -> str:
        command = [
            "gems",
            "baseline",
            "sasrec",
            "--data",
            str(data),
            "--items",
            "alphafuse",
            "--threads",
            "1",
        ]
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--language-vectors", *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no null space" in refused(str(language), "--hidden", "16", "--threshold", "0")
    assert "leaves nothing of --hidden 4" in refused(str(language), "--hidden", "4", "--threshold", "0.01")
    catalogue = DataSet.load(data).catalogue
    broken = read_vectors(language, catalogue.item_ids)
    broken[3, 2] = np.nan
    save_vectors(tmp_path / "broken.parquet", catalogue.item_ids, broken)
    assert "is not finite (1 such rows)" in refused(str(tmp_path / "broken.parquet"), "--hidden", "16")
    wide = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32)
    save_vectors(tmp_path / "wide.parquet", catalogue.item_ids, wide)
    assert "30 items are too few" in refused(str(tmp_path / "wide.parquet"), "--hidden", "16")
