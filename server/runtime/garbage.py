"""Python's collector of reference cycles, kept away from what lives as long as the process.

A full pass looks at every object that the imported libraries and the catalogue are made of: a quarter of a second with
hardly a catalogue, more with a large one, in which nobody is answered. Reference counts free what is swapped out.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """What there is now is there to stay: it is never looked at again."""
    gc.freeze()


def settle_again() -> None:
    """So is what has come since, but for cycles that are garbage by now. Nothing happens in a process that has never
    settled: it may have other work than serving."""
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()
