"""LoRA (arXiv 2106.09685) by the `peft` library: low-rank updates of every linear map of the blocks.

y = W x + (alpha/rank) B A dropout(x), with W frozen, A [rank, n] random and B [m, rank] zero at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from index.sequence.language_model import is_encoder_decoder
from training.errors import UserError
from training.methods.adamw import AdamWTuning, Reduce
from training.methods.method import Setup


class LoraTuning(AdamWTuning):
    """AdamW on the adapters, and on `others` without weight decay.

    others: trained weights outside of the linear layers, such as added token rows.
    rank: rank of an adapter.
    alpha: adapters are scaled by alpha / rank.
    dropout: share of an adapter's inputs that are dropped.
    layers: those that have adapters, see `block_linears`.

    The model object stays the same. Its linear layers are wrapped until `merge`, and the adapters are part of
    its `state_dict`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        others: Sequence[nn.Parameter],
        *,
        rank: int,
        alpha: float,
        dropout: float,
        learning_rate: float,
        weight_decay: float,
        clip: float,
        layers: str = "blocks",
        reduce: Reduce = lambda tensors: None,
    ) -> None:
        linears = block_linears(model, layers)
        self.frozen = list(linears.values())
        self._tuner = _inject(model, linears, rank=rank, alpha=alpha, dropout=dropout)
        wrapped = [model.get_submodule(name) for name in linears]
        self._wrapped = dict(zip(linears, wrapped, strict=True))
        for module, linear in zip(wrapped, linears.values(), strict=True):
            module.train(linear.training)
        adapters = [p for module in wrapped for p in module.parameters() if p.requires_grad]
        for parameter in others:  # peft has frozen those that are weights of the model
            parameter.requires_grad_(True)
        super().__init__(
            adapters,
            others,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip=clip,
            reduce=reduce,
        )

    @torch.no_grad()
    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the plain weights of the wrapped layers, W + (alpha/rank) B A and biases, by name.

        Of a sharded model every process calls it, and each has all rows.
        """
        for name, module in self._wrapped.items():
            layer: Any = module
            for kind, weight in layer.base_layer.named_parameters():
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
                update = layer.get_delta_weight("default") if kind == "weight" else 0
                yield f"{name}.{kind}", whole + update

    def merge(self) -> None:
        """Set W ← W + (alpha/rank) B A and make the linear layers plain again; training cannot go on."""
        self._tuner.merge_and_unload()


def block_linears(model: PreTrainedModel, layers: str = "blocks") -> dict[str, nn.Linear]:
    """Return the linear layers of the transformer blocks by name, without head and embeddings.

    layers: `blocks` for all of them, `feed-forward` for those outside of attention.
    """
    names = {module: name for name, module in model.named_modules()}
    attention = {
        inner
        for module in model.modules()
        if layers == "feed-forward" and "attention" in type(module).__name__.lower()
        for inner in module.modules()
    }
    if is_encoder_decoder(model):
        blocks = [*model.encoder.block, *model.decoder.block]
    else:
        blocks = list(model.base_model.layers)
    return {
        names[module]: module
        for block in blocks
        for module in block.modules()
        if isinstance(module, nn.Linear) and module not in attention
    }


def _inject(
    model: PreTrainedModel, linears: dict[str, nn.Linear], *, rank: int, alpha: float, dropout: float
) -> Any:
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise UserError(
            f"method 'lora' needs the package peft ({error}): pip install 'gems-sr[peft]'"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(linears))  # type: ignore[arg-type]
    return LoraModel(model, config, "default")


def make(setup: Setup) -> LoraTuning:
    """Train adapters and the rows of added tokens; unless the settings say otherwise, the backbone stays frozen."""
    others = setup.other_weights("frozen")
    method = LoraTuning(
        setup.model,
        others.plain,
        rank=setup.config.lora.rank,
        alpha=setup.config.lora.alpha,
        dropout=0.0,
        layers=setup.config.lora.layers,
        reduce=setup.parallel.sum,
        **setup.adamw,
    )
    method.rows = others.rows
    return method
