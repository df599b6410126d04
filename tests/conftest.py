"""Fixtures for the tests of every room."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bundles import make_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published bundle of 60 items; read it, do not change it."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
