"""Atomic writes: a reader finds the old content or the new one, even if the writer is killed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.kills import killed_at

from index.bundle.manifest import sha256_of
from index.files import atomic_folder, atomic_write, read_array, sync
from index.records import read_json

CONTENT = st.binary(min_size=2, max_size=40)
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(
    path: Path, content: bytes, single_writer: bool = False, then: Callable[[], object] | None = None
) -> None:
    with atomic_write(path, single_writer=single_writer) as draft:
        draft.write_bytes(content)
        if then:
            then()


def fill(
    path: Path,
    content: bytes,
    single_writer: bool = False,
    replace: bool = False,
    then: Callable[[], object] | None = None,
) -> None:
    with atomic_folder(path, single_writer=single_writer, replace=replace) as draft:
        (draft / "first").write_bytes(content)
        (draft / "inner").mkdir()
        (draft / "inner" / "second").write_bytes(content + content)
        if then:
            then()


def read(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is no file."""
    return path.read_bytes() if path.exists() else None


def read_folder(path: Path) -> dict[str, bytes] | None:
    """Return the content of every file by its path, or None if there is no folder."""
    if not path.exists():
        return None
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def kills(work: Callable[[], object]) -> Iterator[int]:
    """Kill `work` at its first write, sync or rename, then at its second, and so on until it ends unharmed."""
    call = 1
    while killed_at(call, work):
        yield call
        call += 1
    yield call


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Record the names of the paths that are synced and renamed, in order."""
    calls: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", record_fsync)
        patch.setattr(os, "rename", lambda a, b: calls.append(("rename", Path(b).name)) or rename(a, b))  # type: ignore[func-returns-value]
        patch.setattr(os, "replace", lambda a, b: calls.append(("rename", Path(b).name)) or replace(a, b))  # type: ignore[func-returns-value]
        yield calls


@FEW
@given(old=st.none() | CONTENT, new=CONTENT, single_writer=st.booleans())
def test_a_killed_write_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, old: bytes | None, new: bytes, single_writer: bool
) -> None:
    folder = tmp_path / "kills"
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / "file"
    folder.mkdir()

    def work() -> None:
        write(path, new, single_writer)

    if old is not None:
        path.write_bytes(old)
    seen = []
    for _ in kills(work):
        seen.append(read(path))
        assert seen[-1] in (old, new)
        write(path, new, single_writer)  # the next write succeeds
        assert read(path) == new
        if single_writer:
            # it also removes the draft of the killed write
            assert [file.name for file in folder.iterdir()] == ["file"]
        path.unlink()
        if old is not None:
            path.write_bytes(old)
    # killed before the write, half written, at the sync, at the rename, at the folder's sync; then not killed
    assert len(seen) == 6
    assert seen[0] == old
    assert seen[-1] == new
    changed = [content == new for content in seen]
    assert changed == sorted(changed)  # it changes once


@FEW
@given(old=st.none() | CONTENT, new=CONTENT)
def test_a_killed_folder_is_the_old_one_or_the_new_one(tmp_path: Path, old: bytes | None, new: bytes) -> None:
    parent = tmp_path / "kills"
    shutil.rmtree(parent, ignore_errors=True)
    path = parent / "folder"
    parent.mkdir()

    def work() -> None:
        fill(path, new, single_writer=True, replace=True)

    def whole(content: bytes) -> dict[str, bytes]:
        return {"first": content, "inner/second": content + content}

    if old is not None:
        fill(path, old)
    lost = 0
    seen = []
    for _ in kills(work):
        seen.append(read_folder(path))
        if old is not None and seen[-1] is None:  # between the two renames: the old folder is kept
            assert read_folder(parent / ".folder.old.draft") == whole(old)
            lost += 1
        else:
            assert seen[-1] in (old if old is None else whole(old), whole(new))
        work()
        assert read_folder(path) == whole(new)
        assert [file.name for file in parent.iterdir()] == ["folder"]
        shutil.rmtree(path)
        if old is not None:
            fill(path, old)
    assert len(seen) >= 9
    assert lost == (old is not None)
    assert seen[-1] == whole(new)


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("step", ["in the block", "fsync", "replace"])
def test_an_exception_removes_the_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], step: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    write(tmp_path / "file", b"old")
    if step != "in the block":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(error):
        write(tmp_path / "file", b"new", then=fail if step == "in the block" else None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read(tmp_path / "file") == b"old"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["in the block", "fsync", "first rename", "second rename"])
def test_an_exception_removes_the_draft_folder_and_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], step: str
) -> None:
    fill(tmp_path / "folder", b"old")
    renames = 0
    rename = os.rename

    def fail(*_: object) -> None:
        raise error

    def counted(source: str, target: str) -> None:
        nonlocal renames
        renames += 1
        if renames == (1 if step == "first rename" else 2):
            fail()
        rename(source, target)

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", fail)
        elif step != "in the block":
            patch.setattr(os, "rename", counted)
        with pytest.raises(error):
            fill(tmp_path / "folder", b"new", replace=True, then=fail if step == "in the block" else None)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert read_folder(tmp_path / "folder") == {"first": b"old", "inner/second": b"oldold"}


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as calls:
        write(tmp_path / "file", b"content", single_writer=True)
    assert calls == [("fsync", ".file.draft"), ("rename", "file"), ("fsync", tmp_path.name)]


def test_all_of_a_folder_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as calls:
        fill(tmp_path / "folder", b"content", single_writer=True)
    synced = {name for call, name in calls[:-2] if call == "fsync"}
    assert synced == {"first", "inner", "second", ".folder.draft"}
    assert calls[-2:] == [("rename", "folder"), ("fsync", tmp_path.name)]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        (tmp_path / "plain").write_bytes(b"")
        (tmp_path / "plain folder").mkdir()
        write(tmp_path / "file", b"new")
        fill(tmp_path / "folder", b"new")
        with atomic_write(tmp_path / "tensors") as draft:
            save_file({"a": torch.zeros(2)}, draft)  # replaces the draft by a file with mode 0600
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "file").stat().st_mode == expected
    assert (tmp_path / "tensors").stat().st_mode == expected
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain folder").stat().st_mode


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    path.chmod(0o640)
    write(path, b"new")
    assert path.stat().st_mode & 0o7777 == 0o640


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "there" / "file", b"old")
    fill(tmp_path / "there" / "folder", b"old")
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(Path("there") / name)
    write(tmp_path / "file", b"new")
    fill(tmp_path / "folder", b"new", replace=True)
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "folder").is_symlink()
    assert read(tmp_path / "there" / "file") == b"new"
    assert (tmp_path / "there" / "folder" / "first").read_bytes() == b"new"


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    """Every reader finds the whole content of one of the writers."""
    path = tmp_path / "file"
    contents = [bytes([letter]) * 50_000 for letter in b"abcd"]
    write(path, contents[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def watch() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    def repeat(content: bytes) -> None:
        for _ in range(10):
            write(path, content)

    reader = threading.Thread(target=watch)
    writers = [threading.Thread(target=repeat, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert set(seen) <= set(contents)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_operating_system_errors_reach_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder", b"new")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "below", b"new")
    with pytest.raises(OSError, match="folder"):
        fill(tmp_path / "folder", b"new")  # it is not empty
    with pytest.raises(NotADirectoryError):
        fill(tmp_path / "file", b"new")
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "file", b"new")
    fill(tmp_path / "c" / "d" / "folder", b"new")
    assert read(tmp_path / "a" / "b" / "file") == b"new"
    assert (tmp_path / "c" / "d" / "folder" / "first").exists()


def test_an_array_is_read_into_memory_and_anything_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(3))
    array = read_array(path, np.int32, np.int64)
    os.truncate(path, 0)  # under a map, the next look would end the process
    assert array.tolist() == [0, 1, 2]
    (tmp_path / "other.npy").write_bytes(b"no array")
    np.save(tmp_path / "table.npy", np.ones((2, 2), np.int64))
    np.save(tmp_path / "floats.npy", np.ones(2))
    (tmp_path / "empty.npy").touch()
    for name in ("array.npy", "other.npy", "empty.npy", "missing.npy", "table.npy", "floats.npy"):
        with pytest.raises(ValueError, match=name):
            read_array(tmp_path / name, np.int32, np.int64)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (read_json, sha256_of, lambda path: read_array(path, np.int64)):
        with pytest.raises(ValueError, match="is not a file"):
            read(pipe)
