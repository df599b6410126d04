"""A mixture of LoRA experts: a router weights several low-rank updates for every token.

y = W x + (alpha/rank) Σ_e softmax(R x)_e B_e A_e x

with W frozen, and at the start A_e [rank, n] random, B_e [m, rank] zero and R [experts, n] zero. The first
output is therefore that of W alone, and the first routing is uniform. All experts are computed for all
tokens (dense routing).

Sources: LoRA (arXiv 2106.09685); LoRAMoE (arXiv 2312.09979) for experts behind a dense softmax router,
here in every linear map of the blocks and without its balancing loss. MOELoRA (arXiv 2310.18339)
routes by task instead of by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.errors import UserError
from training.methods.adamw import AdamWTuning, Reduce
from training.methods.method import Setup
from training.methods.tuning.lora import block_linears


class ExpertLinear(nn.Module):
    """A frozen linear layer and its routed low-rank experts, whose weights are at least float32.

    router: [experts, n].
    down: the A_e, [experts * rank, n].
    up: the B_e, [m, experts * rank].
    """

    def __init__(self, base: nn.Linear, *, rank: int, experts: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.experts = experts
        self.scale = alpha / rank
        m, n = base.weight.shape
        like = base.weight.new_empty(0, dtype=torch.promote_types(base.weight.dtype, torch.float32))
        self.router = nn.Parameter(like.new_zeros(experts, n))
        self.down = nn.Parameter(like.new_empty(experts * rank, n))
        self.up = nn.Parameter(like.new_zeros(m, experts * rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer, because T5 reads the dtype of its layers."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        x = x.to(self.down.dtype)
        gate = F.linear(x, self.router).softmax(dim=-1)  # [..., experts]
        inner = F.linear(x, self.down)
        inner = inner.view(*gate.shape, -1) * gate[..., None]  # [..., experts, rank]
        return y + (self.scale * F.linear(inner.flatten(-2), self.up)).to(y.dtype)


class LoraMoeTuning(AdamWTuning):
    """AdamW on experts and routers, and on `others` (trained weights outside of the layers) without weight decay."""

    exportable = False

    def __init__(
        self,
        model: PreTrainedModel,
        others: Sequence[nn.Parameter],
        *,
        rank: int,
        experts: int,
        alpha: float,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        added: list[nn.Parameter] = []
        self.frozen = list(block_linears(model).values())
        for name, linear in block_linears(model).items():
            linear.weight.requires_grad_(False)
            module = ExpertLinear(linear, rank=rank, experts=experts, alpha=alpha)
            model.set_submodule(name, module)
            added += [module.router, module.down, module.up]
        super().__init__(
            added, others, learning_rate=learning_rate, weight_decay=weight_decay, clip=clip, reduce=reduce
        )

    def merge(self) -> None:
        raise UserError(
            "method 'lora-moe' cannot be exported: its router weights the experts for every token, which "
            "no plain weights can do. Train with another method, e.g. 'lora', for a bundle to serve"
        )


def make(setup: Setup) -> LoraMoeTuning:
    """Train experts, routers and the rows of added tokens; unless the settings say otherwise, the rest stays frozen."""
    others, config = setup.other_weights("frozen"), setup.config
    method = LoraMoeTuning(
        setup.model,
        others.plain,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        experts=config.lora.experts,
        reduce=setup.parallel.sum,
        **setup.adamw,
    )
    method.rows = others.rows
    return method
