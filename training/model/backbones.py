"""Backbones: pretrained language models by name or folder, and small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from index.files import atomic_folder
from index.sequence.language_model import is_encoder_decoder, load_language_model
from training.config import TrainConfig
from training.data import assets
from training.errors import UserError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class BackboneError(UserError):
    """The backbone cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class Backbone:
    """A model without identifier tokens yet. `pretrained` is False for random weights."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pretrained: bool


def load_backbone(config: TrainConfig, texts: Iterable[str]) -> Backbone:
    """The backbone that the settings name. `texts` train the tokenizer of a 'scratch' backbone.

    Raises `BackboneError` for unknown names, encoder-decoders other than T5, and slow tokenizers.
    """
    if config.backbone == "scratch":
        return _scratch(config, texts)
    if config.backbone == "t5-tiger":
        return _tiger(config, texts)
    source: str | Path = config.backbone
    if config.backbone == "smollm2-135m":
        source = _smollm2()
    try:
        model = load_language_model(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises OSError, ValueError, and the hub's own errors
        raise BackboneError(
            f"backbone {config.backbone!r} cannot be loaded: {error}. Give 'smollm2-135m', 'scratch', "
            "'t5-tiger', a folder with a Hugging Face causal language model or T5, or (when connected) a model name"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BackboneError(f"backbone {config.backbone!r} has no fast tokenizer, which is needed")
    if config.layers is not None:
        keep_first_layers(model, config.layers)
    return Backbone(config.backbone, model, tokenizer, pretrained=True)


def keep_first_layers(model: PreTrainedModel, layers: int) -> None:
    """Cut a model to its first layers, in place: fast, but no longer a language model by itself."""
    if is_encoder_decoder(model):
        _keep_first_blocks(model, layers)
        return
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    stack = next((s for s in stacks if len(s) == model.config.num_hidden_layers), None)
    if stack is None or layers > len(stack):
        raise BackboneError(f"--layers {layers}: the backbone has {model.config.num_hidden_layers} layers")
    del stack[layers:]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]


def _keep_first_blocks(model: PreTrainedModel, layers: int) -> None:
    """The same for the encoder and the decoder of a T5. Both keep block 0, which holds the bias of positions."""
    stacks = (model.encoder, model.decoder)
    shortest = min(len(stack.block) for stack in stacks)
    if layers > shortest:
        raise BackboneError(f"--layers {layers}: the backbone's encoder or decoder has {shortest} layers")
    for stack in stacks:
        del stack.block[layers:]
    for config in (model.config, model.encoder.config, model.decoder.config):
        config.num_layers = config.num_decoder_layers = layers


def _smollm2() -> Path:
    """SmolLM2 as a safetensors folder, converted once from the asset's GGUF file."""
    folder = assets.cache_folder() / "smollm2-135m-safetensors"
    if folder.is_dir():
        return folder
    source = next(assets.fetch("smollm2-135m").rglob(GGUF_FILE)).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are plain floats by now; say so
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    try:
        with atomic_folder(folder) as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    return folder


def _scratch(config: TrainConfig, texts: Iterable[str]) -> Backbone:
    """A small GPT-NeoX with random weights and a BPE tokenizer trained on the catalogue.

    GPT-NeoX because it has rotary positions and, unlike Llama, dropout on embeddings and block
    outputs, without which a model of this size overfits small logs.
    """
    if config.hidden % config.heads:
        raise BackboneError(f"--hidden {config.hidden} must be a multiple of --heads {config.heads}")
    tokenizer = train_tokenizer(texts, config.text_vocabulary)
    torch.manual_seed(config.seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            num_hidden_layers=config.layers or 2,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden,
            hidden_dropout=config.dropout,
            attention_dropout=0.0,
            max_position_embeddings=config.max_tokens,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return Backbone("scratch", model, tokenizer, pretrained=False)


def _tiger(config: TrainConfig, texts: Iterable[str]) -> Backbone:
    """A T5 with random weights, by default of TIGER's size (Rajput et al. 2023, arXiv 2305.05065): four layers each,
    d_model 128, six heads of 64, d_ff 1024."""
    tokenizer = train_tokenizer(texts, config.text_vocabulary, padding="<pad>")
    torch.manual_seed(config.seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=config.hidden,
            d_kv=64,
            d_ff=8 * config.hidden,
            num_layers=config.layers or 4,
            num_heads=config.heads,
            dropout_rate=config.dropout,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            eos_token_id=None,
        )
    )
    return Backbone("t5-tiger", model, tokenizer, pretrained=False)


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, padding: str | None = None
) -> PreTrainedTokenizerFast:
    """Lower-casing byte-level BPE: any text can be written, frequent words are one token. `padding`: a token that no
    text is written with."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[] if padding is None else [padding],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, pad_token=padding
    )
