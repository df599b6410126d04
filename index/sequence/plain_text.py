"""Text of people and catalogues as tokens: never a control or item token."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast


class UnsafeTokenizerError(RuntimeError):
    """The tokenizer turned plain text into a control or item token; such a bundle must not be served."""


def plain_tokens(tokenizer: PreTrainedTokenizerFast, text: str, first_added: int) -> list[int]:
    """Token ids of a text without white space around it, all below `first_added`; empty for a blank one.

    Raises `UnsafeTokenizerError` where the tokenizer does otherwise.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # "<|search|>" typed by a person is plain text
    ids: list[int] = backend.encode(text.strip(), add_special_tokens=False).ids
    if any(i >= first_added for i in ids):
        raise UnsafeTokenizerError("plain text was encoded to a control or item token")
    return ids
