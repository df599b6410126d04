"""How much memory the server's processes take, and how much there is. Linux tells; elsewhere it is not known."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMITS = (  # of version 2 and of version 1, as a container sees its own
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def resident_bytes(pid: int | None) -> float:
    """Resident memory of a process, what it shares with others included; NaN where it is not known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return math.nan
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def limit_bytes() -> float:
    """What all processes together may take: that of the container, or all that the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            return float(min(machine, int(path.read_text())))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return float(machine)
