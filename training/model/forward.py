"""Teacher-forced forward passes that return hidden states, which the output rows are multiplied by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.language_model import is_encoder_decoder, output_scale, start_token
from training.errors import UserError


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return host values on a device. The host does not wait for the copy to a GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def checkpoint_blocks(
    model: PreTrainedModel, again: Callable[[], AbstractContextManager[Any]] | None = None
) -> None:
    """Keep only the inputs of the model's blocks in training, and compute the rest again in each backward pass.

    Activation recomputation by blocks, Chen et al., arXiv 1604.06174. Results are the same; a step takes about a third
    longer. Raises `UserError` if the model cannot.
    again: makes what the second computation runs in, where torch would not know; it knows autocast.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} cannot compute its blocks again: leave activation_checkpointing off"
        )
    # the first versions of transformers 5 have the old name only
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    options: dict[str, Any] = {"use_reentrant": False}
    if again is not None:
        options["context_fn"] = lambda: (nullcontext(), again())
    enable(options)


def _read(tokens: Tensor) -> dict[str, Tensor]:
    return {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}


def decoder_only_states(model: PreTrainedModel, ids: Tensor, position: Tensor | None = None) -> Tensor:
    """Return the hidden states [B, T, d] that predict the token after each of `ids`.

    ids: int64 [B, T], or the input rows of the tokens, float [B, T, d].
    position: place of each token in its sample, int64 [B, T], if samples share rows; a token sees its own sample only.
    """
    mask = None if position is None else _own_sample(position, model.dtype)
    states: Tensor = model.base_model(
        **_read(ids), position_ids=position, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states


def _own_sample(position: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, [B, 1, T, T]: 0 for earlier tokens of the same sample."""
    sample = (position == 0).cumsum(1)
    seen = (sample.unsqueeze(2) == sample.unsqueeze(1)).tril().unsqueeze(1)
    return torch.zeros(seen.shape, dtype=dtype, device=position.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


def encoder_decoder_states(model: PreTrainedModel, prompt: Tensor, attended: Tensor, ids: Tensor) -> Tensor:
    """Return the hidden states [B, T, d] of the decoder, scaled for the output rows.

    prompt: tokens of the encoder, int64 [B, P], or their input rows, float [B, P, d].
    attended: bool [B, P], False on padding.
    ids: tokens of the decoder, int64 [B, T], or their input rows, float [B, T, d].
    """
    read = model.encoder(**_read(prompt), attention_mask=attended).last_hidden_state
    states: Tensor = model.decoder(
        **_read(ids), encoder_hidden_states=read, encoder_attention_mask=attended, use_cache=False
    ).last_hidden_state
    return states * output_scale(model)


def halves(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Split running text, int64 [B, T], for an encoder-decoder.

    Returns the first half for the encoder, and for the decoder the start token and the second half without
    its last token; both are [B, T // 2].
    """
    middle = ids.shape[1] // 2
    start = torch.full_like(ids[:, :1], start_token(model))
    return ids[:, :middle], torch.cat([start, ids[:, middle : 2 * middle - 1]], dim=1)


def text_states(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Read running text, int64 [B, T]. Return hidden states [B, K, d], and the tokens that they predict [B, K].

    These are all tokens but the first; for an encoder-decoder, those of the second half.
    """
    if not is_encoder_decoder(model):
        return decoder_only_states(model, ids)[:, :-1], ids[:, 1:]
    read, written = halves(model, ids)
    attended = torch.ones_like(read, dtype=torch.bool)
    return encoder_decoder_states(model, read, attended, written), ids[:, read.shape[1] :][:, : read.shape[1]]
