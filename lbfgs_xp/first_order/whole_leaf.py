"""Rules that act on a leaf as a whole: by its norm, its rows and columns, or as a matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.first_order.base import FirstOrder
from lbfgs_xp.first_order.leaves import as_vector, for_leaf


@dataclasses.dataclass(frozen=True)
class WholeLeaf(FirstOrder):
    """The base of these rules. Their `formula` also takes `space`, for sums and products; in a
    batch, leaves have one more axis in front. Leaves must be real."""

    elementwise = False


def norm(space: Space, leaf: Array) -> Array:
    """The Euclidean norm of a leaf, shaped to multiply it."""
    vector = as_vector(space, leaf)
    return for_leaf(space, space.sqrt(space.dot(vector, vector)), leaf)


def mean_square(space: Space, leaf: Array, axis: int) -> Array:
    """The mean of the squares along the last axis, -1, or the one before, -2; that axis stays."""
    squares = leaf * leaf
    if axis == -2:
        squares = space.xp.matrix_transpose(squares)
    return (space.sum(squares) * (1.0 / leaf.shape[axis]))[..., *_PLACES[axis]]


_PLACES: dict[int, tuple[Any, ...]] = {-1: (slice(None), None), -2: (None, slice(None))}
