"""A real engine on the tiny bundle, and HTTP clients of applications around it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient
from support.engines import hosted

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.contract import Engine
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MakeClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Take back the handlers of a server that a test starts in this process: later tests read what stderr holds."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="session")
def engine(bundle: Bundle) -> TorchEngine:
    return TorchEngine.open(bundle)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from support.browser import chromium  # playwright is not everywhere

    with chromium() as started:
        yield started


@pytest.fixture
def make_client(bundle: Bundle, engine: TorchEngine) -> Iterator[MakeClient]:
    """Start an application with the given settings (and engine), and return a client of it."""
    with ExitStack() as running:

        def make(with_engine: Engine | None = None, **settings: Any) -> TestClient:
            app = create_app(bundle, hosted(with_engine or engine), Settings(**settings))
            return running.enter_context(TestClient(app))

        yield make


@pytest.fixture(scope="module")
def client(bundle: Bundle, engine: TorchEngine) -> Iterator[TestClient]:
    """A client of an application with the default settings, shared by the tests of a module."""
    with TestClient(create_app(bundle, hosted(engine), Settings())) as started:
        yield started
