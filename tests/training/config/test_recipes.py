"""Recipes by name: what wins over what, what they are called, and that each names its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from training import pipeline
from training.cli.app import app
from training.config import RECIPES, ConfigError, TrainConfig, recipe_names
from training.sweep.spec import SweepError, SweepSpec

LOGS = {"small", "demo", "amazon-beauty"}  # made on a log of ours; the others are systems of papers


def trained_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainConfig:
    """Return the settings with which `gems train` calls the pipeline."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(pipeline, "train", lambda data, out, config, **_: seen.append(config))
    result = CliRunner().invoke(app, ["train", "--data", "d", "--out", "o", *arguments])
    if result.exception is not None:
        raise result.exception
    return seen[0]


def test_a_file_wins_over_the_recipe_and_flags_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("optimiser: {epochs: 3, batch_size: 5}\ngems.rank: 6\n", "utf-8")
    recipe = TrainConfig.load(None, {}, "small")
    found = trained_with(
        monkeypatch,
        "--recipe",
        "small",
        "--config",
        str(tmp_path / "mine.yaml"),
        "--optimiser.batch-size",
        "7",
    )
    assert found.backbone == recipe.backbone
    assert (found.optimiser.epochs, found.optimiser.batch_size) == (3, 7)
    assert (found.gems.rank, found.gems.rank_share) == (6, None)  # the recipe's share has given way
    assert (
        found.optimiser.learning_rate
        == recipe.optimiser.learning_rate
        != TrainConfig().optimiser.learning_rate
    )


def test_a_recipe_as_a_file_and_an_unknown_recipe_are_refused_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="--recipe small"):
        trained_with(monkeypatch, "--config", "small")
    with pytest.raises(ConfigError, match=r"do you mean 'tiger'.*amazon-beauty.*small.*--config FILE"):
        trained_with(monkeypatch, "--recipe", "tigger")


def test_the_help_lists_the_recipes() -> None:
    for command in ("train", "plan"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output
        assert "|".join(recipe_names()) in shown


def test_variants_of_a_sweep_are_recipes_with_the_settings_of_the_sweep(tmp_path: Path) -> None:
    spec = {
        "settings": {"recipe": "small", "optimiser": {"epochs": 2}},
        "variants": {"one": {}, "two": {"recipe": "tiger", "optimiser.batch_size": 3}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    sweep = SweepSpec.load(tmp_path / "sweep.yaml")
    assert sweep.config("one", 4) == TrainConfig.load(None, {"optimiser.epochs": 2, "seed": 4}, "small")
    changes = {"optimiser.epochs": 2, "optimiser.batch_size": 3, "seed": 4}
    assert sweep.config("two", 4) == TrainConfig.load(None, changes, "tiger")
    spec["variants"]["three"] = {"recipe": "nothing"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    with pytest.raises(SweepError, match="variant 'three': there is no recipe 'nothing'"):
        SweepSpec.load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_short_and_names_its_source(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    assert len(text.splitlines()) <= 40
    head = re.match(r"(#.*\n)+", text)
    assert head is not None
    if name not in LOGS:
        assert re.search(r"arXiv \d{4}\.\d{5}|\(\w+ et al\.,? \d{4}", head[0]), head[0]
