"""Number formats of a training: which precision a device gets, and forward passes of a model in it.

float32    everything in float32
autocast   weights in float32, products of the forward and backward pass in bfloat16
bfloat16   as autocast, and the weights of linear layers are held in bfloat16; see `Method.narrow`

In all of them token rows, norms, losses and what optimizers hold are float32: only the blocks are computed otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from index.sequence.language_model import is_encoder_decoder
from training.config import TrainConfig
from training.errors import UserError

Precision = Literal["float32", "autocast", "bfloat16"]


def chosen_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Return the precision of a training on a device: 'auto' is autocast on a GPU that has bfloat16, else float32.

    Raises `UserError` if the settings ask for bfloat16 of a GPU that has it not.
    """
    wanted = config.backbone.precision
    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "autocast" if device.type == "cuda" and not lacking else "float32"
    if wanted != "float32" and lacking:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16, which GPUs have from Ampere on: choose "
            "backbone.precision 'float32'"
        )
    return wanted


def autocast(device: str) -> AbstractContextManager[None]:
    """Compute products in bfloat16 inside the block, on one kind of device.

    Casts of weights are not kept: each weight is used once in a forward pass, and gathered ones (FSDP2) go away.
    """
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


@contextmanager
def forward_under(
    model: PreTrainedModel,
    precision: Precision,
    under: Callable[[str], AbstractContextManager[Any]] = autocast,
) -> Iterator[None]:
    """Run every forward pass of a model's stacks in a precision, inside the block.

    under: makes what a forward pass on a kind of device runs in, unless it is one in float32.
    """
    stacks = [model.encoder, model.decoder] if is_encoder_decoder(model) else [model.base_model]
    if precision != "float32":
        for stack in stacks:
            _wrap(stack, lambda: under(model.device.type))
    try:
        yield
    finally:
        for stack in stacks:
            vars(stack).pop("forward", None)


def _wrap(stack: nn.Module, under: Callable[[], AbstractContextManager[Any]]) -> None:
    plain = stack.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with under():
            return plain(*args, **kwargs)

    vars(stack)["forward"] = forward
