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
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "gems-flat"
BLOCK = 128  # rows of scores at a time


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
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            key, value = self.memory.read(layer, self.begin + self.rows)
            out = _in_blocks(query, key, value, self._bias, scale or query.shape[-1] ** -0.5)
        elif self.mask is None:
            out = _fused(query, key, value, None, scale)
        else:
            key, value = self.memory.read(layer, self.begin + self.rows)
            out = _fused(query, key, value, self.mask, scale)
        return out.transpose(0, 1)

    @cached_property
    def _bias(self) -> Tensor:
        """The mask as something to add to scores, bfloat16 [rows, begin + rows]; made once for all layers."""
        mask = causal_mask(0, self.rows) if self.mask is None else self.mask
        return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """query: [heads, rows, d]; key, value: [kv heads, slots, d] → [heads, rows, d]. mask: None for a causal one."""
    out = F.scaled_dot_product_attention(
        query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out[0]


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The same as two matrix products a block of rows. bias: [rows, slots].

    On CPUs torch's fused kernel is no faster in bfloat16 than in float32, but its matrix products are, by far.
    Rows are new tokens in order, so that a block needs no slots behind its last row.
    """
    heads, rows, d = query.shape
    groups = query.reshape(len(key), -1, rows, d)
    known = key.shape[1] - rows
    out = torch.empty(len(key), groups.shape[1], rows, d, dtype=query.dtype)
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        seen = known + end
        part = (groups[:, :, begin:end] * scale).flatten(1, 2)  # [kv heads, group · block, d]
        scores = torch.bmm(part, key[:, :seen].transpose(1, 2)).view(len(key), -1, end - begin, seen)
        weights = scores.add_(bias[begin:end, :seen]).softmax(-1)
        out[:, :, begin:end] = torch.bmm(weights.flatten(1, 2), value[:, :seen]).view(
            len(key), -1, end - begin, d
        )
    return out.view(heads, rows, d)


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
