"""Options that say how a ranking is measured."""

from __future__ import annotations

from typing import Annotated

import typer

ExcludeHistory = Annotated[
    bool | None,
    typer.Option(
        "--exclude-history/--no-exclude-history",
        help="never rank items of the history, floors too (default: unless somebody takes an item again)",
    ),
]
