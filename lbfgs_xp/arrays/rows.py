"""The rows of a batch that are still running, and the arrays that hold data of the rows.

Rows that are done leave the batch and rejoin it at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten, map_leaves

# Rows leave once this fraction of the batch is done, or once this fraction of all row evaluations
# so far was in vain, on rows already done. Leaving more often would waste time on copies.
_DONE, _VAIN = 0.2, 0.05
# Each new size takes seconds to compile, so there are few sizes, far apart.
_COMPILED_SIZES = tuple(1024 * 4**power for power in range(12))


def belongs_to_rows(leaf: Any, count: int, shared: Collection[int] = ()) -> bool:
    """Whether an array holds data of each of `count` rows, so that its first axis has this length.

    A 1-d array may also be shared by all rows; it counts as shared if its length is in `shared`,
    the lengths that such an array may have. A mistake cannot pass unnoticed: once rows have left,
    the array is too long to match the arrays of the others.
    """
    if not is_array(leaf) or tuple(leaf.shape[:1]) != (count,):
        return False
    return leaf.ndim > 1 or count not in shared


def take_rows(
    backend: Backend, tree: Any, indices: Array, count: int, shared: Collection[int] = ()
) -> Any:
    """Nested data with only the rows `indices` in the arrays that belong to `count` rows."""

    def belongs(leaf: Any) -> bool:
        return belongs_to_rows(leaf, count, shared)

    # Data without rows must stay the same object, because a function may write into it.
    if not any(map(belongs, flatten(tree)[0])):
        return tree
    return map_leaves(
        lambda leaf: backend.take_from_any(leaf, indices) if belongs(leaf) else leaf, tree
    )


class Rows(NamedTuple):
    """Which of the B rows make up the batch; row numbers and masks belong to the small algebra.

    here : the numbers of the rows, (k,); None for all of them.
    left : for each group of rows that has left, their numbers and what is kept of them.
    """

    here: Array | None = None
    left: tuple[tuple[Array, Any], ...] = ()

    def part(
        self, space: Space, known: Any, running: Array, size: int,
        of_left: Callable = lambda known: known,
    ) -> tuple[Rows, Any]:
        """The `size` rows that stay, and what is known of them; the others leave.

        known : (nested) tuples of arrays with one entry per row.
        running : a mask, (k,); rows that are done stay only to fill up the size.
        of_left : maps `known` to the part that is kept of the rows that leave.
        """
        xp = space.small
        done = xp.astype(xp.logical_not(running), xp.int32)
        order = xp.argsort(done, stable=True)
        stay, leave = order[:size], order[size:]
        numbers = space.small_arange(running.shape[0]) if self.here is None else self.here
        here, gone = space.take(numbers, stay), space.take(numbers, leave)
        return (
            Rows(here, (*self.left, (gone, space.take(of_left(known), leave)))),
            space.take(known, stay),
        )

    def join(self, space: Space, known: Any, of_left: Callable = lambda known: known) -> Any:
        """What is known of all B rows, in their original order.

        of_left : maps what was kept of a group that has left to the form of `known`.
        """
        if self.here is None:
            return known
        numbers = [*(numbers for numbers, _ in self.left), self.here]
        parts = [*(of_left(part) for _, part in self.left), known]
        return space.gather(numbers, parts)


def compiled_size(running: int, size: int) -> int:
    """The smallest compiled size that holds `running` rows, but at most `size`."""
    return min(next((s for s in _COMPILED_SIZES if s >= running), size), size)


class Sizes:
    """The number of rows with which a batch continues."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._seen = self._vain = 0.0

    @property
    def memory(self) -> tuple[float, float]:
        """What decides, to be saved."""
        return self._seen, self._vain

    @memory.setter
    def memory(self, memory: tuple[float, float]) -> None:
        self._seen, self._vain = memory

    def next(self, size: int, running: int) -> int:
        """The size of the batch for the next evaluation, if it has `size` rows now."""
        if self.backend.compiles:
            least = compiled_size(running, size)
            return least if 2 * least <= size else size
        vain = self._vain + (size - running) > _VAIN * (self._seen + size)
        if vain or running <= (1.0 - _DONE) * size:
            size = running
        self._seen, self._vain = self._seen + size, self._vain + (size - running)
        return size

    def floor(self, size: int) -> int:
        """The number of running rows at which a compiled batch of `size` rows shrinks, or ends."""
        return max((s for s in _COMPILED_SIZES if 2 * s <= size), default=0)
