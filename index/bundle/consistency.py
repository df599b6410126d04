"""Checks that the parts of a bundle fit each other, before anything large is made from its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from index.bundle.manifest import BundleError
from index.records import Record
from index.sequence.plain_text import plain_tokens
from index.sequence.vocabulary import IdentifierVocabulary

MOST_LAYERS = 1024
MOST_POSITIONS = 2**31 - 1
MOST_TOKEN_ROWS = 2**31 - 1
SETTINGS = ("config.json", "tokenizer_config.json")  # of backbone and tokenizer
SAMPLES = 20  # titles that are tried
WIDTHS = ("hidden_size", "d_model")  # names in different families
POSITIONS = ("max_position_embeddings", "n_positions")  # names in different families; T5 has none


def check_backbone(path: Path, vocabulary: IdentifierVocabulary, max_tokens: int) -> None:
    """Check the settings of backbone and tokenizer, before transformers reads them, against those of `bundle.json`.

    transformers makes lists as long as the number of layers, and asks people whether it may run code.
    Raises `BundleError`, `RecordError`.
    """
    settings = Record.read(path / SETTINGS[0])
    for name in SETTINGS:
        if (path / name).exists() and "auto_map" in Record.read(path / name).names:
            raise BundleError(
                f"{path / name}: auto_map names code that comes with the model, which is never run"
            )
    for name, value in _named_values(settings.fields):
        if "layer" in name and isinstance(value, int) and not 0 <= value <= MOST_LAYERS:
            raise BundleError(f"{settings.path}: {name} must be from 0 to {MOST_LAYERS}")
    rows = settings.whole("vocab_size", 1, MOST_TOKEN_ROWS)
    if rows < vocabulary.size:
        raise BundleError(
            f"{settings.path}: vocab_size {rows} is less than the {vocabulary.size} tokens of bundle.json"
        )
    for name in POSITIONS:
        if name in settings.names and max_tokens > (positions := settings.whole(name, 1, MOST_POSITIONS)):
            raise BundleError(
                f"{path / 'bundle.json'}: max_tokens {max_tokens} exceeds the model's context of {positions} tokens"
            )


def check_states(path: Path, width: int) -> None:
    """Check that the model's hidden states are as wide as an index expects. Raises `BundleError`, `RecordError`."""
    settings = Record.read(path / SETTINGS[0])
    for name in WIDTHS:
        if name in settings.names and settings.whole(name, 1, MOST_POSITIONS) != width:
            raise BundleError(
                f"{path}: the index has dense rows for hidden states of width {width}; the model's {name} is "
                f"{settings.fields[name]}"
            )


def drop_code(path: Path) -> None:
    """Remove the names of code that came with a backbone from its settings; it was not used either."""
    for name in SETTINGS:
        if (path / name).exists():
            fields = Record.read(path / name).fields
            if fields.pop("auto_map", None) is not None:
                (path / name).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


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


def check_text(
    tokenizer: PreTrainedTokenizerFast, vocabulary: IdentifierVocabulary, titles: Sequence[str]
) -> None:
    """Write some titles as tokens, as requests are written. Raises what the tokenizer raises.

    A tokenizer may open and fail on its first text.
    """
    for title in titles[:: max(1, len(titles) // SAMPLES)]:
        plain_tokens(tokenizer, title, vocabulary.first_added)


def _named_values(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a JSON object and of the objects in it."""
    for name, value in fields.items():
        yield name, value
        if isinstance(value, dict):
            yield from _named_values(value)
