"""A baseline that has been trained, and how its validation is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from training.baselines.loop import Progress
from training.data.splits import Case
from training.evaluation.metrics import per_case
from training.evaluation.scoring import ScoreCases, score_ranks


@dataclass(frozen=True)
class Trained:
    """score: cases → scores of all items. notes: further figures for evaluation.json."""

    model: nn.Module
    score: ScoreCases
    progress: Progress
    notes: dict[str, Any] = field(default_factory=dict)


def validation_score(score: ScoreCases, cases: Sequence[Case], exclude_history: bool) -> float:
    """Mean NDCG@10 over the cases; 0 where there are none."""
    if not cases:
        return 0.0
    return float(
        per_case(score_ranks(score, cases, limit=10, exclude_history=exclude_history))["ndcg@10"].mean()
    )
