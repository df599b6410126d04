"""`fetch` with the real rclone, from a folder and over HTTP from a server. Without rclone this is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT
from support.servers import wait_until

from index.bundle.bundle import Bundle
from index.bundle.fetch import RCLONE, fetch
from index.bundle.manifest import MANIFEST, BundleError

pytestmark = pytest.mark.skipif(shutil.which(RCLONE) is None, reason="rclone is not installed")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture
def sha256(tiny_bundle: Path) -> str:
    return Bundle.open(tiny_bundle).sha256()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "current"


@pytest.fixture
def remote(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The copy behind a WebDAV server, as rclone names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RCLONE_WEBDAV_URL", f"http://{address}")
    monkeypatch.setenv("RCLONE_CONFIG", "notfound")
    server = subprocess.Popen([RCLONE, "serve", "webdav", "--addr", address, str(copy.parent)])
    try:
        list_it = [RCLONE, "lsf", ":webdav:copy"]
        wait_until(lambda: subprocess.run(list_it, capture_output=True).returncode == 0)
        yield ":webdav:copy"
    finally:
        server.terminate()
        server.wait(20)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


def test_a_bundle_comes_over_the_network_and_once(remote: str, copy: Path, out: Path, sha256: str) -> None:
    assert fetch(remote, out, sha256)
    assert files(out) == files(copy)
    assert beside(out) == ["current"]
    moment = out.stat().st_ino
    assert not fetch("remote:that/is/not/asked", out, sha256)
    assert out.stat().st_ino == moment


def test_another_bundle_is_refused_and_leaves_nothing(copy: Path, out: Path, sha256: str) -> None:
    with pytest.raises(BundleError, match=f"another bundle: its SHA-256 is {sha256}, and not {'0' * 64}"):
        fetch(str(copy), out, "0" * 64)
    assert beside(out) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", MANIFEST])
def test_a_damaged_file_is_refused_and_comes_again_when_the_source_is_mended(
    copy: Path, out: Path, sha256: str, name: str
) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError):
        fetch(str(copy), out, sha256)
    assert beside(out) == []
    (copy / name).write_bytes(whole)
    assert fetch(str(copy), out, sha256)
    assert files(out) == files(copy)


def test_a_damaged_bundle_that_is_there_is_replaced(copy: Path, out: Path, sha256: str) -> None:
    shutil.copytree(copy, out)
    (out / "model.safetensors").write_bytes(b"")
    assert fetch(str(copy), out, sha256)
    assert files(out) == files(copy)
    assert beside(out) == ["current"]


def test_what_is_no_bundle_is_not_replaced(copy: Path, out: Path, sha256: str) -> None:
    out.mkdir(parents=True)
    (out / "letter.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not replaced"):
        fetch(str(copy), out, sha256)
    assert beside(out) == ["current"]
    (out / "letter.txt").unlink()
    assert fetch(str(copy), out, sha256)  # an empty folder may be


def test_mistakes_are_told_at_once(copy: Path, out: Path, sha256: str) -> None:
    for arguments, said in (
        ((str(copy), out, "latest"), "no SHA-256"),
        ((str(copy), out, sha256, "rclone-that-is-not-there"), "install rclone"),
        ((str(copy.parent / "missing"), out, sha256), "could not copy"),
    ):
        with pytest.raises(BundleError, match=said):
            fetch(*arguments)
        assert not out.exists()


def test_a_killed_copy_leaves_no_bundle_and_goes_on(remote: str, copy: Path, out: Path, sha256: str) -> None:
    """The pipes of the network are narrow; the process and its rclone are killed when the first file is there."""
    command = [
        sys.executable,
        "-m",
        "training.cli.main",
        "bundle",
        "fetch",
        remote,
        str(out),
        "--sha256",
        sha256,
    ]
    slow = os.environ | {"RCLONE_BWLIMIT": "20k", "RCLONE_TRANSFERS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=slow, start_new_session=True)
    download = out.with_name(".current.download")
    wait_until(lambda: download.exists() and any(path.is_file() for path in download.rglob("*")), 40)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert beside(out) == [".current.download"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{out}: copied and checked, {sha256}" in again.stdout
    assert files(out) == files(copy)
    assert beside(out) == ["current"]
