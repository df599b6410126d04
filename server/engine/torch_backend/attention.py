"""Attention over the new tokens of several requests in one flat forward pass.

The tokens of all requests stand one after the other in a single row: nothing is padded, and every linear layer sees
real tokens only. Only attention knows which request a token belongs to: each request is a `Segment` of the row and
attends to its own `KeyValues`, which are written in place and never copied or reordered. A pass may hold prompts and
beams of different requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, PreTrainedModel

NAME = "gems-flat"
BLOCK = 128  # rows of scores at a time


class KeyValues:
    """Keys and values of one request in all layers, allocated once: [layers, 2, kv heads, capacity, d].

    The slots 0 .. P − 1 hold the prompt, those behind it the beams, step after step.
    """

    def __init__(self, layers: int, capacity: int, known: Tensor | None = None) -> None:
        """Allocate the slots. known: keys and values of the first ones, [layers, 2, kv heads, n, d]; copied."""
        self.capacity = capacity
        self._layers = layers
        self._store: Tensor | None = None
        if known is not None:
            self._allocate(known[0, 0])
            self._stored[:, :, :, : known.shape[3]] = known

    def _allocate(self, like: Tensor) -> None:
        heads, _, d = like.shape
        self._store = like.new_empty(self._layers, 2, heads, self.capacity, d)

    @property
    def _stored(self) -> Tensor:
        if self._store is None:
            raise RuntimeError("nothing was written yet")
        return self._store

    def write(self, layer: int, begin: int, keys: Tensor, values: Tensor) -> None:
        """Write keys and values, [kv heads, rows, d] each, to the slots from `begin` on."""
        if self._store is None:
            self._allocate(keys)
        end = begin + keys.shape[1]
        self._stored[layer, 0, :, begin:end] = keys
        self._stored[layer, 1, :, begin:end] = values

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the slots before `end`, [kv heads, end, d] each."""
        return self._stored[layer, 0, :, :end], self._stored[layer, 1, :, :end]

    @property
    def device(self) -> torch.device:
        return self._stored.device

    def slots(self, which: slice) -> Tensor:
        """Return a view of these slots in all layers, to read or to write: [layers, 2, kv heads, slots, d]."""
        return self._stored[:, :, :, which]

    def prefix(self, length: int) -> Tensor:
        """Return a copy of the first slots in all layers: [layers, 2, kv heads, length, d]."""
        return self.slots(slice(length)).clone()


class Rows(Protocol):
    """Consecutive rows of a pass, and the keys and values that they attend to."""

    @property
    def rows(self) -> int: ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """See `Segment.attend`."""
        ...


# ids and positions, int64 [rows] each, and whose rows they are → hidden states [rows, d]
ForwardPass = Callable[[Tensor, Tensor, Sequence[Rows]], Tensor]


@dataclass(frozen=True, eq=False)
class Segment:
    """New tokens of one request.

    key_values: where their keys and values are written.
    begin, rows: they fill `rows` slots from `begin` on.
    shared: number of first slots to which all of them attend, at least 1; not read for a prompt.
    own: further slots that each attends to, its ancestors and itself, int64 [rows, depth]; −1 stands for no slot.
        None for tokens of a prompt, which attend to all slots up to their own.
    """

    key_values: KeyValues
    begin: int
    rows: int
    shared: int = 0
    own: Tensor | None = None

    @property
    def end(self) -> int:
        """Number of slots that are filled after this segment."""
        return self.begin + self.rows

    @cached_property
    def mask(self) -> Tensor:
        """Mask of the slots that each row attends to: bool [rows, end]."""
        if self.own is None:
            return torch.ones(self.rows, self.end, dtype=torch.bool).tril(self.begin)
        mask = torch.zeros(self.rows, self.end, dtype=torch.bool).scatter_(1, self.own.clamp(min=0), True)
        mask[:, : self.shared] = True
        return mask

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Store key and value, and attend.

        query: [heads, rows, d]; key, value: [kv heads, rows, d] → [rows, heads, d].
        """
        self.key_values.write(layer, self.begin, key, value)
        keys, values = self.key_values.read(layer, self.end)
        scale = scale or query.shape[-1] ** -0.5
        if query.is_cuda:
            if self._own_there is None:
                bias = causal_lower_right(self.rows, self.end)
                out = fused_attention(query, keys, values, bias, scale)
            else:
                own = self._own_there
                out = attention_in_parts(
                    query[None], keys[None], values[None], self.shared, own[None], scale
                )[0]
        elif query.dtype == torch.bfloat16:
            out = attention_in_blocks(query, keys, values, self._bias, scale)
        elif self.begin == 0 and self.own is None:
            out = fused_attention(query, keys, values, None, scale)
        else:
            out = fused_attention(query, keys, values, self.mask, scale)
        return out.transpose(0, 1)

    @cached_property
    def _bias(self) -> Tensor:
        """The mask in the form that is added to scores, bfloat16 [rows, end]; made once for all layers."""
        return torch.zeros(self.mask.shape, dtype=torch.bfloat16).masked_fill_(~self.mask, -torch.inf)

    @cached_property
    def _own_there(self) -> Tensor | None:
        return None if self.own is None else self.own.to(self.key_values.device)


def fused_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend by torch's fused kernel.

    query: [heads, rows, d]; keys, values: [kv heads, slots, d] → [heads, rows, d].
    mask: bool [rows, slots] or a bias; None for a causal mask.
    """
    out = F.scaled_dot_product_attention(
        query.unsqueeze(0),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[0] != keys.shape[0],
    )
    return out[0]


def attention_in_blocks(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attend by two matrix products for each block of rows; shapes as in `fused_attention`.

    bias: [rows, slots], −inf for slots that a row does not attend to.
    On CPUs torch's fused kernel is no faster in bfloat16 than in float32, but its matrix products are, by far.
    Rows fill the last slots in order, so that a block needs no slots behind its last row.
    """
    heads, rows, d = query.shape
    groups = query.reshape(len(keys), -1, rows, d)
    known = keys.shape[1] - rows
    out = torch.empty_like(groups)
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        seen = known + end
        part = (groups[:, :, begin:end] * scale).flatten(1, 2)  # [kv heads, group · block, d]
        scores = torch.bmm(part, keys[:, :seen].transpose(1, 2)).view(len(keys), -1, end - begin, seen)
        weights = scores.add_(bias[begin:end, :seen]).softmax(-1)
        found = torch.bmm(weights.flatten(1, 2), values[:, :seen])
        out[:, :, begin:end] = found.view(len(keys), -1, end - begin, d)
    return out.view(heads, rows, d)


def attention_in_parts(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    shared: int,
    own: Tensor,
    scale: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend for several requests without any mask: to the first `shared` slots, and to the few own slots of each row.

    Two softmaxes are combined by the logarithms of their sums (Milakov and Gimelshein, arXiv 1805.02867):

        out = Σ_p exp(lse_p − lse) out_p,   lse = log Σ_p exp(lse_p)

    query: [requests, heads, rows, d]; keys, values: [requests, kv heads, slots, d] → [requests, heads, rows, d].
    own: own slots of each row, int64 [requests, rows, depth]; −1 stands for no slot.
    bias: [requests, shared], added to the scores of all rows of a request.
    """
    requests, kv_heads, _, d = keys.shape
    folded = query.reshape(requests, kv_heads, -1, d)  # [requests, kv heads, group · rows, d]
    groups = folded.view(requests, kv_heads, -1, query.shape[2], d)
    index = own.clamp(min=0).reshape(requests, 1, -1, 1).expand(-1, kv_heads, -1, d)
    own_shape = (requests, kv_heads, *own.shape[1:], d)
    own_keys, own_values = (x.gather(2, index).view(own_shape) for x in (keys, values))
    scores = torch.einsum("bkgrd,bkrtd->bkgrt", groups, own_keys).float() * scale
    scores = scores.masked_fill((own < 0)[:, None, None], -torch.inf)
    out = torch.einsum("bkgrt,bkrtd->bkgrd", scores.softmax(-1).to(query.dtype), own_values)
    context, context_lse = _with_sums(folded, keys[:, :, :shared], values[:, :, :shared], bias, scale)
    share = torch.sigmoid(context_lse.view(groups.shape[:-1]) - scores.logsumexp(-1)).unsqueeze(-1)
    mixed = context.view(groups.shape).float() * share + out.float() * (1 - share)
    return mixed.to(query.dtype).reshape(query.shape)


def _with_sums(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to all slots; returns also the logarithm of the softmax's sum, float32 [requests, heads, rows].

    query, keys, values: [requests, heads, rows or slots, d]; bias: as in `attention_in_parts`.
    """
    aten = torch.ops.aten
    if bias is not None:
        bias = bias[:, None, None].expand(*query.shape[:3], -1)
    if not query.is_cuda:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=bias, scale=scale
        )
    elif bias is not None or query.dtype == torch.float32:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            query, keys, values, bias, True, scale=scale
        )
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(
            query, keys, values, 0.0, False, False, scale=scale
        )
    return out, lse[:, :, : query.shape[2]].float()  # GPU kernels pad the sums


def _flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Rows],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend, with the signature of `transformers`.

    query: [1, heads, N, d]; key, value: [1, kv heads, N, d] → [1, N, heads, d].
    """
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
    """Make the model's layers attend by segments within the block; afterwards they attend as before."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
