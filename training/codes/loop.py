"""The loop of a stage that learns codes: steps with progress and checkpoints, ended by steps or by the clock."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from index.files import atomic_write
from training.codes.learner import CodeLearner
from training.config import TrainConfig
from training.loop.checkpoint import load_checkpoint, save_checkpoint
from training.loop.clock import Stopwatch, minutes_of
from training.loop.trainer import DivergedError, TrainingError
from training.run.interrupts import interrupts

FIGURES = "figures.json"
RECORDS = 50  # figures that are kept of the whole stage


@dataclass
class CodeProgress:
    """Progress of the stage, which a checkpoint holds in addition to weights and optimisers.

    seconds, cpu_seconds: wall and processor time.
    figures: those of some steps, in their order.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    figures: list[dict[str, float]] = field(default_factory=list)


def learn(learner: CodeLearner, folder: Path, config: TrainConfig, console: Console) -> CodeProgress:
    """Train to the end of the stage, from its newest checkpoint on if there is one.

    folder: where checkpoints lie.
    Raises `TrainingError` if it was interrupted, after a checkpoint, and `DivergedError`.
    """
    optimiser, part = config.optimiser, config.codes.share
    steps = max(1, round(part * optimiser.epochs * learner.steps_per_epoch))
    minutes = math.inf if optimiser.minutes is None else part * optimiser.minutes
    folder.mkdir(parents=True, exist_ok=True)
    found = load_checkpoint(folder, learner, learner.optimisers)
    progress = CodeProgress() if found is None else CodeProgress(**found)
    if found is not None:
        console.print(f"codes: resumed at step {progress.step} of {steps}")
    watch = Stopwatch(progress.seconds, progress.cpu_seconds)
    saved = progress.seconds

    def share() -> float:
        spent = minutes_of(optimiser.clock, progress.seconds, progress.cpu_seconds)
        return min(1.0, max(progress.step / steps, spent / minutes))

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    batches = learner.batches(progress.step)
    learner.train()
    with Progress(*columns, console=console) as bar, interrupts() as received:
        row = bar.add_task("codes", total=1.0, figures="")
        while (done := share()) < 1:
            # dropout and noise are a pure function of seed and step, so a checkpoint holds no random state
            torch.manual_seed(hash((config.seed, progress.step)) & (2**63 - 1))
            try:
                figures = learner.step(next(batches), done)
            except ArithmeticError as error:
                raise DivergedError(
                    f"{error} at step {progress.step + 1} of the codes; start a new run with a smaller "
                    "--optimiser.learning-rate"
                ) from error
            progress.step += 1
            progress.seconds, progress.cpu_seconds = watch.read()
            if int(RECORDS * done) >= len(progress.figures):
                progress.figures.append({"step": progress.step, "seconds": progress.seconds, **figures})
            bar.update(row, completed=share(), figures=_shown(figures))
            if received or progress.seconds - saved > 60 * config.run.checkpoint_every:
                save_checkpoint(folder, learner, learner.optimisers, asdict(progress))
                saved = progress.seconds
            if received:
                raise TrainingError(
                    f"stopped after step {progress.step} of the codes; the same command with --resume goes on"
                )
    learner.eval()
    return progress


def save_figures(folder: Path, progress: CodeProgress, final: Mapping[str, float]) -> None:
    """Write `figures.json`: those of the steps, and those at the end."""
    with atomic_write(folder / FIGURES, single_writer=True) as draft:
        draft.write_text(json.dumps({**asdict(progress), "final": dict(final)}, indent=2) + "\n", "utf-8")


def _shown(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
