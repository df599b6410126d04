"""Bundles whose searches write identifiers of their own: published, opened, updated, and refused if parts differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.bundles import item_vectors, make_bundle
from support.damage import current, sign
from support.kills import NEW

from index.bundle.bundle import Bundle
from index.bundle.describe import describe_index
from index.bundle.manifest import BundleError
from index.bundle.sizes import bundle_sizes
from index.bundle.update import update_index
from index.catalogue import Item
from index.sequence.events import Event, Task


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("both") / "bundle", of_each_task=True)


@pytest.fixture
def path(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "bundle"))


def test_each_of_the_two_identifiers_of_an_item_leads_to_it(published: Path) -> None:
    bundle = Bundle.open(published)
    index = bundle.index
    assert bundle.info.format_version == 4
    assert index.tasks == (Task.RECOMMENDATION, Task.SEARCH)
    first = bundle.vocabulary.first_code
    for task in Task:
        trie = index.named(task).trie
        for row in range(60):
            node = np.zeros(1, np.int64)
            for depth, token in enumerate(bundle.encoder.identifier(row, task)):
                _, child, code = trie.expand(depth, node)
                node = child[code == token - first[depth]]
            assert trie.items_of(int(node[0])).tolist() == [row]
    written = [[bundle.encoder.identifier(row, task) for row in range(60)] for task in Task]
    assert all(one[:2] == other[:2] and one != other for one, other in zip(*written, strict=True))


def test_an_event_is_written_with_the_identifier_of_its_behaviour(published: Path) -> None:
    encoder = Bundle.open(published).encoder
    history = [Event(3), Event(5, Task.SEARCH, "river"), Event(7), Event(3, Task.SEARCH, "a")]
    written = [(3, Task.RECOMMENDATION), (5, Task.SEARCH), (7, Task.RECOMMENDATION), (3, Task.SEARCH)]
    sample = encoder.sample(history)
    tokens = sample.ids[sample.level >= 0].reshape(4, 4).tolist()
    assert tokens == [encoder.identifier(row, task) for row, task in written]
    assert encoder.prompt(history).ids[: len(sample.ids)] == sample.ids.tolist()
    for place, (row, task) in enumerate(written):
        pair = encoder.pair(history[:place], history[place], 0)
        assert pair.ids[1:].tolist() == encoder.identifier(row, task)


def test_a_bundle_with_one_identifier_an_item_is_as_it_was(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.info.format_version == 3
    assert bundle.index.named(Task.SEARCH) is bundle.index.named(Task.RECOMMENDATION)  # no second trie
    names = {path.relative_to(tiny_bundle).parts[0] for path in tiny_bundle.rglob("*")}
    assert not {"search_codebooks", "search"} & names
    assert {path.name for path in current(tiny_bundle).iterdir()} == {
        "catalogue", "titles", "trie", "filters", "index.json", "manifest.json",
    }  # fmt: skip


def test_a_new_item_gets_both_identifiers_from_the_codebooks(path: Path) -> None:
    before = Bundle.open(path)
    done = update_index(before, NEW, ["item-3"], item_vectors)
    assert (done.added, done.removed) == (2, 1)
    after = Bundle.open(path)
    for task in Task:
        names = after.index.named(task)
        codes, known = names.trie.codes(), after.codebooks(task)
        assert np.array_equal(codes[:60], before.index.named(task).trie.codes())
        assert known is not None
        assert np.array_equal(codes[60:, :-1], known.quantise(item_vectors(NEW)))
        assert len(np.unique(codes, axis=0)) == 62
        assert (codes < np.array(after.info.codebook_sizes)).all()
        assert names.everything.count == 61
        assert not names.everything.holds(names.trie.slot_of_item[[3]].astype(np.int64))[0]
        assert names.filters.select({"year": {"gte": 2020}}).members.tolist() == sorted(
            names.trie.slot_of_item[60:].tolist()
        )
    update_index(after, [Item("item-3", after.index.catalogue[3].title)], [], item_vectors)
    assert all(names.everything.count == 62 for names in Bundle.open(path).index.every_names)


def test_figures_are_of_one_kind_of_identifiers(published: Path) -> None:
    bundle = Bundle.open(published)
    sizes = bundle.info.codebook_sizes
    found = {task: describe_index(bundle.index, sizes, task=task, examples=0) for task in Task}
    shared, own = (
        zip(*(each.levels[:2] for each in found.values()), strict=True),
        [each.levels[2].used for each in found.values()],
    )
    assert all(one == other for one, other in shared)
    assert sum(own) <= sizes[2]
    parts = bundle_sizes(published)
    assert sum(parts.values()) == sum(f.stat().st_size for f in published.rglob("*") if f.is_file())
    one = sum(f.stat().st_size for f in (current(published) / "trie").iterdir())
    assert parts["trie"] > 1.5 * one


def test_a_bundle_whose_parts_differ_in_their_identifiers_is_refused(path: Path, tmp_path: Path) -> None:
    without = Path(shutil.copytree(path, tmp_path / "without"))
    shutil.rmtree(current(without) / "search")
    sign(without)
    with pytest.raises(BundleError, match="differ in whether searches have identifiers of their own"):
        Bundle.open(without)
    record = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps(record | {"format_version": 3}))
    sign(path)
    with pytest.raises(BundleError, match="differ in whether searches have identifiers of their own"):
        Bundle.open(path)
