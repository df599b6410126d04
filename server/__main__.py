"""`python -m server BUNDLE`: serve a bundle. See `command_line`."""

from __future__ import annotations

import sys

from server import stopping

if __name__ == "__main__":
    stopping.listen()  # before the imports of the command line, which take their time
    try:
        from server.command_line import main
    except ModuleNotFoundError as error:
        if error.name != "pydantic_settings":  # the first of the extra that is imported
            raise
        sys.stderr.write("error: pydantic_settings is not installed: pip install 'gems-sr[serve]'\n")
        sys.exit(2)

    code = main()
    sys.stderr.flush()
    stopping.end(code)
