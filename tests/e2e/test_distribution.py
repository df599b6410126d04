"""The package as people get it: built, installed outside the checkout with one extra or another, and used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.environments import (
    EXTRAS,
    PROJECT_FILES,
    ask,
    closure,
    make_environment,
    outside,
    requirements,
    running,
    said,
)
from support.paths import ROOT

from training.extras import MODULES

REQUESTS = (
    ("/recommend", {"history": [{"item_id": "item-3"}, {"item_id": "item-8"}], "limit": 5}),
    ("/search", {"query": "golden machine", "history": [], "limit": 5}),
)
PACKAGES = ("gems", "index", "server", "training")
Install = Callable[[str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    source = tmp_path_factory.mktemp("source")
    for name in PROJECT_FILES:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=outside())
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("gems_sr-*.whl")
    return found


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Give the folder of programs of an environment with the wheel and an extra; "": with none."""
    made: dict[str, Path] = {}

    def with_extra(extra: str) -> Path:
        if extra not in made:
            folder = tmp_path_factory.mktemp(extra or "base") / "environment"
            made[extra] = make_environment(folder, [extra] if extra else [], wheel).parent
        return made[extra]

    return with_extra


def test_wheel_and_sdist_hold_the_packages_and_no_more(built: Path, wheel: Path) -> None:
    kinds = (".py", ".typed", ".yaml", ".html", ".js", ".css", ".svg")
    mine = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in kinds and "build" not in path.relative_to(ROOT).parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == mine
    (sdist,) = built.glob("gems_sr-*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert mine | {"pyproject.toml", "README.md", "LICENSE"} <= inside


def test_a_server_with_the_extra_serve_answers_as_the_checkout_does(install: Install, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", pool=True)
    arguments = [bundle, "--port", "0", "--threads", "1"]
    with running([sys.executable, "-m", "server", *arguments], ROOT) as address:
        expected = [ask(address, path, body) for path, body in REQUESTS]
    with running([install("serve") / "gems", "serve", *arguments], tmp_path) as address:
        assert [ask(address, path, body) for path, body in REQUESTS] == expected
    assert all(expected)
    code, text = said([install("serve") / "gems", "bundle", "verify", bundle], tmp_path)
    assert code == 0, text
    assert "is whole" in text


def test_a_server_needs_nothing_of_the_training_side() -> None:
    needed = closure(requirements(["serve"]))
    others = (
        "accelerate",
        "bm25s",
        "pandas",
        "polars",
        "pyarrow",
        "scikit-learn",
        "scipy",
        "sentence-transformers",
    )
    assert not set(others) & set(needed)


@pytest.mark.parametrize("extra", ["", "serve"])
def test_every_installation_lists_all_commands(extra: str, install: Install, tmp_path: Path) -> None:
    code, text = said([install(extra) / "gems", "--help"], tmp_path)
    assert code == 0, text
    for command in ("train", "evaluate", "rank", "serve", "bundle", "index"):
        assert f" {command} " in text


@pytest.mark.parametrize(
    ("extra", "line", "missing"),
    [
        ("", "serve BUNDLE", "serve"),
        ("train", "serve BUNDLE", "serve"),
        ("train", "rank BUNDLE --queries queries.txt --out ranked.parquet", "serve"),
        ("train", "demo --no-serve", "serve"),
        ("serve", "train --data data --out run", "train"),
        ("serve", "rank BUNDLE --queries queries.txt --out ranked.parquet", "train"),
        ("serve", "index update BUNDLE --items items.jsonl", "train"),
        ("serve", "plan --memory 24", "train"),
    ],
)
def test_a_command_says_which_extra_it_lacks(
    extra: str, line: str, missing: str, install: Install, tmp_path: Path, tiny_bundle: Path
) -> None:
    (tmp_path / "queries.txt").write_text("golden machine\n")
    words = [str(tiny_bundle) if word == "BUNDLE" else word for word in line.split()]
    code, text = said([install(extra) / "gems", *words], tmp_path)
    assert code == 2, text
    assert text.splitlines()[-1].endswith(f" is not installed: pip install 'gems-sr[{missing}]'")
    assert len(text.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["queries.txt"]  # nothing was begun


@pytest.mark.parametrize("extra", MODULES)
def test_the_modules_of_an_extra_are_those_that_it_brings(extra: str) -> None:
    base, with_extra = closure(requirements([])), closure(requirements([extra]))
    brought = {
        path.parts[0].removesuffix(".py")
        for name, distribution in with_extra.items()
        if name not in base
        for path in distribution.files or ()
    }
    asked = {name for name in (each.name for each in requirements([extra])) if name not in base}
    own = {"scikit-learn": "sklearn"}
    named = {own.get(name, name.replace("-", "_")) for name in asked}
    hub = {"huggingface_hub"}  # transformers brings it as well
    assert named - hub <= set(MODULES[extra])
    assert set(MODULES[extra]) - hub <= brought
    assert EXTRAS[extra]
