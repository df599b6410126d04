"""A bundle opens the tokenizer of any backbone as the file that was saved, without the class that made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

from index.sequence.plain_text import plain_tokens

TEXTS = [
    "trail running shoes", "Crème brûlée 75% — 12 V", "red  shoes\n for kids", "日本の靴", "naïve café İstanbul",
    "wd-40 7/11 don't", "a\tb", "<s> </s> <|search|>", "", "ﬁne ½ Ⅷ",
]  # fmt: skip
CONTROL = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<mask>", "<|endoftext|>"]


def pieces(model: Any, trainer: Any, words: Any) -> dict[str, Any]:
    """Return the trained model of a tokenizer, as its file holds it."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return found


def by_bytes(kind: Callable[..., Any]) -> Any:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=CONTROL)
    made = pieces(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return kind(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])


def by_letters(kind: Callable[..., Any]) -> Any:
    alone = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*CONTROL, *alone])
    made = pieces(models.BPE(byte_fallback=True, unk_token="<unk>"), trainer, pre_tokenizers.Metaspace())
    return kind(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])


def by_likelihood(kind: Callable[..., Any]) -> Any:
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    made = pieces(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    return kind(vocab=[tuple(piece) for piece in made["vocab"]], extra_ids=5)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        *((by_bytes, kind) for kind in (GPT2Tokenizer, Qwen2Tokenizer)),
        *((by_letters, kind) for kind in (LlamaTokenizer, GemmaTokenizer)),
        (by_likelihood, T5Tokenizer),
    ],
)
def test_texts_have_the_tokens_that_the_model_was_trained_on(
    make: Callable[..., Any], kind: Any, tmp_path: Path
) -> None:
    trained = make(kind)
    first_added = len(trained)
    trained.add_tokens(["<|search|>", "<|item|>"], special_tokens=True)
    trained.save_pretrained(tmp_path)
    opened = PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    assert type(trained) is kind
    assert type(opened) is not kind
    assert opened.get_vocab() == trained.get_vocab()
    written = [plain_tokens(trained, text, first_added) for text in TEXTS]
    assert [plain_tokens(opened, text, first_added) for text in TEXTS] == written
    assert sum(map(len, written)) > 40
