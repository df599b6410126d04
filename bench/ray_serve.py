"""`python -m bench.ray_serve BUNDLE --json F`: a fleet of servers: its prefix caches, and its losses under load.

- **Cached share.** People come in turn, each time in another order, with a history that grows by one item. The figure
  is the share of prompt tokens that came from the prefix caches, with each person kept on one replica and with the
  requests spread by load: for people who come twice, who come `--visits` times, and who come as often while each cache
  has room for `--tight-mib` only.
- **Kill.** Clients send again what was not answered. One replica is killed (SIGKILL) in the middle.
- **Update.** All replicas are replaced by new ones, one after the other, in the middle.
- **Overhead.** Requests one after the other, to the fleet and to one plain server in turn.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from index.bundle.bundle import Bundle
from server.ray.command_line import RAY
from server.settings import Settings
from server.transport import listening
from training.cli.common.command import run_command
from training.cli.common.paths import BundlePath, JsonFile
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST

REPLICA = "ray::ServeReplica:gems:Replica"
STARTS_WITH = 20  # items of a history at the first visit
PAUSE = 0.1  # seconds until a client sends again
PATIENCE = 60.0  # seconds for a client to get an answer
BACK = 120.0  # seconds for a killed replica to be replaced
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with status 200. attempts: requests that it took; seconds: from the first of them on."""

    attempts: int
    seconds: float


def main(
    bundle: BundlePath,
    json_file: JsonFile = None,
    replicas: Annotated[int, typer.Option(min=2, max=64, help="servers")] = 2,
    people: Annotated[int, typer.Option(min=1, max=MOST, help="people who come often")] = 120,
    visits: Annotated[
        int, typer.Option(min=2, max=MOST, help="visits of each person, where there are many")
    ] = 8,
    tight_mib: Annotated[int, typer.Option(min=1, max=MOST, help="prefix cache that is too small")] = 8,
    clients: Annotated[int, typer.Option(min=1, max=64, help="requests at a time")] = 4,
    seconds: Annotated[float, typer.Option(min=2.0, max=3600.0, help="load around the kill")] = 10.0,
) -> None:
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    items = [item.item_id for item in Bundle.open(bundle).index.catalogue]
    figures: Json = {"replicas": replicas, "people": people, "visits": visits, "tight_mib": tight_mib}
    for routing in ("person", "load"):
        with serving(bundle, replicas, routing) as fleet:
            many = people * visits // 2  # as many requests as in the other parts
            figures[f"twice.{routing}"] = cached_share(fleet, items, many, 2, clients, seed=1)
            figures[f"often.{routing}"] = cached_share(fleet, items, people, visits, clients, seed=2)
            if routing == "person":
                figures["overhead_ms"] = overhead(bundle, fleet, items)
                figures["kill"] = loss(fleet, items, clients, seconds, fleet.kill)
                figures["kill"]["seconds_until_replaced"] = fleet.seconds_until(replicas)
                figures["update"] = loss(fleet, items, clients, seconds, fleet.update)
        with serving(bundle, replicas, routing, cache_mib=tight_mib) as fleet:
            figures[f"tight.{routing}"] = cached_share(fleet, items, people, visits, clients, seed=3)
    for part in ("twice", "often", "tight"):
        figures[f"{part}.ratio"] = round(figures[f"{part}.person"] / figures[f"{part}.load"], 2)
    Console().print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


class Running:
    """A fleet that runs in this process. port: where it listens. update: replaces its processes by new ones."""

    def __init__(self, port: int, update: Callable[[], None]) -> None:
        self.port = port
        self.update = update

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas."""
        found = []
        for each in psutil.Process().children(recursive=True):
            try:
                if " ".join(each.cmdline()).startswith(REPLICA):
                    found.append(each)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        self.replicas()[0].kill()

    def seconds_until(self, replicas: int) -> float:
        """Wait until as many replicas give their metrics; return how long it took."""
        began = time.perf_counter()
        while len(set(re.findall(r'^gems_ready\{replica="(\w+)"\} 1', scraped(self.port), re.M))) != replicas:
            if time.perf_counter() - began > BACK:
                raise TimeoutError(f"no {replicas} replicas after {BACK:g} s")
            time.sleep(PAUSE)
        return round(time.perf_counter() - began, 1)


@contextmanager
def serving(bundle: Path, replicas: int, routing: str, **settings: Any) -> Iterator[Running]:
    """Serve a bundle by a fleet for the block."""
    from ray import serve  # with the variables of `RAY`

    from server.ray.application import Fleet, application
    from server.ray.machine import NAME, running

    sockets = listening.bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    for each in sockets:
        each.close()
    chosen = Settings(port=port, threads=1, log_level="warning", **settings)

    fleet = Fleet(replicas, routing=routing)  # type: ignore[arg-type]
    with running(bundle, chosen, fleet):
        yield Running(port, lambda: serve.run(application(bundle, chosen, fleet), name=NAME))


def cached_share(
    fleet: Running, items: list[str], people: int, visits: int, clients: int, seed: int
) -> float:
    """Return the share of prompt tokens that were cached while everybody came so many times."""
    rng = random.Random(seed)
    histories = [rng.sample(items, STARTS_WITH + visits) for _ in range(people)]
    before = tokens(fleet.port)
    for visit in range(visits):
        everybody = rng.sample(histories, people)
        bodies = [recommend(history[: STARTS_WITH + visit]) for history in everybody]
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda body: answered(fleet.port, body), bodies))
    after = tokens(fleet.port)
    return round((after[0] - before[0]) / (after[1] - before[1]), 4)


def loss(fleet: Running, items: list[str], clients: int, seconds: float, lose: Callable[[], None]) -> Json:
    """Send requests for so many seconds, and as long as `lose` takes in the middle; return how they were answered."""
    rng = random.Random(4)
    bodies = itertools.cycle([recommend(rng.sample(items, STARTS_WITH)) for _ in range(50)])
    choosing = threading.Lock()
    stop = threading.Event()

    def send() -> list[Answer]:
        found = []
        while not stop.is_set():
            with choosing:
                body = next(bodies)
            found.append(answered(fleet.port, body))
        return found

    with ThreadPoolExecutor(clients) as pool:
        sending = [pool.submit(send) for _ in range(clients)]
        time.sleep(seconds / 2)
        lose()
        time.sleep(seconds / 2)
        stop.set()
        answers = [each for work in sending for each in work.result()]  # raises if one was never answered
    return {
        "answered": len(answers),
        "unanswered": 0,
        "sent_again": sum(each.attempts > 1 for each in answers),
        "most_attempts": max(each.attempts for each in answers),
        "longest_seconds": round(max(each.seconds for each in answers), 3),
    }


def overhead(bundle: Path, fleet: Running, items: list[str], requests: int = 100) -> Json:
    """Return the p50 of single requests to the fleet and to a plain server, in ms."""
    rng = random.Random(5)
    times: dict[str, list[float]] = {"fleet": [], "server": []}
    os.environ["GEMS_THREADS"] = "1"
    with ServerProcess(bundle) as server:
        ports = {"fleet": fleet.port, "server": int(server.url.rpartition(":")[2])}
        for _ in range(requests):
            body = recommend(rng.sample(items, STARTS_WITH))
            for name, port in ports.items():
                times[name].append(1000 * answered(port, body).seconds)
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


def recommend(history: list[str]) -> bytes:
    return json.dumps({"history": [{"item_id": each} for each in history]}).encode()


def answered(port: int, body: bytes) -> Answer:
    """Have a recommendation answered, by sending it again if need be. Raises `TimeoutError` if that is in vain."""
    began = time.perf_counter()
    for attempt in itertools.count(1):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                return Answer(attempt, time.perf_counter() - began)
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        if time.perf_counter() - began > PATIENCE:
            raise TimeoutError(f"a request was not answered within {PATIENCE:g} s")
        time.sleep(PAUSE)
    raise AssertionError("the loop does not end by itself")


def scraped(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def tokens(port: int) -> tuple[float, float]:
    """Return the cached and all prompt tokens of all replicas so far."""
    text = scraped(port)
    cached, prompt = (
        sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.M))
        for name in ("gems_cached_prompt_tokens_total", "gems_prompt_tokens_total")
    )
    return cached, prompt


if __name__ == "__main__":
    run_command(main, "bench.ray_serve")
