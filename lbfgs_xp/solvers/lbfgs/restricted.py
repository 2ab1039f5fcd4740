"""The curvature of the variables that no bound holds.

The pairs (s, y), restricted to these variables, define the inverse Hessian of the problem in which
the others are constant, as they do for all variables. After a step on which the others did not
move, the restricted pair is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.lbfgs.curvature import Pairs

# Rows with more numbers are masked in pieces of this length, which stay in the cache.
_PIECE = 2**13


def to_free(space: Space, pairs: Pairs, free: Any, scale: bool) -> Pairs:
    """The pairs, with the algebra of the variables in the mask `free` (..., n); None for all.

    A pair whose restriction has too little curvature has no effect under this mask, and the rows of
    pairs that were dropped or rejected have none either.

    scale : whether the newest pair rescales the initial inverse Hessian.
    """
    gamma = pairs.gamma
    if space.batched or space.small_on_host:
        products = space.fetch(_products(space, pairs.rows, free))
        parts = _algebra(space, scale, products, pairs.slot, pairs.count, gamma)
    else:
        compiled = space.backend.jit(_on_device, space, scale)
        parts = compiled(pairs.rows, free, pairs.slot, pairs.count, gamma)
    inverse, gram, diagonal, gamma = parts
    if not space.batched and space.small_on_host:
        gamma = float(gamma)
    return pairs._replace(inverse=inverse, gram=gram, diagonal=diagonal, gamma=gamma)


def _on_device(
    space: Space, scale: bool, rows: Array, free: Any, slot: Any, count: Any, gamma: Any
) -> tuple[Array, ...]:
    return _algebra(space, scale, _products(space, rows, free), slot, count, gamma)


def _products(space: Space, rows: Array, free: Any) -> Array:
    """The products of the restricted rows with each other, (..., 2m, 2m)."""
    if free is None:
        return space.gram(space.in_full(rows))
    n = rows.shape[-1]
    if not space.batched and not space.reproducible and space.backend.on_host and n > 2 * _PIECE:
        return sum(
            space.gram(space.in_full(rows[:, i : i + _PIECE]) * free[i : i + _PIECE])
            for i in range(0, n, _PIECE)
        )
    rows = space.in_full(rows)
    return space.gram(space.xp.where(free[..., None, :], rows, space.xp.zeros_like(rows)))


def _algebra(
    space: Space, scale: bool, products: Array, slot: Any, count: Any, gamma: Any
) -> tuple[Array, Array, Array, Any]:
    """R^-1, Y'Y, the diagonal of S'Y and gamma, from the products of all rows."""
    xp, m = space.small, products.shape[-1] // 2
    places = space.small_arange(m)
    slot, count = space.per_problem(slot), space.per_problem(count)
    oldest_first, ages = (places + slot) % m, (places - slot) % m
    cross = _ordered(space, products[..., :m, m:], oldest_first)
    gram = _ordered(space, products[..., m:, m:], oldest_first)
    steps = _ordered(space, products[..., :m, :m], oldest_first)
    curvature, size, length = map(_diagonal, (cross, gram, steps), (places,) * 3, (xp,) * 3)
    one, zero = xp.ones_like(curvature), xp.zeros_like(curvature)
    usable = (curvature > 0.0) & (size > 0.0) & (length > 0.0) & (places >= m - count)
    a = xp.where(usable, curvature, one) / xp.where(usable, size, one)
    b = xp.where(usable, curvature, one) / xp.where(usable, length, one)
    good = usable & xp.isfinite(a) & xp.isfinite(b) & (a > 0.0) & (a * b > space.backend.eps)
    rho = xp.where(good, one / xp.where(good, curvature, one), zero)
    both = good[..., :, None] & good[..., None, :]
    cross = xp.where(both, cross, xp.zeros_like(cross))
    gram = xp.where(both, gram, xp.zeros_like(gram))
    inverse = xp.zeros_like(cross)
    for j in range(m):
        column = space.matvec(inverse, cross[..., :, j]) * -rho[..., j, None]
        column = xp.where(places == j, rho[..., j, None] + zero, column)
        inverse = xp.where(places == j, column[..., :, None], inverse)
    if scale:
        newest = xp.max(xp.where(good, places + 1, 0 * places), axis=-1)
        found = xp.sum(xp.where(good & (places + 1 == newest[..., None]), a, zero), axis=-1)
        gamma = xp.where(newest > 0, found, gamma)
    diagonal = xp.where(good, curvature, zero)
    return (
        _ordered(space, inverse, ages), _ordered(space, gram, ages),
        _taken(space, diagonal, ages), gamma,
    )


def _diagonal(matrix: Array, places: Array, xp: Any) -> Array:
    # Only one term is nonzero, so the sum is exact.
    own = places[:, None] == places
    return xp.sum(xp.where(own, matrix, xp.zeros_like(matrix)), axis=-1)


def _ordered(space: Space, matrix: Array, order: Array) -> Array:
    """The rows and columns (..., m, m) in this order (..., m)."""
    if not space.batched:
        take = np.take if space.small_on_host else space.xp.take
        return take(take(matrix, order, axis=0), order, axis=1)
    xp = space.small
    shape = matrix.shape
    rows = xp.broadcast_to(order[..., :, None], shape)
    columns = xp.broadcast_to(order[..., None, :], shape)
    return xp.take_along_axis(xp.take_along_axis(matrix, rows, axis=-2), columns, axis=-1)


def _taken(space: Space, vector: Array, order: Array) -> Array:
    if space.batched:
        return space.small.take_along_axis(vector, order, axis=-1)
    return (np if space.small_on_host else space.xp).take(vector, order, axis=0)
