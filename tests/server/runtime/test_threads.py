"""Work on a daemon thread: its result, its error, and an end of the process that does not wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from server.runtime.threads import on_daemon_thread

HANGS = """
import asyncio, threading
from server.runtime.threads import on_daemon_thread

async def main():
    try:
        async with asyncio.timeout(0.1):
            await on_daemon_thread(threading.Event().wait)
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""


def test_result_and_error_come_back_and_the_loop_is_free() -> None:
    async def main() -> int:
        release = threading.Event()
        waiting = asyncio.create_task(on_daemon_thread(release.wait))
        await asyncio.sleep(0.01)  # the loop goes on
        release.set()
        assert await waiting
        with pytest.raises(ZeroDivisionError):
            await on_daemon_thread(lambda: 1 // 0)
        return await on_daemon_thread(lambda: 7)

    assert asyncio.run(main()) == 7


def test_a_process_ends_although_the_work_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "given up\n", "")


def test_a_caller_that_left_is_not_missed() -> None:
    """The work ends after its caller gave up: nothing is raised on the thread."""
    raised: list[object] = []

    async def main() -> None:
        release = threading.Event()
        waiting = asyncio.create_task(on_daemon_thread(release.wait))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        release.set()
        for thread in threading.enumerate():
            if thread.name == "daemon-work":
                await asyncio.to_thread(thread.join)

    hook, threading.excepthook = threading.excepthook, raised.append
    try:
        asyncio.run(main())
    finally:
        threading.excepthook = hook
    assert raised == []
