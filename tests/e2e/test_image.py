"""The image of the target cpu, built and started without a daemon: buildah on a base that mmdebstrap makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.environments import PROJECT_FILES, ask, closure, requirements, running, said
from support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("mmdebstrap") and os.geteuid() == 0),
        reason="an image takes root, and the Debian packages buildah and mmdebstrap",
    ),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="the wheels are fetched for the image's Python 3.11"
    ),
]

MOST_BYTES = 1.5e9
BASE = "docker.io/library/python:3.11-slim"
REQUESTS = (
    ("/recommend", {"history": [{"item_id": "item-3"}, {"item_id": "item-8"}], "limit": 5}),
    ("/search", {"query": "golden machine", "history": [], "limit": 5}),
)
COMPILED = """
import importlib.util, pathlib, sys
import server.launch
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.startswith("/venv") and path.endswith(".py"):
        cached = pathlib.Path(importlib.util.cache_from_source(path))
        assert cached.read_bytes()[4] == 1, path  # never compared with the source
"""


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.words = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self.words, *map(str, arguments)], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def inside(self, container: str, *options: str | Path) -> list[str | Path]:
        """Return how a command begins that runs in a container."""
        return [*self.words, "run", "--isolation", "chroot", *options, container, "--"]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    folder = tmp_path_factory.mktemp("buildah")
    builder = Builder(folder)
    yield builder
    builder("rm", "--all")
    builder("rmi", "--all", "--force")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all wheels that the build asks for, fetched with this machine's own settings of pip."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in PROJECT_FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
        else:
            (source / name).mkdir()
            (source / name / "__init__.py").touch()
    (torch,) = re.findall(r"torch==\S+\+cpu", (ROOT / "Dockerfile").read_text("utf-8"))
    wanted = [
        torch,
        f"{source}[serve,redis]",
        "setuptools>=77",
        "--constraint",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted], check=True
    )
    return folder


@pytest.fixture(scope="module")
def image(buildah: Builder, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image, in Docker's format, with the extra redis besides."""
    folder = tmp_path_factory.mktemp("base")
    base = folder / "base.tar"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(base)], check=True
    )
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, base, "/")
    buildah("run", "--isolation", "chroot", container, "--", "ln", "-s", "python3", "/usr/bin/python")
    buildah("commit", "--quiet", "--rm", container, BASE)
    base.unlink()
    (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheelhouse\n")
    mounts = ("-v", f"{wheels}:/wheelhouse:ro", "-v", f"{folder / 'pip.conf'}:/etc/pip.conf:ro")
    options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--build-arg", "EXTRAS=redis")
    buildah("bud", *options, *mounts, "--target", "cpu", "--tag", "gems-sr:test", ROOT)
    return "localhost/gems-sr:test"


@pytest.fixture
def container(buildah: Builder, image: str) -> Iterator[str]:
    name = buildah("from", "--pull-never", image)
    yield name
    buildah("rm", name)


def test_it_is_lean(buildah: Builder, container: str) -> None:
    root = Path(buildah("mount", container))
    size = int(subprocess.check_output(["du", "-sb", str(root)], text=True).split()[0])
    print(f"{size / 1e9:.2f} GB")  # noqa: T201
    assert size < MOST_BYTES
    installed = {
        path.name.split("-")[0].lower().replace("_", "-")
        for path in root.glob("venv/lib/python3*/site-packages/*.dist-info")
    }
    needed = {name.replace("_", "-") for name in closure(requirements(["serve", "redis"]))} | {"gems-sr"}
    assert not {"pip", "pandas", "polars", "pyarrow", "scikit-learn", "scipy"} & installed
    assert installed <= needed, installed - needed


def test_it_answers_as_the_checkout_does(
    buildah: Builder, container: str, image: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", pool=True)
    for place in (tmp_path, *tmp_path.rglob("*")):  # the server in the image is another user
        place.chmod(0o755 if place.is_dir() else 0o644)
    with running([sys.executable, "-m", "server", bundle, "--port", "0"], ROOT) as address:
        expected = [ask(address, path, body) for path, body in REQUESTS]
    config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert config["User"] == "gems"
    port = next(iter(config["ExposedPorts"])).partition("/")[0]
    with_bundle = buildah.inside(container, "--volume", f"{bundle}:/bundle:ro")
    health = [*with_bundle, *config["Healthcheck"]["Test"][1:]]
    assert said(health, tmp_path)[0] != 0
    with running([*with_bundle, *config["Entrypoint"], *config["Cmd"]], tmp_path) as address:
        assert address.endswith(f":{port}")
        for (path, body), items in zip(REQUESTS, expected, strict=True):
            answer = ask(address, path, body)
            assert [item for item, _ in answer] == [item for item, _ in items]
            assert [score for _, score in answer] == pytest.approx([score for _, score in items], abs=1e-4)
        assert said(health, tmp_path)[0] == 0
    code, text = said([*with_bundle, "gems", "bundle", "verify", "/bundle"], tmp_path)
    assert code == 0, text


def test_commands_of_training_say_what_they_lack(buildah: Builder, container: str, tmp_path: Path) -> None:
    code, text = said([*buildah.inside(container), "gems", "train", "--data", "x", "--out", "y"], tmp_path)
    assert code != 0
    assert "is not installed: pip install 'gems-sr[train]'" in text


def test_modules_are_compiled_for_good(buildah: Builder, container: str, tmp_path: Path) -> None:
    code, text = said([*buildah.inside(container), "python", "-c", COMPILED], tmp_path)
    assert code == 0, text
