"""Tokens that a request adds to a forward pass, and the hidden states that it takes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.torch_backend.attention import Segment


@dataclass(frozen=True, eq=False)
class ForwardInput:
    """Tokens that a request adds to a forward pass.

    ids, positions: int64 [rows].
    segment: the slots of the rows, and what they attend to.
    last: rows that are the last tokens of prefixes, int64, by depth; depth 0 has the last token of the prompt.
    """

    ids: Tensor
    positions: Tensor
    segment: Segment
    last: Mapping[int, Tensor]


def last_of(inputs: Sequence[ForwardInput], hidden: Tensor) -> dict[int, Tensor]:
    """Pick the rows that `Search.take` needs, by depth. hidden: states of one request's inputs, [rows, d]."""
    parts = torch.split(hidden, [each.segment.rows for each in inputs])
    return {
        depth: part[rows]  # a copy: a view would keep the states of a whole prompt
        for each, part in zip(inputs, parts, strict=True)
        for depth, rows in each.last.items()
    }
