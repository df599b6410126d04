"""The training loop: batches → losses → method, with validation, early stopping and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedModel

from index.files import atomic_write
from index.records import parse_json
from index.sequence.encoder import TASKS
from index.sequence.vocabulary import IdentifierVocabulary
from training.config import TrainConfig
from training.errors import UserError
from training.loop.batches import Batch, BatchSource
from training.loop.checkpoint import (
    drop_other_best,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
    save_sharded_checkpoint,
)
from training.loop.clock import Stopwatch, minutes_of
from training.loop.losses import item_losses
from training.loop.parts import Part, samples_of
from training.loop.probe import ConflictProbe
from training.loop.schedule import rate_factor
from training.loop.sharding import ShardedModel
from training.loop.validation import Validator
from training.methods.method import Method, NarrowMethod, Observer
from training.model.precision import Precision, forward_under
from training.model.text_part import TextPart
from training.run.interrupts import interrupts
from training.run.metrics_log import MetricsLog
from training.run.parallel import Parallel


class TrainingError(UserError):
    """Training cannot go on; the last checkpoint stays usable."""


class DivergedError(TrainingError):
    """Loss or gradient is not finite."""


@dataclass
class TrainingProgress:
    """Progress of a run, which a checkpoint holds in addition to the weights and the state of the method."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the main process
    best_score: float | None = None  # before the first validation
    best_step: int = 0
    bad_validations: int = 0
    finished: bool = False


class Trainer:
    """Training loop of a run: steps, validations and checkpoints.

    run: the run folder.
    precision: of the model, from the first step to the last one.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        model: PreTrainedModel,
        vocabulary: IdentifierVocabulary,
        method: Method,
        batches: BatchSource,
        validator: Validator,
        probe: ConflictProbe | None = None,
        parallel: Parallel | None = None,
        text: TextPart | None = None,
        sharded: ShardedModel | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.run = run
        self.config = config
        self.model = model
        self.vocabulary = vocabulary
        self.method = method
        self.batches = batches
        self.validator = validator
        self.probe = probe
        self.parallel = parallel or Parallel()
        self.text = text
        self.sharded = sharded
        self.precision = precision
        self._narrowed: NarrowMethod | None = None
        if precision == "bfloat16":
            assert isinstance(method, NarrowMethod)  # the settings were checked
            self._narrowed = method
            method.narrow()
        # what is validated and published; where the model is sharded, only the main process has it
        self.whole = model if sharded is None else sharded.whole
        self.progress = TrainingProgress()
        self.total_steps = max(1, round(config.optimiser.epochs * batches.steps_per_epoch))
        self._validate_every = max(1, round(config.validation.every * batches.steps_per_epoch))
        self._checkpoint_seconds = 60 * config.run.checkpoint_every
        self._normalisation = config.identifiers.normalisation
        self._last_checkpoint = 0.0

    def resume(self) -> bool:
        """Continue from the newest checkpoint. Return whether there was one."""
        found = load_checkpoint(
            self.run,
            self.model,
            self.method,
            sharded=self.config.backbone.shard,
            mesh=None if self.sharded is None else self.sharded.mesh,
        )
        if found is not None:
            self.progress = TrainingProgress(**found)
            self._last_checkpoint = self.progress.seconds
            if self.parallel.main:
                drop_other_best(self.run, self.progress.best_step)
        if self.parallel.main:
            self._truncate_metrics(-1 if found is None else self.progress.step)
        return found is not None

    def train(self) -> dict[str, float]:
        """Train to the end and leave the best weights in the model, float32. Return the best validation figures."""
        with forward_under(self.model, self.precision):
            self._train()
        if self._narrowed is not None:
            self._narrowed.widen()
        if self.sharded is None or self.parallel.main:
            load_best(self.run, self.whole, self.progress.best_step)
        if self.text is not None and self.sharded is None:  # a whole model beside a sharded one never had it
            self.text.finish(self.model)
        self.whole.eval()
        return self.parallel.agree(self.validator() if self.parallel.main else {})

    def _train(self) -> None:
        watch = Stopwatch(self.progress.seconds, self.progress.cpu_seconds)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.model.train()
        with (
            Progress(*columns, disable=not self.parallel.main) as bar,
            self._open_log() as log,
            interrupts() as received,
        ):
            row = bar.add_task("training", total=1.0, figures="")
            if self.progress.step == 0 and self.probe is not None:
                self._log(log, {"conflict": self._probe()})
            for position, batch in self._remaining():
                self._note_time(self.parallel.agree(watch.read()))
                figures = self._step(position, batch)
                now, interrupted = self.parallel.agree((watch.read(), bool(received)))
                self._note_time(now)
                self._log(log, figures | {"seconds": self.progress.seconds})
                if self.progress.step == 1:
                    self._log(log, {"cost": self.method.costs()})
                bar.update(row, completed=self._share(), figures=_show(figures))
                done = self._share() >= 1
                validate = done or self.progress.step % self._validate_every == 0
                if validate:
                    validation = self._validate()
                    self._log(log, {"validation": validation})
                    bar.console.print(f"step {self.progress.step:6d}  validation  {_show(validation)}")
                    if self.probe is not None:
                        self._log(log, {"conflict": self._probe()})
                    self._note_time(self.parallel.agree(watch.read()))
                    exhausted = (
                        self.progress.bad_validations >= self.config.validation.patience
                        and self._share() >= self.config.sequence.last_stage
                    )
                    self.progress.finished = done or exhausted
                overdue = self.progress.seconds - self._last_checkpoint > self._checkpoint_seconds
                if validate or overdue or interrupted:
                    self._checkpoint(log)
                if self.progress.finished:
                    break
                if interrupted:
                    raise TrainingError(
                        f"stopped after step {self.progress.step}; the same command with --resume goes on"
                    )

    def _remaining(self) -> Iterator[tuple[str, Batch]]:
        """Yield the batches from the current step on, and the name of each for messages."""
        per_epoch = self.batches.steps_per_epoch
        epoch, skip = divmod(self.progress.step, per_epoch)
        while self.progress.step < self.total_steps and not self.progress.finished:
            for position, batch in enumerate(self.batches.epoch(epoch, self._share)):
                if position >= skip and self.progress.step < self.total_steps:
                    yield f"batch {position + 1} of epoch {epoch + 1}", batch
            epoch, skip = epoch + 1, 0

    def _step(self, position: str, batch: Batch) -> dict[str, Any]:
        """Make one update. Return the figures of the step.

        The loss of each task is its mean over the items and texts of the whole batch.
        """
        items = sum(batch.targets.values())
        if not items:  # of one trained task, which no event of the batch is of
            self.progress.step += 1
            return {"tokens": batch.tokens}
        shares = {task: count / items for task, count in batch.targets.items() if count}
        means = torch.zeros(len(TASKS), dtype=torch.float64, device=self.model.device)
        # dropout is a pure function of seed, step and process, so a checkpoint holds no random state
        torch.manual_seed(hash((self.config.seed, self.progress.step, self.parallel.rank)) & (2**63 - 1))
        for part, weight in self._passes(batch):
            if isinstance(self.method, Observer):
                self.method.observe(samples_of(part, weight / len(batch.parts)))
            with nullcontext() if self.text is None else self.text.added():
                sums = item_losses(
                    self.model, self.vocabulary, part, self._normalisation, self.method.rows, self.text,
                    always=() if self.sharded is None else shares,
                    temperature=self.config.optimiser.logit_temperature,
                )  # fmt: skip
            losses = {task: total / batch.targets[task] * weight for task, total in sums.items()}
            for task, loss in losses.items():
                means[TASKS.index(task)] += loss.detach()
            if losses:
                self.method.backward(losses, shares)
        self.parallel.sum([means])
        mean = dict(zip(TASKS, means.tolist(), strict=True))
        if not all(map(math.isfinite, mean.values())):
            raise self._diverged("the loss is not finite", position)
        optimiser = self.config.optimiser
        factor = rate_factor(self._share(ahead=1), optimiser.warmup, optimiser.final_rate)
        rate = optimiser.learning_rate * factor
        try:
            diagnostics = self.method.step(rate)
        except ArithmeticError as error:
            raise self._diverged(str(error), position) from error
        self.progress.step += 1
        figures = {f"{task.value}.loss": mean[task] for task in shares}
        return figures | {"learning_rate": rate, "tokens": batch.tokens} | diagnostics

    def _passes(self, batch: Batch) -> list[tuple[Part, float]]:
        """Return the parts that this process computes, each with a weight of 1.

        Processes that share a model run the same passes: one with a part less runs that of another, with a weight of 0.
        """
        own = [(part, 1.0) for part in self.parallel.share(batch.parts)]
        if self.sharded is not None and len(own) < math.ceil(len(batch.parts) / self.parallel.size):
            own.append((batch.parts[0], 0.0))
        return own

    def _diverged(self, what: str, position: str) -> DivergedError:
        return DivergedError(
            f"{what} at step {self.progress.step + 1} ({position}); start a new run with a smaller "
            f"--optimiser.learning-rate. The last good weights are in "
            f"{self.run / 'checkpoints'} and {self.run / 'best'}"
        )

    def _note_time(self, now: tuple[float, float]) -> None:
        """Record the time of the training. now: what the main process's stopwatch reads."""
        self.progress.seconds, self.progress.cpu_seconds = now

    def _share(self, ahead: int = 0) -> float:
        """Return the progress of the run in [0, 1]: by steps, or by the clock if `minutes` ends it sooner."""
        by_steps = (self.progress.step + ahead) / self.total_steps
        optimiser, progress = self.config.optimiser, self.progress
        spent = minutes_of(optimiser.clock, progress.seconds, progress.cpu_seconds)
        by_clock = spent / optimiser.minutes if optimiser.minutes else 0.0
        return min(1.0, max(by_steps, by_clock))

    def _validate(self) -> dict[str, float]:
        with self._plain_weights():
            if self.sharded is not None:
                merged = getattr(self.method, "merged_weights", tuple)  # of layers that a method has wrapped
                self.sharded.collect(merged())
            figures = self.parallel.agree(self.validator() if self.parallel.main else {})
        if self.progress.best_score is None or figures["score"] > self.progress.best_score:
            self.progress.best_score = figures["score"]
            self.progress.best_step = self.progress.step
            self.progress.bad_validations = 0
            if self.parallel.main:
                save_best(self.run, self.whole, self.progress.step, self._exact_weights())
        else:
            self.progress.bad_validations += 1
        return figures

    def _exact_weights(self) -> dict[str, Tensor]:
        """Return the float32 values of trained weights that the model holds in less precision."""
        return {} if self._narrowed is None else self._narrowed.exact_weights()

    def _probe(self) -> dict[str, float]:
        with self._plain_weights():
            return self.probe() if self.probe is not None and self.parallel.main else {}

    def _plain_weights(self) -> AbstractContextManager[None]:
        """Hold plain weights in the model inside the block."""
        return nullcontext() if self.text is None else self.text.folded()

    def _checkpoint(self, log: MetricsLog | None) -> None:
        progress = asdict(self.progress)
        if log is not None:
            log.flush_to_disk()
        if self.config.backbone.shard:
            save_sharded_checkpoint(self.run, self.model, self.method, progress, self.parallel)
        elif log is not None:
            save_checkpoint(self.run, self.model, self.method, progress)
        if log is not None:
            drop_other_best(self.run, self.progress.best_step)
        self._last_checkpoint = self.progress.seconds
        self.parallel.wait()

    @contextmanager
    def _open_log(self) -> Iterator[MetricsLog | None]:
        """Open the log of the run in the main process; None in the others."""
        if not self.parallel.main:
            yield None
            return
        with MetricsLog(self.run, self.config.run.tensorboard) as log:
            yield log

    def _log(self, log: MetricsLog | None, figures: dict[str, Any]) -> None:
        if log is not None:
            epoch = self.progress.step / self.batches.steps_per_epoch
            log.write({"step": self.progress.step, "epoch": round(epoch, 3), **figures})

    def _truncate_metrics(self, last: int) -> None:
        """Delete the records after step `last`: these steps are run again."""
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text("utf-8").splitlines():
            try:
                if parse_json(line)["step"] <= last:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError):  # the last line of a killed run may be cut off
                continue
        with atomic_write(path, single_writer=True) as draft:
            draft.write_text("".join(kept), "utf-8")


def _show(figures: dict[str, Any]) -> str:
    hidden = ("tokens", "seconds", "score", "gradient_norm", "subspaces")
    shown = {k: v for k, v in figures.items() if k not in hidden}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
