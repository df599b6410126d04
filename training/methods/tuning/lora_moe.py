"""A mixture of LoRA experts: a router weights several low-rank updates for every token.

y = W x + (alpha/rank) Σ_e softmax(R x)_e B_e A_e x

with W frozen, and at the start A_e [rank, n] random, B_e [m, rank] zero and R [experts, n] zero. The first
output is therefore that of W alone, and the first routing is uniform. All experts are computed for all
tokens (dense routing).

Sources: LoRA (arXiv 2106.09685); LoRAMoE (arXiv 2312.09979) for experts behind a dense softmax router, there in
feed-forward layers, and for the loss that divides them between knowledge and tasks (`training.methods.balance`).
MOELoRA (arXiv 2310.18339) routes by task instead of by token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from index.sequence.events import Task
from training.errors import UserError
from training.methods.adamw import AdamWTuning, Reduce, total_loss
from training.methods.balance import balance_loss, mass_of_samples, numbered
from training.methods.method import SamplesOfPass, Setup
from training.methods.tuning.lora import block_linears


class ExpertLinear(nn.Module):
    """A frozen linear layer and its routed low-rank experts, whose weights are at least float32.

    router: [experts, n].
    down: the A_e, [experts * rank, n].
    up: the B_e, [m, experts * rank].
    watched: whether the weights of the next forward pass are kept in `gate`, [..., experts], with their gradient.
    """

    def __init__(self, base: nn.Linear, *, rank: int, experts: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.experts = experts
        self.scale = alpha / rank
        self.watched = False
        self.gate: Tensor | None = None
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
        if self.watched:
            self.gate = gate
        inner = F.linear(x, self.down)
        inner = inner.view(*gate.shape, -1) * gate[..., None]  # [..., experts, rank]
        return y + (self.scale * F.linear(inner.flatten(-2), self.up)).to(y.dtype)


class LoraMoeTuning(AdamWTuning):
    """AdamW on experts and routers, and on `others` (trained weights outside of the layers) without weight decay.

    layers: those that have experts, see `block_linears`.
    balance: weight of the localised balance loss, the mean over layers; 0 for none.
    delta: see `training.methods.balance`.
    """

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
        layers: str = "blocks",
        balance: float = 0.0,
        delta: float = 0.1,
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        added: list[nn.Parameter] = []
        self._balance, self._delta = balance, delta
        self._samples: SamplesOfPass | None = None
        self._imbalance = 0.0
        self.layers: dict[str, ExpertLinear] = {}
        linears = block_linears(model, layers)
        self.frozen = list(linears.values())
        for name, linear in linears.items():
            linear.weight.requires_grad_(False)
            module = ExpertLinear(linear, rank=rank, experts=experts, alpha=alpha)
            model.set_submodule(name, module)
            self.layers[name] = module
            added += [module.router, module.down, module.up]
        super().__init__(
            added, others, learning_rate=learning_rate, weight_decay=weight_decay, clip=clip, reduce=reduce
        )

    def observe(self, samples: SamplesOfPass) -> None:
        if not self._balance:
            return
        self._samples = samples
        self._watch(True)

    def backward(self, losses: Mapping[Task, Tensor], shares: Mapping[Task, float]) -> None:
        total = total_loss(losses, shares)
        if self._samples is not None:
            imbalance = self._samples.share * self._imbalance_of(self._samples)
            self._imbalance += float(imbalance.detach())
            total = total + self._balance * imbalance
            self._samples = None
            self._watch(False)  # a backward pass may compute the blocks again
        total.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> dict[str, float]:
        figures = super().step(learning_rate)
        if self._balance:
            figures["imbalance"], self._imbalance = self._imbalance, 0.0
        return figures

    def _watch(self, watched: bool) -> None:
        for layer in self.layers.values():
            layer.watched, layer.gate = watched, None

    def _imbalance_of(self, samples: SamplesOfPass) -> Tensor:
        """Return the balance loss of the last forward pass, the mean over layers."""
        losses = []
        device = next(iter(self.layers.values())).router.device
        knowledge, written, read = (None if x is None else x.to(device) for x in numbered(samples))
        assert knowledge is not None
        for name, layer in self.layers.items():
            sample = read if _reads_prompt(name) else written
            if layer.gate is None or sample is None:
                continue
            mass = mass_of_samples(layer.gate.flatten(0, -2), sample, len(knowledge))
            losses.append(balance_loss(mass, knowledge, self._delta))
        return torch.stack(losses).mean()

    def merge(self) -> None:
        raise UserError(
            "method 'lora-moe' cannot be exported: its router weights the experts for every token, which "
            "no plain weights can do. Train with another method, e.g. 'lora', for a bundle to serve"
        )


def _reads_prompt(name: str) -> bool:
    """Whether a layer of an encoder-decoder has the tokens of the encoder as inputs: cross-attention's keys do."""
    return name.startswith("encoder.") or ".EncDecAttention.k" in name or ".EncDecAttention.v" in name


def make(setup: Setup) -> LoraMoeTuning:
    """Train experts, routers and the rows of added tokens; unless the settings say otherwise, the rest stays frozen."""
    others, config = setup.other_weights("frozen"), setup.config
    method = LoraMoeTuning(
        setup.model,
        others.plain,
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        experts=config.lora.experts,
        layers=config.lora.layers,
        balance=config.lora.balance,
        delta=config.lora.delta,
        reduce=setup.parallel.sum,
        **setup.adamw,
    )
    method.rows = others.rows
    return method
