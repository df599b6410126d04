"""Every recipe trains on tiny data, with its own method, identifiers and tasks; what it lacks is said first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.bundles import make_catalogue, make_model, make_tokenizer
from support.walks import make_data, settings

from index.sequence.events import Event
from training.config import TrainConfig, recipe_names
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import ItemVectorError
from training.fit import fit
from training.loop.batches import Batch
from training.loop.trainer import Trainer
from training.run.run_folder import RunError

TINY: dict[str, Any] = {
    "threads": 1,
    "backbone": {"layers": 1, "hidden": 32, "heads": 2, "text_vocabulary": 400},
    "identifiers": {"codebooks": [4, 4], "tuned_steps": 3, "fused_epochs": 1, "fused_hidden": 8},
    "sequence": {"max_tokens": 96},
    "optimiser": {"batch_size": 64, "epochs": 4},
    "validation": {"cases": 8, "every": 4, "stop_on": "loss", "conflict_cases": 0},
    "lora": {"experts": 2},
}
CODES = ("tiger", "letter", "webultron", "sem-bsr", "sem-bsr-moe", "gensar", "genret", "diger", "small")


def tiny(recipe: str, folder: Path) -> TrainConfig:
    """Return the settings of a recipe for a model that is quickly trained. folder: for a pretrained backbone."""
    changes = {name: dict(group) if isinstance(group, dict) else group for name, group in TINY.items()}
    if recipe not in CODES:  # codes would make other identifiers of them
        del changes["identifiers"]
    if (
        recipe == "sem-bsr-moe"
    ):  # a small backbone in place of SmolLM2, and the vectors are tested with sem-bsr
        tokenizer = make_tokenizer(make_catalogue(60).texts())
        tokenizer.save_pretrained(folder)
        make_model(len(tokenizer), "llama").save_pretrained(folder)
        changes["backbone"] = {"name": str(folder), "layers": 1}
        changes["identifiers"] |= {"embeddings": "text"}
    limits = TrainConfig.load(None, {}, recipe).sequence
    changes["sequence"] = {
        "max_events": min(limits.max_events, 8), "max_tokens": min(limits.max_tokens, 96),
    }  # fmt: skip
    return TrainConfig.load(None, changes, recipe)


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_trains(recipe: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", users=60)
    config = tiny(recipe, tmp_path / "backbone")
    torch.manual_seed(0)
    trained = fit(data, tmp_path / "run", config, console=Console(quiet=True))
    assert trained is not None
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    steps = [line for line in lines if "learning_rate" in line]
    assert len(steps) >= (
        4 if config.codes.learner is None else 2
    )  # the stage that learns codes has the other half
    losses = {name for step in steps for name in step if name.endswith(".loss")}
    assert losses == {f"{task.value}.loss" for task in config.sequence.trained_tasks}
    assert trained.record["validation"]["score"] > -100
    assert ("imbalance" in steps[-1]) == (recipe == "sem-bsr-moe")


def test_recipes_that_need_searches_say_so_before_any_work(tmp_path: Path) -> None:
    whole = DataSet.load(make_data(tmp_path / "data", users=20))
    people = [
        UserHistory(
            user.user_id,
            tuple(Event(e.item) for e in user.events),
            (None,) * len(user.events),
            user.timestamps,
        )
        for user in whole.users
    ]
    DataSet(whole.info, whole.catalogue, people).save(tmp_path / "taken")
    for recipe, error in (("sem-bsr", ItemVectorError), ("webultron", RunError)):
        with pytest.raises(error, match="searches"):
            fit(tmp_path / "taken", tmp_path / recipe, tiny(recipe, tmp_path), console=Console(quiet=True))
        assert not (tmp_path / recipe).exists()


def test_a_training_in_stages_that_is_killed_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data", users=60)
    stages = {
        "sequence.title_queries": 0.0, "sequence.log_after": 0.5, "optimiser.batch_size": 16, "optimiser.epochs": 3,
        "run.checkpoint_every": 1e-6, "validation.every": 3, "validation.stop_on": "loss",
        "sequence.extra_tasks": [
            {"read": "words", "write": "identifier", "share": 1, "until": 0.5},
            {"read": "query", "write": "identifier", "share": 0.3, "after": 0.4},
            {"read": "identifier", "write": "title", "share": 0.2},
        ],
    }  # fmt: skip
    config = settings({"identifiers": {"scheme": "atomic"}}, stages)

    def weights(out: str, resume: bool = False) -> dict[str, torch.Tensor]:
        trained = fit(data, tmp_path / out, config, resume=resume, console=Console(quiet=True))
        assert trained is not None
        return {name: each.clone() for name, each in trained.prepared.model.state_dict().items()}

    expected = weights("whole")
    step = Trainer._step
    shares: list[float] = []

    def killed(trainer: Trainer, position: str, batch: Batch) -> dict[str, Any]:
        if trainer.progress.step == 2 * trainer.total_steps // 3:
            raise KeyboardInterrupt
        shares.append(trainer.progress.step / trainer.total_steps)
        return step(trainer, position, batch)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        weights("stopped")
    assert {share < 0.5 for share in shares} == {True, False}  # it was killed in its last stage
    monkeypatch.setattr(Trainer, "_step", step)
    found = weights("stopped", resume=True)
    assert all(torch.equal(found[name], each) for name, each in expected.items())


@pytest.mark.parametrize("log_after", [0.0, 0.5])
def test_a_training_does_not_stop_early_before_its_last_stage(log_after: float, tmp_path: Path) -> None:
    config = settings(
        {"identifiers": {"scheme": "atomic"}, "sequence.log_after": log_after},
        {"optimiser.learning_rate": 1e-12, "optimiser.epochs": 8, "validation.patience": 1},
    )
    trained = fit(
        make_data(tmp_path / "data", users=60), tmp_path / "run", config, console=Console(quiet=True)
    )
    assert trained is not None
    epochs = trained.record["steps"] / trained.batches.steps_per_epoch
    assert epochs == (4 if log_after else 2)  # nothing improves after the first validation
