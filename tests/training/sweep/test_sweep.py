"""`gems sweep`: every variant and seed runs once, figures are kept, a stopped sweep continues, tables are correct."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.walks import SETTINGS, make_data

from training.cli.main import main
from training.config.renamed import RANKS, RENAMED
from training.run.locks import claim
from training.settings import flat, merged, nested
from training.sweep.run import run_variant
from training.sweep.spec import SweepError, SweepSpec
from training.sweep.table import interval, markdown, summarise


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks", users=60)


def spec_file(folder: Path, **changed: object) -> Path:
    changes = {"identifiers.codebooks": [4, 4], "optimiser.epochs": 1, "sequence.max_tokens": 160}
    settings = merged(SETTINGS, nested(changes))
    spec = {
        "settings": settings,
        "variants": {"gems": {"method": "gems"}, "full": {"method": "full"}},
        "seeds": [0, 1],
        "cases": 20,
        "text_tokens": 0,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec | changed))
    return path


def test_a_sweep_runs_all_and_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["gems", "sweep", str(spec_file(tmp_path)), "--data", str(data), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    results = {p: json.loads(p.read_text()) for p in out.glob("*/seed-*/result.json")}
    assert len(results) == 4
    for result in results.values():
        assert {"validation", "search", "recommendation", "cost", "conflict", "step_seconds"} <= result.keys()
        assert 0 <= result["search"]["hit@10"] <= 1
        assert result["curve"][-1]["step"] == result["steps"]
    assert len(list((out / "prepared").glob("*/codes.npz"))) == 2  # one for each seed, shared by the methods
    assert not list(out.glob("*/seed-*/checkpoints"))
    summary = json.loads((out / "summary.json").read_text())
    mine = [r["search"]["hit@10"] for r in results.values() if r["variant"] == "gems"]
    assert summary["gems"]["search Hit@10"]["mean"] == pytest.approx(statistics.fmean(mine))
    assert (out / "summary.md").read_text().count("±") > 4
    spoiled, times = next(iter(results)), {p: p.stat().st_mtime_ns for p in results}
    spoiled.unlink()
    with pytest.raises(SystemExit):
        main()
    again = json.loads(spoiled.read_text())
    assert again["validation"] == results[spoiled]["validation"]  # made again, and equal
    assert all(p.stat().st_mtime_ns == t for p, t in times.items() if p != spoiled)
    capsys.readouterr()


def test_a_run_in_other_hands_is_left_to_them(data: Path, tmp_path: Path) -> None:
    spec = SweepSpec.load(spec_file(tmp_path))
    with claim(tmp_path / "out" / "gems" / "seed-0.lock") as mine:
        assert mine
        assert run_variant(spec, "gems", 0, data, tmp_path / "out", Console(quiet=True)) is None
    assert not (tmp_path / "out" / "gems" / "seed-0").exists()


def test_mistakes_are_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"variant 'bad'.*gems\.rank"):
        SweepSpec.load(spec_file(tmp_path, variants={"bad": {"gems.rank": -1}}))
    with pytest.raises(SweepError, match="variants"):
        SweepSpec.load(spec_file(tmp_path, variants={}))
    with pytest.raises(SweepError, match="slash"):
        SweepSpec.load(spec_file(tmp_path, variants={"rank n/4": {}}))
    with pytest.raises(SweepError, match="baseline 'nobody'"):
        SweepSpec.load(spec_file(tmp_path, baseline="nobody"))
    with pytest.raises(SweepError, match="colour"):
        SweepSpec.load(spec_file(tmp_path, colour="red"))
    with pytest.raises(SweepError, match=r"nowhere\.yaml"):
        SweepSpec.load(tmp_path / "nowhere.yaml")


def test_intervals_are_students() -> None:
    assert interval([0.5]) == (0.5, None)
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * 1.0 / 3**0.5, rel=1e-5)  # t of two degrees of freedom


def test_a_table_leaves_out_what_nobody_measured() -> None:
    figures = {"hit@10": 0.5, "ndcg@10": 0.25}
    result = {
        "variant": "one", "validation": {"search.loss": 1.0}, "search": figures, "recommendation": figures,
        "conflict": None, "step_seconds": 0.5, "cost": {"state_bytes": 1e6, "gradient_bytes": 2e6},
    }  # fmt: skip
    table = markdown(summarise([result]))
    assert "| one | 1.000 | 0.5000 | 0.5000 | 0.2500 | 0.2500 | 0.50 | 1 | 2 |" in table
    assert "perplexity" not in table
    assert "val. loss rec." not in table


def test_differences_are_taken_seed_by_seed() -> None:
    """The seeds differ much, but the variant is better by about 0.5 in each of them."""
    figures = {"hit@10": 0.5, "ndcg@10": 0.25}
    shared = {
        "search": figures, "recommendation": figures, "conflict": None, "step_seconds": 0.5,
        "cost": {"state_bytes": 1e6, "gradient_bytes": 2e6},
    }  # fmt: skip
    losses = {"base": (10.0, 20.0, 30.0), "better": (9.4, 19.5, 29.6)}
    results = [
        {"variant": name, "seed": seed, "validation": {"search.loss": loss, "recommendation.loss": 1.0}}
        | shared
        for name, each in losses.items()
        for seed, loss in enumerate(each)
    ]
    summary = summarise(results, "base")
    difference = summary["better"]["val. loss − baseline"]
    assert difference["mean"] == pytest.approx(-0.5)
    assert difference["half_width"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert "-0.500 ± 0.248" in markdown(summary)
    assert "val. loss − baseline" not in summary["base"]
    assert "baseline" not in markdown(summarise(results))


def test_results_of_other_settings_or_data_are_not_mixed_in(data: Path, tmp_path: Path) -> None:
    console, out = Console(quiet=True), tmp_path / "out"
    changes = {"optimiser.epochs": 0.3, "validation.every": 1}
    settings = {"settings": merged(SweepSpec.load(spec_file(tmp_path)).settings, nested(changes))}
    spec = SweepSpec.load(spec_file(tmp_path, **settings))
    first = run_variant(spec, "full", 0, data, out, console)
    assert first == run_variant(spec, "full", 0, data, out, console)
    result = out / "full" / "seed-0" / "result.json"
    of_today = result.read_text("utf-8")
    record = json.loads(of_today)
    flat_names = {new: old for old, new in RENAMED.items() if old not in RANKS}
    old = {flat_names.get(name, name): value for name, value in flat(record["settings"]).items()}
    old |= {"rank": old.pop("gems.rank_share"), "task_rank": None, "stale_moments": not old["stale_moments"]}
    for name in ("gems.rank", "gems.task_rank", "gems.task_rank_share"):
        del old[name]
    result.write_text(json.dumps(record | {"settings": old}), "utf-8")  # as earlier versions wrote it
    assert run_variant(spec, "full", 0, data, out, console)["validation"] == first["validation"]
    result.write_text(of_today, "utf-8")
    with pytest.raises(SweepError, match="other settings, measures or data"):
        run_variant(SweepSpec.load(spec_file(tmp_path, cases=10, **settings)), "full", 0, data, out, console)
    with pytest.raises(SweepError, match="other settings, measures or data"):
        run_variant(spec, "full", 0, make_data(tmp_path / "other", users=50), out, console)


def test_a_run_that_diverges_is_a_result_and_the_sweep_goes_on(data: Path, tmp_path: Path) -> None:
    variants = {
        "wild": {"method": "full", "optimiser": {"learning_rate": 1e20, "warmup": 0.0}},
        "calm": {"method": "full"},
    }
    spec = SweepSpec.load(spec_file(tmp_path, variants=variants))
    results = [run_variant(spec, v, 0, data, tmp_path / "out", Console(quiet=True)) for v in variants]
    assert results[0] is not None
    assert "not finite" in results[0]["failed"]
    assert results[1] is not None
    summary = summarise([r for r in results if r])
    assert summary["wild"] == {"failed": 1}
    assert "| wild (1 diverged) |" in markdown(summary)
