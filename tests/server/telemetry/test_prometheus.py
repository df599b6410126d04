"""The alerts and the dashboard in Prometheus itself, if it is installed (Debian: `apt-get install prometheus`)."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.servers import ROOT, Server, wait_until

DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed",
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A client of Prometheus, which runs with the files of `deploy/`, another target, and a scrape each half second."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    shutil.copy(DEPLOY / "alerts.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def ask(client: httpx.Client, query: str) -> list[Any]:
    """Return the present series of an expression."""
    try:
        answer = client.post("/api/v1/query", data={"query": query}).json()
    except httpx.TransportError:  # it starts
        return []
    assert answer["status"] == "success", f"{query}: {answer.get('error')}"
    return list(answer["data"]["result"])


def rules(client: httpx.Client) -> list[dict[str, Any]]:
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Return the expressions of dashboard and alerts by title.

    The comparison of an alert is changed to return 0 or 1; else it returns no series when it is false.
    """
    found = {}
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "gems.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"].replace(" > 0", "")
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            outcome = re.sub(r" (>|==) ", r" \1 bool ", rule["expr"])
            found[rule.get("alert") or rule["record"]] = outcome if "alert" in rule else rule["expr"]
    filled = {"$instance": ".+", "$__rate_interval": "10s"}
    return {
        title: re.sub(r"\$\w+", lambda name: filled[name[0]], expression)
        for title, expression in found.items()
    }


def use(server: Server, seconds: float) -> None:
    """Send requests of every kind."""
    history = [{"item_id": f"item-{k}"} for k in range(15)]
    single = {
        "query": "river",
        "history": [*history, {"item_id": "nowhere"}],
        "filter": {"categories": "Drama"},
    }
    entries = [{"task": "search", "query": "river"}, {"task": "recommendation", "history": history}]
    end = time.monotonic() + seconds
    with httpx.Client(base_url=server.url, timeout=20) as client:
        while time.monotonic() < end:
            for path, body in [
                ("/search", single | {"explain": True}),
                ("/recommend", {"history": history, "limit": 100}),
                ("/batch", {"requests": entries}),
            ]:
                assert client.post(path, json=body).status_code == 200
            time.sleep(0.1)


@pytest.mark.slow
def test_every_panel_and_alert_has_series(tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tiny_bundle) as server, prometheus(tmp_path, f"127.0.0.1:{server.port}") as client:
        wait_until(lambda: bool(ask(client, "up == 1")), 30)
        use(server, 6)
        empty = [title for title, expression in expressions().items() if not ask(client, expression)]
        assert not empty
        assert {rule["health"] for rule in rules(client)} == {"ok"}
        assert "firing" not in {rule.get("state") for rule in rules(client)}

        def state(alert: str) -> str:
            return next(rule["state"] for rule in rules(client) if rule["name"] == alert)

        assert state("GemsDown") == "inactive"
        server.process.kill()
        wait_until(lambda: state("GemsDown") == "pending", 30)
