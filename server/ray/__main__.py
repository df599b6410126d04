"""`python -m server.ray BUNDLE`: serve a bundle by several servers on one machine. See `command_line`."""

from __future__ import annotations

import sys

from server.ray.command_line import main

if __name__ == "__main__":
    sys.exit(main())
