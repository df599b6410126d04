"""Fixed choices for data without searches.

Every choice is a keyed BLAKE2b hash of its subject, such as user and position. It is the same on every machine and in
every version, and does not depend on other rows.
"""

from __future__ import annotations

from hashlib import blake2b


class Simulation:
    """The choices of one data set. name: part of the hash key, so that data sets have different choices."""

    def __init__(self, name: str) -> None:
        self._name = name

    def choose(self, purpose: str, options: int, *about: str | int) -> int:
        """Return a number in `0 .. options - 1` that depends only on the arguments.

        purpose: part of the hash key. about: the subject of the choice.
        Raises `ValueError` if there is no option.
        """
        if options < 1:
            raise ValueError("there must be something to choose from")
        text = "\x1f".join(map(str, about)).encode()
        digest = blake2b(text, key=f"gems {self._name} {purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % options

    def is_search(self, user: str | int, position: int) -> bool:
        """Whether the user's interaction at a position (from 0, oldest first) is a search; half of them are."""
        return self.choose("behaviour", 2, user, position) == 1
