"""Work on daemon threads, which never keep a process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Value = TypeVar("Value")


async def on_daemon_thread(work: Callable[[], Value]) -> Value:
    """Return what `work` returns, or raise what it raises, while the event loop is free.

    `asyncio.to_thread` would make the end of the process wait for work that hangs, such as reading a file of a network
    that is gone.
    """
    future: Future[Value] = Future()
    future.set_running_or_notify_cancel()  # a caller that leaves does not cancel what runs already

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="daemon-work", daemon=True).start()
    return await asyncio.wrap_future(future)
