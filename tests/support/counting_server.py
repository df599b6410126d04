"""A server that logs, when it is ready, the number of objects that the garbage collector tracks, and of frozen ones."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys

from server.command_line import main
from server.launch import DrainingServer

_startup = DrainingServer.startup


async def counting(self: DrainingServer, sockets: list[socket.socket] | None = None) -> None:
    await _startup(self, sockets)
    await asyncio.sleep(0)
    counts = {"tracked": len(gc.get_objects()), "frozen": gc.get_freeze_count()}
    logging.getLogger("server").info("counted", extra=counts)


if __name__ == "__main__":
    DrainingServer.startup = counting  # type: ignore[method-assign]
    sys.exit(main())
