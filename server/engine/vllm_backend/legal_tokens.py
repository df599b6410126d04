"""Legal tokens of one hypothesis: a sampler returns log-probabilities of the best of them, and of no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KEY = "legal_tokens"


@dataclass(frozen=True, eq=False, slots=True)
class LegalTokens:
    """The tokens that may follow one hypothesis.

    tokens: int32, ascending, so that those of equal score are in leaf order.
    count: how many of them are wanted, 1 to all.
    first, last: probabilities are normalised over the token ids [first, last).
    """

    tokens: NDArray[np.int32]
    count: int
    first: int
    last: int

    def as_args(self) -> dict[str, Any]:
        """Return them as additional arguments of a request, which may be copied or sent to another process."""
        return {_KEY: [self.count, self.first, self.last, self.tokens.tobytes()]}

    @classmethod
    def of_args(cls, args: Mapping[str, Any] | None) -> Self | None:
        """Read the arguments that `as_args` wrote; returns None for a request of another kind."""
        if args is None or _KEY not in args:
            return None
        count, first, last, tokens = args[_KEY]
        return cls(np.frombuffer(tokens, np.int32), count, first, last)


def score_legal(logits: Tensor, legal: Mapping[int, LegalTokens]) -> Tensor:
    """Replace some rows of logits, float32 [rows, vocabulary], in place, and return them all.

    The `count` best legal tokens of a row get log p(token), with the probability that illegal ones take; all else
    gets −inf. Ties go to the smaller token.
    """
    spans: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, wanted in legal.items():
        spans[wanted.first, wanted.last].append(row)
    for (first, last), rows in spans.items():
        log_probs = logits[rows, first:last].log_softmax(-1)
        logits[rows] = -torch.inf
        for row, scores in zip(rows, log_probs, strict=True):
            tokens = torch.from_numpy(legal[row].tokens.astype(np.int64)).to(logits.device)
            scores = scores[tokens - first]
            if legal[row].count < len(tokens):
                best = scores.sort(descending=True, stable=True).indices[: legal[row].count]
                tokens, scores = tokens[best], scores[best]
            logits[row, tokens] = scores
    return logits
