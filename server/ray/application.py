"""The application of Ray Serve: how many replicas there are, how they grow, drain, and share the people.

    HTTP → Ray's proxy → Front (reads the body, names the person) → Ray's router → Replica (the server itself)

`python -m server.ray` runs it on one machine. On a cluster, `serve run` and `serve build` take `build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.deployment import Application
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.schema import LoggingConfig

from index.bundle.locate import find_bundle
from server.ray.front import Front
from server.ray.replica import Replica
from server.settings import Settings, SettingsError, read_settings

Routing = Literal["person", "load"]

FRONT_REQUESTS = 1000  # that one front passes on at a time; each waits for its replica
STARTS = 3  # attempts to start, in all, before a fleet without any replica is given up
HEALTH_SECONDS = 10.0  # between two looks at a replica, and for each of them
# More replicas, in percent, while a new version takes over: the old ones serve until the new ones are ready. A GPU may
# have no room for both.
SURGE = {"cpu": 50}
LOG_SECONDS = 2.0  # for a replica to end after its last request
# The servers log their requests themselves; Ray would log each of them three times more.
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The size of a fleet, and how its requests find a replica.

    replicas: servers; with a larger `most`, the fewest of them.
    most: servers at the highest load; 0 for a fixed number.
    fronts: processes that read the requests; with two, one may be lost.
    routing: `person` keeps each person on one replica; `load` takes the less busy of two at random.
    Raises `SettingsError` for values that no fleet can have.
    """

    replicas: int = 1
    most: int = 0
    fronts: int = 2
    routing: Routing = "person"

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.fronts < 1:
            raise SettingsError("--replicas and --fronts must be at least 1")
        if self.most and self.most < self.replicas:
            raise SettingsError(f"--max-replicas must not be less than --replicas, {self.replicas}")
        if self.routing not in get_args(Routing):
            raise SettingsError(f"--routing is one of {', '.join(get_args(Routing))}")

    @property
    def largest(self) -> int:
        """Servers that there may be at a time."""
        return max(self.replicas, self.most)


def cores(settings: Settings) -> int:
    """Return the CPU cores that one replica reserves: those of its engine, as far as they are set."""
    return max(1, settings.threads)


def application(path: Path, settings: Settings, fleet: Fleet) -> Application:
    """Return the application for a bundle. path: of the bundle, or a link to it, the same on every machine."""
    room = settings.max_batch_size + settings.queue_limit  # beyond it a server refuses with 429
    size: dict[str, Any] = {"num_replicas": fleet.replicas}
    if fleet.most > fleet.replicas:
        size = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fleet.replicas,
                max_replicas=fleet.most,
                target_ongoing_requests=settings.max_batch_size,  # more of them wait in a queue
            )
        }
    by_person = RequestRouterConfig(request_router_class=ConsistentHashRouter)
    router = by_person if fleet.routing == "person" else RequestRouterConfig()  # Ray's default: by load
    replicas = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=room,
        max_queued_requests=room * fleet.largest,  # of each front; beyond it the answer is 429
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.shutdown_seconds + LOG_SECONDS,
        max_surge_percent=SURGE.get(settings.device, 0),
        max_constructor_retry_count=STARTS,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_SECONDS,
        request_router_config=router,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": cores(settings), "num_gpus": int(settings.device != "cpu")},
        **size,
    )
    front = serve.deployment(
        Front,
        name="Front",
        num_replicas=fleet.fronts,
        max_ongoing_requests=FRONT_REQUESTS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.request_timeout_ms / 1000 + LOG_SECONDS,
        max_surge_percent=SURGE["cpu"],
        logging_config=QUIET,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replicas.bind(path, settings), settings)


def build(arguments: dict[str, str]) -> Application:
    """Return the application for `serve run server.ray.application:build bundle=… replicas=2`.

    arguments: `bundle`, and the fields of `Fleet`. Settings come from the `GEMS_*` variables of the process that
    builds it. Raises `SettingsError` and `BundleError`.
    """
    given = dict(arguments)
    if "bundle" not in given:
        raise SettingsError("name the bundle: bundle=/path/of/the/bundle")
    path = find_bundle(Path(given.pop("bundle")))
    routing = given.pop("routing", "person")
    unknown = given.keys() - {"replicas", "most", "fronts"}
    if unknown:
        raise SettingsError(f"unknown arguments: {', '.join(sorted(unknown))}")
    try:
        sizes = {name: int(value) for name, value in given.items()}
    except ValueError as error:
        raise SettingsError(f"replicas, most and fronts are whole numbers ({error})") from error
    return application(path, read_settings({}), Fleet(**sizes, routing=routing))  # type: ignore[arg-type]
