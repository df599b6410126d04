"""Settings of Python's garbage collector: it skips the objects that live as long as the process.

A full collection visits every object of the imported libraries and of the catalogue. It takes a quarter of a second
with a tiny catalogue, more with a large one, and no request is answered meanwhile. Reference counts free a bundle that
is replaced.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Exempt all present objects from garbage collection."""
    gc.freeze()


def settle_again() -> None:
    """Collect garbage once, then exempt the objects made since `settle`, too.

    Does nothing in a process that never called `settle`, because that process may do other work than serving.
    """
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()
