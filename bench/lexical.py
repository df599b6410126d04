"""`python -m bench.lexical --json F`: the lexical index on synthetic catalogues.

Words are Zipf-distributed letter sequences. An item has a title of 8 words and a description of 32, and a code. Queries
are one to four neighbouring words of random titles; `mistyped` has another letter in the last word, so that no item
has it. `filtered` allows a random 1% of the items. All times are CPU times of one thread: other processes count little.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from index.catalogue import Catalogue, Item
from index.pool.lexical import LexicalIndex
from index.pool.match import top
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from index.words import terms
from training.cli.common.command import run_command
from training.cli.common.numbers import Seed, whole_numbers
from training.cli.common.paths import JsonFile
from training.outputs import write_json
from training.settings import MOST, MOST_BEAMS

TITLE, DESCRIPTION = 8, 32  # words
QUERIES = 200
CHUNK = 10_000  # items that are drawn at once
SHARE = 0.01
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def main(
    json_file: JsonFile = None,
    items: Annotated[str, typer.Option(help="sizes of the catalogue")] = "10000,1000000",
    vocabulary: Annotated[int, typer.Option(min=100, max=MOST, help="distinct words")] = 300_000,
    limit: Annotated[int, typer.Option(min=1, max=MOST_BEAMS, help="items of the pool")] = 200,
    seed: Seed = 0,
) -> None:
    figures = {str(size): _measure(size, vocabulary, limit, seed) for size in whole_numbers(items, 1000)}
    Console().print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


def _measure(size: int, vocabulary: int, limit: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    figures: dict[str, Any] = {"items": size, "vocabulary": vocabulary, "limit": limit}
    popularity = np.log1p(rng.zipf(1.5, size).clip(max=1e6))
    trie = Trie.build(rng.integers(0, 256, (size, 4)))
    allowed = {"all": Allowed.of(trie), "filtered": Allowed.of(trie, SlotSet.of(rng.random(size) < SHARE))}
    with tempfile.TemporaryDirectory() as folder:
        queries = _build(rng, Path(folder), vocabulary, figures)
        figures["open_ms"] = _spread([partial(LexicalIndex.open, Path(folder))])["median"]
        index = LexicalIndex.open(Path(folder))  # memory-mapped, as in the server
        figures["match_ms"] = _spread([partial(index.match, query) for query in queries])
        mistyped = [error for query in queries if (error := _mistyped(rng, query, index))]
        figures["mistyped_match_ms"] = _spread([partial(index.match, query) for query in mistyped])
        for name, some in allowed.items():
            matches = map(index.match, queries[:: QUERIES // 20])
            figures[f"top_{name}_ms"] = _spread(
                [partial(top, match, some, limit, popularity) for match in matches]
            )
    return figures


def _build(rng: np.random.Generator, folder: Path, vocabulary: int, figures: dict[str, Any]) -> list[str]:
    """Store an index in `folder`, add figures about it, and return queries."""
    LexicalIndex.build(Catalogue([Item("1", "loads what building needs")]))
    catalogue = Catalogue(draw_items(rng, figures["items"], vocabulary))
    start = time.process_time()
    figures["terms_of_an_item"] = sum(len(terms(item.text())) for item in catalogue) / len(catalogue)
    figures["terms_seconds"] = time.process_time() - start
    start = time.process_time()
    built = LexicalIndex.build(catalogue, ["sku"])
    figures["build_seconds"] = time.process_time() - start
    figures["distinct_terms"] = len(built.lexicon)
    figures["bytes_per_item"] = built.nbytes / len(catalogue)
    built.save(folder)
    return [draw_query(rng, catalogue[int(row)]) for row in rng.integers(0, len(catalogue), QUERIES)]


def draw_items(rng: np.random.Generator, size: int, vocabulary: int) -> Iterator[Item]:
    """Draw items of Zipf-distributed words. vocabulary: number of distinct words."""
    words = _words(rng, vocabulary)
    for start in range(0, size, CHUNK):
        drawn = words[_zipf(rng, vocabulary, (min(CHUNK, size - start), TITLE + DESCRIPTION))].tolist()
        for row, some in enumerate(drawn, start):
            title, description = " ".join(some[:TITLE]).title(), " ".join(some[TITLE:])
            sku = f"AB-{row}/{row % 7}"
            yield Item(f"item-{row}", title, f"{description}. {row % 1000} ml", attributes={"sku": sku})


def _words(rng: np.random.Generator, count: int) -> NDArray[np.str_]:
    """Return distinct words of 3 to 12 letters, the most frequent ones first and shorter."""
    found: dict[str, None] = {}
    while len(found) < count:
        length = min(12, 3 + len(found).bit_length() // 3 + int(rng.integers(0, 4)))
        found["".join(rng.choice(LETTERS, length))] = None
    return np.array(list(found))


def _zipf(rng: np.random.Generator, vocabulary: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Draw places of words with probability ∝ 1 / (place + 1)."""
    places: NDArray[np.int64] = np.exp(rng.random(shape) * np.log(vocabulary)).astype(np.int64) - 1
    return np.minimum(places, vocabulary - 1)


def draw_query(rng: np.random.Generator, item: Item) -> str:
    """Draw one to four neighbouring words of the title of such an item."""
    words = item.title.split()
    first, length = int(rng.integers(0, TITLE - 3)), int(rng.integers(1, 5))
    return " ".join(words[first : first + length])


def _mistyped(rng: np.random.Generator, query: str, index: LexicalIndex) -> str | None:
    """Return the query with another letter near its end, so that no item has the word; None if that is hard."""
    for _ in range(20):
        letters = list(query)
        letters[-int(rng.integers(1, 4))] = str(rng.choice(LETTERS))
        if index.lexicon.find("".join(letters).lower().split()[-1]) is None:
            return "".join(letters)
    return None


def _spread(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """Return the median and the 95th percentile of the milliseconds of some calls, each the better of two."""
    times = []
    for call in calls:
        taken = []
        for _ in range(2):
            start = time.process_time()
            call()
            taken.append(1000 * (time.process_time() - start))
        times.append(min(taken))
    return {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95))}


if __name__ == "__main__":
    run_command(main, "bench.lexical")
