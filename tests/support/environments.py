"""Places other than the checkout where the project is installed: what is in them, and servers that run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
import urllib.request
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PROJECT_FILES = ("gems", "index", "server", "training", "pyproject.toml", "README.md", "LICENSE")


def requirements(extras: Iterable[str]) -> list[Requirement]:
    """Return what pyproject.toml asks for with these extras."""
    return [Requirement(each) for each in (*PROJECT["dependencies"], *(x for e in extras for x in EXTRAS[e]))]


def closure(wanted: Iterable[Requirement]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that requirements bring, by name."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        found.setdefault(requirement.name.lower(), metadata.distribution(requirement.name))
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            for line in metadata.distribution(requirement.name).requires or ():
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return found


def make_environment(folder: Path, extras: Iterable[str], wheel: Path) -> Path:
    """Make an environment with a wheel of the project, and what its base and some extras need; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for distribution in closure(requirements(extras)).values():
        tops = {
            path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    python = folder / "bin" / "python"
    install = ["--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *install], check=True)
    return python


def outside() -> dict[str, str]:
    """Return the environment variables of a process that knows nothing of the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def said(command: Sequence[str | Path], folder: Path) -> tuple[int, str]:
    """Run a command in a folder, and return its exit code and what it wrote, on both streams."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=outside(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@contextmanager
def running(command: Sequence[str | Path], folder: Path) -> Iterator[str]:
    """Run a command that becomes, or starts, a server; give its address; end it as an operator does."""
    process = subprocess.Popen(
        [str(word) for word in command], cwd=folder, env=outside(), stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    address: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if '"message": "ready"' in line:
                address.append(json.loads(line)["url"].replace("0.0.0.0", "127.0.0.1"))
                ready.set()
        ready.set()  # it ended

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        assert ready.wait(180), f"not ready: {lines}"
        assert address, f"the server did not start: {lines}"
        yield address[0]
    finally:
        _server_of(process.pid).terminate()
        process.wait(60)
        reader.join(60)
    assert '"message": "stopped"' in lines[-1] or "exited" in lines[-1], lines[-3:]


def _server_of(pid: int) -> psutil.Process:
    """Return the first process of a server: this one, or the oldest Python among those that it started."""
    itself = psutil.Process(pid)
    family = [itself, *sorted(itself.children(recursive=True), key=lambda each: each.create_time())]
    return next((each for each in family if Path(each.exe()).name.startswith("python")), itself)


def ask(address: str, path: str, body: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the items of an answer, with their scores."""
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [(item["item_id"], item["score"]) for item in json.load(answer)["items"]]
