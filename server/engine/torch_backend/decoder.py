"""The forward pass of the Llama family and of GPT-NeoX over the flat tokens of several requests.

The mathematics of transformers' modules in a fifth of their operations: linear layers with the same input are one,
their weights are packed, a norm is one operation, and masks are made once for all layers. The weights are copied: the
model itself can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from server.engine.options import Precision
from server.engine.torch_backend.attention import Rows
from server.engine.torch_backend.packed import Linear, dtype_of, pack, packed

LLAMA_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
GPT_NEOX = "GPTNeoXForCausalLM"


@dataclass(frozen=True)
class _Shape:
    """Number of query heads, number of heads of keys and values, and the size of a head."""

    heads: int
    kv_heads: int
    size: int


@dataclass(frozen=True, eq=False)
class _Pass:
    """State that all layers of a pass share. cos, sin: [rows, 1, size]; half: half the rotated dimensions."""

    segments: Sequence[Rows]
    cos: Tensor
    sin: Tensor
    half: int


class Decoder:
    """Hidden states of new tokens. Make it with `of`."""

    def __init__(
        self, embedding: Tensor, rotary: nn.Module, layers: Sequence[_Layer], norm: _Norm, head_size: int
    ) -> None:
        self._embedding = embedding
        self._rotary = rotary
        self._layers = layers
        self._norm = norm
        self._head_size = head_size

    @classmethod
    def supports(cls, model: PreTrainedModel) -> bool:
        """Whether the model's class is known; a probe tells whether it then computes the same."""
        return type(model).__name__ in (*LLAMA_FAMILY, GPT_NEOX)

    @classmethod
    def of(cls, model: PreTrainedModel, precision: Precision) -> Decoder:
        """Make it from a supported model. Linear layers are copied; all else is shared if it has this precision."""
        body, config = model.base_model, model.config
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        make: Any = _NeoXLayer
        if type(model).__name__ in LLAMA_FAMILY:
            make, norm = _LlamaLayer, _Norm(body.norm, precision)
            shape = _Shape(heads, config.num_key_value_heads, size)
        else:
            norm, shape = _Norm(body.final_layer_norm, precision), _Shape(heads, heads, size)
        layers = [make(number, layer, shape, config, precision) for number, layer in enumerate(body.layers)]
        embedding = model.get_input_embeddings().weight.detach().to(dtype_of(precision))
        return cls(embedding, body.rotary_emb, layers, norm, size)

    def __call__(self, ids: Tensor, positions: Tensor, segments: Sequence[Rows]) -> Tensor:
        """Compute hidden states [rows, d]. ids, positions: int64 [rows], one segment after the other."""
        x = F.embedding(ids, self._embedding)
        cos, sin = self._rotary(x, positions.unsqueeze(0))  # [1, rows, rotated dimensions]
        half = cos.shape[-1] // 2
        rest = self._head_size - 2 * half
        sign = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        cos = F.pad(cos[0], (0, rest), value=1.0)
        state = _Pass(segments, cos.unsqueeze(1), F.pad(sign, (0, rest)).unsqueeze(1), half)
        for layer in self._layers:
            x = layer(x, state)
        return self._norm(x)


class _Norm:
    """RMSNorm, or LayerNorm where there is a bias."""

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        dtype = dtype_of(precision)
        self._weight: Tensor = module.weight.detach().to(dtype)  # type: ignore[operator]
        bias = getattr(module, "bias", None)
        self._bias: Tensor | None = None if bias is None else bias.detach().to(dtype)
        self._eps = float(getattr(module, "variance_epsilon", None) or module.eps)  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        if self._bias is None:
            return F.rms_norm(x, self._weight.shape, self._weight, self._eps)
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class _Layer:
    """A layer of either family; both share the attention over segments."""

    def __init__(self, number: int, shape: _Shape) -> None:
        self._number = number
        self._shape = shape

    def _attend(self, qkv: Tensor, state: _Pass) -> Tensor:
        """Attend. qkv: [rows, heads + 2 kv heads, size], queries first → [rows, heads · size]."""
        heads, kv_heads = self._shape.heads, self._shape.kv_heads
        rotated = _rotated(self._normed(qkv[:, : heads + kv_heads]), state).transpose(0, 1)
        values = qkv[:, heads + kv_heads :].transpose(0, 1)
        parts, start = [], 0
        for segment in state.segments:
            rows = slice(start, start + segment.rows)
            parts.append(
                segment.attend(
                    self._number, rotated[:heads, rows], rotated[heads:, rows], values[:, rows], None
                )
            )
            start += segment.rows
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.reshape(len(qkv), -1)

    def _normed(self, queries_keys: Tensor) -> Tensor:
        return queries_keys

    def __call__(self, x: Tensor, state: _Pass) -> Tensor:
        raise NotImplementedError


class _LlamaLayer(_Layer):
    """x + attention(norm(x)), then + MLP(norm(·)), with a gated MLP; Qwen3 norms queries and keys head by head."""

    def __init__(self, number: int, layer: Any, shape: _Shape, config: Any, precision: Precision) -> None:
        super().__init__(number, shape)
        attention, mlp = layer.self_attn, layer.mlp
        self._before = _Norm(layer.input_layernorm, precision)
        self._qkv = packed([attention.q_proj, attention.k_proj, attention.v_proj], precision)
        self._out = packed([attention.o_proj], precision)
        self._between = _Norm(layer.post_attention_layernorm, precision)
        self._gate_up = packed([mlp.gate_proj, mlp.up_proj], precision)
        self._down = packed([mlp.down_proj], precision)
        self._activation = ACT2FN[config.hidden_act]
        self._head_norms = None
        if hasattr(attention, "q_norm"):
            self._head_norms = _Norm(attention.q_norm, precision), _Norm(attention.k_norm, precision)

    def _normed(self, queries_keys: Tensor) -> Tensor:
        if self._head_norms is None:
            return queries_keys
        queries, keys = self._head_norms
        heads = self._shape.heads
        return torch.cat([queries(queries_keys[:, :heads]), keys(queries_keys[:, heads:])], dim=1)

    def __call__(self, x: Tensor, state: _Pass) -> Tensor:
        qkv = self._qkv(self._before(x)).view(len(x), -1, self._shape.size)
        x = x + self._out(self._attend(qkv, state))
        gate, up = self._gate_up(self._between(x)).chunk(2, dim=-1)
        return x.add_(self._down(self._activation(gate).mul_(up)))


class _NeoXLayer(_Layer):
    """x + attention(norm(x)) + MLP(norm'(x)), or one after the other."""

    def __init__(self, number: int, layer: Any, shape: _Shape, config: Any, precision: Precision) -> None:
        super().__init__(number, shape)
        attention, mlp = layer.attention, layer.mlp
        self._before = _Norm(layer.input_layernorm, precision)
        # Rows of the model's layer: for each head its query, key and value. Here all queries come first.
        weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
        order = torch.arange(len(weight)).view(shape.heads, 3, shape.size).transpose(0, 1).flatten()
        self._qkv: Linear = pack(
            weight.detach()[order], None if bias is None else bias.detach()[order], precision
        )
        self._out = packed([attention.dense], precision)
        self._between = _Norm(layer.post_attention_layernorm, precision)
        self._up = packed([mlp.dense_h_to_4h], precision)
        self._down = packed([mlp.dense_4h_to_h], precision)
        self._activation = ACT2FN[config.hidden_act]
        self._parallel = bool(config.use_parallel_residual)

    def __call__(self, x: Tensor, state: _Pass) -> Tensor:
        qkv = self._qkv(self._before(x)).view(len(x), -1, self._shape.size)
        attended = self._out(self._attend(qkv, state)).add_(x)
        mlp = self._down(self._activation(self._up(self._between(x if self._parallel else attended))))
        return attended.add_(mlp)


def _rotated(x: Tensor, state: _Pass) -> Tensor:
    """Rotate by position (Su et al., arXiv 2104.09864): (a, b, c) → (a cos − b sin, b cos + a sin, c).

    a and b are the two halves of the rotated dimensions. `sin` has its signs already; c has cos = 1, sin = 0.
    """
    half = state.half
    swapped = torch.cat([x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]], dim=-1)
    return torch.addcmul(x * state.cos, swapped, state.sin)
