"""`gems index versions` names the versions even if nobody can say which one is current."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from training.cli.main import main


@pytest.mark.parametrize("damage", ["deleted", "damaged"])
def test_a_damaged_pointer_leaves_the_list(
    damage: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    pointer = bundle / "index" / "current.json"
    pointer.unlink() if damage == "deleted" else pointer.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["gems", "index", "versions", str(bundle)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out.startswith("v1  ")
    assert "current.json" in said.err
    assert len(said.err.splitlines()) == 1
