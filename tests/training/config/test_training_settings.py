"""Settings of a training: one name from YAML and flags to GEMS, and old names are refused with the new ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console
from support.bundles import make_model
from support.walks import SETTINGS, make_data, settings

from gems import GEMS
from index.bundle.bundle import MAX_TOKENS
from training.config import ConfigError, TrainConfig, modern
from training.config.method_groups import GemsSettings, KnowledgeSettings
from training.config.renamed import RENAMED
from training.methods.registry import make_method
from training.methods.tuning import gems as gems_method
from training.methods.tuning.gems import gems_settings
from training.pipeline import train
from training.run.run_folder import RunError
from training.settings import flat, merged, nested
from training.sweep.spec import SweepError, SweepSpec

KNOWN = flat(TrainConfig().model_dump())
# parameters of GEMS that are no settings, or that have no setting of their own
FIXED = {
    "model",
    "tasks",
    "betas",
    "eps",
    "weight_decay",
    "linears",
    "experts",
    "tables",
    "sites",
    "plain",
    "knowledge",
    "process_group",
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    new = RENAMED[old]
    assert new in KNOWN
    said = rf"{old} is now {new}"
    with pytest.raises(ConfigError, match=said):
        TrainConfig.load(None, {old: 1})
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**{old: 1})  # type: ignore[arg-type]
    (tmp_path / "old.yaml").write_text(f"method: full\n{old}: 1\n", "utf-8")
    with pytest.raises(ConfigError, match=rf"old\.yaml: {said}"):
        TrainConfig.load(tmp_path / "old.yaml", {})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"variants": {"one": {old: 1}}}), "utf-8")
    with pytest.raises(SweepError, match=rf"variant 'one': {said}"):
        SweepSpec.load(tmp_path / "sweep.yaml")


def test_the_refusal_names_both_ranks_the_opposite_and_every_old_name() -> None:
    with pytest.raises(ConfigError, match=r"gems\.rank \(a count .*gems\.rank_share \(a share"):
        TrainConfig.load(None, {"rank": 0.5})
    with pytest.raises(ConfigError, match="opposite"):
        TrainConfig.load(None, {"stale_moments": True})
    with pytest.raises(ConfigError, match=r"learning_rate is now .*; epochs is now"):
        TrainConfig.load(None, {"learning_rate": 0.5, "epochs": 3})


def test_the_list_of_old_names_covers_every_setting_but_the_new_ones() -> None:
    """Three names stayed; shares, null space, bases, other weights, and settings of data and identifiers are new."""
    assert set(KNOWN) - set(RENAMED.values()) == {
        "method", "seed", "threads", "device", "search_attributes", "fresh_share", "gems.rank_share",
        "gems.task_rank_share",
        "sequence.word_queries", "sequence.event_dropout", "sequence.tasks", "knowledge.softness", "gems.output_bases",
        "identifiers.tuned_steps",
        "identifiers.text_part", "backbone.activation_checkpointing", "optimiser.other_weights", "gems.share_bases",
        "backbone.shard", "backbone.precision",
        "knowledge.source", "knowledge.histories",
        "codes.learner", "codes.share", "codes.rate", "codes.temperature", "codes.schedule",
        "sequence.extra_tasks", "sequence.log_after", "optimiser.logit_temperature", "optimiser.clock", "lora.layers",
        "lora.balance", "lora.delta",
    }  # fmt: skip
    assert len(set(RENAMED.values())) == len(RENAMED)


def test_settings_of_codes_choose_semantic_identifiers(tmp_path: Path) -> None:
    def scheme(**settings: Any) -> str:
        return TrainConfig.load(
            None, {f"identifiers.{name}": each for name, each in settings.items()}
        ).identifiers.scheme

    assert scheme() == scheme(codebooks="256, 256") == scheme(encoder="other") == "auto"  # defaults
    assert scheme(code_capacity=2) == scheme(code_capacity="2.0") == "auto"
    assert scheme(codebooks="64,64") == scheme(codebooks=[64, 64]) == scheme(quantiser="rqvae") == "semantic"
    assert scheme(embeddings="alphafuse") == scheme(code_capacity="inf", scheme="auto") == "semantic"
    assert scheme(codebooks="64,64", scheme="atomic") == "atomic"
    TrainConfig().save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml", {}) == TrainConfig()


def test_groups_and_dotted_names_mean_the_same(tmp_path: Path) -> None:
    changes = {"gems": {"rank": 16, "gate": "prior"}, "method": "full", "optimiser": {"epochs": 2.0}}
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump(changes), "utf-8")
    (tmp_path / "dots.yaml").write_text(yaml.safe_dump(flat(changes)), "utf-8")
    expected = TrainConfig.load(None, changes)
    assert TrainConfig.load(tmp_path / "groups.yaml", {}) == expected
    assert TrainConfig.load(tmp_path / "dots.yaml", {}) == expected
    assert (expected.gems.rank, expected.gems.rank_share) == (16, None)
    assert nested(flat(changes)) == changes
    expected.save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8"))
    assert saved["gems"]["gate"] == "prior"
    assert flat(saved).keys() == KNOWN.keys()
    assert TrainConfig.load(tmp_path / "config.yaml", {}) == expected
    with pytest.raises(ConfigError, match=r"gems\.rank is given twice"):
        TrainConfig.load(None, {"gems": {"rank": 4}, "gems.rank": 8})


def test_the_defaults_of_a_backbone_give_way_to_what_is_given() -> None:
    tiger = TrainConfig.combined({"backbone.name": "t5-tiger"}, {"backbone.heads": 2})
    assert (tiger.backbone.heads, tiger.backbone.dropout) == (2, 0.1)
    assert (tiger.optimiser.relative, tiger.optimiser.learning_rate, tiger.optimiser.weight_decay) == (
        True, 1e-2, 0.0,
    )  # fmt: skip
    assert TrainConfig.combined({"backbone.name": "scratch"}).backbone.heads == 4


def test_a_count_and_a_share_are_two_settings() -> None:
    default = TrainConfig()
    assert (default.gems.rank, default.gems.rank_share) == (None, 0.25)
    recipe = {"gems.rank_share": 0.5, "gems.task_rank": 3}
    count = TrainConfig.combined(recipe, {"gems.rank": 1, "gems.task_rank_share": 0.125}).gems
    assert (count.rank, count.rank_share, count.task_rank, count.task_rank_share) == (1, None, None, 0.125)
    share = TrainConfig.combined({"gems.rank": 64}, {"gems.rank_share": 1}).gems
    assert (share.rank, share.rank_share) == (None, 1.0)
    for value in (0.5, 1.0):
        with pytest.raises(ConfigError, match=r"gems\.rank: .*write rank_share"):
            TrainConfig.load(None, {"gems.rank": value})
    with pytest.raises(ConfigError, match=r"gems\.task_rank: .*write task_rank_share"):
        TrainConfig.load(None, {"gems.task_rank": 0.5})
    with pytest.raises(ConfigError, match="rank or rank_share, not both"):
        TrainConfig.load(None, {"gems": {"rank": 4, "rank_share": 0.5}})
    with pytest.raises(ConfigError, match=r"gems\.rank_share: .*less than or equal to 1"):
        TrainConfig.load(None, {"gems.rank_share": 4})
    with pytest.raises(ConfigError, match="give rank"):
        TrainConfig.load(None, {"gems.rank_share": None})


def test_bases_of_outputs_with_a_null_space_are_refused_before_anything_is_prepared() -> None:
    asked = {"backbone.name": "smollm2-135m", "gems.output_bases": True}
    with pytest.raises(ConfigError, match=r"drop it, or turn knowledge\.null_space off"):
        TrainConfig.load(None, asked)
    TrainConfig.load(None, asked | {"knowledge.null_space": False})
    TrainConfig.load(None, asked | {"backbone.name": "scratch"})
    with pytest.raises(ConfigError, match="drop output_bases"):
        TrainConfig.load(None, asked | {"backbone.name": "scratch", "gems.share_bases": True})


def test_gems_takes_the_names_of_the_group_and_their_defaults() -> None:
    parameters = dict(inspect.signature(GEMS).parameters)
    given = gems_settings(TrainConfig())
    assert given.keys() == parameters.keys() - FIXED
    mine = GemsSettings.model_fields.keys() - {
        "multi_subspace",
        "share_bases",
    }  # whether GEMS is given tasks, sites
    assert mine | (KnowledgeSettings.model_fields.keys() & parameters.keys()) <= given.keys()
    for name in mine - {"rank_share"} | {"energy", "cap"}:  # one of rank and rank_share is required there
        assert given[name] == parameters[name].default, name


def test_gems_receives_every_value_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    class Recorded(GEMS):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            received.update(keywords)
            super().__init__(*arguments, **keywords)

    changes: dict[str, Any] = {
        "rank": 6, "task_rank_share": 0.125, "scale": 2.0, "rank_scaling": True, "growth_limit": 1.5,
        "refresh_every": 7, "stagger": 3, "transport": False, "deflate": False, "joint": False, "gate": "prior",
        "temperature": 2.5,
    }  # fmt: skip
    others = {"knowledge": {"energy": 0.7, "cap": 0.3}, "optimiser": {"relative": True, "clip": 2.0}}
    monkeypatch.setattr(gems_method, "GEMS", Recorded)
    config = settings({"gems": changes, "seed": 5} | others)
    make_method(make_model(60, "llama", positions=64), config, 50)
    for name, value in (changes | others["knowledge"] | others["optimiser"] | {"seed": 5}).items():
        assert received[name] == value, name
    assert received["rank_share"] is None
    assert received["lr"] == config.optimiser.learning_rate


def test_an_old_run_folder_is_not_resumed_but_can_be_read(tmp_path: Path) -> None:
    data = make_data(tmp_path / "walks", users=20)
    run = tmp_path / "run"
    run.mkdir()
    old = {
        "backbone": "scratch",
        "rank": 0.5,
        "task_rank": 3,
        "deflation": True,
        "stale_moments": True,
        "seed": 0,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(old), "utf-8")
    (run / "environment.json").write_text("{}", "utf-8")
    with pytest.raises(
        RunError, match=r"older version.*backbone is now backbone\.name; deflation is now gems\.deflate"
    ):
        train(data, run, settings(), resume=True, console=Console(quiet=True))
    assert modern(old) == {
        "backbone.name": "scratch", "gems.rank": None, "gems.rank_share": 0.5, "gems.task_rank": 3,
        "gems.task_rank_share": None, "gems.deflate": True, "gems.transport": False, "seed": 0,
    }  # fmt: skip
    today = TrainConfig().model_dump(mode="json")
    assert modern(today) == flat(today)
    baseline = {"baseline": "sasrec", "hidden": 64}  # whose settings lie in one list, and keep their names
    assert modern(baseline) == baseline


def test_merging_leaves_its_arguments_alone() -> None:
    before = flat(SETTINGS)
    merged(SETTINGS, {"gems": {"rank": 3}}, TrainConfig)
    assert flat(SETTINGS) == before


def test_a_sequence_that_no_bundle_may_have_is_refused_before_the_training() -> None:
    assert settings({"sequence.max_events": 128, "sequence.max_tokens": 128})
    for changes in ({"sequence.max_events": 129, "sequence.max_tokens": 128}, {"sequence.max_tokens": 10**9}):
        with pytest.raises(ConfigError, match=r"sequence\.max_"):
            settings(changes)
    assert settings({"sequence.max_tokens": MAX_TOKENS})
    with pytest.raises(ConfigError, match=r"sequence\.max_tokens"):
        settings({"sequence.max_tokens": MAX_TOKENS + 1})
