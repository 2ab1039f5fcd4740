"""The batches of each epoch, from arrays or iterables."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array, library_of
from lbfgs_xp.arrays.tree import flatten, unflatten
from lbfgs_xp.saving.descriptions import fingerprints


def batches_of(
    data: Any, batch_size: int | None, shuffle: bool, seed: int, epochs: int, backend: Backend
) -> ArrayBatches | IterableBatches:
    """The batches of the `data` of `lx.train`; their `epoch(number, done)` yields (batch, rows).

    number : the epoch, counted from 0.
    done : how many of its batches to skip.
    rows : the number of rows in the batch.
    """
    if _holds_arrays(data):
        return _rows(data, batch_size, shuffle, seed, backend)
    if not isinstance(data, collections.abc.Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            f"data is a {type(data).__name__}; wanted an array, a tuple, dict or dataclass of "
            "arrays, or an iterable of batches"
        )
    if batch_size is not None:
        raise ValueError(
            f"batch_size is {batch_size!r}, but data, a {type(data).__name__}, gives its own "
            "batches; wanted None, or a tuple, dict or dataclass of arrays as data"
        )
    if isinstance(data, Iterator) and epochs > 1:
        raise ValueError(
            f"data is a {type(data).__name__}, which can be iterated only once; wanted, with "
            f"epochs={epochs}, an iterable that can start again, such as a list of batches"
        )
    return IterableBatches(data)


class ArrayBatches:
    """Batches of the rows of arrays; each row appears once per epoch.

    leaves, structure : arrays with a first axis of length `size`, and how they are nested.
    seed : seed of the shuffling; None to keep the order of the rows.
    """

    def __init__(
        self, leaves: list[Array], structure: Any, backend: Backend, batch_size: int | None,
        seed: int | None,
    ):
        self.leaves = leaves
        self.structure = structure
        self.backend = backend
        self.size = leaves[0].shape[0]
        self.batch_size = self.size if batch_size is None else batch_size
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def count(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.size // self.batch_size)

    def rows(self, place: int) -> int:
        """The number of rows in a batch, counted from 0 over all epochs."""
        start = place % self.count * self.batch_size
        return min(self.batch_size, self.size - start)

    @property
    def is_drawn(self) -> bool:
        """Whether the rows of each epoch are in a new order."""
        return self.seed is not None and self.count > 1

    def order(self, number: int) -> np.ndarray:
        """The order of the rows in an epoch, if it is a new one in each. It is drawn on the host,
        so that it is the same for all libraries."""
        if self._order is None or self._order[0] != number:
            generator = np.random.default_rng([self.seed or 0, number])
            self._order = number, generator.permutation(self.size)
        return self._order[1]

    def sizes(self, together: int = 1) -> list[int]:
        """The rows of an epoch's batches, or of so many of them together."""
        step = self.batch_size * together
        return [min(step, self.size - start) for start in range(0, self.size, step)]

    def check(self, done: Sequence[int]) -> None:
        """Refuse to continue an epoch whose finished batches had other sizes."""
        if list(done) != self.sizes()[: len(done)]:
            size = min(self.batch_size, self.size)
            raise ValueError(
                f"state is in the middle of an epoch with batches of {', '.join(map(str, done))} "
                f"rows; wanted the same data and batch_size, which is {size} here"
            )

    def described(self) -> dict[str, Any]:
        """What decides which rows are in which batch."""
        return {
            "rows": self.size, "batch_size": self.batch_size, "seed": self.seed,
            "data": fingerprints(unflatten(self.structure, self.leaves), "data"),
        }

    def epoch(self, number: int, done: int) -> Iterator[tuple[Any, int]]:
        size, step = self.size, self.batch_size
        if step >= size:
            if done == 0:
                yield unflatten(self.structure, self.leaves), size
            return
        order = self.backend.index_array(self.order(number)) if self.is_drawn else None
        for start in range(done * step, size, step):
            count = min(step, size - start)
            leaves = self.backend.span(self.leaves, order, start, count)
            yield unflatten(self.structure, leaves), count


class IterableBatches:
    """The batches of an iterable, unchanged."""

    def __init__(self, data: Any):
        self.data = data

    def check(self, done: Sequence[int]) -> None:
        """Accept anything: an iterable may order and size its batches as it likes."""

    def described(self) -> dict[str, Any]:
        """See `ArrayBatches`; what an iterable gives is not known, except from a list."""
        known = self.data if isinstance(self.data, list) else ()
        return {"rows": "of an iterable", "data": fingerprints(known, "data")}

    def epoch(self, number: int, done: int) -> Iterator[tuple[Any, int]]:
        found = 0
        for batch in self.data:
            found += 1
            if found > done:
                yield batch, _length(batch)
        if found == 0:
            raise ValueError(
                f"data, a {type(self.data).__name__}, gave no batch in epoch {number}; wanted at "
                "least one"
            )


class Parts(list):
    """The (batch, rows) that one update takes together."""


class Accumulated:
    """Several batches for each update, as `Parts`; fewer at the end of an epoch.

    batches : what gives them.
    count : how many.
    """

    def __init__(self, batches: ArrayBatches | IterableBatches, count: int):
        self.batches = batches
        self.count = count

    def check(self, done: Sequence[int]) -> None:
        """Refuse to continue an epoch whose finished updates had other sizes."""
        if not isinstance(self.batches, ArrayBatches):
            return
        if list(done) != self.batches.sizes(self.count)[: len(done)]:
            raise ValueError(
                f"state is in the middle of an epoch with {', '.join(map(str, done))} rows for "
                "each update; wanted the same data, batch_size and accumulate, which give "
                f"{self.batches.batch_size * self.count} here"
            )

    def described(self) -> dict[str, Any]:
        """What decides which rows are in which update."""
        return {**self.batches.described(), "accumulate": self.count}

    def epoch(self, number: int, done: int) -> Iterator[tuple[Parts, int]]:
        parts = Parts()
        for each in self.batches.epoch(number, done * self.count):
            parts.append(each)
            if len(parts) == self.count:
                yield parts, _rows_of(parts)
                parts = Parts()
        if parts:
            yield parts, _rows_of(parts)


def _rows_of(parts: Parts) -> int:
    return sum(rows for _, rows in parts)


def _holds_arrays(data: Any) -> bool:
    """Whether data holds arrays from whose rows batches are drawn."""
    return (
        is_array(data)
        or isinstance(data, (tuple, collections.abc.Mapping))
        or (dataclasses.is_dataclass(data) and not isinstance(data, type))
    )


def _rows(
    data: Any, batch_size: int | None, shuffle: bool, seed: int, backend: Backend
) -> ArrayBatches:
    leaves, structure = flatten(data)
    if not leaves:
        raise ValueError(f"data is {data!r}; wanted at least one array")
    for leaf in leaves:
        if not is_array(leaf):
            raise TypeError(
                f"data holds a {type(leaf).__name__}; wanted arrays (or, for ready-made batches, a "
                "list or another iterable)"
            )
        if (library := library_of(leaf)) != backend.name:
            raise TypeError(
                f"data holds an array of {library}; wanted {backend.name}, like params"
            )
        backend.check_device(leaf, "data", like="params")
        if leaf.ndim == 0:
            raise ValueError("data holds a 0-d array; wanted arrays with a first axis of rows")
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) > 1 or sizes == {0}:
        raise ValueError(
            f"data has the shapes {[tuple(leaf.shape) for leaf in leaves]}; wanted the same number "
            "of rows (the first axis) in all, and at least one row"
        )
    return ArrayBatches(leaves, structure, backend, batch_size, seed if shuffle else None)


def _length(batch: Any) -> int:
    """The number of rows in a batch: the first axis of its first array; 1 if it has none."""
    for leaf in flatten(batch)[0]:
        if is_array(leaf) and leaf.ndim > 0:
            return leaf.shape[0]
    return 1
