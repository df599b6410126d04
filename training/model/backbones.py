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
    """A model without identifier tokens.

    pretrained: False for random weights.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pretrained: bool


def load_backbone(config: TrainConfig, texts: Iterable[str]) -> Backbone:
    """Load or build the backbone that the settings name.

    texts: texts of the catalogue; they train the tokenizer of a backbone from scratch.
    Raises `BackboneError` for unknown names, encoder-decoders other than T5, and slow tokenizers.
    """
    name, layers = config.backbone.name, config.backbone.layers
    if name == "scratch":
        return _scratch(config, texts)
    if name == "t5-tiger":
        return _tiger(config, texts)
    source: str | Path = name
    if name == "smollm2-135m":
        source = _smollm2()
    try:
        model = load_language_model(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises OSError, ValueError, and the hub's own errors
        raise BackboneError(
            f"backbone {name!r} cannot be loaded: {error}. Give 'smollm2-135m', 'scratch', "
            "'t5-tiger', a folder with a Hugging Face causal language model or T5, or (when connected) a model name"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BackboneError(f"backbone {name!r} has no fast tokenizer, which is needed")
    if layers is not None:
        keep_first_layers(model, layers)
    return Backbone(name, model, tokenizer, pretrained=True)


def keep_first_layers(model: PreTrainedModel, layers: int) -> None:
    """Cut a model to its first layers, in place. The result is fast, but no longer a language model by itself.

    Raises `BackboneError` if the model has fewer layers.
    """
    if is_encoder_decoder(model):
        _keep_first_blocks(model, layers)
        return
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    stack = next((s for s in stacks if len(s) == model.config.num_hidden_layers), None)
    if stack is None or layers > len(stack):
        raise BackboneError(
            f"--backbone.layers {layers}: the backbone has {model.config.num_hidden_layers} layers"
        )
    del stack[layers:]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]


def _keep_first_blocks(model: PreTrainedModel, layers: int) -> None:
    """Cut encoder and decoder of a T5. Both keep block 0, which holds the position bias."""
    stacks = (model.encoder, model.decoder)
    shortest = min(len(stack.block) for stack in stacks)
    if layers > shortest:
        raise BackboneError(
            f"--backbone.layers {layers}: the backbone's encoder or decoder has {shortest} layers"
        )
    for stack in stacks:
        del stack.block[layers:]
    for config in (model.config, model.encoder.config, model.decoder.config):
        config.num_layers = config.num_decoder_layers = layers


def _smollm2() -> Path:
    """Return the folder of SmolLM2 as safetensors, converted once from the asset's GGUF file."""
    folder = assets.cache_folder() / "smollm2-135m-safetensors"
    if folder.is_dir():
        return folder
    source = next(assets.fetch("smollm2-135m").rglob(GGUF_FILE)).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are plain floats now
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
    """Build a small GPT-NeoX with random weights and a BPE tokenizer trained on the catalogue.

    It is GPT-NeoX because it has rotary positions and, unlike Llama, dropout on embeddings and block
    outputs, without which a model of this size overfits small logs.
    """
    shape = config.backbone
    if shape.hidden % shape.heads:
        raise BackboneError(
            f"--backbone.hidden {shape.hidden} must be a multiple of --backbone.heads {shape.heads}"
        )
    tokenizer = train_tokenizer(texts, shape.text_vocabulary)
    torch.manual_seed(config.seed)
    model = GPTNeoXForCausalLM(scratch_config(config, len(tokenizer)))
    return Backbone("scratch", model, tokenizer, pretrained=False)


def scratch_config(config: TrainConfig, vocabulary: int) -> GPTNeoXConfig:
    """Return the settings of a model from scratch. vocabulary: its number of tokens."""
    shape = config.backbone
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers or 2,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        hidden_dropout=shape.dropout,
        attention_dropout=0.0,
        max_position_embeddings=config.sequence.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def _tiger(config: TrainConfig, texts: Iterable[str]) -> Backbone:
    """Build a T5 with random weights, by default of TIGER's size (Rajput et al. 2023, arXiv 2305.05065).

    That is: four layers in encoder and decoder, d_model 128, six heads of 64, d_ff 1024.
    """
    shape = config.backbone
    tokenizer = train_tokenizer(texts, shape.text_vocabulary, padding="<pad>")
    torch.manual_seed(config.seed)
    model = T5ForConditionalGeneration(tiger_config(config, len(tokenizer), tokenizer.pad_token_id))
    return Backbone("t5-tiger", model, tokenizer, pretrained=False)


def tiger_config(config: TrainConfig, vocabulary: int, padding: int | None) -> T5Config:
    """Return the settings of `t5-tiger`. vocabulary: its number of tokens; padding: the token that pads and starts."""
    shape = config.backbone
    return T5Config(
        vocab_size=vocabulary,
        d_model=shape.hidden,
        d_kv=64,
        d_ff=8 * shape.hidden,
        num_layers=shape.layers or 4,
        num_heads=shape.heads,
        dropout_rate=shape.dropout,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        pad_token_id=padding,
        decoder_start_token_id=padding,
        eos_token_id=None,
    )


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, padding: str | None = None
) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE: it can write any text, and frequent words are a single token.

    vocabulary_size: number of tokens.
    padding: an extra token that occurs in no text.
    """
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
