"""Codebooks of residual quantisation: from an item's vector to the codes of its identifier.

    r_0 = encode(x);   c_j = argmin_k ‖r_j − b_{j,k}‖² + p_{j,k};   r_{j+1} = r_j − b_{j,c_j}

`encode` is a projection (residual k-means) or a small perceptron (RQ-VAE). The price p keeps popular codes from naming
too many items (see `balancing`). After training nothing changes any more: the same rule names later items. This module
needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

FILE = "codebooks.safetensors"
FIRST = "first"  # name of the array of first codes
ROWS = 65_536  # vectors at a time, to bound the memory of distances


@dataclass(frozen=True, eq=False)
class Layer:
    """The map x ↦ x · weight + bias.

    weight: float32 [in, out].
    bias: float32 [out].
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Codebooks:
    """The encoder, codes and prices that turn vectors into codes.

    encoder: layers with a ReLU between each two, from d dimensions to h.
    levels: b_j, float32 [K_j, h] each.
    prices: p_j ≥ 0, float32 [K_j] each.
    first: number of each level's first code, where others of the same level come before it; empty for zeros.
    """

    encoder: tuple[Layer, ...]
    levels: tuple[NDArray[np.float32], ...]
    prices: tuple[NDArray[np.float32], ...]
    first: tuple[int, ...] = ()

    @property
    def dimensions(self) -> int:
        """d, the dimensions of the vectors that are quantised."""
        return len(self.encoder[0].weight)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return tuple(len(book) for book in self.levels)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number after the last code of each level."""
        return tuple(map(sum, zip(self.first, self.sizes, strict=True))) if self.first else self.sizes

    def encode(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the encoded vectors: float32 [N, d] → [N, h]."""
        hidden = vectors
        for depth, layer in enumerate(self.encoder):
            hidden = (np.maximum(hidden, 0) if depth else hidden) @ layer.weight + layer.bias
        return hidden

    def quantise(self, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the codes of all levels except the collision level: float32 [N, d] → int32 [N, levels]."""
        codes = self._chosen(vectors)
        return codes + np.array(self.first, np.int32) if self.first else codes

    def _chosen(self, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the place of each code in its codebook: int32 [N, levels]."""
        codes = np.empty((len(vectors), len(self.levels)), np.int32)
        for start in range(0, len(vectors), ROWS):
            residual = self.encode(vectors[start : start + ROWS])
            for level, (book, price) in enumerate(zip(self.levels, self.prices, strict=True)):
                code = costs(residual, book, price).argmin(axis=1)
                codes[start : start + ROWS, level] = code
                residual = residual - book[code]
        return codes

    def alternatives(self, vector: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return all codes of the last level for a vector, float32 [d], the best first: int32 [K]."""
        residual = self.encode(vector[None])
        for book, code in zip(self.levels[:-1], self._chosen(vector[None])[0], strict=False):
            residual = residual - book[code]
        order = np.argsort(costs(residual, self.levels[-1], self.prices[-1])[0], kind="stable")
        return order.astype(np.int32) + np.int32(self.first[-1] if self.first else 0)

    def behind(self, layer: Layer) -> Codebooks:
        """Return codebooks that give x the codes that these give to x · weight + bias."""
        first, *others = self.encoder
        weight = layer.weight.astype(np.float64) @ first.weight
        bias = layer.bias.astype(np.float64) @ first.weight + first.bias
        return replace(self, encoder=(Layer(weight.astype(np.float32), bias.astype(np.float32)), *others))

    def save(self, folder: Path) -> None:
        """Write `codebooks.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"level_{level}": book for level, book in enumerate(self.levels)}
        arrays |= {f"prices_{level}": price for level, price in enumerate(self.prices)}
        if self.first:
            arrays[FIRST] = np.array(self.first, np.int64)
        for depth, layer in enumerate(self.encoder):
            arrays |= {f"encoder_{depth}.weight": layer.weight, f"encoder_{depth}.bias": layer.bias}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / FILE)

    @classmethod
    def open(cls, folder: Path) -> Codebooks:
        """Read the codebooks that `save` wrote. Raises `ValueError` if they cannot be applied one after the other."""
        stored = load_file(folder / FILE)
        depths = range(sum(name.endswith(".weight") for name in stored))
        levels = range(sum(name.startswith("level_") for name in stored))
        codebooks = cls(
            tuple(Layer(stored[f"encoder_{j}.weight"], stored[f"encoder_{j}.bias"]) for j in depths),
            tuple(stored[f"level_{j}"] for j in levels),
            tuple(stored[f"prices_{j}"] for j in levels),
            tuple(stored[FIRST].tolist()) if FIRST in stored else (),
        )
        codebooks._check()
        return codebooks

    def _check(self) -> None:
        """Raise `ValueError` unless the shapes follow from each other and all numbers are finite."""
        if not self.encoder or not self.levels:
            raise ValueError("there is no encoder or no level")
        layers = [each for layer in self.encoder for each in (layer.weight, layer.bias)]
        arrays = [*layers, *self.levels, *self.prices]
        if not all(each.dtype == np.float32 and np.isfinite(each).all() for each in arrays):
            raise ValueError("a number is not finite, or not float32")
        width = self.dimensions
        for layer in self.encoder:
            if layer.weight.shape != (width, layer.bias.size) or layer.bias.ndim != 1:
                raise ValueError("the layers of the encoder do not fit each other")
            width = layer.bias.size
        for book, price in zip(self.levels, self.prices, strict=True):
            if not len(book) or book.shape != (len(book), width) or price.shape != (len(book),):
                raise ValueError("a level does not fit the encoder or its prices")
            if price.min() < 0:
                raise ValueError("a price is negative")
        if self.first and (len(self.first) != len(self.levels) or min(self.first) < 0):
            raise ValueError("the first codes are not one number, at least 0, for each level")


def side_by_side(layers: Sequence[Layer]) -> Layer:
    """Return one layer for the inputs of several, one after the other, that gives their outputs in the same way."""
    ins, outs = zip(*(layer.weight.shape for layer in layers), strict=True)
    weight = np.zeros((sum(ins), sum(outs)), np.float32)
    row = column = 0
    for layer in layers:
        height, width = layer.weight.shape
        weight[row : row + height, column : column + width] = layer.weight
        row, column = row + height, column + width
    return Layer(weight, np.concatenate([layer.bias for layer in layers]))


def costs(
    vectors: NDArray[np.float32], book: NDArray[np.float32], price: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return ‖v − b‖² + p − ‖v‖² of each vector and code: float32 [N, K].

    vectors: float32 [N, h].
    book: float32 [K, h].
    price: float32 [K].
    """
    cost: NDArray[np.float32] = vectors @ (-2 * book.T)
    cost += (book**2).sum(axis=1) + price
    return cost
