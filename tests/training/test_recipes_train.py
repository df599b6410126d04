"""Every recipe trains on tiny data, with its own method, identifiers and tasks; what it lacks is said first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.walks import make_data

from index.sequence.events import Event
from training.config import TrainConfig, recipe_names
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import ItemVectorError
from training.fit import fit
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
CODES = ("tiger", "letter", "webultron", "sem-bsr", "sem-bsr-moe", "small")


def tiny(recipe: str) -> TrainConfig:
    """Return the settings of a recipe for a model that is quickly trained."""
    changes = {name: dict(group) if isinstance(group, dict) else group for name, group in TINY.items()}
    if recipe not in CODES:  # codes would make other identifiers of them
        del changes["identifiers"]
    limits = TrainConfig.load(None, {}, recipe).sequence
    changes["sequence"] = {
        "max_events": min(limits.max_events, 8), "max_tokens": min(limits.max_tokens, 96),
    }  # fmt: skip
    return TrainConfig.load(None, changes, recipe)


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_trains(recipe: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", users=60)
    config = tiny(recipe)
    torch.manual_seed(0)
    trained = fit(data, tmp_path / "run", config, console=Console(quiet=True))
    assert trained is not None
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    steps = [line for line in lines if "learning_rate" in line]
    assert len(steps) >= 4
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
            fit(tmp_path / "taken", tmp_path / recipe, tiny(recipe), console=Console(quiet=True))
        assert not (tmp_path / recipe).exists()
