"""Flags of `gems train`: the path of each setting, in one panel for each group; old flags are refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from training import pipeline
from training.cli.app import app
from training.cli.main import main
from training.config import TrainConfig
from training.config.renamed import RENAMED
from training.settings import SettingsGroup, flat, nested

GROUPS = {
    name: field.annotation
    for name, field in TrainConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup)
}
OTHER: dict[str, Any] = {
    "method": "lora", "seed": 3, "threads": 2, "device": "cpu", "search_attributes": ("sku", "brand"),
    "fresh_share": 0.3,
    "backbone.name": "folder", "backbone.layers": 3, "backbone.hidden": 64, "backbone.heads": 2,
    "backbone.dropout": 0.2, "backbone.text_vocabulary": 500, "backbone.activation_checkpointing": True,
    "backbone.shard": True, "backbone.precision": "autocast",
    "identifiers.scheme": "semantic", "identifiers.codebooks": (8, 16), "identifiers.embeddings": "alphafuse",
    "identifiers.encoder": "other", "identifiers.vectors": Path("v.npy"), "identifiers.fused_hidden": 64,
    "identifiers.fused_epochs": 7, "identifiers.quantiser": "rqvae",
    "identifiers.tuned_steps": 6, "identifiers.code_capacity": float("inf"),
    "identifiers.text_part": False,
    "identifiers.spelling": 9, "identifiers.normalisation": "vocabulary",
    "sequence.max_events": 9, "sequence.max_tokens": 200, "sequence.max_query_tokens": 17, "sequence.targets": 2,
    "sequence.title_queries": 0.5, "sequence.query_dropout": 0.3, "sequence.word_queries": 0.6,
    "sequence.event_dropout": 0.25, "sequence.tasks": "search", "sequence.log_after": 0.2,
    "sequence.extra_tasks": (
        {"read": "title", "write": "query", "share": 0.5, "helps": "search", "events": "both", "after": 0.0,
         "until": 0.4},
        {"read": "history", "write": "identifier", "share": 1.0, "helps": None, "events": "search", "after": 0.1,
         "until": 1.0},
    ),
    "optimiser.learning_rate": 0.5, "optimiser.relative": False, "optimiser.weight_decay": 0.2,
    "optimiser.warmup": 0.3, "optimiser.final_rate": 0.4, "optimiser.clip": 3.0, "optimiser.batch_size": 5,
    "optimiser.part_tokens": 100, "optimiser.epochs": 2.5, "optimiser.minutes": 4.5, "optimiser.clock": "cpu",
    "optimiser.other_weights": "trained", "optimiser.logit_temperature": 0.7,
    "gems.rank": 6, "gems.task_rank": 2, "gems.scale": 2.0, "gems.rank_scaling": True, "gems.growth_limit": 1.5,
    "gems.refresh_every": 7, "gems.stagger": 3, "gems.transport": False, "gems.multi_subspace": False,
    "gems.deflate": False, "gems.joint": False, "gems.gate": "prior", "gems.temperature": 2.5,
    "gems.output_bases": True,
    "knowledge.null_space": False, "knowledge.basis": Path("k.safetensors"), "knowledge.energy": 0.5,
    "knowledge.cap": 0.25, "knowledge.tokens": 1000, "knowledge.softness": 0.1, "knowledge.source": "histories",
    "knowledge.histories": Path("old"),
    "lora.rank": 3, "lora.alpha": 4.0, "lora.experts": 2, "lora.layers": "feed-forward", "lora.balance": 0.5,
    "lora.delta": 0.3,
    "validation.every": 2.0, "validation.cases": 10, "validation.stop_on": "ndcg@10", "validation.patience": 9,
    "validation.conflict_cases": 1, "run.checkpoint_every": 0.5, "run.tensorboard": True,
    "codes.share": 0.25, "codes.rate": 1e-3, "codes.temperature": 1.5, "codes.schedule": "sigma",
}  # fmt: skip
SHARES = {  # in place of counts, of bases of outputs, and of what no learner of codes takes
    "gems.rank_share": 0.5, "gems.task_rank_share": 0.125, "gems.share_bases": True,
    "codes.learner": "genret", "method": "full", "identifiers.scheme": "semantic",
}  # fmt: skip


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Command line with the given settings."""
    words = []
    for path, value in settings.items():
        group, dot, name = path.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{name}")
        else:
            each = (
                [
                    yaml.safe_dump(v, default_flow_style=True).strip() if isinstance(v, dict) else str(v)
                    for v in value
                ]
                if isinstance(value, tuple)
                else [str(value)]
            )
            words += [f"--{group}{dot}{name}", ",".join(each)]
    return words


def given_to_train(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The settings with which `gems train` calls the pipeline."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(pipeline, "train", lambda data, out, config, **_: seen.append(config))
    result = CliRunner().invoke(app, ["train", "--data", "d", "--out", "o", *arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize("settings", [OTHER, SHARES], ids=["counts", "shares"])
def test_flags_yaml_and_the_run_folder_say_the_same(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flags = given_to_train(flags_of(settings), monkeypatch)
    values = flat(by_flags.model_dump())
    assert {name: values[name] for name in settings} == settings
    plain = {name: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
             for name, v in settings.items()}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested(plain)), "utf-8")
    assert given_to_train(["--config", str(tmp_path / "mine.yaml")], monkeypatch) == by_flags
    by_flags.save(tmp_path / "config.yaml")
    assert given_to_train(["--config", str(tmp_path / "config.yaml")], monkeypatch) == by_flags


def test_the_round_trip_covers_every_setting_with_another_value() -> None:
    defaults = flat(TrainConfig().model_dump())
    assert OTHER.keys() | SHARES.keys() == defaults.keys()
    same = {name for name, value in (OTHER | SHARES).items() if defaults[name] == value}
    assert same == {"optimiser.relative"}  # the only value that fits the others


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_flag_is_refused_with_its_new_name(
    old: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group, _, new = RENAMED[old].replace("_", "-").partition(".")
    flag = "--" + old.replace("_", "-")
    forms = {flag: f"{flag} is now --{group}.{new}", f"{flag}=3": f"{flag} is now --{group}.{new}"}
    if isinstance(flat(TrainConfig().model_dump())[RENAMED[old]], bool):
        off = f"--no-{flag[2:]}"
        forms[off] = f"{off} is now --{group}.no-{new}"
    if old == "stale_moments":
        forms = {
            "--stale-moments": "--stale-moments is now --gems.no-transport",
            "--no-stale-moments": "--no-stale-moments is now --gems.transport",
        }
    for form, said in forms.items():
        monkeypatch.setattr(sys, "argv", ["gems", "train", "--data", "d", "--out", "o", form, "1"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
        if old in ("rank", "task_rank"):
            assert f"or --gems.{new}-share (a share of the smaller size)" in error


def test_the_help_shows_one_panel_for_each_group_and_the_known_choices() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    panels = re.split(r"^╭─ (.*?) ─*╮$", shown, flags=re.MULTILINE)
    body = dict(zip(panels[1::2], panels[2::2], strict=True))
    titles = {title.split(":")[0]: title for title in body}
    assert list(titles) == ["Options", *GROUPS]
    for group, model in GROUPS.items():
        assert model is not None
        flags = [f"--{group}.{name}".replace("_", "-") for name in model.model_fields]
        assert re.findall(r"^│ (--\S+?\.[^ /]+)", body[titles[group]], re.MULTILINE) == flags
        assert "(" not in titles[group]
    assert all(flag in body["Options"] for flag in ("--data", "--config", "--method", "--seed", "--threads"))
    assert "--gems.no-deflate" in body[titles["gems"]]
    for choices in (("full", "gems", "pcgrad"), ("atomic", "semantic", "text"), ("kmeans", "rqvae"),
                    ("uniform", "prior", "hypergradient")):  # fmt: skip
        assert re.search(r"[<\[]\S*" + r"\|\S*".join(choices), shown), choices


def test_an_unknown_method_lists_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["train", "--data", "d", "--out", "o", "--method", "magic"])
    assert "'magic' is none of aligned-mtl, cagrad, full, gems, lora" in str(result.exception)
