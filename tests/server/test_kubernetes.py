"""The files of `deploy/kubernetes` are what Kubernetes accepts, fit each other, and are as restricted as they say."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.manifests import (
    FILES,
    KUBERNETES,
    KUSTOMIZATIONS,
    OVERLAYS,
    Manifest,
    container,
    containers,
    megabytes,
    of_kind,
    overlay,
    pods,
    read,
    render,
)
from support.paths import ROOT

PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
OLDEST = "1.29"  # as docs/kubernetes.md says
FOREIGN = {"PodMonitor", "PrometheusRule"}  # of the Prometheus Operator, whose schemas are not at hand
CONFIGURATION = {"Kustomization", "Component"}
SERVER = {"app.kubernetes.io/name": "gems", "app.kubernetes.io/component": "server"}


def patches() -> set[Path]:
    return {
        path.parent / patch["path"]
        for path in KUSTOMIZATIONS
        for patch in read(path).get("patches", [])
        if "path" in patch
    }


def schema_errors(manifest: Manifest) -> list[str]:
    """Return the errors of a manifest by the published schemas of the oldest and the newest version."""
    validate = pytest.importorskip("kubernetes_validate")
    errors = []
    for version in (OLDEST, validate.latest_version()):
        try:
            validate.validate(manifest, version, strict=True)
        except validate.ValidationError as error:
            errors.append(f"{version}: {error}")
    return errors


WHOLE = [
    path
    for path in FILES
    if path not in patches() and read(path).get("kind", "Component") not in FOREIGN | CONFIGURATION
]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_a_plain_file_follows_the_published_schemas(path: Path) -> None:
    assert schema_errors(read(path)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_an_overlay_makes_follows_the_published_schemas(name: str) -> None:
    manifests = overlay(name)
    assert len(manifests) > 5
    for each in manifests:
        if each["kind"] not in FOREIGN:
            assert schema_errors(each) == [], each["kind"]


def test_the_check_can_fail() -> None:
    wrong: Any = read(KUBERNETES / "base" / "deployment.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert len(schema_errors(wrong)) == 2
    assert f"Kubernetes {OLDEST} or newer" in PAGE


def test_every_file_is_used_by_another_or_by_a_person() -> None:
    used = {path for path in KUSTOMIZATIONS if path.parent.parent.name in ("overlays", "components")}
    used |= patches() | {KUBERNETES / "prometheus-adapter.yaml"}
    for path in KUSTOMIZATIONS:
        for entry in read(path).get("resources", []):
            target = (path.parent / entry).resolve()
            used.add(target / "kustomization.yaml" if target.is_dir() else target)
    assert sorted(used) == FILES
    for folder in ("components", "overlays"):
        for path in (KUBERNETES / folder).iterdir():
            assert f"`{path.name}`" in PAGE or path.name == "namespace", path.name


@pytest.mark.parametrize("name", OVERLAYS)
def test_whatever_a_pod_names_is_there_or_made_by_a_command_of_the_page(name: str) -> None:
    manifests = overlay(name)
    made = dict(re.findall(r"kubectl -n gems create secret generic (\S+) ((?:.*\\\n)*.*)", PAGE))
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for _, pod in pods(manifests):
        volumes = {each["name"] for each in pod["spec"].get("volumes", [])}
        for volume in pod["spec"].get("volumes", []):
            assert len(volume) == 2, volume  # a name and one source
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
        for each in containers(pod):
            for source in each.get("envFrom", []):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in there
                else:
                    assert source["secretRef"]["name"] in made
            for variable in each.get("env", []):
                if key := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert f"--from-literal={key['key']}=" in made[key["name"]]
            if each["name"] != "store":  # whose volume comes from a template
                assert {mount["name"] for mount in each.get("volumeMounts", [])} <= volumes


def chosen(manifest: Manifest) -> dict[str, str] | None:
    """Return the labels that a manifest selects pods by."""
    spec = manifest.get("spec", {})
    selector = spec.get("podSelector") or spec.get("selector")
    return None if selector is None else dict(selector.get("matchLabels", selector))


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_choose_one_workload_each(name: str) -> None:
    manifests = overlay(name)
    labels = {workload: pod["metadata"]["labels"] for workload, pod in pods(manifests)}
    selecting = [each for each in manifests if chosen(each)]
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= {each["kind"] for each in selecting}
    for each in selecting:
        wanted = chosen(each) or {}
        found = [workload for workload, own in labels.items() if wanted.items() <= own.items()]
        assert found == [each["metadata"]["name"]], each["kind"]
    server = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    for spread in server["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == SERVER
    for policy in (each for each in manifests if each["kind"] == "NetworkPolicy"):
        (rule,) = policy["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": SERVER}}]


def ports(pod: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for each in containers(pod) for port in each.get("ports", [])}


@pytest.mark.parametrize("name", OVERLAYS)
def test_ports_are_found_by_their_names(name: str) -> None:
    manifests = overlay(name)
    named = {workload: ports(pod) for workload, pod in pods(manifests)}
    for each in manifests:
        own = named.get(each["metadata"]["name"], {})
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= set(own)
        elif each["kind"] == "NetworkPolicy":
            assert {port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]} <= set(own)
        elif each["kind"] == "PodMonitor":
            assert {end["port"] for end in each["spec"]["podMetricsEndpoints"]} <= set(own)
    for _, pod in pods(manifests):
        for each in containers(pod):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in each:
                    action = each[probe].get("httpGet") or each[probe]["tcpSocket"]
                    assert action["port"] in ports(pod)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    """The Pod Security Standard "restricted", which the namespace enforces, and a read-only root file system."""
    manifests = overlay(name)
    namespace = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    user = re.search(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
    assert user
    for _, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == int(user[1])
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(spec)
        assert all({"emptyDir", "persistentVolumeClaim"} & set(volume) for volume in spec.get("volumes", []))
        for each in containers(pod):
            assert each["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", each["image"])
            resources = each["resources"]
            assert (
                resources["limits"]["memory"] == resources["requests"]["memory"]
            )  # never killed for a neighbour
            assert "cpu" in resources["requests"]


def test_a_rollout_and_a_drained_node_never_take_more_than_they_may() -> None:
    deployment = read(KUBERNETES / "base" / "deployment.yaml")["spec"]
    rolling = deployment["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0 < rolling["maxSurge"]
    assert deployment["replicas"] >= 2
    budget = read(KUBERNETES / "base" / "poddisruptionbudget.yaml")["spec"]
    assert budget["maxUnavailable"] == 1


def test_the_number_of_servers_belongs_to_the_autoscaler_where_there_is_one() -> None:
    manifests = overlay("object-store")
    scaler = of_kind(manifests, "HorizontalPodAutoscaler")["spec"]
    deployment = of_kind(manifests, "Deployment")
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert scaler["minReplicas"] >= 2


def test_clients_stay_at_one_server_if_that_is_wanted(tmp_path: Path) -> None:
    base, part = (
        os.path.relpath(KUBERNETES / each, tmp_path.resolve())
        for each in ("base", "components/client-affinity")
    )
    written = {"resources": [base], "components": [part]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(written))
    manifests = render(tmp_path)
    service = of_kind(manifests, "Service")
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    assert schema_errors(service) == []
    assert "sessionAffinity" not in of_kind(overlay("volume"), "Service")["spec"]


def test_the_volume_has_room_for_what_is_fetched() -> None:
    manifests = overlay("object-store")
    pod = of_kind(manifests, "Deployment")["spec"]["template"]
    (bundle,) = [each for each in pod["spec"]["volumes"] if each["name"] == "bundle"]
    asked = container(pod, "fetch")["resources"]["requests"]["ephemeral-storage"]
    assert megabytes(asked) >= megabytes(bundle["emptyDir"]["sizeLimit"])
