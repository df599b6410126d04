"""The Dockerfile agrees with pyproject.toml, the tested versions, the program and compose.yaml."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from support.paths import ROOT

from server.settings import Settings

TEXT = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
SERVER: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["server"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
TARGETS = ("vllm", "cuda", "cpu")  # what is built without a target is the last


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the steps of each stage by its name; the first is what it is made from."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in STEPS:
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = [("FROM", base)]
        else:
            found[list(found)[-1]].append((word, rest))
    return found


STAGES = stages()


def steps(stage: str, word: str) -> list[str]:
    return [rest for name, rest in STAGES[stage] if name == word]


def test_the_targets_come_last_and_are_described() -> None:
    assert tuple(STAGES)[-len(TARGETS) :] == TARGETS
    assert all(STAGES[name][0] == ("FROM", "run") for name in TARGETS)
    section = OPERATIONS.split("\n## Images\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(TARGETS)
    assert SERVER["build"]["target"] in TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_installs_what_a_server_needs(target: str) -> None:
    assert steps(target, "COPY") == [f"--from=build-{target} /venv /venv"]
    (extra,) = re.findall(r'"\.\[(\w+)\$\{EXTRAS:\+,\$EXTRAS\}\]"', " ".join(steps(f"build-{target}", "RUN")))
    assert extra in EXTRAS
    assert extra == "serve" or "gems-sr[serve]" in EXTRAS[extra]


@pytest.mark.parametrize("extras", ["", "redis", "redis,otel"])
def test_further_extras_are_added_with_commas(extras: str) -> None:
    (word,) = re.findall(r'"\.(\[.+?\])"', " ".join(steps("build-cpu", "RUN")))
    expanded = subprocess.check_output(
        ["sh", "-c", f'printf %s "gems-sr{word}"'], env={"EXTRAS": extras}, text=True
    )
    given = Requirement(expanded).extras
    assert given == {"serve", *filter(None, extras.split(","))}
    assert given <= set(EXTRAS)
    pages = "".join(
        path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md") if path.name != "decisions.md"
    )
    named = re.findall(r"EXTRAS=(\S+?)[`\s.)]", pages + TEXT + (ROOT / "compose.yaml").read_text("utf-8"))
    assert named
    assert all(set(each.split(",")) <= set(EXTRAS) for each in named)


def test_torch_is_the_tested_one() -> None:
    (tested,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"torch==(\S+)", " ".join(steps("build-cpu", "RUN"))) == [f"{tested}+cpu"]
    assert re.findall(r"torch==(\S+)", " ".join(steps("build-cuda", "RUN"))) == [tested]


def test_what_is_copied_is_there_and_is_all_of_the_package() -> None:
    packages = {
        pattern.removesuffix("*")
        for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert {step.split()[0] for step in steps("wheel", "COPY")} == packages
    for step in steps("build", "COPY"):
        assert all((ROOT / name).is_file() for name in step.split()[:-1])
    left_out = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert not packages & set(left_out)


def test_python_is_the_oldest_that_is_supported() -> None:
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert {base for stage in STAGES.values() for _, base in stage[:1] if base not in STAGES} == {
        f"python:{oldest}-slim"
    }
    assert set(re.findall(r"/venv/lib/python([\d.]+)", TEXT)) == {oldest}


def test_the_entry_is_the_server_and_its_port_is_open() -> None:
    assert json.loads(steps("run", "ENTRYPOINT")[0]) == ["python", "-m", "server"]
    assert (ROOT / "server" / "__main__.py").is_file()
    assert json.loads(steps("run", "CMD")[0])[0] == SERVER["volumes"][0].split(":")[-2]
    assert int(steps("run", "EXPOSE")[0]) == Settings.model_fields["port"].default
    user = steps("run", "USER")[0]
    assert f" {user} " in steps("run", "RUN")[0]


@pytest.mark.parametrize("target", TARGETS)
def test_the_variables_of_a_target_are_settings(target: str) -> None:
    given = dict(pair.split("=", 1) for step in steps(target, "ENV") for pair in shlex.split(step))
    fields = {name.removeprefix("GEMS_").lower(): value for name, value in given.items()}
    assert Settings(**fields).device == ("cpu" if target == "cpu" else "cuda")
    assert steps(target, "USER")[-1:] in ([], ["gems"])  # never root at the end


def test_compose_checks_the_health_as_the_image_does() -> None:
    (check,) = steps("run", "HEALTHCHECK")
    options, command = check.split(" CMD ")
    assert SERVER["healthcheck"]["test"] == ["CMD", *json.loads(command)]
    said = dict(option.removeprefix("--").split("=") for option in options.split())
    named = {name.replace("-", "_"): value for name, value in said.items()}
    assert named == {name: value for name, value in SERVER["healthcheck"].items() if name != "test"}


def test_a_checkout_gets_everything() -> None:
    assert Path(ROOT / "Makefile").read_text("utf-8").count("-e '.[dev]'") == 1
    (whole,) = [each for each in EXTRAS["dev"] if each.startswith("gems-sr[")]
    assert {"serve", "train"} <= set(whole.removeprefix("gems-sr[").removesuffix("]").split(","))
