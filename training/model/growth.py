"""Gives a trained model tokens for items that it has not seen, with rows that are guessed from their vectors.

    row(x) = ē + (x − x̄) P     P by ridge regression of the rows of known items on their vectors

On a tenth of the items that was left out, such rows were closer to the trained ones than the mean of the rows of the
nearest items (docs/results/renewal.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from index.identifiers.ridge import ridge
from index.sequence.vocabulary import IdentifierVocabulary
from training.model.extension import resize_rows

RIDGE = 0.1  # of the mean eigenvalue of the vectors' scatter


def grow_backbone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    before: IdentifierVocabulary,
    after: IdentifierVocabulary,
    vectors: NDArray[np.float32],
) -> None:
    """Add the tokens of new items to a tokenizer, and their rows to a model, in place. All other rows stay.

    before, after: vocabularies where one code names one item; `after` has more codes.
    vectors: of the items of all codes, in the order of the codes, float32 [N, d_x].
    Raises `ValueError` if the tokenizer cannot take the tokens.
    """
    known = before.codebook_sizes[0]
    first, last = before.span(0)
    with torch.no_grad():
        for table in _longer(model, tokenizer, before, after):
            table[last : after.size] = _guessed(vectors[:known], table[first:last], vectors[known:])


def grow_last_level(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    before: IdentifierVocabulary,
    after: IdentifierVocabulary,
) -> None:
    """Add the tokens of more codes of the last level, in place. Their rows are the mean of those that it has.

    before, after: vocabularies that differ in the size of the last level; `after` has more codes.
    Raises `ValueError` if the tokenizer cannot take the tokens.
    """
    first, last = before.span(before.levels - 1)
    with torch.no_grad():
        for table in _longer(model, tokenizer, before, after):
            table[last : after.size] = table[first:last].mean(0)


def _longer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    before: IdentifierVocabulary,
    after: IdentifierVocabulary,
) -> list[Tensor]:
    """Add tokens at the end. Return the model's tables, which have room for their rows: one if it is tied, else two."""
    if len(tokenizer) != before.size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, expected {before.size}")
    names = after.token_names()
    tokenizer.add_tokens(names[before.size - before.first_added :], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(names[-1]) != after.size - 1:
        raise ValueError("the tokenizer did not number the added tokens contiguously")
    if after.size > len(model.get_input_embeddings().weight):
        resize_rows(model, after.size)
    tables = {id(t.weight): t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings())}
    return list(tables.values())


def _guessed(known: NDArray[np.float32], rows: Tensor, new: NDArray[np.float32]) -> Tensor:
    """Return rows for new vectors [M, d_x]: [M, d]. known: vectors [N, d_x] of the rows [N, d]."""
    mean, centre, solved = ridge(known, rows.double().cpu().numpy(), RIDGE)
    return torch.from_numpy(centre + (new - mean) @ solved).to(rows)
