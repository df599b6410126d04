"""Kills of a writer at every write, sync and rename: `python -m support.kills SCENARIO FOLDER`.

The writer is a fork, for speed. A fork cannot use the OpenMP threads of its parent. Scenarios that need them therefore
run in a process of their own, with one thread.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.bundle.bundle import Bundle, publish
from index.bundle.manifest import BundleError
from index.bundle.update import update_index
from index.catalogue import Item
from support.bundles import item_vectors, make_parts

NEW = [
    Item("new-1", "Silent River Returns", "A story of the river.", ("Drama",), {"year": 2020}),
    Item("new-2", "Ocean of Glass", "", ("Comedy",), {"year": 2021}),
]


def state(path: Path) -> tuple[str, dict[str, str], set[str]]:
    """Return what a reader sees: the version, the title of every item by id, and the ids of removed items."""
    index = Bundle.open(path).index
    titles = {item.item_id: item.title for item in index.catalogue}
    return index.version, titles, {index.catalogue[row].item_id for row in index.removed}


def update(path: Path) -> str:
    return update_index(Bundle.open(path), NEW, ["item-9"], item_vectors).version


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that dies, without any clean-up, at its n-th write, sync or rename.

    It dies before the call, or, if the call writes, also with half of the content written.
    Return False if `work` came to its end first.
    """
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            _die_at(call)
            work()
            os._exit(0)
        except BaseException:
            os._exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 77)
    return status == 77


def _die_at(call: int) -> None:
    done = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == call:
                os._exit(77)
            return function(*args, **kwargs)

        return wrapped

    def halving(write: Callable[..., Any]) -> Callable[..., Any]:
        """Count a write twice: before it begins, and half done."""

        def wrapped(self: Path, content: str | bytes, *args: Any) -> Any:
            nonlocal done
            done += 2
            if done in (call, call + 1):
                if done == call:
                    write(self, content[: len(content) // 2], *args)
                os._exit(77)
            return write(self, content, *args)

        return wrapped

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, counting(getattr(os, name)))
    np.save = counting(np.save)
    Path.write_text = halving(Path.write_text)  # type: ignore[method-assign]
    Path.write_bytes = halving(Path.write_bytes)  # type: ignore[method-assign]


def update_killed(path: Path) -> None:
    """Check that a reader sees the old version or the new one."""
    old = state(path)
    shutil.copytree(path, path.parent / "spare")
    update(path.parent / "spare")
    new = state(path.parent / "spare")
    seen = []
    for call in range(1, 1000):
        fresh = Path(shutil.copytree(path, path.parent / "fresh"))
        bundle = Bundle.open(fresh)
        killed = killed_at(call, lambda b=bundle: update_index(b, NEW, ["item-9"], item_vectors))  # type: ignore[misc]
        seen.append(state(fresh))
        assert seen[-1] in (old, new)
        assert update(fresh) in ("v2", "v3")  # the next update succeeds
        assert state(fresh)[1:] == new[1:]
        shutil.rmtree(fresh)
        if not killed:
            break
    assert len(seen) > 30
    assert seen[0] == old
    assert seen[-1] == new
    assert [each == new for each in seen] == sorted(each == new for each in seen)  # it changes once


def publish_killed(folder: Path) -> None:
    """Check that there is no bundle or the whole one."""
    parts = make_parts(items=20, codebooks=(2, 3))
    for call in range(1, 1000):
        target = folder / f"{call}" / "bundle"
        killed = killed_at(call, lambda t=target: publish(t, **parts))  # type: ignore[misc]
        if target.exists():
            Bundle.open(target)
        elif killed:
            with pytest.raises(BundleError, match="there is no folder"):
                Bundle.open(target)
        if not killed:
            break
        shutil.rmtree(target.parent, ignore_errors=True)
    assert call > 40
    assert target.exists()


if __name__ == "__main__":
    {"update": update_killed, "publish": publish_killed}[sys.argv[1]](Path(sys.argv[2]))
