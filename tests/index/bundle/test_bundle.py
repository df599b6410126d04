"""The bundle on disk: whole, undamaged and without pickles, or not there at all."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import make_bundle, make_catalogue, make_identifiers
from support.paths import ROOT

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_round_trip(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    identifiers = make_identifiers(60)
    assert np.array_equal(bundle.index.trie.codes(), identifiers.codes)
    assert bundle.vocabulary.codebook_sizes == identifiers.codebook_sizes
    assert list(bundle.index.catalogue) == list(make_catalogue(60))
    assert bundle.info.bundle_id == "tiny-llama-60"
    assert len(bundle.tokenizer) == bundle.vocabulary.size


def test_every_code_is_one_token_of_the_stored_tokenizer(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    names = bundle.vocabulary.token_names()
    ids = bundle.tokenizer.convert_tokens_to_ids(names)
    assert ids == list(range(bundle.info.first_added_token, bundle.vocabulary.size))


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", arch="gpt-neox", seed=7)
    first = Bundle.open(path).load_model()
    again = Bundle.open(make_bundle(tmp_path / "again", arch="gpt-neox", seed=7)).load_model()
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_damage_in_any_file_is_refused_by_its_name(copy: Path) -> None:
    for path in files(copy):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=f"{path.name} is damaged"):
                Bundle.open(copy)
        path.write_bytes(whole[:-1])
        with pytest.raises(BundleError, match=f"{path.name} is damaged"):
            Bundle.open(copy)
        path.write_bytes(whole)
    Bundle.open(copy)  # mended


def test_damaged_manifest_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            Bundle.open(copy)
    for content in (b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"config.json": 1}}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
            Bundle.open(copy)


def test_missing_and_unlisted_files_are_refused_by_name(copy: Path) -> None:
    for path in files(copy):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleError, match=path.name):
            Bundle.open(copy)
        path.write_bytes(content)
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"pytorch_model\.bin is not listed"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no folder"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match="holds no manifest"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format_version", 99, "format version 99"),
        ("normalisation", "none", "unknown normalisation"),
        ("bundle_id", None, "lacks bundle_id"),
        ("codebook_sizes", [4, 5], "does not hold the identifier tokens"),
        ("first_added_token", 7, "does not hold the identifier tokens"),
        ("max_tokens", 20, "max_tokens=20"),
        ("max_events", 10**9, "max_events must be a whole number from 1 to 256"),
        ("max_tokens", 257, "exceeds the model's context of 256"),
    ],
)
def test_bundle_that_describes_itself_wrongly_is_refused(
    copy: Path, field: str, value: object, reason: str
) -> None:
    record = json.loads((copy / "bundle.json").read_text())
    if value is None:
        del record[field]
    else:
        record[field] = value
    rewrite(copy, "bundle.json", json.dumps(record).encode())
    with pytest.raises(BundleError, match=reason):
        Bundle.open(copy)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its line of the manifest: damage that only the content shows."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_existing_target_is_kept(copy: Path) -> None:
    before = {path: path.read_bytes() for path in files(copy)}
    with pytest.raises(BundleError, match="exists already"):
        make_bundle(copy)
    assert {path: path.read_bytes() for path in files(copy)} == before


def test_parts_that_do_not_fit_leave_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("support.bundles.make_identifiers", lambda n: make_identifiers(n - 1))
    with pytest.raises(BundleError, match="59 identifiers for 60 items"):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """Limit the size of files: writes fail early, midway or late, as on a full disk."""
    program = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from index.bundle.manifest import BundleError
from support.bundles import make_bundle
for limit in (100, 5_000, 20_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        make_bundle(Path({str(tmp_path)!r}) / "bundle")
    except BundleError as error:
        print(limit, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing was left behind: ") == 4
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="was not published"):
        make_bundle(tmp_path / "file" / "bundle")


def test_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_is_written_or_read(tiny_bundle: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Bundle.open(tiny_bundle).load_model()
    kinds = {path.suffix for path in files(tiny_bundle)}
    assert kinds == {".json", ".jsonl", ".npy", ".safetensors"}


def test_generation_config_is_not_inherited(tiny_bundle: Path) -> None:
    assert not (tiny_bundle / "generation_config.json").exists()


def test_other_users_may_read_it(tiny_bundle: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in files(tiny_bundle)} == {0o644}
