"""The event loop stays free whatever is opened: other requests are answered while an administrator waits."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.bundles import item_vectors, make_bundle
from support.engines import hosted
from support.paths import ROOT

from index.bundle.bundle import INDEX, Bundle
from index.bundle.update import update_index
from index.bundle.versions import Versions
from index.catalogue import Item
from server.app import create_app
from server.engine.contract import HostedEngine
from server.engine.torch_backend.engine import TorchEngine
from server.serving import deployments
from server.settings import Settings

ADMIN = {"authorization": "Bearer key"}
WAIT = 20  # seconds until a test that waits in vain fails

# What takes long with a large bundle, on a slow disk or with a large model.
OPENING_AN_INDEX = (
    "index.bundle.versions.verify",  # hashing
    "index.bundle.item_index.open_catalogue",
    "index.bundle.item_index.Trie.open",
    "index.bundle.item_index.Filters.open",
    "index.bundle.bundle.SequenceEncoder.__init__",
    "index.bundle.bundle.read_array",  # popularity
    "server.serving.deployment.Popularity.of",
    "index.bundle.item_index.TitleIndex.open",
)
ENGINE_OPENS_IT = ("server.engine.in_process.InProcess.prepare",)
OPENING_A_BUNDLE = (
    "index.bundle.bundle.verify",
    "index.bundle.bundle.PreTrainedTokenizerFast.from_pretrained",
    "index.bundle.bundle.check_tokenizer",
    "server.serving.deployment.Deployment._warm_up",
    "server.engine.in_process.InProcess.start",
    "server.engine.torch_backend.engine.load_model",
)
STEPS = [
    *(("index", step) for step in (*OPENING_AN_INDEX, *ENGINE_OPENS_IT)),
    *(("bundle", step) for step in (*OPENING_AN_INDEX, *OPENING_A_BUNDLE)),
]
# All of `index` that may run on the loop during administration: attributes that are there already.
LIGHT = {
    "ItemIndex.living_count",
    "StoredCatalogue.__len__",
    "Trie.levels",
    "Trie.items",
    "Trie.slot_of_item",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two index versions."""
    path = make_bundle(tmp_path_factory.mktemp("bundles") / "bundle", codebooks=(4, 5))
    update_index(Bundle.open(path), [Item("new", "Silent Ocean")], ["item-5"], item_vectors)
    return path


@pytest.fixture
def client(path: Path) -> Iterator[TestClient]:
    Versions(path / INDEX).point_to("v1")
    with application(path) as client:
        Versions(path / INDEX).point_to("v2")
        yield client


@contextmanager
def application(path: Path) -> Iterator[TestClient]:
    def reopen() -> tuple[Bundle, HostedEngine]:
        bundle = Bundle.open(path)
        return bundle, hosted(TorchEngine.open(bundle))

    with TestClient(create_app(*reopen(), Settings(admin_key="key"), reopen)) as client:
        yield client


def on_the_loop() -> bool:
    """Whether an event loop runs on this thread."""
    return asyncio._get_running_loop() is not None


class Gate:
    """Holds all calls of a function until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **named: Any) -> Any:
            assert not on_the_loop(), f"{function.__qualname__} runs on the event loop"
            self.entered.set()
            assert self.opened.wait(WAIT)
            return function(*args, **named)

        return held


def replace_by(monkeypatch: pytest.MonkeyPatch, name: str, wrapped: Callable[[Any], Any]) -> None:
    """Put a wrapper around the function of a dotted name, whether it is one of a module or of a class."""
    owner, _, attribute = name.rpartition(".")
    holder = _resolve(owner)
    stored = vars(holder)[attribute] if attribute in vars(holder) else getattr(holder, attribute)
    if isinstance(stored, classmethod):
        monkeypatch.setattr(holder, attribute, classmethod(wrapped(stored.__func__)))
    else:
        monkeypatch.setattr(holder, attribute, wrapped(stored))


def _resolve(name: str) -> Any:
    module, _, rest = name.rpartition(".")
    if name in sys.modules:
        return sys.modules[name]
    return getattr(_resolve(module), rest)


@pytest.mark.parametrize(("kind", "step"), STEPS, ids=[f"{kind}-{step}" for kind, step in STEPS])
def test_health_and_rankings_are_answered_while_a_step_is_held(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    gate = Gate()
    replace_by(monkeypatch, step, gate.around)
    with ThreadPoolExecutor(2) as threads:
        refreshed = threads.submit(client.post, f"/admin/{kind}/refresh", headers=ADMIN)
        assert gate.entered.wait(WAIT), "the step was never taken"
        try:
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 200
            assert client.get("/metrics").status_code == 200
            answer = client.post("/recommend", json={"limit": 3}).json()
            assert answer["index_version"] == client.get("/info").json()["index_version"] == "v1"
            again = threads.submit(
                client.post, "/admin/index/refresh", headers=ADMIN
            )  # it waits for the other
            assert client.get("/health/live").status_code == 200
            assert not refreshed.done()
            assert not again.done()
        finally:
            gate.opened.set()
        assert refreshed.result(WAIT).status_code == again.result(WAIT).status_code == 200
    assert client.get("/info").json()["index_version"] == "v2"


class Watch:
    """Notes files that are opened, and functions of ours that are called, on the thread of an event loop."""

    def __init__(self, folder: Path) -> None:
        self.files: set[str] = set()
        self.calls: set[str] = set()
        self._folder = str(folder)
        self._on = False
        sys.addaudithook(self._audit)  # stays for good, so that it can be switched off

    @contextmanager
    def on(self) -> Iterator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("open", "os.listdir", "os.scandir") and on_the_loop():
            name = str(arguments[0])
            if name.startswith(self._folder):
                self.files.add(name)

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if self._on and event == "call" and code.co_filename.startswith(f"{ROOT / 'index'}/"):
            self.calls.add(code.co_qualname)


def test_nothing_is_read_or_built_on_the_loop(path: Path) -> None:
    """Start, swaps of the index in both directions, of the bundle, refusals, and the end."""
    watch = Watch(path)
    Versions(path / INDEX).point_to("v1")
    with watch.on(), application(path) as client:
        assert client.portal is not None
        client.portal.call(sys.setprofile, watch.profile)
        for kind, version in (("index", "v2"), ("index", "v1"), ("bundle", "v2"), ("index", "v1")):
            Versions(path / INDEX).point_to(version)
            answer = client.post(f"/admin/{kind}/refresh", headers=ADMIN)
            assert answer.json()["index_version"] == version
        for damaged, kind in (
            (path / INDEX / "v1" / "index.json", "index"),
            (path / "bundle.json", "bundle"),
        ):
            whole = damaged.read_bytes()
            damaged.write_bytes(whole[:-1])
            assert client.post(f"/admin/{kind}/refresh", headers=ADMIN).status_code == 409
            damaged.write_bytes(whole)
        client.portal.call(sys.setprofile, None)
    assert watch.files == set()
    assert watch.calls <= LIGHT


def test_the_watch_sees_what_is_read_and_built_on_a_loop(path: Path) -> None:
    watch = Watch(path)

    async def open_it() -> None:
        sys.setprofile(watch.profile)
        try:
            Bundle.open(path)
        finally:
            sys.setprofile(None)

    with watch.on():
        asyncio.run(open_it())
    assert any(name.endswith("manifest.json") for name in watch.files)
    assert "open_catalogue" in watch.calls


@pytest.mark.parametrize("kind", ["index", "bundle"])
def test_an_opening_that_hangs_is_given_up_and_blocks_no_later_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A file of a disk that is lost: 409 in time, and the next refresh succeeds."""
    release = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(deployments, "OPENING_SECONDS", 0.2)
        patched.setattr("index.bundle.item_index.TitleIndex.open", lambda *_: release.wait(WAIT))
        answer = client.post(f"/admin/{kind}/refresh", headers=ADMIN)
    assert answer.status_code == 409
    assert "was not open after 0.2 s" in answer.json()["detail"]
    assert client.get("/info").json()["index_version"] == "v1"
    assert client.post(f"/admin/{kind}/refresh", headers=ADMIN).json()["index_version"] == "v2"
    release.set()
    assert client.get("/info").json()["index_version"] == "v2"
