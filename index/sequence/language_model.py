"""The language models that write identifiers: decoder-only ones, and T5 (v1.0, v1.1, Flan) as encoder-decoder.

A decoder-only model reads one sequence and continues it. In an encoder-decoder, the encoder reads the prompt in both
directions, and the decoder writes the identifier after its start token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel


class LanguageModelError(ValueError):
    """The model is of a kind that is not supported, or its weights are not those that its settings describe."""


def load_language_model(
    source: str | Path, dtype: torch.dtype | None = None, *, local: bool = False
) -> PreTrainedModel:
    """Load a checkpoint in evaluation mode.

    source: a folder, or a name on the hub.
    dtype: None: float32.
    local: whether it is a folder that this program wrote. Then weights must be safetensors, never a pickle.
    Raises `LanguageModelError` for an encoder-decoder other than T5, and for a local one whose weights are not exactly
    those that its `config.json` describes; errors of transformers go to the caller.
    """
    dtype = dtype or torch.float32
    config = AutoConfig.from_pretrained(source, local_files_only=local)
    if not config.is_encoder_decoder:
        model = _load(AutoModelForCausalLM, source, dtype, local)
    elif config.model_type == "t5":
        model = _load(AutoModelForSeq2SeqLM, source, dtype, local)
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


def _load(
    kind: type[AutoModelForCausalLM] | type[AutoModelForSeq2SeqLM],
    source: str | Path,
    dtype: torch.dtype,
    local: bool,
) -> PreTrainedModel:
    """Load the weights into a model of this kind."""
    safetensors = True if local else None  # None: if there are any
    try:
        model, loaded = kind.from_pretrained(
            source,
            dtype=dtype,
            local_files_only=local,
            use_safetensors=safetensors,
            output_loading_info=True,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise LanguageModelError(
            f"{source}: config.json describes another model than the weights, whose shapes differ; the log lists them"
        ) from error
    differing = sorted({*loaded["missing_keys"], *loaded["unexpected_keys"]})
    if local and differing:  # transformers would leave them at random, or leave them out
        raise LanguageModelError(
            f"{source}: config.json describes another model than the weights, which differ in {differing[0]}"
            + (f" and {len(differing) - 1} more" if len(differing) > 1 else "")
        )
    return model


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether the model is an encoder-decoder."""
    return bool(model.config.is_encoder_decoder)


def start_token(model: PreTrainedModel) -> int:
    """Return the token that the decoder of an encoder-decoder starts with."""
    return int(model.config.decoder_start_token_id)


def output_scale(model: PreTrainedModel) -> float:
    """Return the factor of an encoder-decoder's hidden states before the product with the output rows.

    It is d^-0.5 in T5 v1.0, whose output rows are its input rows, and 1 in v1.1 and Flan.
    """
    config = model.config
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return float(config.d_model**-0.5) if scaled else 1.0
