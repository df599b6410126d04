"""Memory that the server's processes use, and the limit of it. Only Linux reports the former."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMITS = (  # cgroups version 2 and version 1, as a container sees its own
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def resident_bytes(pid: int | None) -> float:
    """Return the resident memory of a process in bytes, including shared memory; NaN if it is unknown."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return math.nan
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def limit_bytes() -> float:
    """Return the bytes that all processes together may use: the limit of the container, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            return float(min(machine, int(path.read_text())))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return float(machine)
