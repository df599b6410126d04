"""Server with a leak, as a control for the soak test: every answer stays in memory, with some more objects."""

from __future__ import annotations

import sys
from typing import Any

from server.command_line import main
from server.ranking.service import Service

KEPT: list[Any] = []
_count = Service._count


def leaking(self: Service, *arguments: Any) -> Any:
    KEPT.append(bytearray(20_000))
    return _count(self, *arguments)


if __name__ == "__main__":
    Service._count = leaking  # type: ignore[method-assign]
    sys.exit(main())
