"""Refusals in one line, before Ray is started, of what cannot be served."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="no Ray: pip install 'gems-sr[ray]'")

from index.bundle.manifest import BundleError
from server.ray.application import Fleet, application, build
from server.ray.command_line import EXIT_REFUSED, main
from server.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--replicas", "0"], "--replicas and --fronts must be at least 1"),
        (["--fronts", "0"], "--replicas and --fronts must be at least 1"),
        (["--replicas", "3", "--max-replicas", "2"], "--max-replicas must not be less than --replicas, 3"),
        (["--routing", "luck"], "--routing is one of person, load"),
        (["--port", "70000"], "port"),
    ],
)
def test_wrong_arguments(
    tiny_bundle: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_bundle), "--port", "0", *arguments]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == EXIT_REFUSED
    assert str(tmp_path) in capsys.readouterr().err


def test_a_damaged_bundle(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert main([str(damaged), "--port", "0"]) == EXIT_REFUSED
    assert "model.safetensors" in capsys.readouterr().err


def test_a_taken_port(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(tiny_bundle), "--port", str(port)]) == EXIT_REFUSED
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "name the bundle"),
        ({"replica": "2"}, "unknown arguments: replica"),
        ({"replicas": "two"}, "whole numbers"),
        ({"routing": "luck"}, "--routing is one of"),
    ],
)
def test_wrong_arguments_of_serve_run(tiny_bundle: Path, arguments: dict[str, str], reason: str) -> None:
    given = {"bundle": str(tiny_bundle)} | arguments if arguments else {}
    with pytest.raises(SettingsError, match=reason):
        build(given)


def test_serve_run_without_a_bundle_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        build({"bundle": str(tmp_path)})


def test_a_fleet_that_grows_has_its_limits_from_the_settings(tiny_bundle: Path) -> None:
    settings = Settings(max_batch_size=4, queue_limit=3, threads=2)
    front = application(tiny_bundle, settings, Fleet(replicas=1, most=5))
    replica = front._bound_deployment.init_args[0]._bound_deployment
    growth = replica._deployment_config.autoscaling_config
    assert (growth.min_replicas, growth.max_replicas, growth.target_ongoing_requests) == (1, 5, 4)
    assert replica.max_ongoing_requests == 7  # those in flight and those in the queue
    assert replica._deployment_config.max_queued_requests == 35
    assert replica.ray_actor_options["num_cpus"] == 2
