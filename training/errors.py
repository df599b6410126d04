"""Errors that are meant for the person at the keyboard."""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something the user can correct. The message says in plain words what is wrong and how to correct it.

    The command line prints the message to stderr and exits with code 2, without a traceback.

    one_line: whether the message is one sentence; else it is a list that is shown line by line.
    """

    one_line: ClassVar[bool] = True


class EvaluationError(UserError):
    """The bundle, the runs or the data cannot be evaluated as requested."""
