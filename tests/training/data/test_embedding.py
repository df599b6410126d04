"""An embedding that is stopped goes on where it was, to the same vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from support.walks import make_data, settings

from index.catalogue import Catalogue, Item
from index.embeddings import TextEncoder
from training.data import assets
from training.data.dataset import DataSet
from training.data.embedding import PART, embed_items, embedding_folder
from training.data.item_vectors import MINILM
from training.pipeline import train

QUIET = Console(quiet=True)
SHORT: dict[str, Any] = {"optimiser.epochs": 1, "validation": {"conflict_cases": 0, "cases": 10}}


class StoppedError(Exception):
    """The encoder was stopped."""


class Stopping:
    """An encoder that is stopped after some parts; `asked` counts them."""

    dimensions = 4

    def __init__(self, after: int | None = None) -> None:
        self.after, self.asked = after, 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.asked == self.after:
            raise StoppedError
        self.asked += 1
        return np.array([[len(text), ord(text[-1]), hash(text) % 997, 1] for text in texts], np.float32)


def catalogue(count: int) -> Catalogue:
    return Catalogue(Item(f"i{k}", "word " * (k % 7) + f"title {k}") for k in range(count))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_embedding_goes_on_with_the_next_part(tmp_path: Path, after: int) -> None:
    items = catalogue(4 * PART + 10)
    whole = embed_items(Stopping(), items, QUIET)  # type: ignore[arg-type]
    kept = tmp_path / "embedding"
    with pytest.raises(StoppedError):
        embed_items(Stopping(after), items, QUIET, kept)  # type: ignore[arg-type]
    later = Stopping()
    assert np.array_equal(embed_items(later, items, QUIET, kept), whole)  # type: ignore[arg-type]
    assert later.asked == 5 - after
    done = Stopping()
    assert np.array_equal(embed_items(done, items, QUIET, kept), whole)  # type: ignore[arg-type]
    assert done.asked == 0


@pytest.mark.parametrize("damage", ["vectors.npy", "done.txt"])
def test_what_is_damaged_begins_again(tmp_path: Path, damage: str) -> None:
    items, kept = catalogue(2 * PART), tmp_path / "embedding"
    embed_items(Stopping(), items, QUIET, kept)  # type: ignore[arg-type]
    (kept / damage).write_bytes(b"?")
    again = Stopping()
    embed_items(again, items, QUIET, kept)  # type: ignore[arg-type]
    assert again.asked == 2


def test_other_texts_or_another_encoder_have_another_folder(tmp_path: Path) -> None:
    folders = {
        embedding_folder(tmp_path / "prepared", encoder, texts)
        for encoder in ("a", "b")
        for texts in (["x", "y"], ["x", "z"])
    }
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path}


def test_a_run_that_was_killed_while_it_embedded_goes_on_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = make_data(tmp_path / "data", users=60), tmp_path / "run"
    monkeypatch.setattr("training.data.embedding.PART", 10)
    encode, asked = TextEncoder.encode, []

    def stopping(self: TextEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        asked.append(len(texts))
        if len(asked) == 2:
            raise StoppedError
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", stopping)
    with pytest.raises(StoppedError):
        train(data, run, settings(SHORT), console=QUIET)
    assert len(list(run.glob("embedding-*"))) == 1
    assert train(data, run, settings(SHORT), resume=True, console=QUIET)
    assert len(asked) == 4  # three parts, one of them twice
    assert not list(run.glob("embedding-*"))
    vectors = np.load(run / "prepared" / "item_vectors.npy")
    encoder = TextEncoder(assets.fetch(MINILM))
    assert np.allclose(vectors, encode(encoder, DataSet.load(data).catalogue.texts()), atol=1e-5)
