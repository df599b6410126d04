"""`python -m bench.people --json F`: stores of people under kills, in numbers, and around a server.

- `--kills N`: a process that stores events is killed (SIGKILL) N times, at random moments. Each next one sends the
  events of the one before again. At the end every acknowledged event has to be there, and each event once.
- `--people N`: N people with `--events` events each are stored, person by person or `--mixed`, in a file, or in the
  empty Redis of `--store`. Then rates are measured on the full store: events of random people in requests of 1,000 and
  alone, histories of random people, forgetting.
- `--bundle B`: a server answers `/v1/recommend` by `user_id`, and with the same history in the request, in turn. The
  overhead is the difference of the medians.

Files are made in the folder for temporary files; `TMPDIR` names another one. 1,000,000 people need about 4 GB there,
and about twice that in the memory of Redis.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from index.bundle.bundle import Bundle
from server.people.interaction import Interaction
from server.people.open import ADDRESSES, open_store
from server.people.sqlite_store import SqliteStore
from server.people.store import Keep, Store
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile, input_bundle
from training.outputs import write_json
from training.run.server_process import ServerProcess
from training.settings import MOST

ITEMS = 12_000
AT_ONCE = 16  # requests in flight
KEEP = Keep(1000)
LONGEST_LIFE = 0.05  # seconds of acknowledged writes until a kill


def main(
    json_file: JsonFile = None,
    kills: Annotated[int, typer.Option(min=0, max=MOST, help="of a process that writes")] = 0,
    people: Annotated[int, typer.Option(min=0, max=MOST, help="people in the large store")] = 0,
    events: Annotated[int, typer.Option(min=1, max=MOST, help="events of each of them")] = 50,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="store them as they would come: each request of many people")
    ] = False,
    bundle: Annotated[Path | None, typer.Option(help="bundle of the server", callback=input_bundle)] = None,
    store: Annotated[
        str | None,
        typer.Option(help="GEMS_PEOPLE_STORE in place of a new file, such as redis://localhost"),
    ] = None,
    requests: Annotated[int, typer.Option(min=10, max=MOST, help="of each kind to the server")] = 300,
) -> None:
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if kills:
            report["kills"] = killed(Path(place) / "killed.db", kills)
        if people:
            setting = store or str(Path(place) / "large.db")
            report["large"] = asyncio.run(large(setting, people, events, mixed))
        if bundle is not None:
            report["overhead"] = overhead(store or str(Path(place) / "served.db"), bundle, events, requests)
    Console().print_json(json.dumps(report))
    if json_file is not None:
        write_json(json_file, report)


def killed(path: Path, kills: int) -> dict[str, int]:
    """Kill writers; return what they sent, had acknowledged, and lost. Exits if anything is lost or there twice."""
    rng = random.Random(0)
    acknowledged: set[int] = set()
    first = sent = 0
    for _ in track(range(kills), "kills"):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(first), str(sent)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        seen = bytearray(os.read(writer.stdout.fileno(), 1 << 16))  # its first words
        time.sleep(rng.random() * LONGEST_LIFE)
        writer.send_signal(signal.SIGKILL)
        seen += writer.stdout.read()
        writer.wait()
        first = sent
        whole = seen.rpartition(b"\n")[0].decode().split("\n")  # the last line may be cut
        acknowledged.update(int(line[1:]) for line in whole if line.startswith("+"))
        sent = max([sent, *(int(line[1:]) + 1 for line in whole if line.startswith("?"))])
    numbers, wrong = _numbers_in(path)
    lost, twice = len(acknowledged - set(numbers)), len(numbers) - len(set(numbers))
    if lost or twice or wrong:
        raise SystemExit(f"lost {lost}, twice {twice}, with the wrong person {wrong}")
    return {
        "kills": kills,
        "sent": sent,
        "acknowledged": len(acknowledged),
        "stored": len(numbers),
        "lost": lost,
        "twice": twice,
    }


# Sends again the events before its own, then its own, a few requests at a time. A line of standard output tells what is
# sent (?) before it is, and what was acknowledged (+) after it was.
_WRITER = f"""
import asyncio, os, sys
from itertools import chain
from pathlib import Path
from server.people.interaction import Interaction
from server.people.open import ADDRESSES, open_store
from server.people.sqlite_store import SqliteStore
from server.people.store import Keep, Store

async def main(path, again, first):
    store = SqliteStore(Path(path), Keep(10**6))
    store.open()
    numbers = chain(range(again, first), range(first, 10**9))  # a list of them would fill the memory
    async def client():
        for number in numbers:
            os.write(1, b"?%d\\n" % number)
            await store.append([Interaction(f"u{{number % 97}}", str(number), "item")])
            os.write(1, b"+%d\\n" % number)
    await asyncio.gather(*(client() for _ in range({AT_ONCE})))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def _numbers_in(path: Path) -> tuple[list[int], int]:
    """Return the numbers of all stored events of `_WRITER`, and how many are with another person."""

    async def read() -> list[Interaction]:
        store = SqliteStore(path, Keep(10**6))
        store.open()
        found = [each for k in range(97) for each in await store.history(f"u{k}")]
        store.close()
        return found

    events = asyncio.run(read())
    return [int(each.event_id) for each in events], sum(
        each.user_id != f"u{int(each.event_id) % 97}" for each in events
    )


async def large(setting: str, people: int, events: int, mixed: bool) -> dict[str, Any]:
    """Return sizes and rates of a store with many people. Exits if a Redis is not empty.

    setting: as GEMS_PEOPLE_STORE.
    mixed: whether the events are stored round by round, one of each person, 1,000 in a request.
    """
    rng = random.Random(0)
    _check_empty(setting)
    store = open_store(setting, KEEP)
    began = time.perf_counter()
    for first in track(range(0, people * events, 1000), "events"):
        places = range(first, min(people * events, first + 1000))
        if mixed:
            await store.append([_event(rng, place % people, place // people) for place in places])
        else:
            await store.append([_event(rng, place // events, place % events) for place in places])
    figures: dict[str, Any] = {
        "people": people,
        "events_each": events,
        "mixed": mixed,
        "fill_events_a_second": people * events / (time.perf_counter() - began),
        **_sizes(setting, people * events),
    }

    def somebody() -> int:
        return rng.randrange(people)

    figures["read"] = await _rates(lambda: store.history(f"user-{somebody()}"), 20_000)
    figures["write_of_1000"] = await _rates(
        lambda: store.append([_event(rng, somebody(), 0) for _ in range(1000)]), 100, at_once=4
    )
    figures["write_of_1"] = await _rates(lambda: store.append([_event(rng, somebody(), 0)]), 5_000)
    figures["read_and_write"] = await _both(store, rng, people)
    figures["forget"] = await _rates(lambda: store.forget(f"user-{somebody()}"), 10, at_once=1)
    store.close()
    return figures


def _check_empty(setting: str) -> None:
    if setting.startswith(ADDRESSES) and (keys := _redis(setting).dbsize()):
        raise SystemExit(f"the Redis of --store holds {keys:,} keys; name an empty one, which will be filled")


def _sizes(setting: str, events: int) -> dict[str, Any]:
    """Return bytes: of the file, or those that Redis takes in memory and in its log."""
    if not setting.startswith(ADDRESSES):
        size = Path(setting).stat().st_size
        return {"bytes": size, "bytes_an_event": size / events}
    info = _redis(setting).info()
    return {
        "redis": info["redis_version"],
        "bytes": info["used_memory"],
        "bytes_an_event": info["used_memory"] / events,
        "peak_bytes": info["used_memory_peak"],
        "log_bytes": info.get("aof_current_size"),
    }


def _redis(setting: str) -> Any:
    import redis  # an extra

    return redis.Redis.from_url(setting)


def _event(rng: random.Random, user: int, k: int) -> Interaction:
    """Return an event of the usual size; three of ten are searches."""
    query = "a few typed words" if rng.random() < 0.3 else None
    name = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return Interaction(f"user-{user}", name, str(rng.randrange(ITEMS)), query, 1.7e9 + k)


async def _rates(work: Callable[[], Awaitable[Any]], count: int, at_once: int = AT_ONCE) -> dict[str, float]:
    """Return calls a second, and quantiles of their milliseconds."""
    taken: list[float] = []

    async def client() -> None:
        while len(taken) < count:
            began = time.perf_counter()
            await work()
            taken.append(1000 * (time.perf_counter() - began))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    cuts = statistics.quantiles(taken, n=100)
    return {"a_second": len(taken) / seconds, "p50_ms": cuts[49], "p99_ms": cuts[98], "at_once": at_once}


async def _both(store: Store, rng: random.Random, people: int) -> dict[str, float]:
    """Return the rates of reads while events come in all the time."""
    writing = True

    async def write() -> None:
        while writing:
            await store.append([_event(rng, rng.randrange(people), 0) for _ in range(20)])

    writers = [asyncio.create_task(write()) for _ in range(4)]
    found = await _rates(lambda: store.history(f"user-{rng.randrange(people)}"), 10_000, at_once=4)
    writing = False
    await asyncio.gather(*writers)
    return found


def overhead(store: str, bundle: Path, events: int, requests: int) -> dict[str, Any]:
    """Return the medians of both kinds of requests. Exits if a ranking differs."""
    os.environ |= {"GEMS_PEOPLE_STORE": store, "GEMS_THREADS": "1"}
    catalogue = Bundle.open(bundle).index.catalogue
    rng = random.Random(0)
    items = [item.item_id for item in catalogue]
    histories = [[rng.choice(items) for _ in range(events)] for _ in range(requests)]
    taken: dict[str, list[float]] = {"inline": [], "user_id": []}
    with ServerProcess(bundle) as server:
        host = http.client.HTTPConnection(server.url.rpartition("/")[2], timeout=60)
        for user, history in enumerate(histories):
            body = [
                {"event_id": f"{k}", "user_id": f"user-{user}", "item_id": item, "timestamp": 1.7e9 + k}
                for k, item in enumerate(history)
            ]
            for first in range(0, events, 1000):
                _post(host, "/v1/events", {"events": body[first : first + 1000]})
        for user, history in enumerate(histories):
            bodies: dict[str, dict[str, Any]] = {
                "inline": {"history": [{"item_id": item} for item in history]},
                "user_id": {"user_id": f"user-{user}"},
            }
            rankings = []
            _post(host, "/v1/recommend", bodies["inline"])  # now both find the same prefix cache
            for kind in sorted(bodies, reverse=bool(user % 2)):
                began = time.perf_counter()
                answer = _post(host, "/v1/recommend", bodies[kind])
                taken[kind].append(1000 * (time.perf_counter() - began))
                rankings.append(answer["items"])
            if rankings[0] != rankings[1]:
                raise SystemExit(f"the rankings of user-{user} differ")
    medians = {kind: statistics.median(each) for kind, each in taken.items()}
    pairs = [b - a for a, b in zip(taken["inline"], taken["user_id"], strict=True)]
    return {
        "requests": requests,
        "events_each": events,
        "p50_ms": medians,
        "overhead_p50_ms": medians["user_id"] - medians["inline"],
        "median_of_differences_ms": statistics.median(pairs),
        "equal_rankings": requests,
    }


def _post(host: http.client.HTTPConnection, path: str, body: Any) -> dict[str, Any]:
    host.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = host.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path} answered {answer.status}: {text.decode()[:500]}")
    found: dict[str, Any] = json.loads(text)
    return found


if __name__ == "__main__":
    run_command(main, "bench.people")
