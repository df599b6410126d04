"""A store for servers of several machines: Redis or Valkey, through the official client (the extra `redis`).

Each person has two keys: a hash of events by their id, and a sorted set of their ids by time and arrival. Scripts read
and change both in one step. How well events survive the end of Redis is up to its settings (`docs/operations.md`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from server.people.interaction import Appended, Interaction, by_person
from server.people.store import Keep, StoreError, StoreFullError, StoreRefusedError

logger = logging.getLogger("server.people.redis_store")

FORMAT = "1"
THREADS = 8
MOST_WAITING = 20_000  # events that may wait to be written
TICK_SECONDS = 1.0  # between two looks for people who were forgotten by other servers
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 4.0
FORMAT_KEY, FORGOTTEN_KEY = "gems:format", "gems:forgotten"
ORDER = "gems:order:"  # begins the key of the order of a person's events
Value = TypeVar("Value")

# A member of the sorted set is the arrival, 12 digits and a blank, and then the id: its order decides equal times.
# The arrivals are counted in the field '' of the hash, which no event has as its id.
_APPEND = """
local events, order = KEYS[1], KEYS[2]
local now, oldest, most, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local stored, duplicates, outdated, fresh = 0, 0, 0, {}
local newest = redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')[2]

local function drop(members, step)
    for k = 1, #members, step do
        local id = string.sub(members[k], 14)
        redis.call('HDEL', events, id)
        if fresh[id] then stored, outdated = stored - 1, outdated + 1 end
    end
end

for k = 5, #ARGV, 3 do
    local id, moment, what = ARGV[k], ARGV[k + 1], ARGV[k + 2]
    if moment == '' then
        moment = now
        if newest and tonumber(newest) > tonumber(now) then moment = newest end
    end
    if tonumber(moment) < tonumber(oldest) then
        outdated = outdated + 1
    elseif redis.call('HEXISTS', events, id) == 1 then
        duplicates = duplicates + 1
    else
        local arrival = redis.call('HINCRBY', events, '', 1)
        redis.call('HSET', events, id, what)
        redis.call('ZADD', order, moment, string.format('%012d ', arrival) .. id)
        if not newest or tonumber(moment) > tonumber(newest) then newest = moment end
        stored, fresh[id] = stored + 1, true
    end
end
drop(redis.call('ZRANGEBYSCORE', order, '-inf', '(' .. oldest), 1)
redis.call('ZREMRANGEBYSCORE', order, '-inf', '(' .. oldest)
local excess = redis.call('ZCARD', order) - most
if excess > 0 then drop(redis.call('ZPOPMIN', order, excess), 2) end
if seconds > 0 and newest then
    local last = math.ceil(tonumber(newest) + seconds)
    redis.call('EXPIREAT', events, last)
    redis.call('EXPIREAT', order, last)
end
return {stored, duplicates, outdated}
"""
HISTORY = """
local found = {}
local members = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], '+inf', 'WITHSCORES')
for k = 1, #members, 2 do
    local id = string.sub(members[k], 14)
    found[#found + 1] = {id, members[k + 1], redis.call('HGET', KEYS[1], id)}
end
return found
"""
_FORGET = """
local count = redis.call('ZCARD', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('INCR', KEYS[3])
return count
"""


def keys_of(user_id: str) -> list[str]:
    """Return the keys of the events of a person, and of their order."""
    return [f"gems:events:{{{user_id}}}", f"{ORDER}{{{user_id}}}"]


def interactions(user_id: str, rows: Sequence[tuple[str, str, str]]) -> list[Interaction]:
    """Return the events of a person. rows: as the script `HISTORY` gives them."""
    found = []
    for event_id, moment, what in rows:
        item_id, query = json.loads(what)
        found.append(Interaction(user_id, event_id, item_id, query, float(moment)))
    return found


def connect(url: str) -> Any:
    """Return a client, which connects when it is asked. Raises `StoreRefusedError`.

    url: `redis://`, `rediss://` or `unix://`, as the client reads it.
    """
    try:
        import redis  # an extra
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise StoreRefusedError(
            "a store at redis:// needs its client: pip install 'gems-sr[redis]'"
        ) from error
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1),  # for a connection that was closed meanwhile
        )
    except ValueError as error:
        raise StoreRefusedError(f"the store is no address of Redis: {error}") from error


def check_format(client: Any) -> None:
    """Raise `StoreRefusedError` if what is there is not a store of this format."""
    found = client.get(FORMAT_KEY)
    if found != FORMAT:
        raise StoreRefusedError(
            f"the store is of format {str(found)[:20]}, and this version of the program reads format {FORMAT}"
        )


class RedisStore:
    """A `Store` in Redis or Valkey. `open` it before use.

    url: `redis://`, `rediss://` or `unix://`, as the client reads it.
    """

    def __init__(self, url: str, keep: Keep, clock: Callable[[], float] = time.time) -> None:
        self.on_forgotten: Callable[[], None] = lambda: None
        self._url = url
        self._keep = keep
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, "store")
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_forgotten, name="store-watch", daemon=True)
        self._counting = threading.Lock()  # guards the next one; never held while Redis is asked
        self._events_waiting = 0
        self._forgetting = threading.Lock()  # guards the next one together with the count in Redis
        self._own = 0  # people whom this process has forgotten

    def open(self) -> None:
        """Connect and check the format. A server that is not there is only logged: it may come later.

        Raises `StoreRefusedError`.
        """
        self._client = connect(self._url)
        import redis  # `connect` has found it

        self._error = redis.RedisError
        self._scripts = {name: self._client.register_script(text) for name, text in _SCRIPTS.items()}
        try:
            self._check()
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise StoreRefusedError(f"the store refuses this server: {error}") from error
        except redis.RedisError as error:
            logger.error("the store is down", extra={"reason": str(error)})
        self._watch.start()

    async def append(self, events: Sequence[Interaction]) -> Appended:
        """Store events; see `Store.append`. Raises `StoreFullError` if too many wait already."""
        with self._counting:
            if self._events_waiting + len(events) > MOST_WAITING:
                raise StoreFullError("too many events wait to be written")
            self._events_waiting += len(events)
        return await self._run(partial(self._append, list(events)))

    async def history(self, user_id: str) -> list[Interaction]:
        """Return what is kept of a person; see `Store.history`."""
        return await self._run(partial(self._history, user_id))

    async def forget(self, user_id: str) -> int:
        """Remove a person, and ask Redis to write its log anew; see `Store.forget`."""
        return await self._run(partial(self._forget, user_id))

    def close(self) -> None:
        """Write what waits, and disconnect."""
        self._closing.set()
        self._threads.shutdown()
        self._client.close()

    async def _run(self, work: Callable[[], Value]) -> Value:
        """Return the result of `work` on a thread; errors of the client become `StoreError`."""

        def guarded() -> Value:
            try:
                return work()
            except self._error as error:
                raise StoreError(f"{type(error).__name__}: {error}") from error

        try:
            future = self._threads.submit(guarded)
        except RuntimeError as error:
            raise StoreError("the store is closed") from error
        return await asyncio.shield(asyncio.wrap_future(future))

    def _append(self, events: Sequence[Interaction]) -> Appended:
        now = self._clock()
        limits = [repr(now), repr(self._keep.oldest(now)), self._keep.events, repr(self._keep.seconds)]
        try:
            with self._client.pipeline(transaction=True) as pipeline:  # all people, or none
                for user_id, theirs in by_person(events).items():
                    values = [value for event in theirs for value in _values(event)]
                    self._scripts["append"](keys_of(user_id), [*limits, *values], client=pipeline)
                return sum((Appended(*counts) for counts in pipeline.execute()), Appended())
        finally:
            with self._counting:
                self._events_waiting -= len(events)

    def _history(self, user_id: str) -> list[Interaction]:
        oldest = repr(self._keep.oldest(self._clock()))
        rows: list[Any] = self._scripts["history"](keys_of(user_id), [oldest])
        return interactions(user_id, rows[-self._keep.events :])

    def _forget(self, user_id: str) -> int:
        with self._forgetting:  # `_watch_forgotten` does not look in between
            count = int(self._scripts["forget"]([*keys_of(user_id), FORGOTTEN_KEY]))
            self._own += 1
        if self._client.info("persistence").get("aof_enabled"):
            try:
                self._client.bgrewriteaof()
            except self._error as error:  # it is being written already, or a service forbids it
                logger.warning("the log of the store was not written anew", extra={"reason": str(error)})
        return count

    def _check(self) -> None:
        """Mark an empty store as ours, and warn of one that forgets. Raises `StoreRefusedError`."""
        self._client.set(FORMAT_KEY, FORMAT, nx=True)
        check_format(self._client)
        if not self._client.info("persistence").get("aof_enabled"):
            logger.warning("the store may lose acknowledged events: set appendonly and appendfsync in Redis")

    def _watch_forgotten(self) -> None:
        """Notice people whom other servers have forgotten."""
        seen: int | None = None
        while not self._closing.wait(TICK_SECONDS):
            try:
                with self._forgetting:
                    others = int(self._client.get(FORGOTTEN_KEY) or 0) - self._own
            except (self._error, OSError, ValueError):  # the last two: `close` took the connection away
                continue
            if seen is not None and others > seen:
                self.on_forgotten()
            seen = others


_SCRIPTS = {"append": _APPEND, "history": HISTORY, "forget": _FORGET}


def _values(event: Interaction) -> list[str]:
    """Return the arguments of the script for one event."""
    moment = "" if event.timestamp is None else repr(float(event.timestamp))
    return [event.event_id, moment, json.dumps([event.item_id, event.query], ensure_ascii=False)]
