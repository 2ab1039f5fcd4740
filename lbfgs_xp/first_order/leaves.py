"""The shapes of leaves: of one problem, or of a batch, with one more axis in front."""

from __future__ import annotations

from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space


def leaf_shape(space: Space, leaf: Array) -> tuple[int, ...]:
    """The shape of a leaf of one problem."""
    return tuple(leaf.shape[1:] if space.batched else leaf.shape)


def as_vector(space: Space, leaf: Array) -> Array:
    """The real numbers of a leaf, (n,) or (B, n); those of a batch are real."""
    if not space.batched:
        return space.backend.vector(leaf)
    return space.xp.reshape(leaf, (leaf.shape[0], -1))


def as_matrix(space: Space, leaf: Array) -> Array:
    """The first axis of a leaf as rows, and all others together as columns."""
    kept = 2 if space.batched else 1
    return space.xp.reshape(leaf, (*leaf.shape[:kept], -1))


def for_leaf(space: Space, scalar: Any, leaf: Array) -> Any:
    """One scalar of each problem, shaped to multiply a leaf."""
    return space.xp.reshape(scalar, (-1,) + (1,) * (leaf.ndim - 1)) if space.batched else scalar
