"""Validation during training: mean loss of the held-out items and, for `stop_on: ndcg@10`, their ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Event, Task
from server.engine.contract import Engine
from training.config import TrainConfig
from training.data.splits import Case
from training.evaluation.candidates import Candidates, excludes_history
from training.evaluation.metrics import per_case
from training.evaluation.ranking import cases_of, draw_cases, rank_cases, target_ranks
from training.loop.losses import item_losses
from training.loop.pairs import Pairs
from training.loop.parts import Part, pad


class Validator:
    """Validation on a fixed draw of cases, each as search and as recommendation.

    Where no held-out item had been taken before, the items of the history are not ranked, as a server answers
    recommendations: a model that was chosen with them is one that repeats what people have.

    engine: serving engine of the same model.
    pairs: makes the samples of an encoder-decoder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: SequenceEncoder,
        engine: Engine,
        cases: Sequence[Case],
        config: TrainConfig,
        pairs: Pairs | None = None,
    ) -> None:
        self._pairs = pairs
        self.cases = draw_cases(cases, config.validation.cases, config.seed)
        self._model = model
        self._encoder = encoder
        self._engine = engine
        self._normalisation = config.identifiers.normalisation
        self._stop_on = config.validation.stop_on
        self._tasks = config.sequence.trained_tasks
        self._candidates = Candidates(excludes_history(None, cases))

    def __call__(self) -> dict[str, float]:
        """Return figures by name.

        `<task>.loss`; for `stop_on: ndcg@10` also `<task>.hit@10` and `<task>.ndcg@10`; and `score`, which early
        stopping watches, by the tasks that are trained: higher is better.
        """
        training = self._model.training
        self._model.eval()
        try:
            figures = self._losses()
            if self._stop_on == "loss":
                score = -self._sum(figures, "loss")
            else:
                figures |= self._rankings()
                score = self._sum(figures, "ndcg@10")
        finally:
            self._model.train(training)
        return figures | {"score": score}

    def _sum(self, figures: dict[str, float], name: str) -> float:
        """Return the sum of a figure over the trained tasks."""
        return sum(figures[f"{task.value}.{name}"] for task in self._tasks if f"{task.value}.loss" in figures)

    @torch.inference_mode()
    def _losses(self) -> dict[str, float]:
        figures = {}
        for task in Task:
            cases = cases_of(task, self.cases)
            total = 0.0
            for part in held_out_parts(self._encoder, cases, task, self._pairs):
                losses = item_losses(self._model, self._encoder.vocabulary, part, self._normalisation)
                total += float(losses[task])
            if cases:
                figures[f"{task.value}.loss"] = total / len(cases)
        return figures

    def _rankings(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for task in Task:
            cases = cases_of(task, self.cases)
            if cases:
                rankings = rank_cases(
                    self._engine, self._encoder, cases, task,
                    beam_width=20, limit=10, candidates=self._candidates,
                )  # fmt: skip
                values = per_case(target_ranks(rankings, cases))
                figures |= {f"{task.value}.{m}": float(values[m].mean()) for m in ("hit@10", "ndcg@10")}
        return figures


def held_out_parts(
    encoder: SequenceEncoder, cases: Sequence[Case], task: Task, pairs: Pairs | None = None
) -> list[Part]:
    """Return the cases as samples of a task, in which only the held-out item is a target.

    pairs: makes the samples of an encoder-decoder.
    """
    samples = []
    for case in cases:
        last = Event(case.target, task, case.query if task is Task.SEARCH else None)
        if pairs is not None:
            samples.append(pairs.pair(case.history, last))
            continue
        sample = encoder.sample([*case.history, last])
        sample.level[: -len(encoder.identifier(case.target, task))] = -1
        samples.append(sample)
    samples.sort(key=len)
    return [pad(samples[k : k + 64]) for k in range(0, len(samples), 64)]
