"""The training loop of all baselines: validate, train for an epoch, stop when validation no longer improves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from index.files import atomic_write
from index.sequence.events import Task
from training.baselines.baseline import Baseline, TaskCases
from training.baselines.settings import BaselineError, BaselineSettings
from training.evaluation.candidates import Candidates
from training.evaluation.metrics import per_case
from training.evaluation.scoring import score_ranks
from training.loop.clock import Stopwatch, minutes_of
from training.loop.schedule import rate_factor
from training.run.metrics_log import MetricsLog

CHECKPOINT = "checkpoint.pt"


@dataclass
class Progress:
    """State of a training.

    epoch: number of finished epochs; 0: only validated, −1: not started.
    best_epoch: epoch with the best validation; 0: before the first epoch.
    score: best validation NDCG@10, the mean of the tasks.
    seconds, cpu_seconds: wall and CPU time of training and validation.
    """

    epoch: int = -1
    best_epoch: int = 0
    score: float = -math.inf
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def fit(
    baseline: Baseline,
    settings: BaselineSettings,
    validation: TaskCases,
    out: Path,
    console: Console,
) -> Progress:
    """Train with AdamW, and leave the weights of the best validation in the model, ready for `baseline.scores`.

    After each epoch, OUT/checkpoint.pt holds everything that an exact continuation needs. If there is one already,
    training continues from it.

    validation: cases of the validation, for each task of the baseline.
    out: the run folder.
    Raises `BaselineError` if the loss is not finite, or if the checkpoint cannot be read.
    """
    model = baseline.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    progress, best = Progress(), {name: value.clone() for name, value in model.state_dict().items()}
    if (out / CHECKPOINT).exists():
        try:
            state = torch.load(out / CHECKPOINT, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            progress, best = Progress(**state["progress"]), state["best"]
        except Exception as error:  # torch raises many errors for an incomplete file
            raise BaselineError(
                f"{out / CHECKPOINT} cannot be read: {error}; delete it to start that run again"
            ) from error
    with MetricsLog(out) as log:
        while _goes_on(progress, baseline, settings):
            watch = Stopwatch(progress.seconds, progress.cpu_seconds)
            progress.epoch += 1
            loss = None
            if progress.epoch:
                torch.manual_seed(settings.seed * 1_000_003 + progress.epoch)
                parts = baseline.batches(progress.epoch)
                shown = track(
                    parts, f"epoch {progress.epoch}", total=len(parts), console=console, transient=True
                )
                clock = partial(_spent, settings, watch)
                rates = learning_rates(settings, progress.epoch - 1, len(parts), baseline.epochs, clock)
                loss = _epoch(baseline, optimizer, shown, rates)
            model.eval()
            baseline.refresh()
            baseline.choose(validation)
            by_task = {task: _validate(baseline, settings, validation, task) for task in validation}
            score = sum(by_task.values()) / len(by_task)
            if score > progress.score:
                progress.score, progress.best_epoch = score, progress.epoch
                best = {name: value.clone() for name, value in model.state_dict().items()}
            progress.seconds, progress.cpu_seconds = watch.read()
            _save(out / CHECKPOINT, model, optimizer, progress, best)
            log.write(
                {"step": progress.epoch, "loss": loss, "validation": _figures(score, by_task),
                 "seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
            )  # fmt: skip
            trained = "" if loss is None else f", loss {loss:.3f}"
            console.print(f"epoch {progress.epoch}: validation NDCG@10 {score:.4f}{trained}", highlight=False)
    model.load_state_dict(best)
    model.eval()
    baseline.refresh()
    return progress


def _goes_on(progress: Progress, baseline: Baseline, settings: BaselineSettings) -> bool:
    waited = progress.epoch - progress.best_epoch
    late = _spent(settings, Stopwatch(progress.seconds, progress.cpu_seconds)) >= 1
    return progress.epoch < baseline.epochs and waited < settings.patience and not late


def _spent(settings: BaselineSettings, watch: Stopwatch) -> float:
    """Return the share of the minutes that are spent; 0 without a limit."""
    return 0.0 if settings.minutes is None else minutes_of(settings.clock, *watch.read()) / settings.minutes


def _validate(baseline: Baseline, settings: BaselineSettings, validation: TaskCases, task: Task) -> float:
    """Return the mean NDCG@10 of a task; 0 if there are no cases."""
    cases = validation[task]
    if not cases:
        return 0.0
    ranks = score_ranks(
        baseline.scores[task], cases, limit=10, candidates=Candidates(bool(settings.exclude_history))
    )
    return float(per_case(ranks)["ndcg@10"].mean())


def _figures(score: float, by_task: Mapping[Task, float]) -> dict[str, float]:
    """Return what the log says of a validation: the score, and that of each task where there are several."""
    several = {f"{task.value}.ndcg@10": value for task, value in by_task.items()} if len(by_task) > 1 else {}
    return {"ndcg@10": score} | several


def learning_rates(
    settings: BaselineSettings, done: int, steps: int, epochs: int, spent: Callable[[], float] = lambda: 0.0
) -> Iterator[float]:
    """Yield the learning rate of each step of the epoch after `done` ones; end when the time is over.

    spent: the share of the time that is over, asked before each step; the schedule ends with it.
    """
    for k in range(steps):
        share = spent()
        if share >= 1:
            return
        progress = max((done + k / steps) / epochs, share)
        yield settings.learning_rate * rate_factor(progress, 0.0, settings.final_rate)


def _epoch(
    baseline: Baseline, optimizer: torch.optim.Optimizer, batches: Iterable[Any], rates: Iterable[float]
) -> float:
    """Train on the batches, as many as there are learning rates; return the mean of their losses, 0 for none."""
    baseline.model.train()
    total, steps = 0.0, 0
    for rate, batch in zip(rates, batches, strict=False):  # the time may be over before the last batch
        steps += 1
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = baseline.loss_of(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BaselineError("the loss is not finite; choose a lower learning rate")
        total += value
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return total / max(1, steps)


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: dict[str, Tensor],
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "best": best,
    }
    with atomic_write(path, single_writer=True) as draft:
        torch.save(state, draft)
