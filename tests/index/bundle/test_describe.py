"""The report on identifiers against counts by hand, and the size report against the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.bundles import item_vectors, make_bundle
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from index.bundle.describe import describe_index
from index.bundle.item_index import ItemIndex
from index.bundle.sizes import bundle_sizes
from index.bundle.update import update_index
from index.catalogue import Catalogue, CatalogueError, Item
from training.cli.app import app


def test_figures_of_identifiers_are_those_counted_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [0, 1], [2, 0], [2, 3], [2, 3], [2, 3], [2, 3]])
    labels = ["a", "b", "b", "a", "c", "c", "c", "d"]
    items = [Item(f"{k}", f"Item {k}", categories=(label,)) for k, label in enumerate(labels)]
    found = describe_index(ItemIndex.build("b", "v1", "", Catalogue(items), codes), (4, 5), examples=9)
    first, second = found.levels
    assert (first.codebook, first.used, first.largest) == (4, 2, 5)
    share = np.array([3, 5]) / 8
    assert first.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert (second.used, second.largest) == (3, 4)
    assert found.collisions == 6
    assert [(each.count, each.largest, each.shared) for each in found.prefixes] == [(2, 5, 8), (4, 4, 6)]

    def purity(groups: list[list[str]]) -> float:
        """Return the probability of a common label: a prefix by size, then two of its items."""
        total = sum(map(len, groups))
        return sum(
            len(group) / total * sum(a == b for k, a in enumerate(group) for b in group[:k])
            / (len(group) * (len(group) - 1) / 2)
            for group in groups
        )  # fmt: skip

    assert found.prefixes[0].purity == pytest.approx(purity([labels[:3], labels[3:]]), abs=0.02)
    assert found.prefixes[1].purity == pytest.approx(purity([labels[1:3], labels[4:]]), abs=0.02)
    assert found.chance == pytest.approx(purity([labels]), abs=0.02)
    assert sorted(found.examples) == [["Item 0", "Item 1", "Item 2"], [f"Item {k}" for k in range(3, 8)]]


def test_the_size_report_is_the_whole_bundle(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5))

    def on_disk(pattern: str) -> int:
        return sum(file.stat().st_size for file in path.glob(pattern) if file.is_file())

    update_index(Bundle.open(path), [Item("new", "Golden River", "", ("Drama",))], [], item_vectors)
    sizes = bundle_sizes(path)
    assert sum(sizes.values()) == on_disk("**/*")
    assert sizes["weights"] == on_disk("model.safetensors")
    assert sizes["codebooks"] == on_disk("codebooks/*") > 0
    for part in ("catalogue", "trie", "filters"):
        assert sizes[part] == on_disk(f"index/v2/{part}/**/*") > 0
    assert sizes["other index versions"] == on_disk("index/v1/**/*")


def test_the_reports_are_printed_and_written(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5))
    shown = CliRunner().invoke(app, ["index", "describe", str(path), "--json", str(tmp_path / "f.json")])
    assert shown.exit_code == 0
    assert "perplexity" in shown.output
    assert json.loads((tmp_path / "f.json").read_text())["items"] == 60
    shown = CliRunner().invoke(app, ["bundle", "verify", str(path)])
    assert shown.exit_code == 0
    for part in bundle_sizes(path):
        assert part in shown.output


def test_two_items_with_one_id_are_refused_by_row() -> None:
    with pytest.raises(CatalogueError, match=r"item_id 'a' names two items \(rows 1 and 3\)"):
        Catalogue([Item("a", "x"), Item("b", "y"), Item("a", "z")])
