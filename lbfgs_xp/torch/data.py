"""Data as batches and chunks on the device of a model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lbfgs_xp.arrays.tree import flatten, leaf_name, map_leaves, unflatten
from lbfgs_xp.checks import count, optional

# The chunk of data=None, for a loss that needs none.
NO_DATA = ()


class Draws:
    """Points that are drawn anew from time to time.

    first : the data to begin with.
    each : after how many iterations the next draw follows.
    """

    def __init__(self, data: Any, resample: Any, each: int):
        if resample is not None and not callable(resample):
            raise TypeError(
                f"resample is a {type(resample).__name__}; wanted a function of the number of the "
                "draw, or None"
            )
        if resample is not None and data is not None:
            raise ValueError(
                "data and resample were both passed; wanted one of them, because resample(0) gives "
                "the first points"
            )
        self.resample, self.each = resample, each
        self.first = data if resample is None else resample(0)

    def before(self, iterations: int, first: int = 0) -> int:
        """The number of the draw for the iteration after these, if `first` was for the first."""
        return first + iterations // self.each

    def of_steps(self, steps: int) -> int:
        """How many draws as many steps take."""
        return -(-steps // self.each)


class Source:
    """Data as chunks: nested tensors, or whatever an iterable gives, on the device of the model.

    whole : whether each batch for Adam holds all data.
    length : how many items an iterable has given; None before its end.
    may_be_empty : whether there may be no rows or items, as in one process of many.
    """

    def __init__(
        self, data: Any, batch_size: int | None, chunk_size: int | None, seed: int, device: Any,
        may_be_empty: bool = False,
    ):
        self.batch_size = optional(count)("batch_size", batch_size, 1)
        self.chunk_size = optional(count)("chunk_size", chunk_size, 1)
        self.seed, self.device, self.may_be_empty = seed, device, may_be_empty
        self.items: Any = None
        self.length: int | None = None
        self.tensors: list[Tensor] = []
        if _holds_rows(data):
            self.tensors, self.structure = flatten(data)
            _check_rows(self.tensors, self.structure, may_be_empty)
        elif batch_size is not None or chunk_size is not None:
            raise ValueError(
                f"batch_size is {batch_size!r} and chunk_size is {chunk_size!r}, but data, a "
                f"{type(data).__name__}, has no rows to draw; wanted None for both, or tensors"
            )
        elif data is not None:
            if not isinstance(data, Iterable) or isinstance(data, (Iterator, str, bytes)):
                raise TypeError(
                    f"data is a {type(data).__name__}; wanted a tensor, a pair (inputs, targets) "
                    "or another tuple or dict of tensors, an iterable of these that can be "
                    "iterated repeatedly, or None"
                )
            self.items = data
        self.whole = self.items is None and batch_size is None

    def renew(self, data: Any) -> None:
        """Replace the data by others of the same kind; tensors keep their number of rows."""
        new = Source(
            data, self.batch_size, self.chunk_size, self.seed, self.device, self.may_be_empty
        )
        old = (len(self.tensors), self.items is None, *(len(t) for t in self.tensors[:1]))
        found = (len(new.tensors), new.items is None, *(len(t) for t in new.tensors[:1]))
        if found != old and (self.batch_size is not None or found[:2] != old[:2]):
            raise ValueError(
                f"resample returned {_told(new)}; wanted, as before, {_told(self)}"
            )
        self.tensors, self.items = new.tensors, new.items
        if self.tensors:
            self.structure = new.structure

    def chunks(self) -> Iterator[Any]:
        """All data, once."""
        if self.items is not None:
            found: Any = self._each()
        elif self.tensors:
            size = self.chunk_size or len(self.tensors[0]) or 1
            pieces = zip(*(tensor.split(size) for tensor in self.tensors), strict=True)
            found = (unflatten(self.structure, list(piece)) for piece in pieces)
        else:
            found = [NO_DATA]
        return map(self._moved, found)

    def batches(self, done: int = 0) -> Iterator[Iterable[Any]]:
        """An endless sequence of batches for Adam, each as chunks; the first `done` are skipped."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.items is not None:
                done %= self.length or done + 1
                for chunk in itertools.islice(self._each(), done, None):
                    yield [self._moved(chunk)]
                # Fewer if nobody knew how many there are.
                done = max(0, done - (self.length or 0))
                if self.length == 0:
                    yield []
            elif self.batch_size is not None:
                order = torch.randperm(len(self.tensors[0]), generator=generator)
                pieces = order.split(self.batch_size)
                for rows in pieces[done:]:
                    leaves = [t[rows.to(t.device)] for t in self.tensors]
                    yield [self._moved(unflatten(self.structure, leaves))]
                done = max(0, done - len(pieces))
            else:
                yield self.chunks()

    def _each(self) -> Iterator[Any]:
        count = 0
        for item in self.items:
            count += 1
            yield item
        if count == 0 and not self.may_be_empty:
            raise ValueError(f"data, a {type(self.items).__name__}, gave nothing; wanted a batch")
        self.length = count

    def _moved(self, chunk: Any) -> Any:
        def move(leaf: Any) -> Any:
            # Batches of other libraries have such a method, too.
            return leaf.to(self.device) if callable(getattr(leaf, "to", None)) else leaf

        return map_leaves(move, chunk)


def _told(source: Source) -> str:
    """What a source holds, for an error."""
    if source.tensors:
        return f"{len(source.tensors)} tensors of {len(source.tensors[0])} rows"
    return "None" if source.items is None else f"a {type(source.items).__name__}"


def rows_of(chunk: Any) -> int | None:
    """The length of the first axis, if all tensors of a chunk agree in it; 1 if there is none."""
    lengths = {len(leaf) for leaf in flatten(chunk)[0] if isinstance(leaf, Tensor) and leaf.ndim}
    return lengths.pop() if len(lengths) == 1 else None if lengths else 1


def halves(chunk: Any) -> list[tuple[int, Any]]:
    """The two halves of a chunk of tensors that agree in their rows, each with its number of rows;
    nothing for any other chunk."""
    leaves, structure = flatten(chunk)
    rows = rows_of(chunk)
    if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves) or not rows or rows < 2:
        return []
    pairs = [leaf.split((rows + 1) // 2) for leaf in leaves]
    return [(len(half[0]), unflatten(structure, list(half))) for half in zip(*pairs, strict=True)]


def _holds_rows(data: Any) -> bool:
    """Whether data holds tensors from whose rows batches are drawn."""
    return isinstance(data, (Tensor, tuple, Mapping)) or (
        dataclasses.is_dataclass(data) and not isinstance(data, type)
    )


def _check_rows(leaves: list[Any], structure: Any, may_be_empty: bool) -> None:
    if not leaves:
        raise ValueError("data holds no tensor; wanted at least one, or None")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{leaf_name(structure, i, 'data')} is a {type(leaf).__name__}; wanted tensors "
                "(or, for ready-made batches, a list or another iterable)"
            )
    shapes = [tuple(leaf.shape) for leaf in leaves]
    unequal = () in shapes or len({shape[:1] for shape in shapes}) > 1
    if unequal or (shapes[0][0] == 0 and not may_be_empty):
        least = "" if may_be_empty else ", and at least one row"
        raise ValueError(
            f"data has the shapes {shapes}; wanted the same number of rows (the first axis) in all"
            f"{least}"
        )
