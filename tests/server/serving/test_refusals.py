"""Everything that may be wrong on disk when an administrator refreshes: 409 with the reason, and nothing changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.damage import DEEP, current, sign
from support.engines import hosted

from index.bundle.bundle import INDEX, Bundle
from index.bundle.update import update_index
from index.bundle.versions import Versions
from index.catalogue import Item
from server.app import create_app
from server.command_line import main
from server.engine.contract import EngineLostError, HostedEngine
from server.engine.torch_backend.engine import TorchEngine
from server.routes import admin
from server.runtime import logs
from server.settings import Settings
from server.telemetry.metrics import Metrics

ADMIN = {"authorization": "Bearer key"}
Damage = Callable[[Path], None]


def json_change(name: str, **fields: Any) -> Damage:
    """Change fields of a JSON file; a folder of the index is the current version's."""

    def change(bundle: Path) -> None:
        path = (current(bundle) if not name.startswith("/") else bundle) / name.strip("/")
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")
        sign(bundle)

    return change


def content(name: str, text: str) -> Damage:
    def change(bundle: Path) -> None:
        ((current(bundle) if not name.startswith("/") else bundle) / name.strip("/")).write_text(
            text, "utf-8"
        )
        sign(bundle)

    return change


def array(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(bundle: Path) -> None:
        path = (current(bundle) if not name.startswith("/") else bundle) / name.strip("/")
        np.save(path, change(np.load(path)))
        sign(bundle)

    return damage


def lines(change: Callable[[list[str]], list[str]]) -> Damage:
    """Change the lines of the catalogue."""

    def damage(bundle: Path) -> None:
        path = current(bundle) / "catalogue" / "items.jsonl"
        path.write_text("".join(change(path.read_text("utf-8").splitlines(keepends=True))), "utf-8")
        sign(bundle)

    return damage


def unsigned(name: str) -> Damage:
    """Cut a file short without a new manifest."""

    def damage(bundle: Path) -> None:
        path = (current(bundle) if not name.startswith("/") else bundle) / name.strip("/")
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def pointer(text: str) -> Damage:
    return lambda bundle: (bundle / INDEX / "current.json").write_text(text, "utf-8") and None


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(bundle: Path) -> None:
        path = bundle / "model.safetensors"
        tensors = load_file(path)
        save_file({name: change(each).contiguous() for name, each in tensors.items()}, path, {"format": "pt"})
        sign(bundle)

    return damage


# damage of the index version that is to be served → a part of the reason
OF_THE_INDEX: dict[str, tuple[Damage, str]] = {
    "a removed row that does not exist": (json_change("index.json", removed=[1_000_000]), "removed must be"),
    "removed rows that are none": (json_change("index.json", removed=[-1, 1.5]), "removed must be"),
    "removed rows that are no list": (json_change("index.json", removed=None), "removed must be"),
    "a time that is none": (json_change("index.json", created="yesterday"), "created must be an ISO 8601 time"),
    "a year before all times": (json_change("index.json", created="0001-01-01T00:00:00"), "created must be"),
    "items that are not there": (json_change("index.json", items=61), "60 items in the catalogue, and 61"),
    "another bundle": (json_change("index.json", bundle_id="other"), "belongs to another bundle"),
    "another version": (json_change("index.json", version="v7"), "is another version"),
    "text that no answer can hold": (json_change("index.json", bundle_id="\ud800"), "is not JSON"),
    "deep JSON": (content("index.json", DEEP), "nested deeper"),
    "deep attributes": (content("filters/attributes.json", DEEP), "nested deeper"),
    "no attributes": (content("filters/attributes.json", "{}"), "do not fit the arrays"),
    "a deep item": (lines(lambda all_: [*all_[:-1], f'{{"a": {DEEP}}}']), "line 60"),
    "an item too few": (lines(lambda all_: all_[:-1]), "59 items in the catalogue, and 60 by index.json"),
    "an item too many": (lines(lambda all_: [*all_, '{"item_id": "x", "title": "x"}\n']), "61 items in the catalogue"),
    "an item twice": (lines(lambda all_: [*all_[:-1], all_[0]]), "names two items"),
    "an item that is none": (lines(lambda all_: [*all_[:-1], "[]"]), "must be a JSON object"),
    "a title that no answer can hold": (
        lines(lambda all_: [*all_[:-1], '{"item_id": "x", "title": "\\ud800"}']),
        "line 60",
    ),
    "slots that do not exist": (array("filters/0_term_slots.npy", lambda a: a + 50), "a slot is none of the 60"),
    "slots below zero": (array("filters/1_number_slots.npy", lambda a: a - 1), "a slot is none of the 60"),
    "numbers in disorder": (array("filters/1_numbers.npy", lambda a: a[::-1]), "do not ascend"),
    "terms without an end": (array("filters/0_term_first.npy", lambda a: a + 1), "does not fit the terms"),
    "rows twice": (array("trie/slot_items.npy", lambda a: a // 2), "each item once"),
    "codes outside their codebook": (array("trie/code_2.npy", lambda a: a + 9000), "outside its level's codebook"),
    "codes in disorder": (array("trie/code_0.npy", lambda a: a[::-1]), "do not ascend"),
    "offsets of another trie": (array("trie/leaf_first_excess.npy", lambda a: a[:-1]), "do not fit"),
    "an array of another kind": (array("trie/code_1.npy", lambda a: a.astype(float)), "must hold a list of"),
    "an array cut short": (unsigned("trie/code_1.npy"), "code_1.npy is damaged"),
    "a pointer to nothing": (pointer('{"version": "v9", "manifest_sha256": ""}'), "current.json is damaged"),
    "a deep pointer": (pointer(DEEP), "current.json is damaged"),
    "a deep manifest": (lambda b: (current(b) / "manifest.json").write_text(DEEP) and None, "manifest.json is damaged"),
    "no version": (lambda b: shutil.rmtree(current(b)), "names no version"),
    "no index": (lambda b: shutil.rmtree(b / INDEX), "index"),
}  # fmt: skip
OF_THE_BUNDLE: dict[str, tuple[Damage, str]] = {
    "prompts of a billion tokens": (json_change("/bundle.json", max_tokens=10**9, max_events=10**9), "max_tokens must"),
    "prompts beyond the model": (json_change("/bundle.json", max_tokens=2000), "context of 256"),
    "events beyond the prompt": (json_change("/bundle.json", max_events=10**9), "max_events must be"),
    "codebooks of a billion codes": (json_change("/bundle.json", codebook_sizes=[10**9] * 3), "3000000403 tokens"),
    "a time that is none": (json_change("/bundle.json", created="yesterday"), "created must be"),
    "a description that is none": (json_change("/bundle.json", training=[]), "training must be"),
    "a deep description": (content("/bundle.json", DEEP), "nested deeper"),
    "a billion layers": (json_change("/config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "a layer too few": (json_change("/config.json", num_hidden_layers=1), "another model than the weights"),
    "a layer too many": (json_change("/config.json", num_hidden_layers=3), "another model than the weights"),
    "another width": (json_change("/config.json", hidden_size=64), "whose shapes differ"),
    "rows of tokens": (json_change("/config.json", vocab_size=7), "vocab_size 7"),
    "codebooks of other sizes": (json_change("/bundle.json", codebook_sizes=[5, 4, 16]), "identifier tokens"),
    "a tokenizer without words": (content("/tokenizer.json", "{}"), "cannot be opened"),
    "weights that are no numbers": (weights(lambda t: t * float("nan")), "cannot be served"),
    "weights without end": (weights(lambda t: t + float("inf")), "cannot be served"),
    "weights cut short": (unsigned("/model.safetensors"), "model.safetensors is damaged"),
    "counts below zero": (array("/popularity.npy", lambda a: a - 100), "popularity.npy"),
    "more counts than items": (array("/popularity.npy", lambda a: np.tile(a, 2)), "popularity.npy"),
    "no bundle": (shutil.rmtree, "there is no folder"),
}  # fmt: skip
BOTH = OF_THE_INDEX | OF_THE_BUNDLE
CASES = [
    *(("index", *each) for each in OF_THE_INDEX.items()),
    *(("bundle", *each) for each in BOTH.items()),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that serves v1, with v2 beside it."""
    path = make_bundle(tmp_path_factory.mktemp("source") / "bundle", codebooks=(4, 5))
    changed = [Item("item-1", "Another Title", "", ("Drama",), {"year": 1951})]
    update_index(Bundle.open(path), changed, ["item-5"], item_vectors)
    return path


class Served:
    """A served bundle, whose files a test may damage and repair."""

    def __init__(self, source: Path, path: Path) -> None:
        self.source, self.path = source, path
        shutil.copytree(source, path)
        Versions(path / INDEX).point_to("v1")
        self.reopened: list[HostedEngine] = []
        self.client = TestClient(create_app(*self.reopen(), Settings(admin_key="key"), self.reopen))

    def reopen(self) -> tuple[Bundle, HostedEngine]:
        bundle = Bundle.open(self.path)
        self.reopened.append(hosted(TorchEngine.open(bundle)))
        return bundle, self.reopened[-1]

    def repair(self) -> None:
        """Put everything back, with v2 as the version that is to be served."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.source, self.path)

    def state(self) -> tuple[Any, Any, list[str]]:
        """Return what the server says of itself, an answer, and the metrics that name the bundle."""
        answer = self.client.post("/recommend", json={"limit": 60, "history": [{"item_id": "item-1"}]}).json()
        found = self.client.get("/items", params={"prefix": "another"}).json()
        named = [line for line in self.client.get("/metrics").text.splitlines() if "gems_bundle" in line]
        ranked = [(item["item_id"], item["title"]) for item in answer["items"]]
        return self.client.get("/info").json(), (answer["index_version"], ranked, found), named

    def refresh(self, kind: str) -> tuple[int, dict[str, Any]]:
        response = self.client.post(f"/admin/{kind}/refresh", headers=ADMIN)
        return response.status_code, response.json()


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(source, tmp_path_factory.mktemp("served") / "bundle")
    with served.client:
        yield served


@pytest.mark.parametrize(
    ("kind", "damage", "reason"),
    [(kind, *each) for kind, _, each in CASES],
    ids=[f"{c[0]}: {c[1]}" for c in CASES],
)
def test_what_cannot_be_served_is_refused_and_nothing_changes(
    served: Served, kind: str, damage: Damage, reason: str
) -> None:
    before = served.state()
    assert before[0]["index_version"] == "v1"
    served.repair()
    damage(served.path)
    status, problem = served.refresh(kind)
    assert status == 409, problem
    assert problem["type"] == f"urn:gems:problem:{kind}_refused"
    assert reason in problem["detail"]
    assert served.state() == before
    assert served.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("damage", "reason"), [each for kind, _, each in CASES if kind == "bundle"], ids=BOTH
)
def test_it_is_refused_in_one_line_at_the_start(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    reason: str,
) -> None:
    monkeypatch.setattr(logs, "configure", lambda level: None)  # pytest's own handlers stay
    path = Path(shutil.copytree(source, tmp_path / "bundle"))
    damage(path)
    assert main([str(path), "--port", "0", "--threads", "1"]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("Loading weights")
    ]
    assert line.startswith("error: ")
    assert reason in line or reason == "cannot be served"


def test_every_other_failure_changes_nothing_either(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, wherever it does: an error means that the version before goes on."""
    before = served.state()
    served.repair()

    def fail(*_: object, **__: object) -> Any:
        raise ZeroDivisionError

    def lose(*_: object, **__: object) -> Any:
        raise EngineLostError("the engine's process ended")

    failures: list[tuple[str, object, str, Callable[..., Any], int]] = [
        ("index", Metrics, "describe", fail, 500),
        ("bundle", Metrics, "describe", fail, 500),
        ("index", admin.IndexState, "__init__", fail, 500),
        ("bundle", admin.BundleState, "__init__", fail, 500),
        ("index", served.reopened[0], "prepare", fail, 500),
        ("index", served.reopened[0], "prepare", lose, 503),
        ("bundle", type(served.reopened[0]), "start", fail, 500),
        ("bundle", type(served.reopened[0]), "start", lose, 409),
    ]
    for kind, owner, name, failure, expected in failures:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failure)
            status, problem = served.refresh(kind)
        assert status == expected, (kind, owner, problem)
        assert problem["status"] == expected
        assert served.state() == before


def test_a_key_that_is_wrong_and_a_method_that_is_unknown_change_nothing(served: Served) -> None:
    before = served.state()
    served.repair()
    for kind in ("index", "bundle"):
        assert served.client.post(f"/admin/{kind}/refresh").status_code == 401
        assert served.client.get(f"/admin/{kind}/refresh", headers=ADMIN).status_code == 405
    assert served.state() == before


def test_what_was_repaired_is_served(source: Path, tmp_path: Path) -> None:
    served = Served(source, tmp_path / "bundle")
    with served.client:
        for kind in ("index", "bundle"):
            served.repair()
            json_change("index.json", created="yesterday")(served.path)
            assert served.refresh(kind)[0] == 409
            served.repair()
            assert served.refresh(kind)[0] == 200
            assert served.state()[0]["index_version"] == "v2"
