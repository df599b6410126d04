"""The examples of the guide: they run unchanged and do what the guide says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gems import GEMS

GUIDE = Path(__file__).parents[2] / "docs" / "gems.md"


def test_the_examples_run_in_order_and_the_joint_loss_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    space: dict[str, Any] = {}
    for k, block in enumerate(blocks):
        exec(compile(block, f"{GUIDE.name}, block {k + 1}", "exec"), space)
    losses = space["joint_losses"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert set(space["rho"]) == {"0.weight", "2.weight"}
    assert "0.weight" in capsys.readouterr().out
    assert space["optimizer"].steps == 202
    assert (tmp_path / "state.pt").exists()
    # the first layer's answers to general inputs were protected
    general = torch.cat(space["general"])
    known = space["knowledge"].directions("0.weight", 0.9, 8)
    torch.manual_seed(0)
    start = torch.nn.Linear(32, 64).weight
    change = space["model"][0].weight - start
    assert float((change @ known).norm() / change.norm()) < 1e-5
    assert float((general @ known).norm() / general.norm()) > 0.9


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    parameters = dict(inspect.signature(GEMS).parameters)
    parameters.pop("model")
    assert set(parameters) <= set(defaults)
    for name, parameter in parameters.items():
        if isinstance(parameter.default, bool):
            assert defaults[name] == str(parameter.default).lower(), name
        elif isinstance(parameter.default, int | float):
            shown = defaults[name].split(", ")[-1]
            assert float(shown) == parameter.default, name
        elif isinstance(parameter.default, str):
            assert defaults[name] == f"`{parameter.default}`", name


def test_lines_are_short() -> None:
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 110, line
