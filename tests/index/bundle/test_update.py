"""Updates of the catalogue: versions of the index, published by a pointer, also after kills and damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.bundles import item_vectors, make_bundle
from support.kills import NEW, state
from support.paths import ROOT

from index.bundle.bundle import INDEX, Bundle
from index.bundle.manifest import BundleError
from index.bundle.update import Update, is_another_product, rollback_index, update_index
from index.bundle.versions import Versions
from index.catalogue import CatalogueError, Item
from index.identifiers.identifiers import IdentifierError


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("living") / "bundle", codebooks=(4, 5))


@pytest.fixture
def path(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "bundle"))


def update(path: Path, items: list[Item] = [], removed: list[str] = [], **options: Any) -> Update:  # noqa: B006
    return update_index(Bundle.open(path), items, removed, item_vectors, **options)


def test_new_items_are_named_by_the_codebooks_and_old_ones_stay_as_they_are(path: Path) -> None:
    before = Bundle.open(path)
    assert update(path, NEW) == Update("v2", added=2, changed=0, removed=0)
    after = Bundle.open(path)
    assert [item.item_id for item in after.index.catalogue[60:]] == ["new-1", "new-2"]
    codes = after.index.trie.codes()
    assert np.array_equal(codes[:60], before.index.trie.codes())
    assert len(np.unique(codes, axis=0)) == 62
    assert (codes < np.array(after.info.codebook_sizes)).all()  # tokens that the model has
    codebooks = after.codebooks()
    assert codebooks is not None
    vectors = item_vectors(NEW)
    assert np.array_equal(codes[60:, :-1], codebooks.quantise(vectors))
    assert after.index.filters.select({"year": {"gte": 2020}}).members.tolist() == sorted(
        after.index.trie.slot_of_item[60:].tolist()
    )
    assert before.refreshed().index.version == "v2"


def test_a_removed_item_keeps_its_identifier_and_comes_back_when_it_is_added_again(path: Path) -> None:
    codes = Bundle.open(path).index.trie.codes()
    update(path, removed=["item-3", "item-7", "item-3"])
    index = Bundle.open(path).index
    assert index.removed == (3, 7)
    assert index.living is not None
    assert sorted(index.trie.slot_items[index.living.members].tolist()) == [
        row for row in range(60) if row not in (3, 7)
    ]
    again = f"{index.catalogue[3].title}, back again"
    update(path, [Item("item-3", again)], removed=["item-7"])
    index = Bundle.open(path).index
    assert index.removed == (7,)
    assert index.catalogue[3].title == again
    assert np.array_equal(index.trie.codes(), codes)


def test_another_product_under_a_removed_id_gets_an_identifier_of_its_own(path: Path) -> None:
    before = Bundle.open(path).index
    update(path, removed=["item-3"])
    update(path, [Item("removed-3", "Taken")])
    machine = Item("item-3", "Espresso machine")
    done = update(path, [machine])
    assert (done.added, done.changed, done.removed) == (1, 0, 0)
    index = Bundle.open(path).index
    codes = index.trie.codes()
    assert index.catalogue.row("item-3") == 61
    assert index.catalogue[61] == machine
    assert len(np.unique(codes, axis=0)) == len(codes) == 62
    assert np.array_equal(codes[:60], before.trie.codes())
    assert index.removed == (3,)  # what was learned of it stays with it, and nobody is shown it
    assert index.catalogue[3] == replace(before.catalogue[3], item_id="removed-3'")
    update(path, removed=["item-3"])
    update(path, [machine])  # the same product again
    assert Bundle.open(path).index.catalogue.row("item-3") == 61


@pytest.mark.parametrize(
    ("removed", "added", "another"),
    [
        ("Trail running shoes", "Espresso machine", True),
        ("Trail running shoes", "trail RUNNING shoes, 2026", False),
        ("Trail running shoes", "Running socks", False),  # half of the shorter title
        ("Blue trail running shoes", "Red espresso machine for trail cooking", True),
        ("???", "Espresso machine", False),
    ],
)
def test_half_of_the_words_of_the_shorter_title_make_the_same_product(
    removed: str, added: str, another: bool
) -> None:
    assert is_another_product(Item("a", removed), Item("a", added)) is another


def test_a_changed_item_keeps_its_identifier_and_is_found_by_its_new_attributes(path: Path) -> None:
    codes = Bundle.open(path).index.trie.codes()
    done = update(path, [Item("item-5", "Another title", attributes={"year": 3000})])
    assert done == Update("v2", added=0, changed=1, removed=0)
    index = Bundle.open(path).index
    assert np.array_equal(index.trie.codes(), codes)
    found = index.filters.select({"year": 3000})
    assert index.trie.slot_items[found.members].tolist() == [5]


@pytest.mark.parametrize(
    ("items", "removed", "error", "message"),
    [
        ([NEW[0], NEW[0]], [], CatalogueError, "'new-1' is given twice"),
        ([], ["nobody"], CatalogueError, "'nobody' cannot be removed"),
        ([], ["item-1", "b", "a"], CatalogueError, "'b', 'a' cannot be removed"),
        ([], [f"n{k}" for k in range(50)], CatalogueError, r"'n19', … \(50 in all\) cannot be removed"),
        ([Item("item-1", "x")], ["item-1"], CatalogueError, "'item-1' is to be changed and to be removed"),
        ([Item(f"n{k}", "The same words") for k in range(1000)], [], IdentifierError, "all identifiers near"),
    ],
)
def test_updates_that_cannot_be_are_refused_and_change_nothing(
    path: Path, items: list[Item], removed: list[str], error: type[Exception], message: str
) -> None:
    before = sorted(file for file in path.rglob("*") if file.name != ".lock")
    with pytest.raises(error, match=message):
        update(path, items, removed)
    assert state(path)[0] == "v1"
    assert sorted(file for file in path.rglob("*") if file.name != ".lock") == before


def test_unknown_items_may_be_passed_over_and_half_a_catalogue_is_guarded(path: Path) -> None:
    assert update(path, removed=["nobody", "item-1"], missing_ok=True).removed == 1
    half = [f"item-{k}" for k in range(31)]  # of 59 living ones, item-1 among them
    with pytest.raises(CatalogueError, match="30 of 59 items would be removed"):
        update(path, removed=half, most_removed=0.5)
    assert update(path, removed=half[:-1], most_removed=0.5).removed == 29


def test_a_full_prefix_overflows_to_the_next_nearest_code(path: Path) -> None:
    """Items with one text get the numbers of their prefix first, then those of the neighbouring codes."""
    numbers = Bundle.open(path).info.codebook_sizes[-1]
    update(path, [Item(f"n{k}", "The same words") for k in range(2 * numbers)])
    codes = Bundle.open(path).index.trie.codes()
    assert len(np.unique(codes, axis=0)) == len(codes)
    prefixes = [tuple(row) for row in codes[60:, :-1].tolist()]
    assert len(set(prefixes)) > 1
    assert len({first for first, _ in prefixes}) == 1
    assert prefixes == sorted(prefixes, key=prefixes.index)  # one after the other


def test_atomic_identifiers_cannot_name_new_items_but_can_lose_some(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))  # without codebooks
    with pytest.raises(IdentifierError, match="2 items are new, and this bundle has no codebooks"):
        update(path, NEW)
    update(path, [Item("item-1", "Changed")], ["item-2"])
    assert state(path)[0] == "v2"


def test_versions_can_be_rolled_back_and_old_ones_are_pruned(path: Path) -> None:
    for k in range(4):
        done = update(path, [Item("item-1", f"Title {k}")], keep=3)
    assert done.version == "v5"
    assert done.pruned == ["v2"]
    versions = Versions(path / INDEX)
    assert versions.names() == ["v3", "v4", "v5"]
    versions.point_to("v3")
    assert state(path)[1]["item-1"] == "Title 1"
    with pytest.raises(BundleError, match=r"no index version 'v1'; there are: v3, v4, v5"):
        versions.point_to("v1")
    done = update(path, [Item("item-2", "x")], keep=1)
    assert (done.version, done.pruned) == ("v6", ["v4", "v5"])  # on top of v3, which stays to go back to
    assert versions.names() == ["v3", "v6"]
    assert state(path)[1]["item-1"] == "Title 1"


def test_an_update_that_changes_nothing_publishes_nothing(path: Path) -> None:
    same = list(Bundle.open(path).index.catalogue)[:3]
    assert update(path, same) == Update("v1", 0, 0, 0)
    update(path, removed=["item-4"])
    assert update(path, same, ["item-4", "item-4"]) == Update("v2", 0, 0, 0)


def test_a_damaged_current_version_can_be_rolled_back(path: Path) -> None:
    update(path, NEW)
    (path / INDEX / "v2" / "trie" / "code_0.npy").unlink()
    with pytest.raises(BundleError, match=r"code_0\.npy is missing"):
        Bundle.open(path)
    rollback_index(path, "v1")
    assert state(path)[0] == "v1"
    with pytest.raises(BundleError, match=r"code_0\.npy is missing"):
        rollback_index(path, "v2")
    assert state(path)[0] == "v1"


def test_what_was_half_deleted_is_no_version_and_is_swept(path: Path) -> None:
    half = path / INDEX / ".v1.gone"
    (half / "trie").mkdir(parents=True)
    update(path, NEW)
    assert Versions(path / INDEX).names() == ["v1", "v2"]
    assert not half.exists()


def test_two_updates_at_once_are_refused(path: Path) -> None:
    with Versions(path / INDEX).locked(), pytest.raises(BundleError, match="another update is at work"):
        update(path, NEW)


def test_a_version_of_another_bundle_is_refused(path: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", items=40, codebooks=(4, 5))
    shutil.rmtree(path / INDEX)
    shutil.copytree(other / INDEX, path / INDEX)
    with pytest.raises(BundleError, match="belongs to another bundle"):
        Bundle.open(path)
    with pytest.raises(BundleError, match="belongs to another bundle"):
        rollback_index(path, "v1")


def alone(scenario: str, folder: Path) -> None:
    """Run a scenario of `support.kills` in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "support.kills", scenario, str(folder)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Yield a new folder in memory where there is such: thousands of syncs of a disk would take minutes."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_killed_at_any_moment_of_an_update_a_reader_sees_the_old_or_the_new_version(
    published: Path, in_memory: Path
) -> None:
    alone("update", Path(shutil.copytree(published, in_memory / "bundle")))


def test_killed_at_any_moment_of_a_publish_there_is_no_bundle_or_the_whole_one(in_memory: Path) -> None:
    alone("publish", in_memory)


def check_damage(bundle: Path, count: int, seed: int) -> None:
    """Flip a bit or cut the end of any file: it is refused, and the message names it or a file that it lists."""
    rng = np.random.default_rng(seed)
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    for _ in range(count):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        if rng.random() < 0.5:
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        else:
            damaged = bytearray(whole[: rng.integers(len(whole))])
        file.write_bytes(damaged)
        named = str(file.parent) if file.name in ("manifest.json", "current.json") else str(file)
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle)
        assert named in str(caught.value)
        file.write_bytes(whole)
    Bundle.open(bundle)


def test_random_damage_is_refused_by_name(path: Path) -> None:
    update(path, NEW)
    for version in Versions(path / INDEX).names()[:-1]:  # nobody reads those
        shutil.rmtree(path / INDEX / version)
    (path / INDEX / ".lock").unlink()
    check_damage(path, 100, seed=0)


@pytest.mark.slow
def test_a_thousand_random_damages_are_refused_by_name(path: Path) -> None:
    check_damage(path, 1000, seed=1)


def test_new_items_and_changed_texts_get_dense_rows(tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", pool=True, atomic=True))
    before = bundle.index.pool.dense  # type: ignore[union-attr]
    assert before is not None
    old = bundle.index.catalogue
    renamed, dearer = replace(old[4], title="Quiet Ocean"), replace(old[9], attributes={"year": 2001})
    new = [Item("new", "Silent Ocean")]
    asked: list[Item] = []

    def embed(items: Sequence[Item]) -> NDArray[np.float32]:
        asked.extend(items)
        return item_vectors(items)

    from_texts = replace(bundle, info=replace(bundle.info, item_encoder="minilm"))
    update_index(from_texts, [renamed, dearer, *new], [], embed)
    dense = Bundle.open(bundle.path).index.pool.dense  # type: ignore[union-attr]
    assert dense is not None
    assert asked == [renamed, *new]  # the text of the other one did not change
    rows = dense.head.rows(item_vectors([renamed, *new]))
    np.testing.assert_array_equal(dense.rows[[4, 60]], rows)
    np.testing.assert_array_equal(np.delete(dense.rows, [4, 60], 0), np.delete(before.rows, 4, 0))
    with pytest.raises(BundleError, match="vectors of 3 dimensions"):
        update_index(
            bundle, [Item("newer", "Lost Ocean")], [], lambda items: np.ones((len(items), 3), np.float32)
        )
