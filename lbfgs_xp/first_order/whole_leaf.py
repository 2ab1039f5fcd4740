"""Rules that act on a leaf as a whole: by its norm, its rows and columns, or as a matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.first_order.base import FirstOrder


@dataclasses.dataclass(frozen=True)
class WholeLeaf(FirstOrder):
    """The base of these rules. Their `formula` also takes `space`, for sums and products; in a
    batch, leaves have one more axis in front. Leaves must be real."""

    elementwise = False


def leaf_shape(space: Space, leaf: Array) -> tuple[int, ...]:
    """The shape of a leaf of one problem."""
    return tuple(leaf.shape[1:] if space.batched else leaf.shape)


def as_vector(space: Space, leaf: Array) -> Array:
    return space.xp.reshape(leaf, (leaf.shape[0], -1) if space.batched else (-1,))


def as_matrix(space: Space, leaf: Array) -> Array:
    """The first axis of a leaf as rows, and all others together as columns."""
    kept = 2 if space.batched else 1
    return space.xp.reshape(leaf, (*leaf.shape[:kept], -1))


def norm(space: Space, leaf: Array) -> Array:
    """The Euclidean norm of a leaf, shaped to multiply it."""
    vector = as_vector(space, leaf)
    found = space.sqrt(space.dot(vector, vector))
    if space.batched:
        found = space.xp.reshape(found, (-1,) + (1,) * (leaf.ndim - 1))
    return found


def mean_square(space: Space, leaf: Array, axis: int) -> Array:
    """The mean of the squares along the last axis, -1, or the one before, -2; that axis stays."""
    squares = leaf * leaf
    if axis == -2:
        squares = space.xp.matrix_transpose(squares)
    return (space.sum(squares) * (1.0 / leaf.shape[axis]))[..., *_PLACES[axis]]


_PLACES: dict[int, tuple[Any, ...]] = {-1: (slice(None), None), -2: (None, slice(None))}


def adam_numbers(
    t: int, rate: float, betas: tuple[float, float], eps: float
) -> tuple[float, float]:
    """The learning rate and eps of Adam for uncorrected means."""
    root = math.sqrt(1.0 - betas[1] ** t)
    return rate * root / (1.0 - betas[0] ** t), eps * root


def moments(
    g: Array, m: Array, v: Array, betas: tuple[float, float]
) -> tuple[Array, Array]:
    """The means of Adam."""
    return m + (1.0 - betas[0]) * (g - m), betas[1] * v + (1.0 - betas[1]) * g * g
