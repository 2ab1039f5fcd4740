"""The pairs (s, y) of L-BFGS: a ring buffer, and the inverse Hessian that the pairs define.

All pairs are stored in one array W of shape (..., 2m, n): the steps s in rows 0 to m-1, the changes
of the gradient y in rows m to 2m-1. A new pair replaces the oldest. With s_j and y_j as the columns
of S and Y, D the diagonal of S'Y and R its upper triangle (ordered by age), the inverse Hessian is
(Byrd, Nocedal & Schnabel 1994, Representations of quasi-Newton matrices, eq. 3.1)

    H = gamma I + [S, gamma Y] [ R^-T (D + gamma Y'Y) R^-1   -R^-T ] [S, gamma Y]'
                               [         -R^-1                 0   ]

So one product of W with the gradient and one with y contain all the reductions of an iteration; the
rest is algebra on m x m matrices and one linear combination of the rows of W.

When the oldest pair is dropped, R loses its first row and column, and so does R^-1 (R is
triangular); when a pair is added, R^-1 gains one column. So R^-1 is updated, never recomputed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, copy_of, is_array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import Scalars, named
from lbfgs_xp.arrays.space import Space

# From this many variables on, reading the rows costs more than a few extra calls.
_LARGE = 4096
_DOUBLE = 1e-15
# The smallest (|y| / |g|)^2 at which W y is taken as a difference.
_CANCELS = 1e-4


class Pairs(NamedTuple):
    """m pairs of one problem, or of each of B problems.

    rows : (..., 2m, n) on the device of the variables.
    inverse, gram : (..., m, m), R^-1 and Y'Y, indexed by slots of the ring.
    diagonal : (..., m), s_j . y_j.
    gamma : scalar, the scale of the initial inverse Hessian.
    slot, count : the next slot to write and the number of pairs; ints, or arrays (B,).
    """

    rows: Array
    inverse: Array
    gram: Array
    diagonal: Array
    gamma: Any
    slot: Any
    count: Any


def empty(
    space: Space, size: int, memory_size: int, batch: tuple[int, ...], gamma: float,
    dtype: Any = None,
) -> Pairs:
    """A ring without pairs: H = gamma I.

    dtype : of the rows; None for that of x.
    """
    m, backend = memory_size, space.backend
    count: Any = space.small_count(batch) if space.batched else 0
    shape = *batch, 2 * m, size
    return Pairs(
        rows=backend.zeros(shape) if dtype in (None, backend.dtype) else space.xp.zeros(
            shape, dtype=dtype, device=backend.creation_device
        ),
        inverse=space.small_zeros((*batch, m, m)),
        gram=space.small_zeros((*batch, m, m)),
        diagonal=space.small_zeros((*batch, m)),
        gamma=space.small_zeros(batch) + gamma if space.batched else gamma,
        slot=count,
        count=count,
    )


def copied(pairs: Pairs) -> Pairs:
    """A copy of the pairs, which can be overwritten while the originals stay as they are."""
    return Pairs(*(copy_of(part) if is_array(part) else part for part in pairs))


def coefficients(space: Space, pairs: Pairs, with_gradient: Array) -> Array:
    """c (..., 2m) such that -H g = c W - gamma g, from `with_gradient` = W g."""
    _, inverse, gram, diagonal, gamma, _, _ = pairs
    m = diagonal.shape[-1]
    on_host = space.small_on_host and not space.batched
    # NumPy handles a 0-d array faster than a float.
    gamma = np.asarray(gamma) if on_host else space.per_problem(gamma)
    p = space.matvec(inverse, with_gradient[..., :m])
    inner = with_gradient[..., m:] - space.matvec(gram, p)
    inner *= gamma
    inner -= diagonal * p
    inner = space.vecmat(inner, inverse)
    if not on_host:
        return space.small.concat((inner, p * gamma), axis=-1)
    c = np.empty(2 * m)
    c[:m] = inner
    np.multiply(p, gamma, c[m:])
    return c


def apply(space: Space, pairs: Pairs, vector: Array) -> Array:
    """H v: (..., n) -> (..., n)."""
    c = coefficients(space, pairs, small_products(space, pairs.rows, vector))
    return -space.descend(c, pairs.rows, pairs.gamma, vector)


def small_products(space: Space, rows: Array, vector: Array) -> Array:
    """`Space.small_products` for rows that may be in a lower precision than x."""
    if is_lower(space, rows):
        return space.fetch(*space.products_in_full(rows, vector))
    return space.small_products(rows, vector)


def is_lower(space: Space, rows: Array) -> bool:
    """Whether the rows are in a lower precision than x."""
    return rows.dtype != space.backend.dtype


def by_age(space: Space, pairs: Pairs) -> tuple[Array, Array]:
    """S and Y, (..., m, n) each, the oldest pair first; missing pairs are rows of zeros."""
    xp, m = space.xp, pairs.diagonal.shape[-1]
    pairs = pairs._replace(rows=space.in_full(pairs.rows))
    places = xp.arange(m, device=space.backend.creation_device)
    kept = space.send(pairs.diagonal)[..., None] > 0
    rows = xp.where(xp.concat([kept, kept], axis=-2), pairs.rows, xp.zeros_like(pairs.rows))
    if not space.batched:
        order = (places + pairs.slot) % m
        return xp.take(rows, order, axis=0), xp.take(rows, order + m, axis=0)
    order = (places + space.send(pairs.slot)[:, None]) % m
    s = xp.take_along_axis(rows, order[:, :, None], axis=1)
    return s, xp.take_along_axis(rows, (order + m)[:, :, None], axis=1)


# --- one problem: with branches; on the host in place -------------------------------------------


def products(
    space: Space, pairs: Pairs, gradient: Array, y: Array, slope: float, before: Any, squared: float
) -> tuple[Array, Array, float]:
    """W g, W y and g . g, after the pair of this iteration has been written.

    slope : s . g, with g the gradient of the last iterate.
    before, squared : W g and g . g of the last iterate, or None and anything.

    The rows are read twice, once for g and once for y; or only once if W y can be computed as a
    difference (see `differs`).
    """
    rows, slot, m = pairs.rows, pairs.slot, len(pairs.diagonal)
    if is_lower(space, rows):
        with_gradient, change = space.fetch_each(*space.products_in_full(rows, gradient, y))
        return with_gradient, change, math.inf
    if space.sharded:
        return _whole_products(space, pairs, gradient, y, slope, before, squared)
    if reads_twice(space, rows):
        return space.small_products(rows, gradient), space.small_products(rows, y), math.inf
    # These come first, while y and g are in the cache; reading the rows evicts them.
    size, square = space.read(space.dot(y, y), space.dot(gradient, gradient))
    with_gradient = space.small_products(rows, gradient)
    if before is None or not differs(size, squared):
        change = space.small_products(rows, y)
    else:
        change = with_gradient - before
        change[slot], change[slot + m] = with_gradient[slot] - slope, size
    return with_gradient, change, square


def _whole_products(
    space: Space, pairs: Pairs, gradient: Array, y: Array, slope: float, before: Any, squared: float
) -> tuple[Array, Array, float]:
    """`products` with one message to the other processes, or with two if W y cannot be a
    difference."""
    rows, slot, m = pairs.rows, pairs.slot, len(pairs.diagonal)
    if space.reproducible or space.backend.eps > _DOUBLE:
        each = (space.products(rows, vector) for vector in (gradient, y))
        with_gradient, change = space.fetch_each(*each)
        return with_gradient, change, math.inf
    numbers = space.later(space.dot(y, y), space.dot(gradient, gradient))
    with_gradient = space.fetch(space.products(rows, gradient))
    size, square = map(now, numbers)
    if before is None or not differs(size, squared):
        return with_gradient, space.fetch(space.products(rows, y)), square
    change = with_gradient - before
    change[slot], change[slot + m] = with_gradient[slot] - slope, size
    return with_gradient, change, square


def reads_twice(space: Space, rows: Array) -> bool:
    """Whether W y must not be a difference of W g, or nothing would be saved by that."""
    inexact = space.backend.eps > _DOUBLE or is_lower(space, rows)
    return rows.shape[-1] < _LARGE or space.reproducible or inexact


def differs(size: float, squared: float) -> bool:
    """Whether y . y = `size` is not small compared with the last g . g = `squared`: then at most
    two of the sixteen digits of float64 cancel. (In float32, two digits would be too many.)"""
    return size > _CANCELS * squared


def accept(space: Space, pairs: Pairs, change: Array, slope: float, scale: bool) -> Pairs:
    """Accept the pair in the next slot if it has enough curvature; `change` is W y, `slope` is
    s . g. The slot of a rejected pair, which may have held the oldest one, stays empty."""
    rows, inverse, gram, diagonal, gamma, slot, count = pairs
    m = len(diagonal)
    curvature, size = change.item(slot), change.item(slot + m)
    inverse[slot] = 0.0
    rho = enough(space, curvature, size, slope)
    if not rho:
        inverse[:, slot] = gram[slot] = gram[:, slot] = diagonal[slot] = 0.0
        return pairs._replace(count=min(count, m - 1))
    column = space.matvec(inverse, change[:m])
    np.multiply(column, np.asarray(-rho), inverse[:, slot])
    inverse[slot, slot] = rho
    gram[slot] = gram[:, slot] = change[m:]
    diagonal[slot] = curvature
    return named(Pairs, (
        rows, inverse, gram, diagonal, curvature / size if scale else gamma, (slot + 1) % m,
        count + 1 if count < m else m,
    ))


def enough(space: Space, curvature: float, size: float, slope: float) -> float:
    """1 / s . y if a pair has enough curvature to be kept, else 0.

    The pair is kept if s . y > eps |s . g|, where g is the gradient at the start of the step: a
    relative test, independent of the units of x and f.

    size : y . y.
    """
    if (
        curvature > space.backend.eps * abs(slope)
        and 0.0 < size < math.inf
        and 0.0 < curvature / size < math.inf
        and (rho := 1.0 / curvature) < math.inf
    ):
        return rho
    return 0.0


def forget(space: Space, pairs: Pairs, gamma: float) -> Pairs:
    """Drop all pairs and reset the scale of the initial inverse Hessian to gamma."""
    # The rows too: a trial with nan may have been written, and 0 * nan is nan.
    (m,), (_, n) = pairs.diagonal.shape, pairs.rows.shape
    return empty(space, n, m, (), gamma, pairs.rows.dtype)


# --- a batch: a slot for each problem ----------------------------------------------------------


def write_many(space: Space, pairs: Pairs, s: Array, y: Array, mask: Array) -> Pairs:
    """Write s and y into the next slot of the problems in `mask`. They take effect only with
    `accept_many`."""
    slot, mask = space.send(pairs.slot), space.send(mask)
    return pairs._replace(rows=space.backend.write_pairs(pairs.rows, slot, s, y, mask))


def remembers(space: Space, rows: Array) -> bool:
    """Whether the state of a batch holds W g and g . g, so that W y may be a difference: for one
    large problem, where a compiled loop can branch."""
    one = space.backend.compiles and (not space.batched or rows.shape[0] == 1)
    return one and not reads_twice(space, rows)


def change_many(
    space: Space, pairs: Pairs, with_gradient: Array, y: Array, slope: Any, before: Any,
    squared: Any,
) -> Array:
    """W y, as in `products`.

    with_gradient : W g. slope, before, squared : as there; before is None unless the state
        `remembers` it.
    """
    if before is None:
        return space.products(pairs.rows, y)
    xp, m = space.xp, pairs.diagonal.shape[-1]
    own = space.small_arange(m) == pairs.slot[..., None]
    (size,) = space.read(space.dot(y, y))

    def difference() -> Array:
        change, along = with_gradient - before, with_gradient[..., :m] - slope[..., None]
        return xp.concat([
            xp.where(own, along, change[..., :m]), xp.where(own, size[..., None], change[..., m:])
        ], axis=-1)

    known = xp.all(differs(size, squared))
    return space.backend.either(known, difference, lambda: space.products(pairs.rows, y))


def accept_many(
    space: Space, pairs: Pairs, change: Array, slope: Array, mask: Array, scale: bool
) -> Pairs:
    """`accept`, for the problems in `mask`."""
    fn = space.scalars
    m = pairs.diagonal.shape[-1]
    own = space.small_arange(m) == pairs.slot[..., None]

    def held(vector: Array) -> Array:
        # Only one term is nonzero, so the sum is exact.
        return space.small.sum(fn.where(own, vector, 0.0), axis=-1)

    curvature, size = held(change[..., :m]), held(change[..., m:])
    good, rho, gamma, slot, count = fn.fused(
        _kept, m, space.backend.eps, scale, curvature, size, slope, mask, pairs.gamma, pairs.slot,
        pairs.count,
    )
    here = own & mask[..., None]
    row, column = here[..., :, None], here[..., None, :]
    inverse = fn.fused(_cleared, row, pairs.inverse)
    new, cross, diagonal = fn.fused(
        _entries, own, here, good[..., None], rho[..., None], curvature[..., None],
        space.matvec(inverse, change[..., :m]), change[..., m:], pairs.diagonal,
    )
    inverse, gram = fn.fused(
        _entered, row, column, new[..., :, None], cross[..., None, :], cross[..., :, None],
        inverse, pairs.gram,
    )
    return Pairs(pairs.rows, inverse, gram, diagonal, gamma, slot, count)


def _kept(
    fn: Scalars, m: int, eps: float, scale: bool, curvature: Any, size: Any, slope: Any, mask: Any,
    gamma: Any, slot: Any, count: Any,
) -> tuple[Any, ...]:
    """Whether a pair is good enough, 1 / s . y or 0, and the new gamma, slot and count."""
    ratio, rho = fn.divide(curvature, size), fn.divide(1.0, curvature)
    good = (curvature > eps * fn.abs(slope)) & (size > 0.0) & (size < math.inf)
    good = good & (ratio > 0.0) & (ratio < math.inf) & (rho < math.inf)
    kept = mask & good
    full = count == m
    more = fn.where(kept & fn.logical_not(full), count + 1, count)
    return (
        good,
        fn.where(good, rho, 0.0),
        fn.where(kept, ratio, gamma) if scale else gamma,
        fn.where(kept, (slot + 1) % m, slot),
        fn.where(mask & fn.logical_not(good) & full, more - 1, more),
    )


def _cleared(fn: Scalars, mask: Any, numbers: Any) -> Any:
    return fn.where(mask, 0.0, numbers)


def _entries(
    fn: Scalars, own: Any, here: Any, good: Any, rho: Any, curvature: Any, product: Any, cross: Any,
    diagonal: Any,
) -> tuple[Any, Any, Any]:
    """The new column of R^-1, the new row and column of Y'Y, and the diagonal.

    own, here : masks of the slot that was written, for all problems and for those with a new pair.
    product : R^-1 S'y.
    """
    new = fn.where(own, rho, fn.where(good, product * -rho, 0.0))
    new_diagonal = fn.where(here, fn.where(good, curvature, 0.0), diagonal)
    return new, fn.where(good, cross, 0.0), new_diagonal


def _entered(
    fn: Scalars, row: Any, column: Any, new: Any, cross: Any, crossed: Any, inverse: Any, gram: Any
) -> tuple[Any, Any]:
    """R^-1 and Y'Y with their new rows and columns."""
    gram = fn.where(row, cross, gram)
    return fn.where(column, new, inverse), fn.where(column, crossed, gram)


def forget_many(space: Space, pairs: Pairs, mask: Array, gamma: float) -> Pairs:
    """`forget`, for the problems in `mask`.

    Their rows stay: only accepted iterates are written, so they are finite, and all their
    coefficients are 0.
    """
    if space.none(mask):
        return pairs
    fn = space.scalars
    inverse, gram = fn.fused(_zeros, mask[..., None, None], pairs.inverse, pairs.gram)
    diagonal = fn.fused(_cleared, mask[..., None], pairs.diagonal)
    numbers = fn.fused(_empty_ring, mask, gamma, pairs.gamma, pairs.slot, pairs.count)
    return Pairs(pairs.rows, inverse, gram, diagonal, *numbers)


def _zeros(fn: Scalars, mask: Any, inverse: Any, gram: Any) -> tuple[Any, Any]:
    return fn.where(mask, 0.0, inverse), fn.where(mask, 0.0, gram)


def _empty_ring(
    fn: Scalars, mask: Any, initial: float, gamma: Any, slot: Any, count: Any
) -> tuple[Any, Any, Any]:
    """Gamma, slot and count of a ring without pairs, where the mask holds."""
    return fn.where(mask, initial, gamma), fn.where(mask, 0, slot), fn.where(mask, 0, count)
