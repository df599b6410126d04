"""A training goes on on another number of processes, and its checkpoints are as large as those of one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.sharded_processes import RELAY, made, relay, started
from torch import Tensor

from gems import GemsError, load_sharded, load_weights, save_sharded

CUTS = (0, 2, 6, 8)


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Return the folder of checkpoints of a relay of 4, 2 and 1 processes, and the weights at its end."""
    folder = tmp_path_factory.mktemp("relay")
    started(4, folder / "of4", "-", folder / "a", CUTS[0], CUTS[1])
    started(2, folder / "of2", folder / "a", folder / "b", CUTS[1], CUTS[2])
    return folder, relay(0, 1, folder / "b", folder / "c", range(CUTS[2], CUTS[3]))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.distcp"))


def payload(folder: Path) -> int:
    """The bytes of all tensors, each counted once for every process that wrote it."""
    found = load_sharded(folder)
    return sum(t.numel() * t.element_size() for t in flat(found))


def flat(value: object) -> list[Tensor]:
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return [tensor for part in parts for tensor in flat(part)]
    return [value] if isinstance(value, Tensor) else []


def test_four_two_and_one_are_one(legs: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    _, reached = legs
    alone = relay(0, 1, None, tmp_path, range(CUTS[0], CUTS[3]))
    for name, weight in alone.items():
        assert torch.allclose(weight, reached[name], rtol=0, atol=1e-10), name


def test_more_processes_go_on_where_one_was(legs: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = legs
    alone = relay(0, 1, folder / "c", tmp_path / "alone", range(CUTS[3], CUTS[3] + 2))
    first, *others = started(2, tmp_path / "of2", folder / "c", tmp_path / "d", CUTS[3], CUTS[3] + 2)
    for name, weight in alone.items():
        assert torch.allclose(weight, first[name], rtol=0, atol=1e-10), name
        assert all(torch.equal(first[name], other[name]) for other in others)


def test_the_size_does_not_depend_on_the_processes(legs: tuple[Path, dict[str, Tensor]]) -> None:
    """Each tensor is written once. A piece of one has about 1.2 KB of its own beside its numbers."""
    folder, _ = legs
    assert payload(folder / "a") == payload(folder / "b") == payload(folder / "c")
    pieces = len(flat(load_sharded(folder / "c")))
    for name, world in (("a", 4), ("b", 2), ("c", 1)):
        assert size(folder / name) < payload(folder / name) + 2000 * world * pieces


def test_what_does_not_fit_is_refused(legs: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = legs
    state = load_sharded(folder / "c")
    model, optimizer, _ = made(0, 1, RELAY | {"dtype": torch.float32})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(GemsError, match=r"float64 in the checkpoint, torch\.float32 in the model"):
        load_weights(model, state["model"])
    with pytest.raises(GemsError, match=r"in torch\.float64, not in torch\.float32"):
        optimizer.load_state_dict(state["optimizer"])
    with pytest.raises(GemsError, match="only one of them has"):
        load_weights(model.blocks[0], state["model"])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    shutil.copytree(folder / "a", tmp_path / "broken")
    next((tmp_path / "broken" / "shards").glob("*.distcp")).unlink()
    for wrong in (tmp_path / "broken", tmp_path):
        with pytest.raises(GemsError, match="holds no sharded checkpoint that can be read"):
            load_sharded(wrong)
    with pytest.raises(GemsError, match="could not be written"):
        save_sharded(folder / "c" / "frame.pt", {"model": before})
