"""Text encoders against the models inside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from index.catalogue import Item
from index.embeddings import MAX_TOKENS, EmbeddingError, TextEncoder, encoder_hash
from training.data import assets

TEXTS = ["red shoes", "A long story of the river. " * 20, "Señorita 星", "red shoes"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return assets.fetch("minilm")


def token_vectors(folder: Path, text: str) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(
        text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden: torch.Tensor = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("kind", ["sentence-transformers", "first token", "plain"])
def test_vectors_are_pooled_as_the_model_says(minilm: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(minilm, tmp_path / "model"))
    if kind == "first token":
        pooling = folder / "1_Pooling" / "config.json"
        changed = json.loads(pooling.read_text()) | {
            "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True,
        }  # fmt: skip
        pooling.write_text(json.dumps(changed))
    elif kind == "plain":  # as `save_pretrained` writes it
        (folder / "modules.json").unlink()
    vectors = TextEncoder(folder).encode(TEXTS)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden = token_vectors(folder, text)
        expected = hidden[0] if kind == "first token" else hidden.mean(0)
        assert np.allclose(vector, torch.nn.functional.normalize(expected, dim=0).numpy(), atol=1e-5)
    assert np.array_equal(vectors[0], vectors[3])


def test_the_hash_tells_encoders_apart_and_nothing_else(minilm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(minilm, tmp_path / "model"))
    (folder / "README.md").write_text("other words")
    (folder / ".asset.json").unlink()
    assert encoder_hash(folder) == encoder_hash(minilm)
    with (folder / "1_Pooling" / "config.json").open("a") as file:
        file.write(" ")
    assert encoder_hash(folder) != encoder_hash(minilm)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="cannot be opened as a sentence encoder"):
        TextEncoder(tmp_path)


def test_items_without_text_are_refused_by_row(minilm: Path) -> None:
    items = [Item("a", "A title"), Item("b", " ", attributes={"year": 3}), Item("c", "")]
    with pytest.raises(EmbeddingError, match=r"item 'b' \(row 2\) has no text.*\(2 such items\)"):
        TextEncoder(minilm).encode_items(items)
