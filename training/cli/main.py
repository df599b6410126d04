"""The entry of the `gems` command line."""

from __future__ import annotations

import sys

from training.cli.commands.serve import become_server


def main() -> None:
    """Run the command. An error that the user can fix is one paragraph on stderr and exit code 2."""
    if sys.argv[1:2] == ["serve"]:
        become_server(sys.argv[2:])
    from training.cli.app import run  # slow imports, which the server does not need

    run()


if __name__ == "__main__":
    main()
