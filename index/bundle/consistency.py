"""Checks that the parts of a bundle fit each other, before anything large is made from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from index.bundle.manifest import BundleError
from index.records import Record
from index.sequence.vocabulary import IdentifierVocabulary

MOST_LAYERS = 1024
MOST_POSITIONS = 2**31 - 1
MOST_TOKEN_ROWS = 2**31 - 1
POSITIONS = ("max_position_embeddings", "n_positions")  # names in different families; T5 has none


def check_backbone(path: Path, vocabulary: IdentifierVocabulary, max_tokens: int) -> None:
    """Check the backbone's `config.json` against the numbers of `bundle.json`.

    transformers makes lists as long as the number of layers when it reads this file.
    Raises `BundleError`, `RecordError`.
    """
    file = path / "config.json"
    record = Record.read(file)
    for name, value in _named_values(record.fields):
        if name == "auto_map":
            raise BundleError(f"{file}: auto_map names code that comes with the model, which is never run")
        if "layer" in name and isinstance(value, int) and not 0 <= value <= MOST_LAYERS:
            raise BundleError(f"{file}: {name} must be from 0 to {MOST_LAYERS}")
    rows = record.whole("vocab_size", 1, MOST_TOKEN_ROWS)
    if rows < vocabulary.size:
        raise BundleError(
            f"{file}: vocab_size {rows} is less than the {vocabulary.size} tokens that bundle.json describes"
        )
    for name in POSITIONS:
        if name in record.names and max_tokens > (positions := record.whole(name, 1, MOST_POSITIONS)):
            raise BundleError(
                f"{path / 'bundle.json'}: max_tokens {max_tokens} exceeds the model's context of {positions} tokens"
            )


def check_tokenizer(path: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: IdentifierVocabulary) -> None:
    """Check that the tokenizer has exactly the tokens of the vocabulary. Raises `BundleError`."""
    if len(tokenizer) != vocabulary.size:
        raise BundleError(
            f"{path}: the tokenizer does not hold the identifier tokens: it has {len(tokenizer)} tokens, "
            f"bundle.json describes {vocabulary.size}"
        )
    if vocabulary.spelled and set(vocabulary.codebook_sizes) != {vocabulary.size}:
        raise BundleError(
            f"{path / 'bundle.json'}: each of the codebook_sizes must be {vocabulary.size}, as every token is a code"
        )
    ids = tokenizer.get_vocab()
    added = dict(zip(vocabulary.token_names(), range(vocabulary.first_added, vocabulary.size), strict=True))
    if {name: ids.get(name) for name in added} != added:
        raise BundleError(f"{path}: the tokenizer does not hold the identifier tokens under their ids")
    if any(not 0 <= number < vocabulary.first_added for name, number in ids.items() if name not in added):
        raise BundleError(f"{path}: the tokenizer gives a word the id of an identifier token")


def _named_values(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a JSON object and of the objects in it."""
    for name, value in fields.items():
        yield name, value
        if isinstance(value, dict):
            yield from _named_values(value)
