"""The two files that CONTRIBUTING.md shows work as they stand: a scheme and a tuning method, each one new file."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.bundles import make_model, make_tokenizer
from support.paths import ROOT
from support.walks import make_data, settings
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from index.bundle.bundle import Bundle
from index.identifiers.identifiers import IdentifierError, ItemsToName
from index.identifiers.registry import load_scheme, scheme_names
from index.sequence.events import Task
from training.evaluation.evaluate import evaluate
from training.methods.method import Setup
from training.methods.registry import make_method
from training.pipeline import train

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
# The first line of each block names its file.
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
SCHEME, METHOD = "alphabetical", "sign-descent"


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the files of the page where their packages look for them, and nowhere into the checkout."""
    folder = tmp_path_factory.mktemp("extensions")
    with pytest.MonkeyPatch.context() as patch:
        for path, code in FILES.items():
            file = folder / path
            file.parent.mkdir(parents=True)
            file.write_text(code, "utf-8")
            package = importlib.import_module(".".join(Path(path).parts[:-1]))
            patch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
        importlib.invalidate_caches()
        yield
        for path in FILES:
            module = ".".join(Path(path).with_suffix("").parts)
            sys.modules.pop(module, None)
            parent, _, name = module.rpartition(".")
            vars(sys.modules[parent]).pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "walks")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(["apple pie", "date cake"])


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model(97)


def test_the_page_shows_a_file_of_each_extension_point() -> None:
    assert [Path(path).parent.as_posix() for path in FILES] == [
        "index/identifiers/schemes",
        "training/methods/tuning",
    ]
    assert not any((ROOT / path).exists() for path in FILES)


@pytest.mark.usefixtures("extensions")
def test_a_new_file_is_a_new_scheme(tokenizer: PreTrainedTokenizerFast) -> None:
    assert SCHEME in scheme_names()
    titles = ["pear", "apple", "fig", "plum", "date"]
    items = ItemsToName(titles, np.zeros((5, 3), np.float32), tokenizer)
    made = load_scheme(SCHEME).identifiers(items, settings().for_scheme)
    assert made.codes.tolist() == [[1, 0], [0, 0], [0, 2], [1, 1], [0, 1]]
    assert made.codebook_sizes == (3, 3)
    nothing = ItemsToName([], np.zeros((0, 3), np.float32), tokenizer)
    with pytest.raises(IdentifierError, match="no items"):
        load_scheme(SCHEME).identifiers(nothing, settings().for_scheme)


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize("items", [1, 2, 4, 5, 9, 10, 1000])
def test_the_scheme_names_every_item_differently(items: int, tokenizer: PreTrainedTokenizerFast) -> None:
    titles = [f"title {k % 7}" for k in range(items)]
    given = ItemsToName(titles, np.zeros((items, 3), np.float32), tokenizer)
    made = load_scheme(SCHEME).identifiers(given, settings().for_scheme)
    assert made.codes.shape == (items, load_scheme(SCHEME).levels(settings().for_scheme))
    assert made.codes.dtype == np.int32
    assert len(np.unique(made.codes, axis=0)) == items
    assert (made.codes < np.array(made.codebook_sizes)).all()


@pytest.mark.usefixtures("extensions")
def test_the_scheme_names_a_catalogue_from_end_to_end(data: Path, tmp_path: Path) -> None:
    train(
        data,
        tmp_path / "run",
        settings({"identifiers.scheme": SCHEME, "method": "full"}),
        console=Console(quiet=True),
    )
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    assert bundle.info.scheme == SCHEME
    assert bundle.index.trie.levels == 2
    result = evaluate(tmp_path / "run" / "bundle", data, beam_width=30)
    assert result["search"]["hit@5"] > 0.8
    assert result["recommendation"]["hit@5"] > 2 * result["floors"]["popularity"]["recommendation"]["hit@5"]


@pytest.mark.usefixtures("extensions")
def test_a_step_of_the_method_follows_its_formula(model: PreTrainedModel) -> None:
    method = make_method(model, settings({"method": METHOD}), first_added=1)
    before = [p.detach().clone() for p in model.parameters()]
    loss = sum(p.square().sum() for p in model.parameters()) / 2  # its gradient is the weight itself
    method.backward(
        {Task.SEARCH: loss, Task.RECOMMENDATION: 2 * loss}, {Task.SEARCH: 0.5, Task.RECOMMENDATION: 0.5}
    )
    figures = method.step(0.25)
    norm = math.sqrt(sum(float(p.square().sum()) for p in before))
    assert figures["gradient_norm"] == pytest.approx(1.5 * norm, rel=1e-4)
    for weight, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(weight.detach(), old - 0.25 * old.sign())
        assert weight.grad is None


@pytest.mark.usefixtures("extensions")
def test_the_method_refuses_gradients_that_are_not_finite(model: PreTrainedModel) -> None:
    method = importlib.import_module("training.methods.tuning.sign_descent").make(Setup(model, settings(), 1))
    before = [p.detach().clone() for p in model.parameters()]
    loss = next(model.parameters()).sum() * math.inf
    method.backward({Task.SEARCH: loss}, {Task.SEARCH: 1.0})
    with pytest.raises(ArithmeticError, match="not finite"):
        method.step(0.25)
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight.detach(), old)


@pytest.mark.usefixtures("extensions")
def test_the_method_trains_a_model_from_end_to_end(data: Path, tmp_path: Path) -> None:
    train(
        data,
        tmp_path / "run",
        settings({"method": METHOD, "optimiser.learning_rate": 3e-3}),
        console=Console(quiet=True),
    )
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    assert bundle.info.training["method"] == METHOD
    result = evaluate(tmp_path / "run" / "bundle", data, beam_width=30)
    assert result["search"]["hit@5"] > 0.8


def test_the_files_of_the_page_keep_the_style_and_the_trial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    for path, code in FILES.items():
        for command in (["check"], ["format", "--check"]):
            subprocess.run(
                [*ruff, *command, "--stdin-filename", path, "-"], input=code, text=True, cwd=ROOT, check=True
            )
    (trial,) = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "make_data" in block
    ]
    monkeypatch.chdir(tmp_path)
    exec(compile(trial.replace("from tests.support", "from support"), "CONTRIBUTING.md", "exec"), {})
    assert "red" in capsys.readouterr().out.splitlines()[-1]  # the titles are of things in colours


@pytest.mark.slow
def test_the_files_of_the_page_pass_the_type_checker(tmp_path: Path) -> None:
    """Check them in a copy of the packages, so that nothing is written into the checkout."""
    for package in ("gems", "index", "server", "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, code in FILES.items():
        (tmp_path / path).write_text(code, "utf-8")
    subprocess.run([sys.executable, "-m", "mypy", *FILES], cwd=tmp_path, check=True)
