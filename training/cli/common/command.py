"""The end of a command: an error that the user can correct is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from index.bundle.manifest import BundleError
from index.catalogue import CatalogueError
from index.embeddings import EmbeddingError
from index.identifiers.identifiers import IdentifierError
from server.engine.contract import EngineError
from training.errors import UserError
from training.extras import extra_of

USER_ERRORS = (
    UserError,
    BundleError,
    CatalogueError,
    EmbeddingError,
    IdentifierError,
    EngineError,
)


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the program with exit code 2 on an error that the user can correct, or one of files and disks.

    program: its name, for the message.
    """
    try:
        yield
    except user_errors() as error:
        listed = isinstance(error, UserError) and not error.one_line
        _end(f"{program}: {error if listed else ' '.join(str(error).split())}")
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _end(f"{program}: {error.name} is not installed: pip install 'gems-sr[{extra}]'")
    except OSError as error:  # a full disk, a folder that was taken away
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{program}: {place}{error.strerror or error}")


def user_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the user can correct; those of `gems` only if it was imported, which takes seconds."""
    gems = sys.modules.get("gems")
    return USER_ERRORS if gems is None else (*USER_ERRORS, gems.GemsError)


def run_command(main: Callable[..., Any], program: str) -> None:
    """Run a function as the only command of a program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with one_line_errors(program):
        app(prog_name=program)


def _end(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201
    sys.exit(2)
