"""The language models that write identifiers: decoder-only ones, and T5 (v1.0, v1.1, Flan) as encoder-decoder.

A decoder-only model reads one sequence and goes on with it. In an encoder-decoder the encoder reads the prompt, in both
directions, and the decoder writes the identifier from its start token on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel


class LanguageModelError(ValueError):
    """A model of a kind that is not supported."""


def load_language_model(
    source: str | Path, dtype: torch.dtype = torch.float32, *, local: bool = False
) -> PreTrainedModel:
    """A checkpoint's weights in evaluation mode, by folder or by a name on the hub. local: from a folder that we wrote,
    where weights are safetensors and never a pickle.

    Raises `LanguageModelError` for encoder-decoders other than T5, else what transformers raises.
    """
    safetensors = True if local else None  # None: where there are any
    config = AutoConfig.from_pretrained(source, local_files_only=local)
    if not config.is_encoder_decoder:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, local_files_only=local, use_safetensors=safetensors
        )
    elif config.model_type == "t5":
        model = AutoModelForSeq2SeqLM.from_pretrained(
            source, dtype=dtype, local_files_only=local, use_safetensors=safetensors
        )
        if model.config.decoder_start_token_id is None:
            model.config.decoder_start_token_id = model.config.pad_token_id
        if model.config.decoder_start_token_id is None:
            raise LanguageModelError(
                f"{source} does not say what its decoder starts from; give config.json a decoder_start_token_id"
            )
    else:
        raise LanguageModelError(
            f"{config.model_type} is an encoder-decoder of which only T5 and Flan-T5 are supported; use one of these "
            "or a decoder-only model"
        )
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    return bool(model.config.is_encoder_decoder)


def start_token(model: PreTrainedModel) -> int:
    """The token that an encoder-decoder's decoder starts from."""
    return int(model.config.decoder_start_token_id)


def output_scale(model: PreTrainedModel) -> float:
    """What an encoder-decoder's hidden states are multiplied by before they meet the output rows.

    d^-0.5 in T5 v1.0, whose output rows are its input rows; 1 in v1.1 and Flan.
    """
    config = model.config
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return float(config.d_model**-0.5) if scaled else 1.0
