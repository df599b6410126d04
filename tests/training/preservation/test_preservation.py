"""Preservation: figures on general text compared with their definition, and the command on a real run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from support.bundles import make_model
from support.walks import make_data, settings
from typer.testing import CliRunner

from index.catalogue import Catalogue, Item
from index.sequence.events import Event
from training.cli.commands.preservation import preservation_command
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.general_text import held_out_articles, token_windows
from training.data.histories import UserHistory
from training.data.schema import DataError, DataInfo
from training.errors import EvaluationError
from training.evaluation.evaluate import evaluate
from training.model.backbones import load_backbone
from training.outputs import OutputError
from training.pipeline import train
from training.preservation.general import general_figures
from training.preservation.preservation import (
    backbone_note,
    compare_general,
    compare_ranks,
    preservation,
)

KNOWN = 90
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def windows() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, KNOWN, (5, 70))


@pytest.mark.parametrize("arch", ["llama", "gpt-neox"])
def test_figures_equal_a_whole_softmax_over_the_known_tokens(arch: str, windows: NDArray[np.int64]) -> None:
    model = make_model(100, arch).train()
    figures = general_figures(model, windows, KNOWN, batch=4)
    assert model.training  # its mode is restored
    ids = torch.from_numpy(windows)
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids).logits[:, :-1, :KNOWN].double()
    expected = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).numpy()
    assert np.allclose(figures.nll, expected, atol=1e-4)
    assert np.array_equal(figures.right, (logits.argmax(-1) == ids[:, 1:]).numpy())
    assert figures.tokens == 5 * 69
    assert figures.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    assert figures.accuracy == figures.right.sum() / figures.right.size
    everything = general_figures(model, windows, 100, batch=4)
    assert (everything.nll > figures.nll).all()  # the restriction matters: other tokens have some probability


def test_rows_of_item_tokens_do_not_matter(windows: NDArray[np.int64]) -> None:
    model = make_model(100)
    before = general_figures(model, windows, KNOWN)
    with torch.no_grad():
        model.get_output_embeddings().weight[KNOWN:] *= 50
    after = general_figures(model, windows, KNOWN, batch=1)
    assert np.allclose(before.nll, after.nll, atol=1e-5)


def test_an_untouched_model_has_lost_nothing(windows: NDArray[np.int64]) -> None:
    model = make_model(100)
    result = compare_general(general_figures(model, windows, KNOWN), general_figures(model, windows, KNOWN))
    assert result["perplexity"]["ratio"] == 1
    assert result["perplexity"]["before"] == result["perplexity"]["after"]
    assert result["right_before_wrong_after"] == result["wrong_before_right_after"] == 0
    assert result["nll_difference"] == [0, 0, 0]


def test_a_disturbed_language_model_is_worse() -> None:
    backbone = load_backbone(TrainConfig(), [])
    model, known = backbone.model, len(backbone.tokenizer)
    text = token_windows(backbone.tokenizer, held_out_articles(), 64, 64 * 8)
    before = general_figures(model, text, known)
    assert before.perplexity < 60  # it is a language model
    assert before.accuracy > 0.25
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "down_proj" in name:
                weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
    result = compare_general(before, general_figures(model, text, known))
    mean, low, high = result["nll_difference"]
    assert 0 < low < mean < high
    assert result["perplexity"]["ratio"] == pytest.approx(math.exp(mean))
    assert result["right_before_wrong_after"] > result["wrong_before_right_after"]
    change = result["accuracy"]["after"] - result["accuracy"]["before"]
    assert change == pytest.approx(
        result["wrong_before_right_after"] - result["right_before_wrong_after"], abs=1e-12
    )


def test_ranks_that_changed_are_counted() -> None:
    result = compare_ranks(np.array([1, 10, 11, 0, 3]), np.array([10, 0, 2, 0, 11]))
    assert result == {
        "hit@10": {"before": 0.6, "after": 0.4},
        "right_before_wrong_after": 0.4,
        "wrong_before_right_after": 0.2,
        "cases": 5,
    }


def test_windows_that_cannot_be_measured_are_refused(windows: NDArray[np.int64]) -> None:
    model = make_model(100, positions=64)
    with pytest.raises(EvaluationError, match="context of 64"):
        general_figures(model, windows, KNOWN)
    with pytest.raises(EvaluationError, match="did not know"):
        general_figures(model, windows[:, :32], KNOWN // 2)
    for empty in (windows[:0], windows[:, :1]):
        with pytest.raises(EvaluationError, match="no text"):
            general_figures(model, empty, KNOWN)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(EvaluationError, match="diverged"):
        general_figures(model, windows[:, :32], KNOWN)


def test_only_a_whole_language_model_goes_without_a_note() -> None:
    assert backbone_note({"backbone.name": "smollm2-135m", "backbone.layers": None}) is None
    assert "first 2 layers" in (backbone_note({"backbone.name": "smollm2-135m", "backbone.layers": 2}) or "")
    assert "from scratch" in (backbone_note({"backbone.name": "scratch", "backbone.layers": 1}) or "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(data, out, settings({"method": "full", "optimiser.epochs": 6}), console=QUIET)
    return out


def command(*arguments: object) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command()(preservation_command)
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    return result.output, result.exception


def test_the_command_compares_a_run_with_its_start(run: Path, data: Path) -> None:
    options = ("--text-tokens", 2048, "--window", 64, "--beam-width", 50, "--cases", 40, "--threads", 1)
    output, error = command(run, "--data", data, *options)
    assert error is None, output
    result: dict[str, Any] = json.loads((run / "preservation.json").read_text())
    assert sorted(result) == ["general", "note", "protocol", "recommendation", "search"]
    general = result["general"]
    assert general["tokens"] == 32 * 63
    low, high = general["nll_difference"][1:]
    assert low <= math.log(general["perplexity"]["ratio"]) <= high
    assert "from scratch" in result["note"]
    assert result["protocol"]["backbone"] == "scratch"
    assert result["protocol"]["window"] == 64
    ours = evaluate(run / "bundle", data, max_cases=40, beam_width=50, threads=1, console=QUIET)
    for task in ("search", "recommendation"):
        figures = result[task]
        assert figures["cases"] == 40
        assert figures["hit@10"]["after"] == pytest.approx(ours[task]["hit@10"])
        change = figures["wrong_before_right_after"] - figures["right_before_wrong_after"]
        assert figures["hit@10"]["after"] - figures["hit@10"]["before"] == pytest.approx(change)
    assert result["search"]["wrong_before_right_after"] > result["search"]["right_before_wrong_after"]
    for shown in ("perplexity", "search: Hit@10", "40 cases", "note:", "preservation.json"):
        assert shown in output
    assert not list(run.glob(".*draft"))


def test_a_bundle_without_training_has_lost_nothing(data: Path, tmp_path: Path) -> None:
    still = {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    train(data, tmp_path / "run", settings({"method": "full", "optimiser": still}), console=QUIET)
    result = preservation(tmp_path / "run", data, text_tokens=512, window=32, threads=1, console=QUIET)
    assert result["general"]["perplexity"]["ratio"] == pytest.approx(1, abs=1e-6)
    assert result["general"]["right_before_wrong_after"] == 0
    assert result["search"]["right_before_wrong_after"] == result["search"]["wrong_before_right_after"] == 0
    assert result["search"]["cases"] == 120


def test_items_of_the_history_are_honest_misses_when_excluded(run: Path, data: Path) -> None:
    options: dict[str, Any] = {"text_tokens": 64, "window": 32, "threads": 1, "console": QUIET}
    free = preservation(run, data, **options)
    excluding = preservation(run, data, exclude_history=True, **options)
    assert excluding["protocol"]["exclude_history"] is True
    repeats = [u.events[-1].item in {e.item for e in u.events[:-1]} for u in DataSet.load(data).users]
    assert 0.2 < np.mean(repeats) < 0.9
    for task in ("search", "recommendation"):
        assert excluding[task]["hit@10"]["after"] <= 1 - np.mean(repeats)
    assert free["search"]["hit@10"]["after"] > 1 - np.mean(repeats)


def test_what_cannot_be_compared_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    def refused(folder: Path, data_folder: Path = data, **options: Any) -> str:
        with pytest.raises((EvaluationError, DataError)) as caught:
            preservation(folder, data_folder, threads=1, console=QUIET, **options)
        return str(caught.value)

    assert "no run folder" in refused(tmp_path / "nothing")
    assert f"may be {run}" in refused(run / "bundle")
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped, ignore=shutil.ignore_patterns("bundle"))
    assert "--resume" in refused(stopped)
    shutil.copytree(run / "bundle", stopped / "bundle")
    shutil.rmtree(stopped / "prepared")
    assert "before training" in refused(stopped)
    shutil.copytree(run / "prepared", stopped / "prepared")
    stored = dict(np.load(run / "prepared" / "codes.npz"))
    np.savez(stopped / "prepared" / "codes.npz", **stored | {"codes": stored["codes"][::-1]})
    assert "different runs" in refused(stopped)
    user = UserHistory("u", (Event(0), Event(1), Event(0)), (None,) * 3, (0, 1, 2))
    other = Catalogue([Item("x", "x"), Item("y", "y")])
    DataSet(DataInfo("tiny", "test"), other, [user]).save(tmp_path / "tiny")
    assert "different catalogues" in refused(run, tmp_path / "tiny")
    assert "nowhere" in refused(run, tmp_path / "nowhere")
    assert "--text-tokens" in refused(run, text_tokens=100, window=101)
    assert "context of 128" in refused(run, text_tokens=1024, window=256)


def test_a_file_that_cannot_be_written_is_said(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    options = ("--text-tokens", 64, "--window", 32, "--cases", 5, "--threads", 1)
    output, error = command(run, "--data", data, *options, "--json", tmp_path / "file" / "x.json")
    assert isinstance(error, OutputError)
    assert "cannot be written" in str(error)
    assert "perplexity" not in output  # said before the work
    assert (tmp_path / "file").read_text() == "precious"
