"""How well a model still predicts general text, token by token."""

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

ROWS = 256  # positions whose logits exist at one time; 50 MB with SmolLM2's vocabulary


@dataclass(frozen=True, eq=False)
class GeneralFigures:
    """Predictions of K tokens of each window: of all but the first, K = T − 1; by an encoder-decoder, which reads the
    first half, of the second, K = T // 2.

    nll:   float64 [N, K], negative log-likelihood of each token in nats.
    right: bool [N, K], whether the token was the most likely one.
    """

    nll: NDArray[np.float64]
    right: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
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
    """Teacher-forced next-token prediction, the softmax over the first `known_tokens` tokens alone.

    windows: int64 [N, T], ids below `known_tokens`. The tokens a backbone gained for items are left out
    of the softmax, so that models before and after they are trained answer the same question:

        p(x_t | x_<t) = exp(h_{t−1} · w_{x_t}) / Σ_{v < known_tokens} exp(h_{t−1} · w_v)

    `batch` windows share a forward pass. The model is measured in evaluation mode and returned to the
    mode it was in. Raises `EvaluationError` for windows that cannot be measured and weights that diverged.
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
