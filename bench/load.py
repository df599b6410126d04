"""Load on an HTTP server: as fast as it answers (closed loop), or at a given rate (open loop).

The client is a few lines of HTTP/1.1 on plain sockets, because a client library costs more than the measured server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

PATIENCE = 60.0  # seconds for one answer
KEPT = 2.0  # seconds after which an idle connection is not used again, because the server may close it


@dataclass(frozen=True, slots=True)
class Answered:
    """The outcome of a request.

    status: status code of the response, 0 if the connection broke.
    sent: seconds on the clock of `time.perf_counter`.
    seconds: time until the answer.
    """

    status: int
    sent: float
    seconds: float


def request(method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    """Return the bytes of an HTTP/1.1 request."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Connections:
    """Persistent connections to one port, opened on demand."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, message: bytes) -> Answered:
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = self._kept() or await asyncio.open_connection("127.0.0.1", self._port)
                status, keep = await _exchange(reader, writer, message)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
            return Answered(0, begin, time.perf_counter() - begin)
        if keep:
            self._idle.append((time.perf_counter(), reader, writer))
        else:
            writer.close()
        return Answered(status, begin, time.perf_counter() - begin)

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return the connection that was used last, if it may be used again."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < KEPT:
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[int, bool]:
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1]), b"connection: close" not in head


async def closed_loop(
    port: int, messages: Sequence[bytes], connections: int, seconds: float
) -> list[Answered]:
    """Run N clients, each of which sends the next request as soon as it has an answer."""
    pool, source = _Connections(port), cycle(messages)
    end = time.perf_counter() + seconds

    async def client() -> list[Answered]:
        found = []
        while time.perf_counter() < end:
            found.append(await pool.ask(next(source)))
        return found

    results = await asyncio.gather(*(client() for _ in range(connections)))
    pool.close()
    return [answered for found in results for answered in found]


async def open_loop(
    port: int, messages: Sequence[bytes], rate: float, seconds: float, seed: int = 0
) -> list[Answered]:
    """Send requests at random moments, on average `rate` per second, without waiting for earlier answers."""
    pool, source = _Connections(port), cycle(messages)
    begin = time.perf_counter()
    tasks = []
    for moment in _moments(rate, seconds, seed):
        await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(pool.ask(next(source))))
    results = await asyncio.gather(*tasks)
    pool.close()
    return list(results)


def _moments(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the arrivals of a Poisson process in seconds."""
    rng = random.Random(seed)
    moment = rng.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += rng.expovariate(rate)


def quantile(answers: Sequence[Answered], q: float) -> float:
    """Return the q-quantile of the seconds of the answers; NaN if there are none."""
    return float(np.quantile([each.seconds for each in answers], q)) if answers else float("nan")


def rate_of(answers: Sequence[Answered], warm_up: float, seconds: float) -> float:
    """Return successful answers per second, in the `seconds` that begin `warm_up` seconds after the first request."""
    begin = min(each.sent for each in answers) + warm_up
    ends = [each.sent + each.seconds for each in answers if each.status == 200]
    return sum(begin <= end < begin + seconds for end in ends) / seconds


def rate_of_batches(answers: Sequence[Answered], warm_up: float, batch: int) -> float:
    """Return successful answers per second if `batch` answers always arrive together.

    The window is from the first batch that ends `warm_up` seconds or more after the first request, to the last batch. A
    fixed window would have an error of up to a batch.
    """
    begin = min(each.sent for each in answers) + warm_up
    ends = sorted(
        end for each in answers if each.status == 200 and (end := each.sent + each.seconds) >= begin
    )
    return (len(ends) - batch) / (ends[-1] - ends[0])
