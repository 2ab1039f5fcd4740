"""Data as batches, epoch after epoch."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array, library_of
from lbfgs_xp.arrays.tree import flatten, unflatten


def batches_of(
    data: Any, batch_size: int | None, shuffle: bool, seed: int, epochs: int, backend: Backend
) -> ArrayBatches | IterableBatches:
    """`data` as `lx.train` takes it, with `epoch(number, done)` -> pairs (batch, rows).

    number : which epoch, from 0.
    done : how many of its batches to pass over.
    rows : how many rows a batch has.
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
            f"batch_size is {batch_size!r}, but data, a {type(data).__name__}, gives batches of "
            "its own; wanted None, or a tuple, dict or dataclass of arrays as data"
        )
    if isinstance(data, Iterator) and epochs > 1:
        raise ValueError(
            f"data is a {type(data).__name__}, which can be gone through once; wanted, with "
            f"epochs={epochs}, an iterable that begins anew, such as a list of batches"
        )
    return IterableBatches(data)


class ArrayBatches:
    """Batches of the rows of arrays, each row once in an epoch.

    leaves, structure : arrays with a first axis of length `size`, and how they are nested.
    seed : None for the order in which the rows lie.
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

    def check(self, done: Sequence[int]) -> None:
        """Refuses to go on with an epoch of which batches of other sizes are done."""
        wanted = [min(self.batch_size, self.size)] * len(done)
        if list(done) != wanted:
            raise ValueError(
                f"state stands in an epoch with batches of {', '.join(map(str, done))} rows; "
                f"wanted the same data and batch_size, which is {wanted[0]} here"
            )

    def epoch(self, number: int, done: int) -> Iterator[tuple[Any, int]]:
        size, step = self.size, self.batch_size
        if step >= size:
            if done == 0:
                yield unflatten(self.structure, self.leaves), size
            return
        order = None
        if self.seed is not None:
            # On the host, so that all libraries draw the same.
            generator = np.random.default_rng([self.seed, number])
            order = self.backend.index_array(generator.permutation(size))
        for start in range(done * step, size, step):
            stop = min(start + step, size)
            leaves = self.backend.span(self.leaves, order, start, stop)
            yield unflatten(self.structure, leaves), stop - start


class IterableBatches:
    """Batches as an iterable gives them."""

    def __init__(self, data: Any):
        self.data = data

    def check(self, done: Sequence[int]) -> None:
        """What is done of an epoch is the iterable's own affair."""

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


def _holds_arrays(data: Any) -> bool:
    """Whether rows are to be drawn from the arrays in data."""
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
                f"data holds a {type(leaf).__name__}; wanted arrays (batches come in a list or "
                "another iterable)"
            )
        if (library := library_of(leaf)) != backend.name:
            raise TypeError(
                f"data holds an array of {library}; wanted {backend.name}, like params"
            )
        backend.check_device(leaf, "data", like="params")
        if leaf.ndim == 0:
            raise ValueError("data holds a 0-d array; wanted a first axis that counts the rows")
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) > 1 or sizes == {0}:
        raise ValueError(
            f"data has the shapes {[tuple(leaf.shape) for leaf in leaves]}; wanted one first "
            "axis, the number of rows, and at least one row"
        )
    return ArrayBatches(leaves, structure, backend, batch_size, seed if shuffle else None)


def _length(batch: Any) -> int:
    """How many rows a batch has: the first axis of its first array, 1 where it has none."""
    for leaf in flatten(batch)[0]:
        if is_array(leaf) and leaf.ndim > 0:
            return leaf.shape[0]
    return 1
