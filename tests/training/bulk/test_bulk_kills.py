"""A bulk ranking that is killed again and again ends with the same file, and refuses to go on as another one."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.walks import make_data, settings

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from training.bulk.parts import parts_folder
from training.cli.main import main
from training.pipeline import train

KILLS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rich.console import Console

    folder = tmp_path_factory.mktemp("killed")
    make_data(folder / "data", users=400)
    config = settings({"optimiser.epochs": 0.2, "identifiers.scheme": "semantic"})
    assert train(folder / "data", folder / "run", config, console=Console(quiet=True)) is not None
    return folder


def words(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "rank", str(folder / "run"), "--data", str(folder / "data"), "--all", "--out", str(out), "--threads=1",
        "--batch-size=4", "--save-seconds=0.01", *more,
    ]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["gems", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_kills_leave_no_trace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, words(folder, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    parts = parts_folder(out)
    chance = random.Random(0)
    command = [sys.executable, "-m", "training.cli.main", *words(folder, out, "--resume")]
    done = [0]
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        enough = done[-1] + chance.randint(1, 12)
        while process.poll() is None and len(list(parts.glob("*.parquet"))) < enough:
            time.sleep(0.002)
        assert process.poll() is None, "it ended before the kill: rank for more people"
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(len(list(parts.glob("*.parquet"))))
        assert not out.exists()
    assert done == sorted(set(done))  # no kill cost what was done before
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.fixture
def half(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output that a ranking was begun for and not finished."""
    out = tmp_path / "half"
    assert run(monkeypatch, words(folder, out)) == 0
    whole = out.read_bytes()
    with monkeypatch.context() as patch:  # it loses its parts just before they are joined
        patch.setattr("training.bulk.parts.Parts.join", lambda self, out: None)
        assert run(patch, words(folder, out)) == 0
    for path in sorted(parts_folder(out).glob("*.parquet"))[::2]:
        path.unlink()
    out.unlink()
    (tmp_path / "whole").write_bytes(whole)
    return out


def test_an_unfinished_ranking_is_neither_lost_nor_mixed(
    half: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = parts_folder(half)
    before = sorted(parts.iterdir())

    def refused(*more: str, place: Path = folder) -> str:
        capsys.readouterr()
        assert run(monkeypatch, words(place, half, *more)) == 2
        assert sorted(parts.iterdir()) == before
        assert not half.exists()
        (line,) = capsys.readouterr().err.splitlines()
        assert str(parts) in line
        return line

    assert "go on with --resume" in refused()
    assert "other settings (limit)" in refused("--resume", "--limit=3")
    assert "other settings (batch_size, ranking)" in refused("--resume", "--ranking=beam", "--batch-size=8")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    update_index(Bundle.open(other / "run" / "bundle"), [], ["red-hat"], lambda items: None)  # type: ignore[arg-type, return-value]
    assert "another bundle or index version" in refused("--resume", place=other)
    make_data(other / "data2", users=399)
    shutil.rmtree(other / "data")
    shutil.move(other / "data2", other / "data")
    assert "other people, queries or requests" in refused("--resume", place=other)
    plan = (parts / "plan.json").read_text()
    (parts / "plan.json").write_text("{")
    assert "cannot be read" in refused("--resume")
    (parts / "plan.json").write_text(plan)

    sorted(parts.glob("*.parquet"))[0].write_bytes(b"PAR1 and no more")  # the disk lost it
    assert run(monkeypatch, words(folder, half, "--resume")) == 0
    assert half.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not parts.exists()
    capsys.readouterr()
    assert run(monkeypatch, words(folder, half, "--resume")) == 0
    assert "is complete already" in capsys.readouterr().out


def test_a_kill_between_the_join_and_the_removal(
    half: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(tmp_path / "whole", half)
    assert run(monkeypatch, words(folder, half, "--resume")) == 0
    assert "is complete already" in capsys.readouterr().out
    assert not parts_folder(half).exists()
    assert half.read_bytes() == (tmp_path / "whole").read_bytes()
