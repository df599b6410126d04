"""Work that many trainings of the tests have in common, done once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.data.general_text import knowledge_articles, token_windows
from training.prepare import knowledge_basis


@pytest.fixture(scope="session", autouse=True)
def windows_of_articles() -> Iterator[None]:
    """Cut the packaged articles into windows once for each tokenizer: it takes longer than a small training."""

    @cache
    def windows(tokenizer: str, length: int, limit: int | None) -> NDArray[np.int64]:
        return token_windows(
            PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer)),
            knowledge_articles(),
            length,
            limit,
        )

    def known(
        tokenizer: PreTrainedTokenizerFast, _: Any, length: int, limit: int | None
    ) -> NDArray[np.int64]:
        return windows(tokenizer.backend_tokenizer.to_str(), length, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge_basis, "token_windows", known)
        yield
