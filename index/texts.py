"""Many texts in two arrays, in place of a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from index.files import read_array


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts that are read and never changed.

    letters: all texts in UTF-8.
    first: int64 [n + 1]; letters[first[k] : first[k + 1]] is text k.
    """

    letters: bytes
    first: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack texts. Raises `UnicodeEncodeError` for what is not Unicode."""
        written = [text.encode() for text in texts]
        return cls(b"".join(written), np.cumsum([0, *map(len, written)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        if place < 0 or place >= len(self):
            raise IndexError(f"{place} is none of {len(self)} texts")
        return self.letters[self.first[place] : self.first[place + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        letters, begin = self.letters, 0
        for end in self.first[1:].tolist():
            yield letters[begin:end].decode()
            begin = end

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self.letters) + self.first.nbytes

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_letters.npy` and `NAME_first.npy`."""
        np.save(folder / f"{name}_letters.npy", np.frombuffer(self.letters, np.uint8))
        np.save(folder / f"{name}_first.npy", self.first)

    @classmethod
    def open(cls, folder: Path, name: str, count: int) -> Texts:
        """Read what `save` wrote. Raises `ValueError` with the name of the file unless it holds `count` texts."""
        letters = read_array(folder / f"{name}_letters.npy", np.uint8)
        path = folder / f"{name}_first.npy"
        first = read_array(path, np.int64)
        if (
            len(first) != count + 1
            or first[0] != 0
            or first[-1] != len(letters)
            or (np.diff(first) < 0).any()
        ):
            raise ValueError(f"{path} is damaged: it must cut the letters into {count:,} texts")
        begins = np.append((letters & 0xC0) != 0x80, True)  # the first byte of a character, or the end
        packed = letters.tobytes()
        try:
            packed.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / name}_letters.npy is damaged: {error}") from error
        if not begins[first].all():
            raise ValueError(f"{path} is damaged: a text must begin with a whole character")
        return cls(packed, first)
