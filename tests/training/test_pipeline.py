"""`gems train` on a small real data set: it learns, resumes exactly, and leaves no incomplete files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.bundles import make_model, make_tokenizer
from support.walks import make_data, settings

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataError, DataInfo
from training.data.splits import leave_one_out
from training.errors import EvaluationError
from training.evaluation.candidates import Candidates
from training.evaluation.case_ranks import CaseRanks
from training.evaluation.comparison.compare import compare, floors_of
from training.evaluation.evaluate import evaluate
from training.evaluation.ranking import rank_cases
from training.model.backbones import BackboneError
from training.pipeline import train
from training.run.run_folder import RunError, fingerprint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(data, out, settings(), console=Console(quiet=True))
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def test_training_learns_both_tasks(run: Path, data: Path, tmp_path: Path) -> None:
    result = evaluate(run / "bundle", data, beam_width=30, ranks_file=tmp_path / "ranks.npz", system="ours")
    assert result["recommendation"]["hit@5"] > 2 * result["floors"]["popularity"]["recommendation"]["hit@5"]
    assert result["search"]["hit@5"] > 0.8
    assert result["search"]["hit@10"] > 2 * result["floors"]["popularity"]["search"]["hit@10"]
    assert result["cases"] == {"search": 120, "recommendation": 120}
    low, high = result["intervals"]["search"]["hit@5"]
    assert low <= result["search"]["hit@5"] <= high
    assert result["differences"]["popularity"]["search"]["hit@5"][1] > 0  # clearly above the floor
    compared = compare([CaseRanks.load(tmp_path / "ranks.npz")])  # its files agree
    for task in ("search", "recommendation"):
        assert compared[task]["all users"]["systems"]["ours"]["hit@5"] == result[task]["hit@5"]


def test_a_rank_among_sampled_negatives_is_that_of_the_whole_catalogue_without_the_others(
    run: Path, data: Path, tmp_path: Path
) -> None:
    """The beam of a full ranking has all 30 items; with 12 negatives a beam of 5 has to become wider."""
    cases, items = leave_one_out(DataSet.load(data)).test, 30
    candidates = Candidates(negatives=12, seed=4)
    bundle = Bundle.open(run / "bundle")
    full = rank_cases(TorchEngine.open(bundle), bundle.encoder, cases, Task.RECOMMENDATION, beam_width=items)
    expected = []
    for ranking, case in zip(full, cases, strict=True):
        among = candidates.rows(case, items)
        expected.append([item for item in ranking.items if item in among].index(case.target) + 1)
    file = tmp_path / "ranks.npz"
    result = evaluate(
        run / "bundle", data, beam_width=5, sampled_negatives=12, seed=4, ranks_file=file, ranking="beam"
    )
    assert result["protocol"]["ranking"] == "12 sampled negatives"
    left = CaseRanks.load(file)
    assert left.tasks[Task.RECOMMENDATION].ranks.tolist() == expected
    floors = {floor.system: floor for floor in floors_of(DataSet.load(data), [left])}
    floor = floors["popularity"].tasks[Task.RECOMMENDATION].ranks
    assert floor.min() >= 1
    assert floor.max() <= 13
    assert len(set(floor.tolist())) > 5


def test_text_identifiers_are_learned_and_served(data: Path, tmp_path: Path) -> None:
    """The model can copy the title from the query."""
    text = {
        "method": "full",
        "identifiers": {"scheme": "text", "spelling": 6},
        "optimiser.epochs": 15,
        "validation.every": 15,
    }
    train(data, tmp_path, settings(text), console=Console(quiet=True))
    bundle = Bundle.open(tmp_path / "bundle")
    prompts = [bundle.encoder.prompt([], item.title).ids for item in bundle.index.catalogue]
    rankings = TorchEngine.open(bundle).rank([RankRequest(prompt, 1, 10) for prompt in prompts])
    assert sum(ranking.items == [row] for row, ranking in enumerate(rankings)) >= 24  # of 30


def test_the_run_folder_tells_all(run: Path, data: Path) -> None:
    assert TrainConfig.load(run / "config.yaml", {}) == settings()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "learning_rate" in line]
    assert steps == list(range(1, len(steps) + 1))
    losses = [line["recommendation.loss"] for line in lines if "recommendation.loss" in line]
    assert losses[-1] < losses[0] / 2
    assert any("validation" in line for line in lines)
    bundle = Bundle.open(run / "bundle")
    info = bundle.info
    assert info.training["method"] == "gems"
    assert 0 < info.training["conflict"] < 2
    counts = bundle.popularity()
    assert counts is not None
    assert (len(counts), int(counts.sum())) == (
        len(bundle.index.catalogue),
        sum(map(len, leave_one_out(DataSet.load(data)).train)),
    )
    assert info.data["name"] == "walks"
    assert not (run / "bundle" / "generation_config.json").exists()


def test_the_bundle_is_a_plain_checkpoint(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "bundle")
    bundle = Bundle.open(run / "bundle")
    assert model.get_input_embeddings().weight.shape[0] == bundle.vocabulary.size
    assert len(AutoTokenizer.from_pretrained(run / "bundle")) == bundle.vocabulary.size
    ranking = TorchEngine.open(bundle).rank([RankRequest(bundle.encoder.prompt([], "red hat").ids, 5, 20)])[0]
    assert "red hat" in [bundle.index.catalogue[row].title for row in ranking.items]


def test_a_killed_run_resumes_to_the_same_weights(run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    settings({"run.checkpoint_every": 3e-3}).save(config)
    command = [
        sys.executable, "-m", "training.cli.main", "train", "--data", str(data), "--out", str(tmp_path / "run"),
        "--config", str(config),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("step-*[1-9]*")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "bundle").exists()
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    expected, found = weights(run), weights(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, tmp_path / "run"))
    assert [json.loads(a)["step"] for a in ours] == [json.loads(b)["step"] for b in theirs]


def start(arguments: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "training.cli.main", "train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_an_interrupted_run_finishes_its_step_and_resumes_to_the_same_weights(
    run: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--config", str(run / "config.yaml")]
    process = start(arguments, tmp_path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "--resume" in said
    steps = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert steps == [f"step-{last:08d}"]
    elsewhere = settings({"device": "cpu"})  # another device is no other run
    train(data, tmp_path / "run", elsewhere, resume=True, console=Console(quiet=True))
    expected, found = weights(run), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_stops_when_validation_no_longer_improves(data: Path, tmp_path: Path) -> None:
    config = settings({
        "optimiser.epochs": 500, "validation": {"patience": 2, "stop_on": "ndcg@10"},
        "identifiers": {"normalisation": "vocabulary", "scheme": "atomic"},
    })  # fmt: skip
    train(data, tmp_path / "run", config, console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation"]["score"] for line in lines if "validation" in line]
    assert len(scores) < 100
    assert max(scores[:-2]) == max(scores)  # two validations without improvement
    record = Bundle.open(tmp_path / "run" / "bundle").info.training
    assert record["validation"]["score"] == pytest.approx(max(scores))
    assert record["best_step"] < record["steps"]


def test_a_folder_with_a_causal_model_is_a_backbone(data: Path, tmp_path: Path) -> None:
    catalogue = DataSet.load(data).catalogue
    tokenizer = make_tokenizer(catalogue.texts())
    padded = len(tokenizer) + 64  # more rows than tokens, like Qwen
    model = make_model(padded, "gpt-neox", positions=128)  # output rows of its own
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model_folder = {"name": str(tmp_path / "model"), "layers": 1, "hidden": 128}
    config = settings({"backbone": model_folder, "optimiser.epochs": 2})
    train(data, tmp_path / "run", config, console=Console(quiet=True))
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    assert bundle.vocabulary.first_added == len(tokenizer)
    assert (
        len(TorchEngine.open(bundle).rank([RankRequest(bundle.encoder.prompt([]).ids, 5, 5)])[0].items) == 5
    )


def test_a_run_that_cannot_start_leaves_nothing(data: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    for wrong in ({"hidden": 30, "heads": 4}, {"name": str(tmp_path / "nothing")}):
        with pytest.raises(BackboneError):
            train(data, tmp_path / "run", settings({"backbone": wrong}), console=console)
    with pytest.raises(DataError):
        train(tmp_path / "nowhere", tmp_path / "run", settings(), console=console)
    user = UserHistory("u", (Event(0), Event(1), Event(0)), (None,) * 3, (0, 1, 2))
    DataSet(DataInfo("tiny", "test"), Catalogue([Item("x", "x"), Item("y", "y")]), [user]).save(
        tmp_path / "tiny"
    )
    with pytest.raises(RunError, match="the log has no queries"):
        train(tmp_path / "tiny", tmp_path / "run", settings({"sequence.tasks": "search"}), console=console)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_data(run: Path, data: Path, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", users=100)
    with pytest.raises(RunError, match="other data"):
        train(other, run, settings(), resume=True, console=Console(quiet=True))
    known = DataSet.load(data)
    renamed = Catalogue(
        [replace(item, title=f"{item.title}!") if not k else item for k, item in enumerate(known.catalogue)]
    )
    DataSet(known.info, renamed, known.users).save(tmp_path / "renamed")
    with pytest.raises(RunError, match="other texts or attributes of the items"):
        train(tmp_path / "renamed", run, settings(), resume=True, console=Console(quiet=True))


def test_an_updated_bundle_is_evaluated_on_old_and_new_data(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    known = DataSet.load(data)
    before = evaluate(tmp_path / "bundle", data)
    targets = [case.target for case in leave_one_out(known).test]
    gone = max(set(targets), key=targets.count)
    bundle = Bundle.open(tmp_path / "bundle")
    new = Item("brand-new", "Something that nobody has seen", categories=("New",))
    dimensions = np.load(run / "prepared" / "item_vectors.npy").shape[1]
    update_index(
        bundle,
        [new],
        [known.catalogue.item_ids[gone]],
        lambda items: np.ones((len(items), dimensions), np.float32),
    )
    after = evaluate(tmp_path / "bundle", data, ranks_file=tmp_path / "ranks.npz")
    assert after["protocol"]["removed_targets"] == targets.count(gone)
    assert after["cases"]["recommendation"] == len(targets) - targets.count(gone)
    assert after["newer"]["recommendation"] == {"cases": 0}
    assert CaseRanks.load(tmp_path / "ranks.npz").data == fingerprint(known)
    with pytest.raises(EvaluationError, match="would not be those of other systems"):
        evaluate(tmp_path / "bundle", data, sampled_negatives=9)
    # a newer log, its items in another order, in which the last user took the new item
    items = [new, *reversed(list(known.catalogue))]
    place = {item.item_id: row for row, item in enumerate(items)}
    users = [
        replace(user, events=tuple(
            replace(event, item=place[known.catalogue.item_ids[event.item]]) for event in user.events
        ))
        for user in known.users
    ]  # fmt: skip
    last = users[-1]
    users[-1] = replace(last, events=(*last.events[:-1], replace(last.events[-1], item=0)))
    DataSet(known.info, Catalogue(items), users).save(tmp_path / "newer")
    newer = evaluate(tmp_path / "bundle", tmp_path / "newer", ranks_file=tmp_path / "newer.npz")
    own = {case.user_id: case.target for case in leave_one_out(DataSet.load(tmp_path / "newer")).test}
    ranked = CaseRanks.load(tmp_path / "newer.npz").tasks[Task.RECOMMENDATION]
    assert {user: own[user] for user in ranked.users.tolist()} == dict(
        zip(ranked.users.tolist(), ranked.targets.tolist(), strict=True)
    )
    assert newer["newer"]["recommendation"]["cases"] == 1
    assert newer["recommendation"]["hit@10"] == pytest.approx(before["recommendation"]["hit@10"], abs=0.1)


def test_a_run_folder_is_not_overwritten(run: Path, data: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    with pytest.raises(RunError, match="--resume"):
        train(data, run, settings(), console=console)
    with pytest.raises(RunError, match=r"\(backbone\.hidden\)"):
        train(data, run, settings({"backbone.hidden": 64}), resume=True, console=console)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunError, match="not a run folder"):
        train(data, tmp_path, settings(), console=console)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.epochs"):
        TrainConfig.load(None, {"optimiser.epochs": -1})
    with pytest.raises(ConfigError, match="no room"):
        TrainConfig.load(None, {"sequence": {"max_tokens": 64, "max_query_tokens": 64}})
    with pytest.raises(ConfigError, match=r"identifiers\.codebooks"):
        TrainConfig.load(None, {"identifiers.codebooks": (0, 4)})
    with pytest.raises(ConfigError, match="colour"):
        TrainConfig.load(None, {"colour": "red"})
    (tmp_path / "c.yaml").write_text("optimiser:\n  learning_rate: 0.5\n  epochs: 3\n")
    assert TrainConfig.load(tmp_path / "c.yaml", {"optimiser.epochs": 4}).optimiser.epochs == 4
    assert TrainConfig.load(tmp_path / "c.yaml", {"optimiser.epochs": 4}).optimiser.learning_rate == 0.5
    (tmp_path / "c.yaml").write_text("- no\n- mapping\n")
    with pytest.raises(ConfigError, match="name: value"):
        TrainConfig.load(tmp_path / "c.yaml", {})


def test_a_bundle_is_evaluated_on_its_own_data(run: Path, tmp_path: Path) -> None:
    catalogue = Catalogue([Item("x", "x"), Item("y", "y")])
    events = (Event(0), Event(1), Event(0))
    user = UserHistory("u", events, (None,) * 3, (0, 1, 2))
    DataSet(DataInfo("tiny", "test"), catalogue, [user]).save(tmp_path / "tiny")
    with pytest.raises(EvaluationError, match="different catalogues"):
        evaluate(run / "bundle", tmp_path / "tiny")
