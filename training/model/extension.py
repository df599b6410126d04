"""Gives a backbone its markers and identifier tokens, with informed initial rows.

The sequence format that uses the markers is in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from index.identifiers.identifiers import Identifiers
from index.sequence.vocabulary import END, MARKERS, IdentifierVocabulary
from training.model.backbones import Backbone

TITLES = 10_000  # whose tokens are held at the same time


def extend_backbone(
    backbone: Backbone, identifiers: Identifiers, titles: Sequence[str], item_vectors: NDArray[np.float32]
) -> IdentifierVocabulary:
    """Add the tokens to the tokenizer and their rows to the model, in place. Return the vocabulary.

    The row of a code is the mean over the items below it; text identifiers need no rows of codes. The row of an item
    depends on the backbone:
        pretrained     mean of the token rows of its title, in the same table, since input and output may differ
        from scratch   leading principal components of its vector, since such a backbone has no words yet

    titles: N titles, in the order of the catalogue.
    item_vectors: float32 [N, d].
    Raises `ValueError` if the tokenizer cannot take the tokens.
    """
    model, tokenizer = backbone.model, backbone.tokenizer
    vocabulary = IdentifierVocabulary.for_tokenizer(
        tokenizer, identifiers.codebook_sizes, spelled=identifiers.spelled
    )
    vocabulary.add_to(tokenizer)
    words = (*MARKERS, END) if identifiers.spelled else MARKERS
    if vocabulary.size > len(model.get_input_embeddings().weight):
        resize_rows(model, vocabulary.size)
    tables = {id(t.weight): t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            known = table[: vocabulary.first_added]
            if backbone.pretrained:
                items = _title_means(tokenizer, known, titles)
                rows = _title_means(tokenizer, known, words)
            else:
                scale = known.std()
                items = torch.from_numpy(_principal_components(item_vectors, table.shape[1])) * scale
                rows = torch.randn(len(words), table.shape[1]) * scale
            if not identifiers.spelled:
                rows = torch.cat([rows, *_code_means(identifiers, items)])
            table[vocabulary.first_added : vocabulary.size] = rows
    return vocabulary


def resize_rows(model: PreTrainedModel, size: int) -> None:
    """Lengthen the token tables to `size` rows. Untied output rows stay untied.

    `resize_token_embeddings` ties those of T5 v1.1 and Flan-T5.
    """
    own = model.get_output_embeddings().weight.detach()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.resize_token_embeddings(size, mean_resizing=False)
    head = model.get_output_embeddings()
    if not tied and head.weight is model.get_input_embeddings().weight:
        head.weight, head.out_features = nn.Parameter(own.new_zeros(size, own.shape[1])), size
        with torch.no_grad():
            head.weight[: len(own)] = own
        model.all_tied_weights_keys.pop("lm_head.weight", None)


def _title_means(tokenizer: PreTrainedTokenizerFast, rows: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the mean token row of each text, float [len(texts), d]; zero for a text without tokens.

    No tensor grows with the number of all tokens: a million titles have twenty million.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    means = []
    for start in range(0, len(texts), TITLES):
        encoded = backend.encode_batch(list(texts[start : start + TITLES]), add_special_tokens=False)
        bags = [encoding.ids for encoding in encoded]
        first = torch.tensor([0, *accumulate(map(len, bags))][:-1], dtype=torch.long)
        tokens = torch.tensor([token for bag in bags for token in bag], dtype=torch.long)
        means.append(F.embedding_bag(tokens, rows, first, mode="mean"))
    return torch.cat(means)


def _principal_components(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the leading principal components, scaled to unit mean square: [N, d] → float32 [N, width].

    If there are fewer than `width`, the rest is zero.
    """
    centred = vectors - vectors.mean(0)
    _, values, directions = np.linalg.svd(centred.T @ centred)
    kept = directions[: min(width, int((values > values[0] * 1e-9).sum()))]
    components = np.zeros((len(vectors), width), np.float32)
    components[:, : len(kept)] = centred @ kept.T
    return components / max(float(components.std()), 1e-6)


def _code_means(identifiers: Identifiers, items: Tensor) -> list[Tensor]:
    """Return for each level the mean of the items below each code: float [codebook, d]."""
    written, mean = identifiers.every_code, items.mean(0)
    items = items.repeat(len(written) // len(items), 1)  # once for each identifier
    means = []
    for level, size in enumerate(identifiers.codebook_sizes):
        code = torch.from_numpy(written[:, level].astype(np.int64))
        total = torch.zeros(size, items.shape[1]).index_add_(0, code, items)
        count = torch.bincount(code, minlength=size).unsqueeze(1)
        means.append(torch.where(count > 0, total / count.clamp(min=1), mean))
    return means
