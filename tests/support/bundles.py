"""Tiny but real bundles: a trained tokenizer, a random transformer, a catalogue, published to disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from index.bundle.bundle import BundleInfo, publish
from index.catalogue import Catalogue, Item
from index.identifiers.identifiers import Identifiers
from index.identifiers.schemes.atomic import atomic_identifiers
from index.identifiers.schemes.gensar import gensar_identifiers
from index.identifiers.schemes.semantic import semantic_identifiers
from index.identifiers.schemes.text import text_identifiers
from index.sequence.plain_text import plain_tokens
from index.sequence.vocabulary import IdentifierVocabulary
from support.pools import make_dense, make_pool

_ADJECTIVES = ("Silent", "Golden", "Lost", "Electric", "Winter", "Crimson", "Hidden")
_NOUNS = ("River", "Machine", "Garden", "Voyage", "Letter", "Empire", "Señorita", "星")
_GENRES = ("Drama", "Comedy", "Science Fiction", "Western", "Horror")


def make_catalogue(n: int = 60) -> Catalogue:
    """Return `n` items `item-0`, `item-1`, … with distinct titles, genres and years."""
    return Catalogue(
        Item(
            f"item-{k}",
            f"{_ADJECTIVES[k % 7]} {_NOUNS[k % 8]} {k}",
            f"A story of the {_NOUNS[(k + 3) % 8].lower()}.",
            (_GENRES[k % 5],),
            {"year": 1950 + k},
        )
        for k in range(n)
    )


def make_identifiers(n: int = 60) -> Identifiers:
    """Return identifiers of `n` items with three levels, all distinct; neighbours share no prefix."""
    row = np.arange(n)
    codes = np.stack([row % 4, row // 4 % 5, row // 20], axis=1).astype(np.int32)
    return Identifiers("semantic", codes, tuple(int(size) for size in codes.max(axis=0) + 1))


def make_spelled(titles: Sequence[str], tokenizer: PreTrainedTokenizerFast, levels: int) -> Identifiers:
    """Return text identifiers of up to `levels` tokens."""
    vocabulary = IdentifierVocabulary.spelling(len(tokenizer), levels)
    return text_identifiers(
        titles, lambda text: plain_tokens(tokenizer, text, vocabulary.first_added), vocabulary
    )


@cache
def make_gensar(n: int = 60) -> Identifiers:
    """Return two identifiers of each of `n` items, of four levels. Every tenth item was chosen by nobody.

    The behaviour behind them has nothing to do with the texts. Items share codes of all levels but the last.
    """
    rng = np.random.default_rng(3)
    behaviour = rng.normal(size=(4, 8))[rng.integers(4, size=n)]
    behaviour = (behaviour + rng.normal(size=behaviour.shape) * 0.1).astype(np.float32)
    behaviour[::10] = np.nan
    return gensar_identifiers(text_vectors(make_catalogue(n).texts()), behaviour, (3, 3, 2))


def text_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return simple text vectors: hashed character trigrams, float32 [N, 24]."""
    vectors = np.zeros((len(texts), 24), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for k in range(len(text) - 2):
            vector[zlib.crc32(text[k : k + 3].encode()) % 24] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def item_vectors(items: Iterable[Item]) -> NDArray[np.float32]:
    return text_vectors([item.text() for item in items])


def make_tokenizer(texts: Iterable[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the texts: every text has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def make_model(
    vocab_size: int, arch: str = "llama", *, positions: int = 512, hidden: int = 32, seed: int = 0
) -> PreTrainedModel:
    """Return a random model with two layers.

    arch: `llama` (grouped queries, tied head), `gpt-neox` (partial rotary, own head), `qwen2` (biases) or `qwen3`
    (norms of heads, heads wider than the model).
    Weights are larger than those of a new model, so that scores differ clearly between items.
    """
    torch.manual_seed(seed)
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if arch == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **shared))
    elif arch == "gpt-neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(tie_word_embeddings=False, **shared))
    elif arch == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **shared))
    elif arch == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=16, **shared))
    else:
        raise ValueError(f"unknown arch {arch!r}")
    for name, bias in model.named_parameters():  # these begin as zeros
        if name.endswith("bias"):
            nn.init.normal_(bias, std=0.2)
    return model.eval()


def make_bundle(path: Path, **choices: Any) -> Path:
    """Publish a tiny bundle to `path`, and return `path`. choices: see `make_parts`."""
    publish(path, **make_parts(**choices))
    return path


def make_parts(
    *,
    items: int = 60,
    arch: str = "llama",
    normalisation: str = "level",
    max_tokens: int = 256,
    max_events: int = 20,
    max_query_tokens: int = 16,
    hidden: int = 32,
    seed: int = 0,
    codebooks: tuple[int, ...] | None = None,
    spelling: int | None = None,
    atomic: bool = False,
    of_each_task: bool = False,
    pool: bool = False,
) -> dict[str, Any]:
    """Return what `publish` writes of a tiny bundle.

    codebooks: sizes; identifiers are then quantised `text_vectors`, so that items can be added.
    spelling: most tokens of an identifier; identifiers are then the titles.
    atomic: one code for each item.
    of_each_task: identifiers of their own for searches, see `make_gensar`.
    pool: with `make_pool`; otherwise the beam alone ranks.
    """
    catalogue = make_catalogue(items)
    tokenizer = make_tokenizer(catalogue.texts())
    if spelling is not None:
        identifiers = make_spelled([item.title for item in catalogue], tokenizer, spelling)
    elif of_each_task:
        identifiers = make_gensar(items)
    elif codebooks is not None:
        identifiers = semantic_identifiers(text_vectors(catalogue.texts()), codebooks)
    else:
        identifiers = atomic_identifiers(items) if atomic else make_identifiers(items)
    vocabulary = IdentifierVocabulary.for_tokenizer(
        tokenizer, identifiers.codebook_sizes, spelled=identifiers.spelled
    )
    vocabulary.add_to(tokenizer)
    info = BundleInfo(
        bundle_id=f"tiny-{arch}-{items}",
        scheme=identifiers.scheme,
        codebook_sizes=identifiers.codebook_sizes,
        first_added_token=vocabulary.first_added,
        normalisation=normalisation,
        max_tokens=max_tokens,
        max_events=max_events,
        max_query_tokens=max_query_tokens,
        created="2026-01-01T00:00:00+00:00",
        code_version="test",
        data={"name": "tiny"},
        training={"method": "none"},
    )
    model = make_model(vocabulary.size, arch, positions=max_tokens, hidden=hidden, seed=seed)
    return {
        "model": model,
        "tokenizer": tokenizer,
        "catalogue": catalogue,
        "identifiers": identifiers,
        "info": info,
        "popularity": np.arange(items) * 7 % 23,
        "pool": make_pool(catalogue, make_dense(item_vectors(catalogue), hidden)) if pool else None,
    }
