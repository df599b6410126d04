"""The loss of general knowledge by training: predictions of the model before and after it, token by token.

*Before* is the extended backbone that a run started from, *after* is its bundle. A model that keeps its general
knowledge predicts the held-out articles of `training.data.general_text` as well as before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PreTrainedModel

from index.bundle.bundle import Bundle
from index.contents import contents_of
from index.sequence.events import Task
from server.engine.torch_backend.engine import TorchEngine
from training.config import SCRATCH, modern
from training.data.dataset import DataSet
from training.data.general_text import held_out_articles, token_windows
from training.data.schema import DataError
from training.data.splits import Case, leave_one_out
from training.errors import EvaluationError
from training.evaluation.bootstrap import mean_interval
from training.evaluation.candidates import WHOLE, Candidates, excludes_history
from training.evaluation.metrics import per_case
from training.evaluation.ranking import cases_of, draw_cases, rank_cases, target_ranks
from training.outputs import write_json
from training.prepare.preparation import CODES, is_prepared, open_prepared
from training.preservation.general import GeneralFigures, general_figures
from training.run.device import chosen_device
from training.settings import DeviceName, read_yaml

Ranks = dict[Task, NDArray[np.int64]]  # task → rank of each case's target, see `target_ranks`


def preservation(
    run: Path,
    data: Path,
    *,
    text_tokens: int = 16384,
    window: int = 256,
    max_cases: int = 500,
    beam_width: int = 20,
    exclude_history: bool | None = None,
    batch: int = 8,
    seed: int = 0,
    threads: int | None = None,
    device: DeviceName = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare a finished run with the model it started from. Returns a JSON-ready dictionary:

        general                   perplexity, accuracy, shares of tokens that changed; see `compare_general`
        search, recommendation    Hit@10 and shares of test cases that changed; see `compare_ranks`
        protocol                  description of the measurement
        note                      only if the backbone was not a whole language model: what that means

    run: the run folder.
    data: folder of the data set that the run was trained on.
    text_tokens: number of tokens of general text.
    window: tokens of one window.
    max_cases: number of test cases that are drawn.
    batch: windows in one forward pass.
    Raises `UserError` if `run` is not a finished run, or if `data` is another data set.
    """
    bundle, settings = _open_run(run)
    dataset = DataSet.load(data)
    if dataset.catalogue.item_ids != bundle.index.catalogue.item_ids:  # in another order, after a renewal
        try:
            dataset = dataset.on(bundle.index.catalogue)
        except DataError as error:
            raise EvaluationError(
                f"{run} and {data} have different catalogues: {error}; compare a run on the data set it was trained on"
            ) from error
    split = leave_one_out(dataset)
    excluded = excludes_history(exclude_history, split.validation)
    cases = draw_cases(split.test, max_cases, seed)
    if not cases:
        raise EvaluationError("the data set has no user with three interactions, so no case to test")
    on = chosen_device(device)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    texts = held_out_articles()
    windows = token_windows(bundle.tokenizer, texts, window, text_tokens)
    if not len(windows):
        raise EvaluationError(
            f"{text_tokens} tokens of text hold no window of {window}; give more --text-tokens or a smaller --window"
        )
    loaders: dict[str, Callable[[], PreTrainedModel]] = {
        "before": lambda: open_prepared(run / "prepared", bundle.info.scheme).model,
        "after": bundle.load_model,
    }
    figures: list[GeneralFigures] = []
    ranks: list[Ranks] = []
    with Progress(console=console) as bar:
        for when, load in loaders.items():
            model = load().to(on)
            row = bar.add_task(f"general text, {when}", total=len(windows))
            figures.append(
                general_figures(
                    model, windows, bundle.vocabulary.first_added, batch,
                    lambda done, total, row=row: bar.update(row, completed=done),  # type: ignore[misc]
                )
            )  # fmt: skip
            ranks.append(_rank(model, bundle, cases, beam_width, excluded, bar, when))
            del model  # only one in memory at a time
    result: dict[str, Any] = {"general": compare_general(figures[0], figures[1])}
    for task in ranks[0]:
        result[task.value] = compare_ranks(ranks[0][task], ranks[1][task])
    result["protocol"] = {
        "text": "Wikipedia, held-out articles", "articles": len(texts), "windows": len(windows), "window": window,
        "known_tokens": bundle.vocabulary.first_added, "split": "test", "ranking": WHOLE,
        "beam_width": beam_width, "exclude_history": excluded, "bundle": bundle.info.bundle_id,
        "data": bundle.info.data.get("name"), "method": settings.get("method"),
        "backbone": settings.get("backbone.name"), "layers": settings.get("backbone.layers"),
    }  # fmt: skip
    note = backbone_note(settings)
    return result | ({"note": note} if note else {})


def compare_general(before: GeneralFigures, after: GeneralFigures, seed: int = 0) -> dict[str, Any]:
    """Compare two models on the same windows. Returns a JSON-ready dictionary:

        perplexity                  before, after, ratio = after / before
        accuracy                    top-1 accuracy before and after
        right_before_wrong_after    share of tokens that only the model before predicts
        wrong_before_right_after    share of tokens that only the model after predicts
        nll_difference              [mean, low, high] of after − before in nats per token; 95% bootstrap over windows,
                                    because the tokens of a window are not independent
        tokens                      number of predicted tokens

    Raises `ValueError` if the windows differ in shape.
    """
    if before.nll.shape != after.nll.shape:
        raise ValueError(f"not the same windows: {before.nll.shape} and {after.nll.shape}")
    difference = (after.nll - before.nll).mean(1)
    ratio = after.perplexity / before.perplexity
    return {
        "perplexity": {"before": before.perplexity, "after": after.perplexity, "ratio": ratio},
        "accuracy": {"before": before.accuracy, "after": after.accuracy},
        **_changes(before.right, after.right),
        "nll_difference": [float(difference.mean()), *mean_interval(difference, seed)],
        "tokens": before.tokens,
    }


def compare_ranks(before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[str, Any]:
    """Compare two models on the same cases: Hit@10 of each, and the shares of cases that only one of them hits.

    before, after: int64 [cases], see `target_ranks`.
    """
    hits = [per_case(ranks)["hit@10"] > 0 for ranks in (before, after)]
    means = {when: float(hit.mean()) for when, hit in zip(("before", "after"), hits, strict=True)}
    return {"hit@10": means, **_changes(*hits), "cases": len(before)}


def _changes(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "right_before_wrong_after": float((before & ~after).mean()),
        "wrong_before_right_after": float((~before & after).mean()),
    }


def backbone_note(settings: dict[str, Any]) -> str | None:
    """Return a warning about the figures on general text if the backbone was not a whole language model, else None."""
    if settings.get("backbone.name") in SCRATCH:
        what = "The backbone was built from scratch and knew no general text before"
    elif settings.get("backbone.layers") is not None:
        layers = settings["backbone.layers"]
        what = f"The backbone was cut to its first {layers} layers and was no language model by itself"
    else:
        return None
    return f"{what}: the figures on general text say little about preservation."


def _open_run(run: Path) -> tuple[Bundle, dict[str, Any]]:
    """Return the bundle of a finished run and the settings of the run. Raises `EvaluationError`."""
    if not (run / "config.yaml").is_file() or not (run / "environment.json").is_file():
        found = contents_of(run)
        hint = f"; its run folder may be {run.resolve().parent}" if found == "a bundle" else ""
        said = f"{run} is {found}, no" if run.is_dir() else f"at {run} there is no"
        raise EvaluationError(f"{said} run folder, as 'gems train --out' makes one{hint}")
    if not (run / "bundle").exists():
        raise EvaluationError(
            f"{run} has no bundle yet: let 'gems train' finish, with --resume if it was stopped"
        )
    if not is_prepared(run / "prepared"):
        raise EvaluationError(f"{run / 'prepared'} is gone, which holds the model before training")
    bundle = Bundle.open(run / "bundle")
    learned = run / "codes" / "prepared"  # where codes were learned with the model
    prepared = np.load((learned if is_prepared(learned) else run / "prepared") / CODES, allow_pickle=False)
    own = bundle.index.search_codes
    same = np.array_equal(prepared["codes"], bundle.index.trie.codes())
    if not same or (own is not None and not np.array_equal(prepared["search_codes"], own)):
        raise EvaluationError(f"{run / 'prepared'} and {run / 'bundle'} are of different runs")
    try:
        settings = read_yaml(run / "config.yaml")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{run / 'config.yaml'} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise EvaluationError(f"{run / 'config.yaml'} must hold names and values")
    return bundle, modern(settings)


def _rank(
    model: PreTrainedModel,
    bundle: Bundle,
    cases: Sequence[Case],
    beam_width: int,
    exclude_history: bool,
    bar: Progress,
    when: str,
) -> Ranks:
    engine = TorchEngine(
        model,
        bundle.index.trie,
        bundle.vocabulary,
        normalisation=bundle.info.normalisation,
        searches=bundle.index.named(Task.SEARCH).everything,
    )
    ranks: Ranks = {}
    for task in Task:
        asked = cases_of(task, cases)
        if not asked:
            continue
        row = bar.add_task(f"{task.value}, {when}", total=len(asked))
        rankings = rank_cases(
            engine, bundle.encoder, asked, task, beam_width=beam_width, limit=10, batch=64,
            candidates=Candidates(exclude_history),
            progress=lambda done, total, row=row: bar.update(row, completed=done),  # type: ignore[misc]
        )  # fmt: skip
        ranks[task] = target_ranks(rankings, asked)
    return ranks


def print_preservation(result: dict[str, Any], console: Console) -> None:
    """Print a table with one row per figure; below it, the interval and the note."""
    table = Table(title="What training kept")
    for column in ("", "before", "after", "right → wrong", "wrong → right", "of"):
        table.add_column(column, justify="left" if not column else "right")
    general = result["general"]
    perplexity = general["perplexity"]
    table.add_row(
        "general text: perplexity",
        f"{perplexity['before']:.4g}",
        f"{perplexity['after']:.4g} (× {perplexity['ratio']:.3f})",
    )
    rows = [("general text: next token right", general["accuracy"], general, f"{general['tokens']} tokens")]
    for task in (t.value for t in Task if t.value in result):
        figures = result[task]
        rows.append((f"{task}: Hit@10", figures["hit@10"], figures, f"{figures['cases']} cases"))
    for name, pair, changes, size in rows:
        shares = (changes["right_before_wrong_after"], changes["wrong_before_right_after"])
        table.add_row(
            name, f"{pair['before']:.4f}", f"{pair['after']:.4f}", *(f"{share:.2%}" for share in shares), size
        )
    console.print(table)
    mean, low, high = general["nll_difference"]
    console.print(
        f"general text: {mean:+.4f} nats a token, 95% interval [{low:+.4f}, {high:+.4f}]", highlight=False
    )
    if "note" in result:
        console.print(f"note: {result['note']}", style="yellow", highlight=False)


def save_preservation(result: dict[str, Any], path: Path) -> None:
    """Write the figures as JSON. Raises `OutputError`."""
    write_json(path, result)
