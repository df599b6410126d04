"""Text of people and catalogues as tokens, without control and item tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast


class UnsafeTokenizerError(RuntimeError):
    """The tokenizer turned plain text into a control or item token. Such a bundle must not be served."""


def plain_tokens(tokenizer: PreTrainedTokenizerFast, text: str, first_added: int) -> list[int]:
    """Return the token ids of a text, all below `first_added`; none for a blank text.

    White space around the text is removed.
    Raises `UnsafeTokenizerError` if the tokenizer returns another token.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # "<|search|>" typed by a person is plain text
    ids: list[int] = backend.encode(text.strip(), add_special_tokens=False).ids
    if any(i >= first_added for i in ids):
        raise UnsafeTokenizerError("plain text was encoded to a control or item token")
    return ids
