"""`python -m server BUNDLE`: serve a bundle. See `command_line`."""

from __future__ import annotations

import sys

from server import stopping

if __name__ == "__main__":
    stopping.listen()  # before the imports of the command line, which take their time
    from server.command_line import main

    code = main()
    sys.stderr.flush()
    stopping.end(code)
