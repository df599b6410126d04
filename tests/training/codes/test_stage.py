"""The stage that learns codes: from a data set to answers, after kills, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support.preparations import code_settings, prepare_walks, walk_vectors
from support.walks import make_data
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.catalogue import Catalogue, Item
from index.sequence.events import Event
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.cli.app import app
from training.codes.diger import Diger
from training.codes.genret import GenRet
from training.codes.stage import learn_codes
from training.config import ConfigError, TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.splits import leave_one_out
from training.errors import UserError
from training.loop.trainer import TrainingError
from training.pipeline import train
from training.preservation.preservation import _open_run

QUIET = Console(quiet=True)
SYSTEMS = {"diger": ("scratch", Diger), "genret": ("t5-tiger", GenRet)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks", users=48)


def short(learner: str, vectors: Path, **changes: Any) -> TrainConfig:
    """Return settings of 6 steps of the stage and 6 after it."""
    return code_settings(
        learner,
        SYSTEMS[learner][0],
        {"optimiser.epochs": 4, "codes": {"rate": 0.2, "schedule": "sigma"}, "identifiers.vectors": vectors},
        {"validation": {"every": 2, "cases": 10}},
        changes,
    )


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, walk_vectors())
    return path


def stage(folder: Path, config: TrainConfig, data: Path) -> tuple[list[Any], bytes]:
    """Run the stage in a folder that may hold a part of it. Return its codes, and the bytes of its weights."""
    dataset = DataSet.load(data)
    if not (folder / "start").exists():
        prepare_walks(folder / "start", dataset, config)
    learn_codes(
        folder / "start",
        folder / "codes",
        config,
        dataset,
        leave_one_out(dataset),
        torch.device("cpu"),
        QUIET,
    )
    result = folder / "codes" / "prepared"
    weights = (result / "backbone" / "model.safetensors").read_bytes()
    return np.load(result / "codes.npz")["codes"].tolist(), weights


@pytest.mark.parametrize("learner", SYSTEMS)
def test_killed_and_resumed_it_ends_with_the_same_codes_and_weights(
    learner: str, data: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The end of a process: nothing that handles errors handles it."""

    config = short(learner, vectors, **{"run.checkpoint_every": 1e-9})
    whole = stage(tmp_path / "whole", config, data)
    system = SYSTEMS[learner][1]
    step, taken = system.step, []

    def dying(self: Any, batch: Any, share: float) -> dict[str, float]:
        figures = step(self, batch, share)
        taken.append(share)
        if len(taken) in (2, 5, 8):  # before the checkpoint of this step
            raise Killed
        return figures

    monkeypatch.setattr(system, "step", dying)
    for turn in range(3):
        torch.manual_seed(turn)  # random state outside does not matter
        np.random.seed(turn)
        with pytest.raises(Killed):
            stage(tmp_path / "killed", config, data)
    assert stage(tmp_path / "killed", config, data) == whole
    assert len(taken) == 6 + 3
    assert not (tmp_path / "killed" / "codes" / "checkpoints").exists()


def test_an_interrupt_ends_a_step_and_leaves_a_checkpoint(
    data: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = Diger.step, []

    def interrupted(self: Any, batch: Any, share: float) -> dict[str, float]:
        taken.append(share)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, share)

    monkeypatch.setattr(Diger, "step", interrupted)
    config = short("diger", vectors)
    with pytest.raises(
        TrainingError, match="stopped after step 3 of the codes; the same command with --resume"
    ):
        stage(tmp_path, config, data)
    stage(tmp_path, config, data)
    assert taken == pytest.approx([k / 6 for k in range(6)])  # no step twice


@pytest.mark.parametrize("learner", SYSTEMS)
def test_learned_codes_are_served_and_name_new_items(
    learner: str, data: Path, vectors: Path, tmp_path: Path
) -> None:
    config = short(learner, vectors)
    run = tmp_path / "run"
    bundle = Bundle.open(train(data, run, config, console=QUIET) or Path())
    start = np.load(run / "prepared" / "codes.npz")["codes"]
    codes = bundle.index.trie.codes()
    assert (codes[:, :-1] != start[:, :-1]).any()
    assert len(np.unique(codes, axis=0)) == len(codes) == 30
    figures = json.loads((run / "codes" / "figures.json").read_text())
    assert figures["step"] == 6
    assert figures["figures"][0]["step"] == 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 6  # the other half of the epochs
    assert (
        _open_run(run)[0].info.bundle_id == bundle.info.bundle_id
    )  # `gems preservation` knows it as the run's
    np.save(tmp_path / "new.npy", walk_vectors()[7:8])
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "twin", "title": "green scarf again"}) + "\n")
    arguments = ["--items", str(tmp_path / "new.jsonl"), "--vectors", str(tmp_path / "new.npy")]
    done = CliRunner().invoke(app, ["index", "update", str(bundle.path), *arguments])
    assert "1 items added" in done.output, done.output
    newer = bundle.refreshed()
    known = newer.codebooks()
    assert known is not None
    twin = newer.index.trie.codes()[-1]
    assert np.array_equal(twin[:-1], known.quantise(walk_vectors()[7:8])[0])
    if learner == "diger":  # by the very rule that named the item with this vector
        assert np.array_equal(twin[:-1], codes[7, :-1])
    engine = TorchEngine(
        newer.load_model(), newer.index.trie, newer.vocabulary, normalisation=newer.info.normalisation
    )
    prompt = newer.encoder.prompt([Event(5)], "green scarf again")
    (ranking,) = engine.rank([RankRequest(prompt=prompt.ids, limit=31, beam_width=31)])
    assert sorted(ranking.items) == list(range(31))


def test_the_stage_and_the_rest_share_one_budget() -> None:
    config = code_settings(
        "diger", "scratch", {"optimiser": {"epochs": 10, "minutes": 8}, "codes.share": 0.25}
    )
    rest = config.with_fixed_codes.optimiser
    assert (rest.epochs, rest.minutes) == (7.5, 6)
    plain = code_settings("diger", "scratch", {"codes": {"learner": None}})
    assert plain.with_fixed_codes is plain


def test_what_a_learner_lacks_is_said_before_anything_is_written(
    data: Path, vectors: Path, tmp_path: Path
) -> None:
    dataset = DataSet.load(data)

    def refused(learner: str, given: DataSet, **changes: Any) -> str:
        folder = tmp_path / f"data-{len(list(tmp_path.iterdir()))}"
        given.save(folder)
        with pytest.raises(UserError) as caught:
            train(folder, tmp_path / "run", short(learner, vectors, **changes), console=QUIET)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    nameless = [
        Item(item.item_id, item.item_id) if row > 2 else item for row, item in enumerate(dataset.catalogue)
    ]
    message = refused("genret", DataSet(dataset.info, Catalogue(nameless), dataset.users))
    assert "27 of 30 items have none but their id (the first is 'red-coat', row 4)" in message
    assert "'scratch' is none: use --backbone.name t5-tiger" in refused(
        "genret", dataset, **{"backbone.name": "scratch"}
    )
    three = [
        UserHistory(user.user_id, user.events[:3], user.simulated_queries[:3], user.timestamps[:3])
        for user in dataset.users
    ]
    assert "nobody has two training events" in refused(
        "diger", DataSet(dataset.info, dataset.catalogue, three)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identifiers.scheme": "atomic"}, "add identifiers.scheme semantic"),
        ({"identifiers.embeddings": "alphafuse"}, "leave out identifiers.embeddings 'alphafuse'"),
        ({"backbone.name": "smollm2-135m", "method": "gems"}, "choose method full"),
        ({"codes.share": 1.0}, "codes.share"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        code_settings("diger", "scratch", change)
