"""The optimizer as a package of its own: built, installed apart, and used without the rest of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, gems
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
knowledge = gems.collect_knowledge(model, [torch.randn(20, 3) @ torch.randn(3, 8)], gems.find_linears(model))
knowledge.save(sys.argv[2])
optimizer = gems.GEMS(model, ["a", "b"], lr=1e-2, rank=2, knowledge=gems.KnowledgeBasis.load(sys.argv[2]))
for _ in range(3):
    y = model(torch.randn(10, 8))
    optimizer.backward({"a": y.square().mean(), "b": (y - 1).square().mean()})
    optimizer.step()
print(json.dumps({"file": gems.__file__, "modules": sorted(sys.modules)}))
"""


def project(path: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(path.read_text("utf-8"))["project"]
    return found


def test_it_is_built_installed_and_used_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "gems", source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    )
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("gems_optimizer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        archive.extractall(tmp_path / "installed")
    mine = {
        f"gems/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*.py")
        if "build" not in path.parts
    }
    assert names == mine | {"gems/py.typed"}
    used = subprocess.run(
        [sys.executable, "-I", "-c", USE, str(tmp_path / "installed"), str(tmp_path / "knowledge.safetensors")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    said = json.loads(used.stdout)
    assert Path(said["file"]).is_relative_to(tmp_path / "installed")
    top = {name.partition(".")[0] for name in said["modules"]}
    assert not top & {"training", "index", "server", "transformers"}


def test_it_asks_for_what_the_whole_project_asks_for() -> None:
    own, whole = project(ROOT / "gems" / "pyproject.toml"), project(ROOT / "pyproject.toml")
    assert all(own[name] == whole[name] for name in ("version", "requires-python", "license"))
    assert isinstance(own["dependencies"], list)
    assert isinstance(whole["dependencies"], list)
    assert set(own["dependencies"]) <= set(whole["dependencies"])
    imported = {
        found
        for path in (ROOT / "gems").rglob("*.py")
        for found in re.findall(r"^(?:from|import) (\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    needed = {name for name in imported if name not in sys.stdlib_module_names} - {"gems"}
    assert needed <= {re.split("[>=<]", each)[0] for each in own["dependencies"]}
