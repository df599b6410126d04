"""The CI workflow and the pre-commit hooks run the checks of the Makefile."""

from __future__ import annotations

import re
from typing import Any

import yaml
from support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CI_TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
HOOKS_TEXT = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
JOB: dict[str, Any] = yaml.safe_load(CI_TEXT)["jobs"]["check"]


def test_the_workflow_runs_targets_of_the_makefile() -> None:
    assert JOB["strategy"]["matrix"]["target"] == ["lint", "test"]
    assert [step["run"] for step in JOB["steps"] if "run" in step] == [
        "make setup",
        "make ${{ matrix.target }}",
    ]
    for target in ("setup", "lint", "test"):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_the_workflow_uses_the_oldest_python_that_is_supported() -> None:
    (python,) = [
        step["with"]["python-version"] for step in JOB["steps"] if "python-version" in step.get("with", {})
    ]
    assert f'requires-python = ">={python}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    (repository,) = yaml.safe_load(HOOKS_TEXT)["repos"]
    assert repository["repo"] == "local"  # nothing is downloaded
    (recipe,) = re.findall(r"^lint: setup\n((?:\t.+\n)+)", MAKEFILE, re.MULTILINE)
    commands = [
        line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe.splitlines()
    ]
    assert [hook["entry"] for hook in repository["hooks"]] == commands


def test_no_host_is_named() -> None:
    assert "://" not in CI_TEXT + HOOKS_TEXT
