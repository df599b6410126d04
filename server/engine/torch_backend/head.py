"""Scores of codes: output rows times hidden states, normalised.

level:       log p(c | h) = log softmax(E_level h)[c]       (softmax over the codebook of the level)
vocabulary:  log p(c | h) = log softmax(E h)[token(c)]      (softmax over all tokens)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.vocabulary import IdentifierVocabulary
from server.engine.contract import EngineError
from server.engine.options import Precision
from server.engine.torch_backend.packed import Linear, pack


class Head:
    """Output rows of codes.

    rows: output rows of the model, [V, d].
    normalisation: `level` or `vocabulary`.
    precision: of a packed copy of the rows that are needed; None reads the model's own.
    Raises `EngineError` if rows are missing, or the normalisation is unknown.
    """

    def __init__(
        self, rows: Tensor, vocabulary: IdentifierVocabulary, normalisation: str, precision: Precision | None
    ) -> None:
        if normalisation not in ("level", "vocabulary"):
            raise EngineError(f"normalisation {normalisation!r} is unknown; level and vocabulary are")
        if len(rows) < vocabulary.size:
            raise EngineError(f"the model has {len(rows)} output rows; {vocabulary.size} are needed")
        self._spans = [vocabulary.span(level) for level in range(vocabulary.levels)]
        self._whole = normalisation == "vocabulary"
        used = {(0, len(rows))} if self._whole else set(self._spans)
        # Small differences of scores decide: 8 bits are too few for them.
        kept: Precision | None = "bfloat16" if precision == "int8" else precision
        self._rows = {span: _linear(rows[slice(*span)], kept) for span in used}
        self._all = (0, len(rows))

    def log_probs(self, hidden: Tensor, level: int) -> NDArray[np.float32]:
        """Compute log p(code | hypothesis) of every code of a level: [w, d] → float32 [w, codebook].

        Raises `EngineError` if a score is not finite.
        """
        first, last = self._spans[level]
        if self._whole:
            logits = self._rows[self._all](hidden).float()
            log_probs = logits[:, first:last] - logits.logsumexp(-1, keepdim=True)
        else:
            log_probs = self._rows[first, last](hidden).float().log_softmax(-1)
        result: NDArray[np.float32] = log_probs.cpu().numpy()
        if not np.isfinite(result).all():
            raise EngineError("the model's scores are not finite; its weights are damaged or have diverged")
        return result


def _linear(rows: Tensor, precision: Precision | None) -> Linear:
    return (lambda hidden: hidden @ rows.T) if precision is None else pack(rows.detach(), None, precision)
