"""Tiny random T5s of both kinds."""

from __future__ import annotations

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

KINDS = ("v1.0", "v1.1")


def make_t5(
    vocab_size: int, kind: str = "v1.0", *, seed: int = 0, layers: int = 2
) -> T5ForConditionalGeneration:
    """Return a tiny random T5.

    kind: `v1.0` (ReLU; the output rows are the input rows, scaled) or `v1.1` (gated GELU; separate output rows, as in
    Flan-T5).
    The decoder has one layer more than the encoder. Scores differ clearly between items, and relative positions have
    few buckets, so that their bias matters.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=32,
        d_kv=12,
        d_ff=48,
        num_layers=layers,
        num_decoder_layers=layers + 1,
        num_heads=3,
        feed_forward_proj="relu" if kind == "v1.0" else "gated-gelu",
        tie_word_embeddings=kind == "v1.0",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.normal_(0, 1.5)
            elif "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
        if kind == "v1.1":
            model.lm_head.weight = nn.Parameter(torch.randn(vocab_size, 32) * 0.3)
        else:
            model.shared.weight *= 3
    return model.eval()
