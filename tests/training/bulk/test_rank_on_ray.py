"""A cluster of Ray writes the same file as one machine, also if one of its workers is killed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.walks import make_data, settings

pytest.importorskip("ray", reason="no Ray: pip install 'gems-sr[ray]'")

from ray.cluster_utils import Cluster
from rich.console import Console

from training.bulk.parts import parts_folder
from training.cli.main import main
from training.pipeline import train

STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    make_data(folder / "data", users=400)
    config = settings({"optimiser.epochs": 0.2, "identifiers.scheme": "semantic"})
    assert train(folder / "data", folder / "run", config, console=Console(quiet=True)) is not None
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with one core each, on this machine."""
    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *more: str) -> int:
    words = ["--data", str(folder / "data"), "--all", "--out", str(out), "--threads=1", "--batch-size=4"]
    monkeypatch.setattr(sys, "argv", ["gems", "rank", str(folder / "run"), *words, *more])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def actors() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "RankActor" in each.name() or "RankActor" in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found


def test_the_file_is_that_of_one_machine_although_a_worker_is_killed(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, folder, tmp_path / "here") == 0
    killed: list[int] = []

    def kill_one() -> None:
        parts = parts_folder(tmp_path / "there")
        while not killed and not (tmp_path / "there").exists():
            if list(parts.glob("*.parquet")) and (found := actors()):  # they are at work
                found[0].kill()
                killed.append(found[0].pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    options = (f"--ray={address}", "--workers=2", "--save-seconds=0.01")
    assert run(monkeypatch, folder, tmp_path / "there", *options) == 0
    killer.join(10)
    assert killed, "it ended before the kill: rank for more people"
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert actors() == []


def test_too_many_workers_are_refused_at_once(
    folder: Path,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, folder, tmp_path / "out", f"--ray={address}", "--workers=3") != 0
    assert "need 3 cores, the cluster has 2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
