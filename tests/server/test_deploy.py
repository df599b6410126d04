"""The files for operation refer only to existing settings, metrics, files and runbook entries."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.servers import ROOT

from index.bundle.bundle import Bundle
from server.settings import Settings
from server.telemetry.metrics import Metrics

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
DASHBOARD_TEXT = (DEPLOY / "grafana" / "dashboards" / "gems.json").read_text("utf-8")
DASHBOARD = json.loads(DASHBOARD_TEXT)
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def series() -> dict[str, set[str]]:
    """Return the names of the series of each metric, as Prometheus stores them."""
    names = {}
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        names[name] = {name + suffix for suffix in SUFFIXES[family.type]}
    return names


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a tree of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def named(value: Any) -> set[str]:
    """Return our series that occur in a tree. A colon stands before those of recording rules."""
    return {name for text in texts(value) for name in re.findall(r"(?<![:\w/#])gems_\w+", text)}


@pytest.mark.parametrize(
    "tree", [RULES, DASHBOARD["panels"], DASHBOARD["annotations"], DASHBOARD["templating"]]
)
def test_every_metric_that_is_named_exists(tree: Any) -> None:
    found = named(tree)
    assert found
    assert found <= set().union(*series().values())


def test_every_label_that_is_named_exists(bundle: Bundle) -> None:
    metrics = Metrics()
    metrics.show(metrics.describe(bundle))
    exist = set(re.findall(r'(\w+)="([^"]*)"', metrics.render().decode()))
    asked = re.findall(r'(\w+)(?:=|!=|=~)"([^"$]*)"', " ".join(texts([RULES, DASHBOARD["panels"]])))
    named = {(label, value) for label, values in asked if label != "job" for value in values.split("|")}
    assert {label for label, _ in named} == {"task", "outcome", "reason", "figure", "le"}
    assert named <= exist


def test_every_metric_is_on_the_dashboard() -> None:
    shown = named(DASHBOARD["panels"])
    assert not {metric for metric, names in series().items() if not names & shown}


def test_recorded_series_are_those_that_alerts_read() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    read = set(re.findall(r"job:\w+:\w+", " ".join(alert["expr"] for alert in ALERTS.values())))
    assert read == recorded


@pytest.mark.parametrize("name", ALERTS)
def test_alert_has_an_entry_in_the_runbook(name: str) -> None:
    page, anchor = ALERTS[name]["annotations"]["runbook_url"].split("#")
    assert (ROOT / page).read_text("utf-8") == OPERATIONS
    assert anchor == name.lower()  # the anchor of the heading
    entry = re.search(rf"^### {name}\n\n(.+?)(?=^##)", OPERATIONS + "\n##", re.MULTILINE | re.DOTALL)
    assert entry
    assert len(entry[1].split()) > 25
    assert ALERTS[name]["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    assert re.findall(r"^### (Gems\w+)", OPERATIONS, re.MULTILINE) == list(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_is_tested_to_fire_and_not_to(name: str) -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text("utf-8"))["tests"]
    fires = [
        bool(case["exp_alerts"])
        for test in tests
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert {True, False} == set(fires)


def composer() -> list[str] | None:
    """Return the words of the command that reads compose files, the plugin of Docker or the older program."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) and not subprocess.run([*words, "version"], capture_output=True).returncode:
            return words
    return None


@pytest.mark.skipif(composer() is None, reason="neither docker compose nor docker-compose is installed")
@pytest.mark.parametrize("profile", [[], ["--profile", "people"]], ids=["", "people"])
def test_compose_reads_the_file(profile: list[str], tmp_path: Path) -> None:
    words = composer() or []
    text = (ROOT / "compose.yaml").read_text("utf-8")
    if words == ["docker-compose"]:  # version 1 does not know the name of a project
        text = re.sub("^name: .*$", "", text, flags=re.MULTILINE)
    done = subprocess.run(
        [*words, "--file", "-", "--project-directory", str(ROOT), *profile, "config"],
        input=text,
        env=os.environ | {"BUNDLE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    wanted = {name for name, service in SERVICES.items() if "profiles" not in service or profile}
    assert wanted <= set(read)
    assert f"{tmp_path}:/bundle:ro" in read["server"]["volumes"] or any(
        isinstance(each, dict) and each.get("source") == str(tmp_path) and each.get("read_only")
        for each in read["server"]["volumes"]
    )


def test_services_are_set_by_settings_that_exist() -> None:
    names = {name for name in SERVICES["server"]["environment"] if name.startswith("GEMS_")}
    assert names
    assert names <= {f"GEMS_{name.upper()}" for name in Settings.model_fields}
    given = re.findall(r"\bGEMS_[A-Z_]+", (ROOT / "compose.yaml").read_text("utf-8"))
    assert set(given) <= {f"GEMS_{name.upper()}" for name in Settings.model_fields}


def test_the_server_is_given_time_to_end() -> None:
    environment = SERVICES["server"]["environment"]
    settings = {
        f"GEMS_{name.upper()}": field.default for name, field in Settings.model_fields.items()
    } | environment
    needed = float(settings["GEMS_DRAIN_SECONDS"]) + float(settings["GEMS_SHUTDOWN_SECONDS"])
    assert float(SERVICES["server"]["stop_grace_period"].removesuffix("s")) > needed


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_pinned_and_mounts_what_is_there(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
    for volume in service["volumes"]:
        if volume.startswith("./"):
            assert (ROOT / volume.split(":")[0]).exists(), volume
        elif not volume.startswith("${"):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_each_finds_the_next() -> None:
    def inside(service: str, host_path: str) -> str:
        """Return the path of a file of the repository in a container."""
        for volume in SERVICES[service]["volumes"]:
            source, target = volume.split(":")[:2]
            if f"./{host_path}".startswith(source):
                return f"./{host_path}".replace(source, target, 1)
        raise AssertionError(f"{service} does not see {host_path}")

    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"server:{SERVICES['server']['environment']['GEMS_PORT']}"
    assert (
        f"--config.file={inside('prometheus', 'deploy/prometheus.yml')}" in SERVICES["prometheus"]["command"]
    )
    assert prometheus["rule_files"] == [inside("prometheus", "deploy/alerts.yml").rpartition("/")[2]]

    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))[
        "datasources"
    ]
    assert source["url"] == f"http://prometheus:{SERVICES['prometheus']['ports'][0].rpartition(':')[2]}"
    variable = DASHBOARD["templating"]["list"][0]
    assert variable["current"]["value"] == source["uid"]
    assert inside("grafana", "deploy/grafana/provisioning") == "/etc/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "gems.yaml").read_text("utf-8"))["providers"]
    home = inside("grafana", "deploy/grafana/dashboards/gems.json")
    assert home == SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"] + "/")


def test_panels_are_whole_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
            assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"])
