"""Promises of `deploy/kubernetes`, compared with the program: a fetch, a server and a store are run as they say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from support.manifests import (
    KUBERNETES,
    Manifest,
    container,
    environment,
    literals,
    megabytes,
    of_kind,
    overlay,
    read,
)
from support.paths import ROOT
from support.redis import PROGRAM as REDIS
from support.redis import wait_for
from support.servers import Server
from support.stores import event, opened_store, run

from index.bundle.bundle import Bundle
from index.bundle.fetch import RCLONE
from server.people.redis_store import RedisStore
from server.people.store import Keep, StoreError
from server.settings import Settings
from server.telemetry.metrics import Metrics

BASE = read(KUBERNETES / "base" / "deployment.yaml")["spec"]["template"]
SERVER = container(BASE, "server")
SETTINGS = literals(KUBERNETES / "base" / "kustomization.yaml", "gems-settings")
ADAPTER = read(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
SECRETS = {"gems-keys/api-keys": "a-key", "gems-keys/admin-key": "admin", "gems-people/password": "letters1"}
PEOPLE = KUBERNETES / "components" / "people-store"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GEMS_"):
            monkeypatch.delenv(name)


def settings_of(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as the server does. Every variable that begins with GEMS_ must be one."""
    ours = {name: value for name, value in variables.items() if name.startswith("GEMS_")}
    assert set(ours) <= {f"GEMS_{name.upper()}" for name in Settings.model_fields}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    keys = {each["name"]: "key" for each in SERVER["env"]}
    assert set(keys) == {"GEMS_API_KEYS", "GEMS_ADMIN_KEY"}
    return settings_of(SETTINGS | keys, monkeypatch)


@pytest.mark.parametrize("name", ["volume", "object-store"])
def test_every_variable_is_a_setting_and_its_value_one_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = overlay(name)
    server = container(of_kind(manifests, "Deployment")["spec"]["template"], "server")
    found = settings_of(environment(manifests, server, SECRETS), monkeypatch)
    assert found.api_keys.get_secret_value() == "a-key"
    assert bool(found.people_store) == (name == "object-store")


def test_the_port_is_the_one_that_the_server_listens_on(settings: Settings) -> None:
    (port,) = SERVER["ports"]
    exposed = re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert exposed
    assert port["containerPort"] == settings.port == int(exposed[1]) == Settings.model_fields["port"].default
    assert settings.host == "0.0.0.0"


def test_no_variable_of_kubernetes_is_taken_for_a_setting() -> None:
    """A Service named gems gives the pods beside it GEMS_PORT=tcp://…, unless they say no."""
    assert f"{read(KUBERNETES / 'base' / 'service.yaml')['metadata']['name']}_PORT".upper() == "GEMS_PORT"
    assert BASE["spec"]["enableServiceLinks"] is False


def test_there_is_time_to_drain_and_to_end(settings: Settings) -> None:
    ready = SERVER["readinessProbe"]
    assert settings.drain_seconds > ready["periodSeconds"] * ready["failureThreshold"]
    assert settings.shutdown_seconds * 1000 > settings.request_timeout_ms
    grace = BASE["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.drain_seconds + settings.shutdown_seconds + 2 + 3  # the log, and traces
    assert "preStop" not in SERVER.get("lifecycle", {})  # the server's own drain is in its place


def test_the_memory_and_the_cores_are_those_of_the_sizing(settings: Settings) -> None:
    limits, requests = SERVER["resources"]["limits"], SERVER["resources"]["requests"]
    assert megabytes(limits["memory"]) > 700 + settings.cache_mib
    assert "cpu" not in limits
    assert settings.threads + 1 <= int(requests["cpu"])


def test_what_can_be_written_is_what_the_server_writes() -> None:
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in SERVER["volumeMounts"]}
    assert mounts == {"/bundle": True, "/tmp": False}
    assert {each.split(":")[0] for each in COMPOSE["server"]["tmpfs"]} == {"/tmp"}


def filled(words: list[str], variables: dict[str, str], places: dict[str, Path]) -> list[str]:
    """Return the words of a command as the container gets them, with other places for its paths."""
    found = []
    for word in words:
        for name, value in variables.items():
            word = word.replace(f"$({name})", value)
        for path, place in places.items():
            word = re.sub(rf"(^|=){path}(?=/)", rf"\g<1>{place}", word)
        found.append(word)
    return found


@pytest.mark.skipif(shutil.which(RCLONE) is None, reason="rclone is not installed")
def test_a_bundle_is_fetched_as_the_files_say(tiny_bundle: Path, tmp_path: Path) -> None:
    fetch = read(KUBERNETES / "components" / "bundle-download" / "fetch.yaml")["spec"]["template"]
    first, second = fetch["spec"]["initContainers"]
    assert first["command"][-1] == "/tools/rclone"
    for each in fetch["spec"]["initContainers"]:  # what one leaves, the next finds
        assert {"/tools"} <= {mount["mountPath"] for mount in each["volumeMounts"]}
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "rclone").symlink_to(str(shutil.which(RCLONE)))
    places = {"/tools": tmp_path / "tools", "/bundle": tmp_path / "bundle"}
    variables = literals(KUBERNETES / "overlays" / "object-store" / "kustomization.yaml", "gems-bundle")
    assert re.fullmatch("[0-9a-f]{64}", variables["BUNDLE_SHA256"])
    variables |= {"BUNDLE_SOURCE": str(tiny_bundle), "BUNDLE_SHA256": Bundle.open(tiny_bundle).sha256()}
    program, *words = filled([*second["command"], *second["args"]], variables, places)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module = scripts[program].partition(":")[0]
    own = {each["name"]: each["value"] for each in second["env"]}
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    (bundle,) = filled(SERVER["args"], {}, places)
    assert Bundle.open(Path(bundle)).sha256() == variables["BUNDLE_SHA256"]


def test_a_server_runs_as_the_files_say(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_bundle)
    bundle, *more = filled(SERVER["args"], {}, {"/bundle": tmp_path})
    keys = {each["name"]: "a-key" for each in SERVER["env"]}
    with (
        Server(Path(bundle), *more, **SETTINGS | keys) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert client.get(SERVER[probe]["httpGet"]["path"]).status_code == 200
        assert client.post("/recommend", json={}).status_code == 401
        answer = client.post("/recommend", json={}, headers={"Authorization": "Bearer a-key"})
        assert answer.status_code == 200
        monitor = read(KUBERNETES / "components" / "monitoring" / "podmonitor.yaml")["spec"]
        (end,) = monitor["podMetricsEndpoints"]
        scraped = client.get(end["path"])
        assert all(f"\n{metric_of(rule)}{{" in scraped.text for rule in ADAPTER)


def test_the_store_of_people_is_that_of_compose_and_is_found() -> None:
    (store,) = read(PEOPLE / "statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    assert store["image"] == COMPOSE["store"]["image"]
    command = COMPOSE["store"]["command"]
    assert store["args"][: len(command)] == command
    service = read(PEOPLE / "service.yaml")
    setting = container(read(PEOPLE / "setting.yaml")["spec"]["template"], "server")["env"][-1]
    host, port = re.fullmatch(r"redis://:\$\(\w+\)@([\w-]+):(\d+)/0", setting["value"]).groups()  # type: ignore[union-attr]
    assert host == service["metadata"]["name"]
    assert [int(port)] == [each["port"] for each in service["spec"]["ports"]]
    assert [int(port)] == [each["containerPort"] for each in store["ports"]]


@pytest.mark.skipif(REDIS is None, reason="no redis-server or valkey-server on this machine")
def test_a_store_runs_as_the_files_say(tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="no client of Redis: pip install 'gems-sr[redis]'")
    manifests = overlay("object-store")
    (store,) = of_kind(manifests, "StatefulSet", "gems-people")["spec"]["template"]["spec"]["containers"]
    (mount,) = store["volumeMounts"]
    variables = environment(manifests, store, SECRETS)
    words = [word.replace(mount["mountPath"], str(tmp_path)) for word in filled(store["args"], variables, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = container(of_kind(manifests, "Deployment")["spec"]["template"], "server")
    setting = environment(manifests, server, SECRETS)["GEMS_PEOPLE_STORE"]
    setting = setting.replace("@gems-people:6379", f"@127.0.0.1:{port}")
    process = subprocess.Popen([str(REDIS), *words[1:], "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        with opened_store(RedisStore(setting, Keep())) as people:

            def stored() -> bool:
                try:
                    return run(people.append([event("u", 1, 1.0)])).stored == 1
                except StoreError:  # it starts
                    return False

            wait_for(stored)
            assert [each.event_id for each in run(people.history("u"))] == ["e1"]
        assert list((tmp_path / "appendonlydir").iterdir())
    finally:
        process.kill()
        process.wait()


def metric_of(rule: Manifest) -> str:
    """Return the series that a rule of the adapter reads."""
    return str(re.match(r"\w+", rule["seriesQuery"])[0])  # type: ignore[index]


def test_the_autoscaler_reads_a_metric_of_ours(settings: Settings) -> None:
    scaler = read(KUBERNETES / "components" / "autoscaling" / "horizontalpodautoscaler.yaml")["spec"]
    asked = {each["pods"]["metric"]["name"]: each["pods"]["target"] for each in scaler["metrics"]}
    assert set(asked) == {rule["name"]["as"] for rule in ADAPTER}
    histograms = {family.name for family in Metrics().registry.collect() if family.type == "histogram"}
    for rule in ADAPTER:
        assert metric_of(rule).removesuffix("_sum") in histograms
        assert f"({metric_of(rule)}{{<<.LabelMatchers>>}}[" in rule["metricsQuery"]
        labels = set(re.findall(r'(\w+)!=""', rule["seriesQuery"]))
        assert labels == set(rule["resources"]["overrides"])
        assert 0 < float(asked[rule["name"]["as"]]["averageValue"]) <= settings.max_batch_size


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_the_metric_is_the_mean_number_of_rankings_in_progress(tmp_path: Path) -> None:
    """Three stages, in which 5 s, 30 s and 85 s pass in each minute, are two rankings at a time."""
    (rule,) = ADAPTER
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n"')
    series = [
        {
            "series": f'{metric_of(rule)}{{namespace="{space}",pod="a",stage="{stage}"}}',
            "values": f"0+{step}x10",
        }
        for space, stage, step in (
            ("n", "queue", 5),
            ("n", "prefill", 30),
            ("n", "decode", 85),
            ("m", "queue", 9),
        )
    ]
    expected = [{"labels": '{pod="a"}', "value": 2}]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": expected}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_are_the_same_and_find_their_job() -> None:
    rules = read(KUBERNETES / "components" / "monitoring" / "prometheusrule.yaml")["spec"]
    alerts = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text("utf-8"))
    assert rules == alerts
    monitor = read(KUBERNETES / "components" / "monitoring" / "podmonitor.yaml")["spec"]
    named = set(re.findall(r'job="(\w+)"', yaml.safe_dump(alerts)))
    assert {BASE["metadata"]["labels"][monitor["jobLabel"]]} == named
    assert monitor["selector"]["matchLabels"].items() <= BASE["metadata"]["labels"].items()
