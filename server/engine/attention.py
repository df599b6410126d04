"""Attention over the new tokens of several requests in one flat forward pass.

The tokens of all requests stand one after the other in a single row, so that nothing is padded and every
linear layer sees exactly the tokens that there are. Only attention knows whose they are: each request is a
`Segment` of the row and attends to keys and values of its own, `KeyValues`, which are written in place and
never copied or reordered. A pass may hold prompts and beams of different requests side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "gems-flat"


class KeyValues:
    """Keys and values of one request in all layers, allocated once: [layers, 2, kv heads, capacity, d].

    The slots 0 .. P − 1 hold the prompt, those behind it the beams, step after step.
    """

    def __init__(self, layers: int, capacity: int, known: Tensor | None = None) -> None:
        """known: keys and values of the first slots, [layers, 2, kv heads, slots, d], which are copied."""
        self._layers = layers
        self._capacity = capacity
        self._store: Tensor | None = None
        if known is not None:
            self._allocate(known[0, 0])
            self._stored[:, :, :, : known.shape[3]] = known

    def _allocate(self, like: Tensor) -> None:
        heads, _, d = like.shape
        self._store = like.new_empty(self._layers, 2, heads, self._capacity, d)

    @property
    def _stored(self) -> Tensor:
        if self._store is None:
            raise RuntimeError("nothing was written yet")
        return self._store

    def write(self, layer: int, begin: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [kv heads, rows, d], for the slots from `begin` on."""
        if self._store is None:
            self._allocate(keys)
        end = begin + keys.shape[1]
        self._stored[layer, 0, :, begin:end] = keys
        self._stored[layer, 1, :, begin:end] = values

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots before `end`: [kv heads, end, d] each."""
        return self._stored[layer, 0, :, :end], self._stored[layer, 1, :, :end]

    def prefix(self, length: int) -> Tensor:
        """A copy of the first slots in all layers: [layers, 2, kv heads, length, d]."""
        return self._stored[:, :, :, :length].clone()


@dataclass(frozen=True, eq=False)
class Segment:
    """New tokens of one request: `rows` of them, for the slots from `begin` on.

    mask: bool [rows, begin + rows], which slots each may attend to; None where they are a whole prompt, to
    which causal attention applies.
    """

    memory: KeyValues
    begin: int
    rows: int
    mask: Tensor | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query: [heads, rows, d]; key, value: [kv heads, rows, d] → [rows, heads, d]."""
        self.memory.write(layer, self.begin, key, value)
        if self.mask is not None:
            key, value = self.memory.read(layer, self.begin + self.rows)
        out = F.scaled_dot_product_attention(
            query.unsqueeze(0),
            key.unsqueeze(0),
            value.unsqueeze(0),
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        return out[0].transpose(0, 1)


def causal_mask(begin: int, rows: int, device: torch.device | None = None) -> Tensor:
    """Of new tokens behind `begin` known ones: bool [rows, begin + rows]."""
    return torch.ones(rows, begin + rows, dtype=torch.bool, device=device).tril(begin)


def _flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As `transformers` calls it: query [1, heads, N, d], key and value [1, kv heads, N, d] → [1, N, heads, d]."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    parts, start = [], 0
    for segment in segments:
        rows = slice(start, start + segment.rows)
        parts.append(segment.attend(layer, query[0, :, rows], key[0, :, rows], value[0, :, rows], scaling))
        start += segment.rows
    return torch.cat(parts).unsqueeze(0), None


AttentionInterface.register(NAME, _flat_attention)


@contextmanager
def flat_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model's layers attend by segments; outside it is as it was (it may be in training)."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
