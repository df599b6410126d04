"""Stores of people for tests: opened for a block, and asked from tests that are not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from server.people.interaction import Interaction
from server.people.store import Store

S = TypeVar("S", bound=Store)
T = TypeVar("T")
NOW = 1_700_000_000.0


@contextmanager
def opened_store(store: S) -> Iterator[S]:
    store.open()
    try:
        yield store
    finally:
        store.close()


def run(work: Awaitable[T]) -> T:
    async def all_of_it() -> T:
        return await work

    return asyncio.run(all_of_it())


def event(user: str, number: int, timestamp: float | None = None) -> Interaction:
    return Interaction(user, f"e{number}", f"item-{number}", None, timestamp)
