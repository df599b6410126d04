"""Imports that are allowed, room by room: the table that docs/architecture.md shows.

A room is a folder, or a file that lies at the top of one of the four. The table is sorted from the ground up: a room
imports only what stands above it here, so that nothing climbs and nothing goes in a circle.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.paths import ROOT

ALLOWED = {
    # the method: nothing of ours
    "gems.model": "",
    "gems.weights": "gems.model",
    "gems.gradients": "gems.model gems.weights",
    "gems": "gems.gradients gems.model gems.weights",
    # the item side: nothing but itself
    "index.records": "",
    "index.catalogue": "index.records",
    "index.files": "index.records",
    "index.texts": "index.files",
    "index.stored_catalogue": "index.catalogue index.files index.records index.texts",
    "index.contents": "index.records",
    "index.extensions": "",
    "index.words": "",
    "index.scripts": "",
    "index.identifiers": "index.extensions",
    "index.sequence": "",
    "index.identifiers.quantisers": "index.identifiers",
    "index.identifiers.schemes": "index.identifiers index.sequence",
    "index.trie": "index.catalogue index.files index.records",
    "index.titles": "index.files index.texts index.words",
    "index.arrays": "index.files index.records",
    "index.largest": "",
    "index.pool.links": "index.arrays index.trie",
    "index.pool": (
        "index.arrays index.catalogue index.files index.largest index.pool.links index.records index.sequence "
        "index.trie index.words"
    ),
    "index.bundle": (
        "index.catalogue index.contents index.files index.identifiers index.identifiers.schemes index.pool "
        "index.records index.sequence index.stored_catalogue index.titles index.trie index.words"
    ),
    "index.embeddings": "index.catalogue",
    "index.popularity": "index.trie",
    # the request side: imports index
    "server.engine": "index.bundle index.sequence index.trie",
    "server.engine.torch_backend": "index.bundle index.sequence index.trie server.engine",
    "server.engine.vllm_backend": "index.bundle index.sequence index.trie server.engine",
    "server.runtime": "",
    "server.engine.process": (
        "index.bundle index.sequence index.trie server.engine server.engine.torch_backend server.engine.vllm_backend "
        "server.runtime"
    ),
    "server.stopping": "server.engine.process server.runtime",
    "server.api": "index.catalogue index.sequence index.trie index.words server.engine",
    "server.settings": "server.api server.engine",
    "server.telemetry": "index.bundle index.sequence server.api server.runtime",
    "server.serving": (
        "index.bundle index.popularity index.sequence index.titles server.api server.engine "
        "server.runtime server.settings server.telemetry"
    ),
    "server.people": "index.files server.api server.telemetry",
    "server.ranking": (
        "index.bundle index.catalogue index.pool index.popularity index.sequence index.trie server.api "
        "server.engine server.people server.serving server.settings server.telemetry"
    ),
    "server.transport": "server.api server.settings server.telemetry",
    "server.routes": (
        "index.bundle index.catalogue index.trie server.api server.people server.ranking server.serving "
        "server.settings server.telemetry server.transport"
    ),
    "server.app": (
        "index.bundle server.api server.engine server.people server.ranking server.routes server.serving "
        "server.settings server.telemetry server.transport"
    ),
    "server.offline": (
        "index.bundle index.sequence server.api server.engine server.engine.process server.ranking server.serving "
        "server.settings"
    ),
    "server.launch": (
        "index.bundle server.app server.engine server.engine.process server.people server.runtime server.serving "
        "server.settings server.stopping server.telemetry server.transport"
    ),
    "server.command_line": (
        "index.bundle server.engine.process server.launch server.people server.runtime server.settings "
        "server.transport"
    ),
    "server.__main__": "server.command_line server.stopping",
    "server.ray": (
        "index.bundle server.api server.engine.process server.launch server.people server.runtime server.settings "
        "server.transport"
    ),
    # the offline side: imports gems, index and server.engine
    "training.errors": "",
    "training.extras": "training.errors",
    "training.inputs": "index.contents training.errors",
    "training.outputs": "index.files training.errors",
    "training.settings": "index.records",
    "training.co_occurrence": "index.pool.links",
    "training.config": (
        "index.extensions index.identifiers index.sequence training.errors training.inputs training.settings"
    ),
    "training.data": (
        "index.bundle index.catalogue index.contents index.embeddings index.files index.identifiers "
        "index.records index.scripts index.sequence index.words training.config training.errors training.inputs"
    ),
    "training.data.importing": "index.catalogue index.contents index.sequence training.data training.inputs",
    "training.run": "index.contents index.files index.records training.data training.errors training.settings",
    "training.evaluation": (
        "index.bundle index.catalogue index.contents index.pool index.pool.links index.records index.sequence "
        "index.trie index.words server.engine server.engine.torch_backend training.co_occurrence training.data "
        "training.errors training.inputs training.outputs training.run training.settings"
    ),
    "training.cli.common": (
        "index.bundle index.catalogue index.embeddings index.extensions index.identifiers server.engine "
        "training.data.importing training.errors training.extras training.outputs training.settings"
    ),
    "training.data.sources": (
        "index.catalogue index.contents index.records index.scripts index.sequence index.words training.data "
        "training.data.importing training.inputs"
    ),
    "training.cli.datasets": ("training.cli.common training.data training.data.sources training.settings"),
    "training.model": (
        "index.files index.identifiers index.sequence training.config training.data training.errors"
    ),
    "training.methods": (
        "gems gems.weights index.extensions index.sequence training.config training.errors training.model "
        "training.run"
    ),
    "training.methods.tuning": (
        "gems gems.model gems.weights index.sequence training.config training.errors training.methods "
        "training.model"
    ),
    "training.loop": (
        "gems gems.weights index.catalogue index.files index.records index.sequence index.words server.engine "
        "training.config training.data training.errors training.evaluation training.methods training.model "
        "training.run training.settings"
    ),
    "training.baselines.networks": "",
    "training.baselines": (
        "index.catalogue index.embeddings index.files index.identifiers index.records index.sequence index.words "
        "training.baselines.networks training.data training.errors training.evaluation training.loop training.run "
        "training.settings"
    ),
    "training.bulk": (
        "index.bundle index.files index.records index.sequence server.api server.engine server.offline "
        "server.settings training.data training.data.importing training.errors training.inputs "
        "training.outputs training.run training.settings"
    ),
    "training.dense": "index.pool index.sequence training.loop training.model",
    "training.fusion": (
        "index.bundle index.catalogue index.pool index.pool.links index.sequence index.trie index.words "
        "server.engine server.engine.torch_backend training.co_occurrence training.data training.errors "
        "training.evaluation training.run training.settings"
    ),
    "training.prepare": (
        "gems index.bundle index.catalogue index.embeddings index.files index.identifiers "
        "index.identifiers.schemes index.records index.sequence training.baselines training.config "
        "training.data training.errors training.methods training.model training.run training.settings"
    ),
    "training.codes": (
        "index.catalogue index.files index.identifiers index.identifiers.schemes index.sequence training.config "
        "training.data training.errors training.loop training.methods training.model training.prepare training.run"
    ),
    "training.plan": (
        "gems gems.model gems.weights index.identifiers.schemes index.sequence training.config training.loop "
        "training.methods training.methods.tuning training.model training.outputs training.prepare"
    ),
    "training.doctor": (
        "index.sequence index.trie server.engine server.engine.torch_backend training.cli.common "
        "training.config training.loop training.methods training.model training.outputs training.plan"
    ),
    "training.fit": (
        "gems index.pool index.trie server.engine.torch_backend training.codes training.config training.data "
        "training.evaluation training.loop training.methods training.model training.prepare training.run"
    ),
    "training.pipeline": (
        "index.bundle index.pool training.config training.data training.dense training.fit training.fusion "
        "training.prepare training.run"
    ),
    "training.demo": (
        "index.bundle index.catalogue index.records index.sequence training.config training.data "
        "training.data.sources training.errors training.evaluation training.outputs training.pipeline "
        "training.run"
    ),
    "training.evaluation.comparison": (
        "index.sequence training.data training.errors training.evaluation training.run"
    ),
    "training.preservation": (
        "index.bundle index.contents index.sequence server.engine.torch_backend training.config training.data "
        "training.errors training.evaluation training.model training.outputs training.prepare training.run "
        "training.settings"
    ),
    "training.report": (
        "index.contents index.sequence training.config training.errors training.outputs training.settings"
    ),
    "training.sweep": (
        "index.files index.records index.sequence training.config training.data training.errors "
        "training.evaluation training.fit training.inputs training.loop training.prepare "
        "training.preservation training.run training.settings"
    ),
    "training.reproduce": (
        "gems index.bundle index.embeddings index.files index.identifiers index.records index.sequence "
        "index.trie server.engine training.baselines training.config training.data training.data.sources "
        "training.errors training.evaluation training.evaluation.comparison training.fit training.inputs "
        "training.outputs training.prepare training.report training.run training.settings"
    ),
    "training.cli.commands": (
        "index.bundle index.extensions index.records index.sequence training.baselines training.bulk "
        "training.cli.common training.cli.datasets training.config training.data training.data.importing "
        "training.data.sources training.demo training.errors training.evaluation "
        "training.evaluation.comparison training.extras training.fusion training.outputs training.pipeline "
        "training.plan training.prepare training.preservation training.report training.reproduce training.run "
        "training.settings training.sweep"
    ),
    "training.cli": "training.cli.commands training.cli.common training.doctor",
}
TOPS = ("gems", "index", "server", "training")
PATHS = [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]
MOST_FILES = 14
# Evaluation ranks with the engine that serves; `gems rank` gives the answers that a server gives, without one.
FROM_TRAINING = ("server.engine", "server.offline", "server.api", "server.settings")


def name_of(path: Path) -> str:
    """The module of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PATHS}
FOLDERS = {module for module, path in MODULES.items() if path.name == "__init__.py"}


def room_of(module: str) -> str:
    """The room that a module lies in."""
    folder = module if module in FOLDERS else module.rpartition(".")[0]
    return module if folder in {"index", "server", "training"} else folder


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] in TOPS}


def is_allowed(room: str, other: str) -> bool:
    """Whether modules of a room may import those of another."""
    return other == room or other in ALLOWED[room].split()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_arrows_hold(path: Path) -> None:
    room = room_of(name_of(path))
    if room in {"index", "server", "training"}:  # the docstrings of the four
        assert not imported(path)
        return
    assert room in ALLOWED, f"{room} is a new room: give it a line in the table"
    wrong = {name for name in imported(path) if not is_allowed(room, room_of(name))}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {sorted(wrong)}"


def test_the_table_has_no_arrow_that_nobody_uses() -> None:
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for module, path in MODULES.items():
        room = room_of(module)
        used.setdefault(room, set()).update(room_of(name) for name in imported(path))
    for room, allowed in ALLOWED.items():
        assert set(allowed.split()) == used[room] - {room}, room


def test_no_arrow_climbs() -> None:
    rooms = list(ALLOWED)
    for place, room in enumerate(rooms):
        assert set(ALLOWED[room].split()) <= set(rooms[:place]), room
        for other in ALLOWED[room].split():
            if room.startswith("server."):
                assert other.split(".")[0] in {"index", "server"}
            elif room.startswith("training."):
                assert not other.startswith("server.") or other.startswith(FROM_TRAINING)
            else:
                assert other.split(".")[0] == room.split(".")[0]


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    arrows = {module: imported(path) & set(MODULES) for module, path in MODULES.items()}
    settled: set[str] = set()
    while ready := {module for module, others in arrows.items() if others - {module} <= settled} - settled:
        settled |= ready
    assert set(arrows) == settled, f"a circle lies among {sorted(set(arrows) - settled)}"


def test_no_room_is_overfull() -> None:
    for folder in {path.parent for path in PATHS}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{folder.relative_to(ROOT)} has {len(files)} files"
        assert (folder / "__init__.py").is_file(), folder


def test_the_check_can_fail() -> None:
    assert is_allowed("training.fit", "server.engine.torch_backend")
    assert not is_allowed("training.pipeline", "server.app")
    assert not is_allowed("server.serving", "server.ranking")
    assert not is_allowed("server.api", "training.config")
    assert not is_allowed("index.trie", "server.engine")
