"""Figures of a model on general text, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from training.errors import EvaluationError
from training.evaluation.ranking import Progress
from training.model.forward import text_states

ROWS = 256  # positions whose logits exist at a time; 50 MB with SmolLM2's vocabulary


@dataclass(frozen=True, eq=False)
class GeneralFigures:
    """Predictions of K tokens in each of N windows of T tokens.

    A decoder predicts all tokens except the first, K = T − 1. An encoder-decoder reads the first half and predicts the
    second, K = T // 2.

    nll: negative log-likelihood of each token in nats, float64 [N, K].
    right: whether the token was the most likely one, bool [N, K].
    """

    nll: NDArray[np.float64]
    right: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """Number of predicted tokens, N · K."""
        return self.nll.size

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll.mean())

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


@torch.inference_mode()
def general_figures(
    model: PreTrainedModel,
    windows: NDArray[np.int64],
    known_tokens: int,
    batch: int = 8,
    progress: Progress | None = None,
) -> GeneralFigures:
    """Measure teacher-forced next-token prediction, with the softmax over the first `known_tokens` tokens only.

    The softmax leaves out the tokens that were added for items, so that models before and after training are
    comparable:

        p(x_t | x_<t) = exp(h_{t−1} · w_{x_t}) / Σ_{v < known_tokens} exp(h_{t−1} · w_v)

    The model is measured in evaluation mode; its mode is restored at the end.

    windows: token ids below `known_tokens`, int64 [N, T].
    known_tokens: size of the vocabulary before items were added.
    batch: windows in one forward pass.
    progress: called with the number of finished windows and of all windows.
    Raises `EvaluationError` if the windows cannot be measured or the weights have diverged.
    """
    count, length = windows.shape
    if not count or length < 2:
        raise EvaluationError(
            "there is no text to measure on: a window needs two tokens, a figure one window"
        )
    if windows.min() < 0 or windows.max() >= known_tokens:
        raise EvaluationError(
            f"the text holds tokens that the backbone did not know (its first {known_tokens})"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise EvaluationError(f"windows of {length} tokens exceed the model's context of {positions}")
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    weight, bias = head.weight[:known_tokens], None if bias is None else bias[:known_tokens]
    nlls, rights = [], []
    training = model.training
    model.eval()
    try:
        for start in range(0, count, batch):
            ids = torch.from_numpy(windows[start : start + batch]).to(weight.device)
            states, predicted = text_states(model, ids)
            hidden, targets = states.flatten(0, 1), predicted.flatten()
            losses, hits = [], []
            for some, wanted in zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True):
                logits = F.linear(some, weight, bias).float()
                losses.append(F.cross_entropy(logits, wanted, reduction="none").double())
                hits.append(logits.argmax(-1) == wanted)
            nlls.append(torch.cat(losses).view(predicted.shape).cpu().numpy())
            rights.append(torch.cat(hits).view(predicted.shape).cpu().numpy())
            if progress:
                progress(min(start + batch, count), count)
    finally:
        model.train(training)
    nll, right = np.concatenate(nlls), np.concatenate(rights)
    if not np.isfinite(nll).all() or nll.mean() > 700:  # exp(700) is about the largest float64
        raise EvaluationError("the model's predictions are not finite; its weights have diverged")
    return GeneralFigures(nll, right)
