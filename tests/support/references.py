"""References for the tests of engines: the catalogue as a dictionary of prefixes, and scores from logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from index.sequence.vocabulary import IdentifierVocabulary


def legal_next(tokens: np.ndarray, begin: int) -> Callable[[int, torch.Tensor], list[int]]:
    """Return a function for `generate` that lists the tokens that may follow a sequence.

    tokens: [items, levels].
    begin: position at which the identifier begins.
    A hypothesis with score −inf has left the trie; any token may follow it.
    """
    children: dict[tuple[int, ...], set[int]] = {}
    for row in tokens.tolist():
        for depth in range(len(row)):
            children.setdefault(tuple(row[:depth]), set()).add(row[depth])
    return lambda _, sequence: sorted(children.get(tuple(sequence[begin:].tolist()), {0}))


def found_items(output, tokens: np.ndarray, begin: int) -> tuple[list[int], list[float]]:  # type: ignore[no-untyped-def]
    """Return the items and summed log-probabilities in the output of `generate`."""
    row_of = {tuple(row): k for k, row in enumerate(tokens.tolist())}
    found = [
        (row_of[tuple(sequence[begin:].tolist())], float(score))
        for sequence, score in zip(output.sequences, output.sequences_scores, strict=True)
        if torch.isfinite(score)
    ]
    return [item for item, _ in found], [score for _, score in found]


def identifier_scores(
    logits: torch.Tensor,
    codes: np.ndarray,
    vocabulary: IdentifierVocabulary,
    normalisation: str,
    levels: int | None = None,
) -> np.ndarray:
    """Return log p of every identifier, or of its first `levels` codes, float64 [items].

    logits: float64 [items, levels, V], teacher-forced. codes: int [items, levels].
    Nothing is added behind the end of a shorter identifier.
    """
    lengths = vocabulary.lengths(codes)
    total = np.zeros(len(codes))
    for level in range(levels or vocabulary.levels):
        first, last = vocabulary.span(level)
        if normalisation == "level":
            log_p = logits[:, level, first:last].log_softmax(-1)
        else:
            log_p = logits[:, level].log_softmax(-1)[:, first:last]
        total += np.where(level < lengths, log_p.numpy()[np.arange(len(codes)), codes[:, level]], 0)
    return total
