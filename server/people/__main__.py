"""`python -m server.people STORE --out FILE.jsonl`: the program behind `gems data events`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from server.people.export import export
from server.people.store import Keep, StoreError, StoreRefusedError

EXIT_REFUSED = 2


def main() -> int:
    """Export a store; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.people", description="Export a store of people.")
    parser.add_argument("store", help="file of the store, or the address of Redis")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to write")
    parser.add_argument("--days", type=float, default=0.0, help="leave out events that are older; 0: none")
    given = parser.parse_args()
    shown = -1

    def show(share: float) -> None:
        nonlocal shown
        if sys.stderr.isatty() and int(100 * share) > shown:
            shown = int(100 * share)
            sys.stderr.write(f"\r{shown}% of the store" + ("\n" if shown == 100 else ""))

    try:
        count = export(given.store, given.out, Keep(seconds=given.days * 86_400), show)
    except (StoreRefusedError, StoreError, OSError) as error:
        sys.stderr.write(f"gems: {' '.join(str(error).split())}\n")
        return EXIT_REFUSED
    sys.stdout.write(f"{given.out}: {count:,} events\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
