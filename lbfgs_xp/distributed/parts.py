"""Numbers of which each process knows a part, and how the parts of all make one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import pair_sums


class Sum:
    """Parts are added, process by process."""

    def size(self, shape: tuple[int, ...]) -> int:
        """How many numbers a process sends for an array of this shape."""
        return math.prod(shape)

    def whole(self, parts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The numbers, an array of this shape, from those that the processes have sent, by rank."""
        parts = parts.astype(np.float64)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.reshape(shape)


class Largest(Sum):
    """The largest of the parts; nan if there is one."""

    def whole(self, parts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.max(parts.astype(np.float64), axis=0).reshape(shape)


class Tree(Sum):
    """The sum of the elements of vectors that are divided among the processes, as
    `lx.fixed_sum` adds the elements of whole ones.

    A process adds what lies within its piece. At each level of the tree at most two of its sums,
    those at both ends of the piece, have their neighbour in another process; these are sent.

    lengths : of the pieces, by rank.
    rank : of this process.
    """

    def __init__(self, lengths: Sequence[int], rank: int):
        ends = np.cumsum([0, *lengths]).tolist()
        self._bounds = list(zip(ends, ends[1:], strict=False))
        self._own = self._bounds[rank]
        self._levels = max(ends[-1] - 1, 0).bit_length() + 1

    def size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * 2 * self._levels

    def sent(self, backend: Backend, terms: Array) -> Array:
        """What this process sends for terms (..., n), an array (..., 2, levels)."""
        xp, (low, high) = backend.xp, self._own
        zero = xp.sum(terms[..., :0], axis=-1, dtype=terms.dtype)
        sums: tuple[list[Array], list[Array]] = [], []
        for _ in range(self._levels):
            at_start = low < high and low % 2 == 1
            sums[0].append(terms[..., 0] if at_start else zero)
            terms, low = (terms[..., 1:], low + 1) if at_start else (terms, low)
            at_end = low < high and high % 2 == 1
            sums[1].append(terms[..., -1] if at_end else zero)
            terms, high = (terms[..., :-1], high - 1) if at_end else (terms, high)
            terms = pair_sums(xp, terms) if low < high else terms
            low, high = low // 2, high // 2
        return xp.stack([xp.stack(side, axis=-1) for side in sums], axis=-2)

    def whole(self, parts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        parts = parts.reshape(len(self._bounds), *shape, 2, self._levels)
        bounds, sums = list(self._bounds), {}
        for level in range(self._levels):
            for rank, (low, high) in enumerate(bounds):
                if low < high and low % 2 == 1:
                    sums[low] = parts[rank, ..., 0, level]
                    low += 1
                if low < high and high % 2 == 1:
                    sums[high - 1] = parts[rank, ..., 1, level]
                    high -= 1
                bounds[rank] = low // 2, high // 2
            if level == self._levels - 1:
                break
            zero = parts.dtype.type(0.0)
            sums = {
                place: sums.get(2 * place, zero) + sums.get(2 * place + 1, zero)
                for place in {place // 2 for place in sums}
            }
        return np.asarray(sums[0] if sums else np.zeros(shape), dtype=np.float64).reshape(shape)


SUM, LARGEST = Sum(), Largest()


class Part:
    """The part of a number, or of an array of numbers, that this process knows.

    Other numbers can only be made of it by adding parts: everything else needs the whole number,
    which `Space.read` and `Space.fetch` return.

    terms : what to add: the shape of the array, what this process sends, and the `Sum`.
    """

    __slots__ = ("terms",)

    def __init__(self, *terms: tuple[tuple[int, ...], Any, Sum]):
        self.terms = terms

    def __add__(self, other: Any) -> Part:
        if isinstance(other, Part):
            return Part(*self.terms, *other.terms)
        return self if isinstance(other, int) and other == 0 else NotImplemented

    __radd__ = __add__

    def __repr__(self) -> str:
        return "Part()"
