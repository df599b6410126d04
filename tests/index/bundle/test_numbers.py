"""Bundles that are whole by their hashes and absurd by their numbers: refused at once, or no different."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from support.bundles import make_bundle
from support.damage import DEEP, WRONG_NUMBERS, Place, current, numbers, replaced, sign

from index.bundle.bundle import Bundle
from index.bundle.consistency import drop_code
from index.bundle.manifest import BundleError
from index.identifiers.codebooks import FILE as CODEBOOKS_FILE
from index.popularity import Popularity
from index.sequence.events import Event
from server.engine.contract import EngineError, RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.engine.waiting import warmed_up

# Another number is as good here: it is another row, or nobody but the model's maker can say what it should be.
FREE = {"removed", "rope_theta", "rms_norm_eps"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with codebooks, a removed item in its index, and figures of its training."""
    path = make_bundle(tmp_path_factory.mktemp("whole") / "bundle", codebooks=(4, 5))
    record = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps(record | {"training": {"conflict": 0.5, "seconds": 3}}))
    index = json.loads((current(path) / "index.json").read_text())
    (current(path) / "index.json").write_text(json.dumps(index | {"removed": [3, 7]}))
    sign(path)
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def use(path: Path) -> list[tuple[list[int], list[float]]]:
    """Open a bundle like a server and its engine, and return rankings. Refusals are the only errors allowed."""
    bundle = Bundle.open(path)
    counts = bundle.popularity()
    assert counts is not None
    popularity = Popularity.of(counts, len(bundle.index.catalogue))
    assert np.isfinite(popularity.scores).all()
    bundle.codebooks()
    for name in bundle.index.filters.names:
        bundle.index.filters.select({name: 1970})
    try:
        engine = TorchEngine.open(bundle)
        longest = bundle.encoder.prompt([Event(k % 60) for k in range(bundle.info.max_events)])
        searched = bundle.encoder.prompt([], "golden river")
        rankings = engine.rank([RankRequest(each.ids, 10, 20) for each in (longest, searched)])
        warmed_up(rankings)
    except EngineError as error:
        raise BundleError(f"{path}: {error}") from error
    return [(each.items, np.round(each.scores, 3).tolist()) for each in rankings]


def json_files(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*.json"))


def places(bundle: Path) -> Iterator[tuple[str, Place]]:
    for name in json_files(bundle):
        yield from ((name, place) for place in numbers(json.loads((bundle / name).read_text("utf-8"))))


def test_every_number_of_every_json_file(whole: Path, copy: Path) -> None:
    """Each is replaced by each absurd value. Then the bundle is refused, or gives the same answers."""
    expected = use(copy)
    tried, refused = 0, 0
    for name, place in places(whole):
        content = json.loads((whole / name).read_text("utf-8"))
        for value in WRONG_NUMBERS:
            (copy / name).write_text(json.dumps(replaced(content, place, value)), "utf-8")
            if "manifest.json" not in name:
                sign(copy)
            tried += 1
            try:
                found = use(copy)
            except BundleError:
                refused += 1
                continue
            assert found == expected or FREE & set(place), (name, place, value)
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
    assert use(copy) == expected
    assert tried > 300
    assert refused > 0.6 * tried


@pytest.mark.parametrize("place", ["bundle", "index"])
def test_every_field_is_missing_or_of_another_kind(whole: Path, copy: Path, place: str) -> None:
    path = (copy if place == "bundle" else current(copy)) / f"{place}.json"
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for name, value in record.items():
        for wrong in ("\ud800", "", {}, [], [{}], 7, None, [1.5], [True], [-1], [10**6]):
            if type(wrong) is type(value) and wrong in ("", {}, [], 7):
                continue  # it may be right
            path.write_text(json.dumps(record | {name: wrong}), "utf-8")
            sign(copy)
            with pytest.raises(BundleError, match=f"{place}.json"):
                Bundle.open(copy)
        path.write_text(json.dumps({k: v for k, v in record.items() if k != name}), "utf-8")
        sign(copy)
        with pytest.raises(BundleError, match=rf"{place}\.json.*{name}|format version"):
            Bundle.open(copy)


NO_RECORDS = (
    *(DEEP, '{"a":' * 100 + "1" + "}" * 100, "", "[]", "7", '"x"', "null", "NaN", "\ufeff{}"),
    *('{"a": 1e999}', '{"a": NaN}', '{"a": "\\ud800"}', '{"a": {"a": {}}}'),
)


def test_json_that_is_no_json_or_nested_too_deeply(copy: Path) -> None:
    """Each file, and a line of the catalogue, is replaced. The tokenizer's settings may lack everything."""
    for name in [*json_files(copy), "index/v1/catalogue/items.jsonl"]:
        whole = (copy / name).read_bytes()
        for content in NO_RECORDS:
            (copy / name).write_text(content, "utf-8")
            if not name.endswith(("manifest.json", "current.json")):
                sign(copy)
            if name == "tokenizer_config.json" and content.startswith("{"):
                continue
            with pytest.raises(BundleError):
                use(copy)
        (copy / name).write_bytes(b'{"a": "\xff"}')
        with pytest.raises(BundleError):
            use(copy)
        (copy / name).write_bytes(whole)
    sign(copy)
    use(copy)


Array = NDArray[Any]
CHANGES: dict[str, Callable[[Array], Array]] = {
    "the first one more": lambda a: np.concatenate([a[:1] + a.dtype.type(1), a[1:]]),
    "the last one more": lambda a: np.concatenate([a[:-1], a[-1:] + a.dtype.type(1)]),
    "the middle the largest": lambda a: np.where(np.arange(len(a)) == len(a) // 2, _largest(a), a),
    "the middle the least": lambda a: np.where(np.arange(len(a)) == len(a) // 2, _least(a), a),
    "the other way round": lambda a: a[::-1],
    "one more": lambda a: np.append(a, a[-1:] if len(a) else np.zeros(1, a.dtype)),
    "one less": lambda a: a[:-1],
    "none": lambda a: a[:0],
    "twice": lambda a: np.concatenate([a, a]),
    "a table": lambda a: a[None],
    "one number": lambda a: a.sum(),
    "other bytes": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "floats": lambda a: a.astype(np.float16),
    "texts": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
}


def _largest(array: Array) -> Any:
    return np.finfo(array.dtype).max if array.dtype.kind == "f" else np.iinfo(array.dtype).max


def _least(array: Array) -> Any:
    return np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min


def test_every_array_of_a_bundle(copy: Path) -> None:
    """Each is changed in many ways. Then the bundle is refused, or the array holds the same (or other counts)."""
    expected = use(copy)
    refused = 0
    for path in sorted(copy.rglob("*.npy")):
        whole = path.read_bytes()
        array = np.load(path)
        for name, change in CHANGES.items():
            with np.errstate(all="ignore"):
                changed = np.asarray(change(array)).astype(None if "o" in name else array.dtype, copy=False)
            np.save(path, changed, allow_pickle=True)
            sign(copy)
            try:
                assert use(copy) == expected, (path, name)
            except BundleError:
                refused += 1
        for header in (
            b"",
            b"no array",
            b"PK\x03\x04",
            whole[:60],
            whole[:-1],
            _header("(10**12,)"),
            _header("(-1,)"),
        ):
            path.write_bytes(header)
            sign(copy)
            with pytest.raises(BundleError):
                use(copy)
        path.write_bytes(whole)
    sign(copy)
    assert use(copy) == expected
    assert refused > 200


def _header(shape: str) -> bytes:
    """Return an array file of a shape that nobody can hold."""
    about = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".replace("10**12", str(10**12))
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + about.ljust(117).encode() + b"\n"


def test_codebooks_that_do_not_fit(copy: Path) -> None:
    path = copy / "codebooks" / CODEBOOKS_FILE
    arrays = load_file(path)
    for name, array in arrays.items():
        fewer = array[:, :-1] if name == "encoder_0.weight" else array[:-1]  # it takes vectors of any length
        for changed in (fewer, np.full_like(array, np.nan), array.astype(np.int32), array[None]):
            save_file(arrays | {name: np.ascontiguousarray(changed)}, path)
            sign(copy)
            with pytest.raises(BundleError, match="codebooks"):
                Bundle.open(copy).codebooks()
        save_file({key: value for key, value in arrays.items() if key != name}, path)
        sign(copy)
        with pytest.raises(BundleError, match="codebooks"):
            Bundle.open(copy).codebooks()
    path.write_bytes(b"\xff" * 100)
    sign(copy)
    with pytest.raises(BundleError, match="codebooks"):
        Bundle.open(copy).codebooks()


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},  # fails when it is opened
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},  # fails on the first text
        {"type": "Append", "append": "<|item|>"},
    ],
)
def test_a_tokenizer_that_cannot_write_plain_text(copy: Path, normalizer: dict[str, Any]) -> None:
    record = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(record | {"normalizer": normalizer}), "utf-8")
    sign(copy)
    with pytest.raises(BundleError):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_even_asked_for(copy: Path, name: str) -> None:
    record = json.loads((copy / name).read_text("utf-8"))
    (copy / name).write_text(json.dumps(record | {"auto_map": {"AutoConfig": "code.Config"}}))
    sign(copy)
    with pytest.raises(BundleError, match="code that comes with the model"):
        Bundle.open(copy)
    drop_code(copy)  # as `publish` does
    sign(copy)
    use(copy)
