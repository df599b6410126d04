"""Shapes of backbones, on the meta device. Those of well-known models need no hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from training.config import TrainConfig
from training.model.backbones import BackboneError, keep_first_layers, scratch_config, tiger_config

_QWEN = {"max_position_embeddings": 32768}
KNOWN: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "smollm2-135m": (
        LlamaConfig,
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        Qwen2Config,
        _QWEN
        | {
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-3B-Instruct": (
        Qwen2Config,
        _QWEN
        | {
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        Qwen2Config,
        _QWEN
        | {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
        },
    ),
    "Qwen/Qwen3-1.7B": (
        Qwen3Config,
        _QWEN
        | {
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        },
    ),
    "google/flan-t5-base": (
        T5Config,
        {
            "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
        },
    ),
}  # fmt: skip


def backbone_shape(config: TrainConfig, added_tokens: int, device: str = "meta") -> PreTrainedModel:
    """Return a model in training mode, float32: without numbers on the meta device, else with random ones.

    config: names the backbone: one of `KNOWN`, 'scratch', 't5-tiger', a folder, or a name on the hub.
    added_tokens: rows of the token tables for markers and identifiers.
    Raises `BackboneError` for a name whose settings are not at hand, and for a shape that could not be trained.
    """
    name, layers = config.backbone.name, config.backbone.layers
    shape = _settings(config)
    if shape.is_encoder_decoder and shape.model_type != "t5":
        raise BackboneError(f"{name!r} is an encoder-decoder of which only T5 and Flan-T5 are supported")
    positions = getattr(shape, "max_position_embeddings", None)
    if positions is not None and config.sequence.max_tokens > positions:
        raise BackboneError(
            f"--sequence.max-tokens {config.sequence.max_tokens} exceeds the backbone's context of {positions} "
            "positions"
        )
    kind = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    try:
        shape.vocab_size += added_tokens
        with torch.device(device):
            model: PreTrainedModel = kind.from_config(shape, dtype=torch.float32)
    except (AttributeError, ValueError) as error:  # as transformers has them for models of other kinds
        raise BackboneError(f"{name!r} is no language model that can be trained: {error}") from error
    if not getattr(
        shape, "scale_decoder_outputs", True
    ):  # T5 v1.1: transformers ties its rows until they are loaded
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    if layers is not None and not config.from_scratch:
        keep_first_layers(model, layers)
    return model.train()


def _settings(config: TrainConfig) -> PreTrainedConfig:
    name = config.backbone.name
    if name == "scratch":
        return scratch_config(config, config.backbone.text_vocabulary)
    if name == "t5-tiger":
        return tiger_config(config, config.backbone.text_vocabulary, 0)
    if name in KNOWN:
        kind, settings = KNOWN[name]
        return kind(**settings)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, and the hub's own errors
        raise BackboneError(
            f"the shape of {name!r} is not at hand ({' '.join(str(error).split())[:200]}). Give a folder with a "
            f"config.json, or one of scratch, t5-tiger, {', '.join(KNOWN)}"
        ) from error
    return found
