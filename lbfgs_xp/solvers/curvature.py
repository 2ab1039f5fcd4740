"""The pairs (s, y) of L-BFGS: a ring of them, and the inverse Hessian they stand for.

All pairs lie in one array W of shape (..., 2m, n): the steps s in rows 0 to m-1, the changes of the
gradient y in rows m to 2m-1, a new pair in place of the oldest. With S and Y the columns s_j and
y_j, D the diagonal of S'Y and R its upper triangle (in the order of age), the inverse Hessian is
(Byrd, Nocedal & Schnabel 1994, Representations of quasi-Newton matrices, eq. 3.1)

    H = gamma I + [S, gamma Y] [ R^-T (D + gamma Y'Y) R^-1   -R^-T ] [S, gamma Y]'
                               [         -R^-1                 0   ]

So one product of W with the gradient and one with y hold all the reductions of an iteration; what
is left is algebra on m x m matrices, and one linear combination of the rows of W.

When the oldest pair leaves, R loses its first row and column, and so does R^-1 (R is triangular);
when a pair comes, R^-1 gains one column. R^-1 is therefore kept up to date, never computed anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.backend import Array
from lbfgs_xp.space import Space


class Pairs(NamedTuple):
    """m pairs of one problem, or of each of B problems.

    rows : (..., 2m, n) on the device of the variables.
    inverse, gram : (..., m, m), R^-1 and Y'Y, indexed by the slots of the ring.
    diagonal : (..., m), s_j . y_j.
    gamma : scalar, the scale of the initial inverse Hessian.
    slot, count : the next slot to write and the number of pairs; ints, or (B,) arrays.
    """

    rows: Array
    inverse: Array
    gram: Array
    diagonal: Array
    gamma: Any
    slot: Any
    count: Any


def empty(space: Space, size: int, memory_size: int, batch: tuple[int, ...]) -> Pairs:
    """A ring without pairs: H = I."""
    m = memory_size
    count: Any = space.small_count(batch) if space.batched else 0
    return Pairs(
        rows=space.backend.zeros((*batch, 2 * m, size)),
        inverse=space.small_zeros((*batch, m, m)),
        gram=space.small_zeros((*batch, m, m)),
        diagonal=space.small_zeros((*batch, m)),
        gamma=1.0 if not space.batched else space.small_zeros(batch) + 1.0,
        slot=count,
        count=count,
    )


def write(space: Space, pairs: Pairs, s: Array, y: Array, mask: Any) -> Pairs:
    """Puts s and y in the rows of the next slot; only `accept` makes them count."""
    m = pairs.diagonal.shape[-1]
    if space.batched:
        slot, mask = space.send(pairs.slot), space.send(mask)
        rows = space.backend.write_rows(pairs.rows, slot, s, mask)
        rows = space.backend.write_rows(rows, slot + m, y, mask)
    else:
        rows = space.backend.write_row(pairs.rows, pairs.slot, s)
        rows = space.backend.write_row(rows, pairs.slot + m, y)
    return pairs._replace(rows=rows)


def products(space: Space, pairs: Pairs, gradient: Array, y: Array) -> list[Array]:
    """The reductions of one iteration, on the device: W g and W y."""
    return space.dots(pairs.rows, (gradient, y))


def accept(
    space: Space, pairs: Pairs, change: Array, slope: Any, mask: Any, scale: bool
) -> Pairs:
    """Makes the pair in the next slot count, where it has enough curvature.

    `change` is W y (..., 2m). The pair is kept where s . y > eps |s . g|, g being the gradient it
    started from and `slope` = s . g: a relative test, whatever the units of x and f. A pair that
    fails leaves its slot empty.
    """
    fn = space.scalars
    if fn.every(fn.logical_not(mask)):
        return pairs
    m = pairs.diagonal.shape[-1]
    slot = _Slots(space, pairs.slot, m, mask) if space.batched else _Slot(pairs.slot)
    curvature = slot.take(change[..., :m])
    gamma = fn.divide(curvature, slot.take(change[..., m:]))
    rho = fn.divide(1.0, curvature)
    good = (curvature > space.backend.eps * fn.abs(slope)) & (gamma > 0.0)
    good = good & fn.isfinite(gamma) & fn.isfinite(rho)
    kept, empty = mask & good, mask & fn.logical_not(good)
    rho = fn.where(good, rho, 0.0)

    inverse = slot.put_row(pairs.inverse, 0.0)
    column = space.matvec(inverse, change[..., :m]) * space.per_problem(-rho)
    inverse = slot.put_column(inverse, slot.put(column, rho))
    cross = space.choose(good, change[..., m:], 0.0)
    gram = slot.put_column(slot.put_row(pairs.gram, cross), cross)
    diagonal = slot.put(pairs.diagonal, fn.where(good, curvature, 0.0))
    # The slot of a pair that failed may have held the oldest one.
    full = pairs.count == m
    count = fn.where(kept & fn.logical_not(full), pairs.count + 1, pairs.count)
    return Pairs(
        rows=pairs.rows,
        inverse=inverse,
        gram=gram,
        diagonal=diagonal,
        gamma=fn.where(kept, gamma, pairs.gamma) if scale else pairs.gamma,
        slot=fn.where(kept, (pairs.slot + 1) % m, pairs.slot),
        count=fn.where(empty & full, count - 1, count),
    )


def forget(space: Space, pairs: Pairs, mask: Any, gamma: float) -> Pairs:
    """Drops all pairs where `mask` holds; gamma starts over."""
    if not space.batched:
        if not mask:
            return pairs
        # A trial with nan may have been written; 0 nan would be nan.
        rows = space.backend.zeros(tuple(pairs.rows.shape))
        m = pairs.diagonal.shape[-1]
        zeros = space.small_zeros
        return Pairs(rows, zeros((m, m)), zeros((m, m)), zeros((m,)), gamma, 0, 0)
    fn = space.scalars
    wide = mask[..., None, None]
    return Pairs(
        pairs.rows,
        fn.where(wide, 0.0, pairs.inverse),
        fn.where(wide, 0.0, pairs.gram),
        fn.where(mask[..., None], 0.0, pairs.diagonal),
        fn.where(mask, gamma, pairs.gamma),
        pairs.slot,
        fn.where(mask, 0, pairs.count),
    )


def coefficients(space: Space, pairs: Pairs, with_gradient: Array) -> Array:
    """c (..., 2m) such that -H g = c W - gamma g, from `with_gradient` = W g."""
    m = pairs.diagonal.shape[-1]
    gamma = space.per_problem(pairs.gamma)
    p = space.matvec(pairs.inverse, with_gradient[..., :m])
    inner = gamma * (with_gradient[..., m:] - space.matvec(pairs.gram, p)) - pairs.diagonal * p
    u = space.matvec(space.transpose(pairs.inverse), inner)
    return space.small.concat([u, gamma * p], axis=-1)


def apply(space: Space, pairs: Pairs, vector: Array) -> Array:
    """H v: (..., n) -> (..., n)."""
    c = coefficients(space, pairs, space.fetch(space.dots(pairs.rows, (vector,))[0]))
    return space.scale(pairs.gamma, vector) - space.combine(space.send(c), pairs.rows)


def by_age(space: Space, pairs: Pairs) -> tuple[Array, Array]:
    """S and Y, (..., m, n) each, the oldest pair first; empty slots hold rows of zero curvature."""
    xp, m = space.xp, pairs.diagonal.shape[-1]
    places = xp.arange(m, device=space.backend.device)
    if not space.batched:
        order = (places + pairs.slot) % m
        return xp.take(pairs.rows, order, axis=0), xp.take(pairs.rows, order + m, axis=0)
    order = (places + space.send(pairs.slot)[:, None]) % m
    s = xp.take_along_axis(pairs.rows, order[:, :, None], axis=1)
    return s, xp.take_along_axis(pairs.rows, (order + m)[:, :, None], axis=1)


class _Slot:
    """One slot of one problem's small arrays, overwritten in place."""

    def __init__(self, index: int):
        self.index = index

    def take(self, vector: Array) -> float:
        return float(vector[self.index])

    def put(self, vector: Array, value: Any) -> Array:
        vector[self.index] = value
        return vector

    def put_row(self, matrix: Array, values: Any) -> Array:
        matrix[self.index] = values
        return matrix

    def put_column(self, matrix: Array, values: Any) -> Array:
        matrix[:, self.index] = values
        return matrix


class _Slots:
    """A slot for each problem of a batch; problems outside `mask` keep what they hold."""

    def __init__(self, space: Space, index: Array, m: int, mask: Array):
        self.fn = space.scalars
        self.small = space.small
        places = space.small_arange(m)
        self.own = places == index[..., None]
        self.hot = self.own & mask[..., None]

    def take(self, vector: Array) -> Array:
        # One term is not zero: the sum is exact.
        return self.small.sum(self.fn.where(self.own, vector, 0.0), axis=-1)

    def put(self, vector: Array, value: Any) -> Array:
        return self.fn.where(self.hot, value[..., None], vector)

    def put_row(self, matrix: Array, values: Any) -> Array:
        values = values if isinstance(values, float) else values[..., None, :]
        return self.fn.where(self.hot[..., :, None], values, matrix)

    def put_column(self, matrix: Array, values: Array) -> Array:
        return self.fn.where(self.hot[..., None, :], values[..., :, None], matrix)
