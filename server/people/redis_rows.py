"""Reading all people of a store in Redis or Valkey, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.people.interaction import Interaction
from server.people.redis_store import FORMAT_KEY, HISTORY, ORDER, check_format, interactions, keys_of
from server.people.store import Keep, StoreRefusedError

AT_ONCE = 200  # people who are asked for together


def everybody(client: Any, keep: Keep, now: float) -> Iterator[tuple[float, list[Interaction]]]:
    """Yield what is kept of all people, sorted by their ids; of each, oldest first. The store is only read.

    The ids are collected first: Redis may name a key twice, and in another order each time.
    client: of `redis_store.connect`; its errors go to the caller.
    now: seconds since 1970.
    Each step: the share of the people who are done with it, and the events of some of them. Those of a person are of
    one moment.
    Raises `StoreRefusedError` if there is no store, or one of another format.
    """
    if not client.exists(FORMAT_KEY):
        raise StoreRefusedError("there is no store in this Redis; name the address of GEMS_PEOPLE_STORE")
    check_format(client)
    script = client.register_script(HISTORY)
    people = sorted({key[len(ORDER) + 1 : -1] for key in client.scan_iter(f"{ORDER}*", count=1000)})
    for first in range(0, len(people), AT_ONCE):
        asked = people[first : first + AT_ONCE]
        with client.pipeline(transaction=False) as pipeline:
            for user_id in asked:
                script(keys_of(user_id), [repr(keep.oldest(now))], client=pipeline)
            answers = pipeline.execute()
        events = [
            event
            for user_id, rows in zip(asked, answers, strict=True)
            for event in interactions(user_id, rows)
        ]
        yield (first + len(asked)) / len(people), events
