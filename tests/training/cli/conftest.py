"""A data set and a finished run, for commands that need something right next to what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.walks import SETTINGS, make_data, settings

from training.evaluation.evaluate import evaluate
from training.pipeline import train


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `data`, the short run `run` on it, its `ranks.npz`, and the sweep `sweep.yaml`."""
    folder = tmp_path_factory.mktemp("finished")
    quiet = Console(quiet=True)
    make_data(folder / "data", users=20)
    bundle = train(folder / "data", folder / "run", settings({"optimiser.epochs": 1}), console=quiet)
    assert bundle is not None
    evaluate(bundle, folder / "data", max_cases=10, ranks_file=folder / "ranks.npz", threads=1, console=quiet)
    sweep = {
        "settings": SETTINGS | {"identifiers": {"codebooks": [4, 4]}},
        "variants": {"full": {"method": "full"}},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), "utf-8")
    return folder
