"""`gems baseline`: data set → split → training → the rank of every test case, compared with the floors.

The run folder contains config.yaml, environment.json, metrics.jsonl (one line per epoch), checkpoint.pt (until the run
is finished), weights.safetensors, ranks.npz (for `gems compare`) and evaluation.json (the format of `gems evaluate`).
Where there are item vectors it also contains item_vectors.parquet, and language_vectors.parquet if the run made them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress as ProgressBar
from safetensors.torch import save_model

from index.records import Record
from index.sequence.events import Task
from training.baselines.baseline import Baseline
from training.baselines.dense import dense
from training.baselines.dreamrec import dreamrec
from training.baselines.loop import CHECKPOINT, Progress, fit
from training.baselines.ncf import ncf
from training.baselines.recommender import sasrec
from training.baselines.settings import (
    BaselineSettings,
    DenseSettings,
    DreamRecSettings,
    NCFSettings,
    SASRecSettings,
    UnifiedSSRSettings,
    settings_by_name,
)
from training.baselines.unified_ssr import unified_ssr
from training.data.dataset import DataSet
from training.data.splits import Case, Split, split_users
from training.data.vectors import save_vectors
from training.errors import EvaluationError
from training.evaluation.candidates import Candidates, excludes_history
from training.evaluation.case_ranks import RANKS_FILE, CaseRanks, TaskRanks
from training.evaluation.evaluate import save_evaluation
from training.evaluation.figures import add_task, empty_result
from training.evaluation.ranking import cases_of, draw_cases
from training.evaluation.scoring import score_ranks
from training.run.run_folder import check_run, fingerprint, record_run

EVALUATION = "evaluation.json"
LANGUAGE_FILE = "language_vectors.parquet"
VECTORS_FILE = "item_vectors.parquet"
SETTINGS = settings_by_name()


@dataclass(frozen=True)
class TrainedBaseline:
    """A baseline with the weights of its best validation, and what it was trained on."""

    dataset: DataSet
    split: Split
    baseline: Baseline
    progress: Progress

    @property
    def cost(self) -> dict[str, float]:
        """Figures of the training: trained weights, seconds of wall and CPU time, epochs up to the best validation."""
        trained = (p for p in self.baseline.model.parameters() if p.requires_grad)
        return {
            "parameters": sum(p.numel() for p in trained),
            "seconds": self.progress.seconds,
            "cpu_seconds": self.progress.cpu_seconds,
            "epochs": self.progress.best_epoch,
        }


def run_baseline(
    data: Path,
    out: Path,
    settings: BaselineSettings,
    *,
    language: Path | None = None,
    resume: bool = False,
    system: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """Train a baseline and rank all test cases. A finished run is only read.

    Returns the result of `gems evaluate` for the tasks of the baseline, with an entry `training`.

    data: folder of the data set.
    out: the run folder.
    language: file of the items' language vectors; None: they are made if they are needed.
    resume: continue a run that was stopped.
    system: name in comparisons; default: the settings' name.
    Raises `UserError` with a message for the user.
    """
    dataset, split, settings = _on_log(data, settings)
    candidates = Candidates(bool(settings.exclude_history), settings.sampled_negatives)
    for task in settings.tasks:
        cases = cases_of(task, split.test)
        if not cases:
            raise EvaluationError(f"{data} has no case in which {task.value} could be tested")
        candidates.check(cases, len(dataset.catalogue))
    started = check_run(out, settings, dataset, resume)
    if started and (out / EVALUATION).exists():
        console.print(f"{out} is done already; nothing left to do", soft_wrap=True)
        try:
            return Record.read(out / EVALUATION).fields
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{error}; delete {out / EVALUATION} to measure that run again") from error
    trained = _train(data, out, settings, dataset, split, started, language, console)
    result = _measure(trained, settings, candidates, out, system or settings.system, console)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return result


def train_baseline(
    data: Path,
    out: Path,
    settings: BaselineSettings,
    *,
    language: Path | None = None,
    resume: bool = False,
    console: Console,
) -> TrainedBaseline:
    """Train a baseline, without a measurement. The checkpoint stays, so that a second call trains no further.

    The arguments are those of `run_baseline`. Raises `UserError`.
    """
    dataset, split, settings = _on_log(data, settings)
    started = check_run(out, settings, dataset, resume)
    return _train(data, out, settings, dataset, split, started, language, console)


def _on_log(data: Path, settings: BaselineSettings) -> tuple[DataSet, Split, BaselineSettings]:
    """Return the data set, its split, and the settings with what the log decides: whether the history is ranked."""
    dataset = DataSet.load(data)
    split = split_users(dataset, settings.users)
    excluded = excludes_history(settings.exclude_history, split.validation)
    return dataset, split, settings.model_copy(update={"exclude_history": excluded})


def _train(
    data: Path,
    out: Path,
    settings: BaselineSettings,
    dataset: DataSet,
    split: Split,
    started: bool,
    language: Path | None,
    console: Console,
) -> TrainedBaseline:
    """Train on a log that was read. started: whether OUT is a run already."""
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    torch.manual_seed(settings.seed)
    kept = out / LANGUAGE_FILE
    baseline = _make(
        settings, dataset, split, kept if language is None and kept.exists() else language, console
    )
    if not started:
        record_run(out, settings, dataset, data, settings.threads)
    if baseline.language is not None:
        save_vectors(kept, dataset.catalogue.item_ids, baseline.language)
    validation = {
        task: list(draw_cases(cases_of(task, split.validation), settings.validation_cases, seed=0))
        for task in settings.tasks
    }
    progress = fit(baseline, settings, validation, out, console)
    if baseline.vectors is not None:
        save_vectors(out / VECTORS_FILE, dataset.catalogue.item_ids, baseline.vectors())
    return TrainedBaseline(dataset, split, baseline, progress)


def _make(
    settings: BaselineSettings, dataset: DataSet, split: Split, language: Path | None, console: Console
) -> Baseline:
    match settings:
        case SASRecSettings():
            return sasrec(settings, dataset, split, language, console)
        case NCFSettings():
            return ncf(settings, dataset, split)
        case DenseSettings():
            return dense(settings, dataset, split)
        case DreamRecSettings():
            return dreamrec(settings, dataset, split, language, console)
        case UnifiedSSRSettings():
            return unified_ssr(settings, dataset, split)
    raise TypeError(f"no baseline has settings of type {type(settings).__name__}")


def _measure(
    trained: TrainedBaseline,
    settings: BaselineSettings,
    candidates: Candidates,
    out: Path,
    system: str,
    console: Console,
) -> dict[str, Any]:
    dataset, split, baseline, cost = trained.dataset, trained.split, trained.baseline, trained.cost
    protocol = {"split": "test", "users": settings.users} | candidates.protocol
    result = empty_result(protocol | {"baseline": system}, asdict(dataset.info))
    ranked = {}
    for task in settings.tasks:
        cases = cases_of(task, split.test)
        ranks = _rank(baseline, task, cases, candidates, console)
        add_task(result, task, cases, ranks, dataset.catalogue, split.train, candidates=candidates, seed=0)
        ranked[task] = TaskRanks.of(cases, ranks)
    result["training"] = cost | {"validation_ndcg@10": trained.progress.score} | baseline.notes()
    save_model(baseline.model, str(out / "weights.safetensors"))
    CaseRanks(system, settings.seed, fingerprint(dataset), protocol, ranked, cost).save(out / RANKS_FILE)
    save_evaluation(result, out / EVALUATION)
    return result


def _rank(
    baseline: Baseline, task: Task, cases: Sequence[Case], candidates: Candidates, console: Console
) -> NDArray[np.int64]:
    """Return the rank of each case's target, int64 [cases], and show the progress."""
    with ProgressBar(console=console, transient=True) as bar:
        row = bar.add_task(f"ranking for {task.value}", total=len(cases))
        return score_ranks(
            baseline.scores[task], cases, candidates=candidates,
            progress=lambda done, total: bar.update(row, completed=done),
        )  # fmt: skip
