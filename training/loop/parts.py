"""Parts of a step: samples packed into rows of one length.

Samples of a decoder-only model share rows, so that hardly any padding is computed; no token sees another sample (Krell
et al., 2021, "Efficient Sequence Packing without Cross-contamination"). Those of an encoder-decoder have a row each,
beside others of similar length.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from index.sequence.encoder import Sample
from training.methods.method import SamplesOfPass

EFFICIENT = 2048  # tokens; below it a part is not divided to save padding


@dataclass(frozen=True)
class Part:
    """Samples in rows, padded on the right, on the host. A step makes one forward pass for each part.

    ids: tokens, int64 [B, T].
    level: level of the identifier that a token belongs to, int8 [B, T]; `TEXT` for tokens of a text that is written, -1
        for other tokens and on padding.
    task: index in `TASKS`, int8 [B, T].
    item: catalogue row of the item whose identifier begins at a token, int64 [B, T]; -1 for other tokens and padding.
    prompt: tokens of the encoder, int64 [B, P]; None for a decoder-only model.
    attended: bool [B, P], False on padding; None for a decoder-only model.
    position: place of each token in its sample, int64 [B, T], 0 on padding; None if each row is a sample.
    kind: int8 [B, T], 1 on the tokens of samples that are knowledge, 0 on those of others, -1 on padding; None for one
        that no method needs.
    """

    ids: Tensor
    level: Tensor
    task: Tensor
    item: Tensor
    prompt: Tensor | None = None
    attended: Tensor | None = None
    position: Tensor | None = None
    kind: Tensor | None = None


def parts_of(samples: Sequence[Sample], part_tokens: int, min_parts: int) -> list[Part]:
    """Return the parts of a step.

    part_tokens: tokens of a part at most, unless one sample is longer.
    min_parts: parts at least, if there are as many samples.
    """
    if len(samples[0].prompt):
        return [pad(part) for part in _similar(samples, part_tokens, min_parts)]
    rows = _rows(samples, min_parts)
    width = max(sum(map(len, row)) for row in rows)
    count = max(math.ceil(len(rows) / max(1, part_tokens // width)), min(min_parts, len(rows)))
    return [_packed(rows[k::count]) for k in range(count)]


def pad(samples: Sequence[Sample]) -> Part:
    """Return the part with a row for each sample. The padding holds token 0, and no target."""
    part = _packed([[sample] for sample in samples])
    if not len(samples[0].prompt):
        return part
    prompt = _stack([sample.prompt for sample in samples], 0)
    lengths = torch.tensor([len(sample.prompt) for sample in samples])
    return replace(part, prompt=prompt, attended=torch.arange(prompt.shape[1]) < lengths.unsqueeze(1))


def samples_of(part: Part, share: float) -> SamplesOfPass:
    """Return what a method may know of the samples of a part. share: of the passes of the step."""
    kind = torch.zeros_like(part.level) if part.kind is None else part.kind
    return SamplesOfPass(kind, part.position, part.attended, share)


def _packed(rows: Sequence[Sequence[Sample]]) -> Part:
    """Return the part with these samples in each row."""

    def stack(values: Sequence[Sequence[NDArray[np.integer]]], padding: int) -> Tensor:
        return _stack([np.concatenate(row) for row in values], padding)

    position = None
    if any(len(row) > 1 for row in rows):
        position = stack([[np.arange(len(sample)) for sample in row] for row in rows], 0)
    return Part(
        stack([[sample.ids for sample in row] for row in rows], 0),
        stack([[sample.level for sample in row] for row in rows], -1),
        stack([[sample.task for sample in row] for row in rows], 0),
        stack([[sample.item for sample in row] for row in rows], -1),
        position=position,
        kind=stack(
            [[np.full(len(sample.ids), sample.knowledge, np.int8) for sample in row] for row in rows], -1
        ),
    )


def _rows(samples: Sequence[Sample], least: int) -> list[list[Sample]]:
    """Return rows no longer than the longest sample, as few and as equal as the greedy rule finds.

    The rule takes the samples from the longest to the shortest, each into the emptiest row (Graham, 1969).
    """
    ordered = sorted(samples, key=len, reverse=True)
    longest = len(ordered[0])
    count = max(math.ceil(sum(map(len, ordered)) / longest), min(least, len(ordered)))
    while True:
        rows: list[list[Sample]] = [[] for _ in range(count)]
        emptiest = [(0, k) for k in range(count)]
        for sample in ordered:
            load, k = heapq.heappop(emptiest)
            rows[k].append(sample)
            heapq.heappush(emptiest, (load + len(sample), k))
        if max(emptiest)[0] <= longest:  # always so with a row for each sample
            return rows
        count += 1


def _similar(samples: Sequence[Sample], part_tokens: int, min_parts: int) -> list[list[Sample]]:
    """Return parts of samples of similar length."""
    parts: list[list[Sample]] = []
    for sample in sorted(samples, key=len):
        # A new part begins if this one would grow too large, or if padding would exceed an eighth of it,
        # unless it is still too small to be computed efficiently.
        part = parts[-1] if parts else []
        tokens = len(sample) * (len(part) + 1)
        padded = tokens - sum(map(len, part)) - len(sample)
        if not part or tokens > part_tokens or (padded > tokens / 8 and tokens > EFFICIENT):
            parts.append([])
        parts[-1].append(sample)
    while len(parts) < min(min_parts, len(samples)):
        largest = max(parts, key=len)
        parts[parts.index(largest)] = largest[::2]
        parts.append(largest[1::2])
    return parts


def _stack(rows: Sequence[NDArray[np.integer]], padding: int) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=padding)
