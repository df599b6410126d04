"""Teacher-forced forward passes: the hidden states that the output rows are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from index.sequence.language_model import is_encoder_decoder, output_scale, start_token


def decoder_only_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What follows each of the tokens int64 [B, T], as hidden states [B, T, d]."""
    states: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states


def encoder_decoder_states(model: PreTrainedModel, prompt: Tensor, attended: Tensor, ids: Tensor) -> Tensor:
    """What follows each of the decoder's tokens int64 [B, T], after the encoder has read the prompts.

    prompt: int64 [B, P]. attended: bool [B, P], False on padding. Returns [B, T, d], scaled as the output rows need it.
    """
    read = model.encoder(input_ids=prompt, attention_mask=attended).last_hidden_state
    states: Tensor = model.decoder(
        input_ids=ids, encoder_hidden_states=read, encoder_attention_mask=attended, use_cache=False
    ).last_hidden_state
    return states * output_scale(model)


def halves(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Running text int64 [B, T] for an encoder-decoder: what the encoder reads [B, T // 2], and the decoder's tokens
    [B, T // 2], from the start token on, which are followed by the rest."""
    middle = ids.shape[1] // 2
    start = torch.full_like(ids[:, :1], start_token(model))
    return ids[:, :middle], torch.cat([start, ids[:, middle : 2 * middle - 1]], dim=1)


def text_states(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Running text int64 [B, T]: hidden states [B, K, d], and the tokens that they are to predict [B, K].

    All but the first; by an encoder-decoder, those of the second half.
    """
    if not is_encoder_decoder(model):
        return decoder_only_states(model, ids)[:, :-1], ids[:, 1:]
    read, written = halves(model, ids)
    attended = torch.ones_like(read, dtype=torch.bool)
    return encoder_decoder_states(model, read, attended, written), ids[:, read.shape[1] :][:, : read.shape[1]]
