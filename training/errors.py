"""Errors that are meant for the person at the keyboard."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and how to mend it, in plain words.

    The command line prints the message to stderr and exits with code 2, without a traceback.
    """


class EvaluationError(UserError):
    """The bundle, the runs or the data cannot be evaluated as requested."""
