"""`gems serve`: it becomes the server before anything slow is imported, and passes on all that was given."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT

PROGRAMS = {"gems": ["-m", "training.cli.main", "serve"], "server": ["-m", "server"]}
SLOW = ("torch", "transformers", "pandas", "polars", "sklearn", "fastapi", "uvicorn")


@pytest.fixture
def without_slow(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing slow can be imported."""
    for name in SLOW:
        (tmp_path / "shadows").mkdir(exist_ok=True)
        (tmp_path / "shadows" / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'shadows'}{os.pathsep}{ROOT}"}


def run(program: str, arguments: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Return exit code and stderr."""
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program], *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_can_be_refused_at_once_is_refused_before_the_slow_imports(
    program: str, tiny_bundle: Path, without_slow: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for arguments in ([str(tiny_bundle), "--port", port], ["--port", port, str(tiny_bundle)]):
            code, said = run(program, arguments, without_slow)
            assert code == 2
            assert said.startswith(f"error: port {port} of 127.0.0.1 cannot be used")
            assert len(said.splitlines()) == 1
    for arguments, reason in (
        ([str(tiny_bundle), "--host", "no such host"], "host 'no such host' cannot be resolved"),
        ([str(tiny_bundle), "--root-path", "gems/"], "GEMS_ROOT_PATH is a path"),
        (["nowhere"], "there is no folder nowhere"),
    ):
        code, said = run(program, arguments, without_slow)
        assert (code, len(said.splitlines())) == (2, 1)
        assert reason in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_the_options_of_the_server(program: str) -> None:
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in ("--port", "--host", "--root-path", "--threads", "--engine", "bundle"):
        assert option in done.stdout


def test_ctrl_c_reaches_the_server_that_it_became(tiny_bundle: Path) -> None:
    """One process all along: a supervisor knows it by its id."""
    process = subprocess.Popen(
        [sys.executable, *PROGRAMS["gems"], str(tiny_bundle), "--port", "0"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while len(psutil.Process(process.pid).children()) < 2:  # template and resource tracker
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "stopped by SIGINT\n"
    assert process.returncode == 130
    assert not psutil.wait_procs(family, timeout=5)[1]
