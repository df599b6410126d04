"""The files of `deploy/kubernetes`, plain and as kustomize renders them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT

Manifest = dict[str, Any]

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("volume", "object-store")
FILES = sorted(KUBERNETES.rglob("*.yaml"))
KUSTOMIZATIONS = [path for path in FILES if path.name == "kustomization.yaml"]
PROGRAM = next(
    (list(words) for words in (("kubectl", "kustomize"), ("kustomize", "build")) if shutil.which(words[0])),
    None,
)


def read(path: Path) -> Manifest:
    (document,) = yaml.safe_load_all(path.read_text("utf-8"))
    return dict(document)


@functools.cache
def render(folder: Path) -> list[Manifest]:
    """Return what kustomize makes of a folder; the test is skipped where it is not installed."""
    if PROGRAM is None:
        pytest.skip("neither kubectl nor kustomize is on this machine")
    done = subprocess.run([*PROGRAM, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


def overlay(name: str) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / name)


def of_kind(manifests: list[Manifest], kind: str, name: str = "gems") -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield the name and the template of each workload."""
    for each in manifests:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each["metadata"]["name"], each["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(pod: Manifest, name: str) -> Manifest:
    (found,) = [each for each in containers(pod) if each["name"] == name]
    return found


def literals(path: Path, name: str) -> dict[str, str]:
    """Return the values of a generated ConfigMap as a kustomization writes them."""
    for each in read(path)["configMapGenerator"]:
        if each["name"] == name:
            return {
                key: value.strip('"') for key, _, value in (text.partition("=") for text in each["literals"])
            }
    raise AssertionError(f"{path} generates no {name}")


def environment(manifests: list[Manifest], of: Manifest, secrets: dict[str, str]) -> dict[str, str]:
    """Return the variables that a container gets; values may name variables that stand before them.

    secrets: by "NAME/KEY".
    """
    found: dict[str, str] = {}
    for source in of.get("envFrom", []):
        if "configMapRef" in source:
            found |= of_kind(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in of.get("env", []):
        if "value" in variable:
            value = str(variable["value"])
            for name, known in found.items():
                value = value.replace(f"$({name})", known)
            assert "$(" not in value, f"{variable['name']} names a variable that does not stand before it"
        else:
            key = variable["valueFrom"]["secretKeyRef"]
            assert not key.get("optional", False)
            value = secrets[f"{key['name']}/{key['key']}"]
        found[variable["name"]] = value
    return found


def megabytes(quantity: str) -> float:
    """Return a quantity of Kubernetes, as 4Gi, in MiB."""
    return float(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]
