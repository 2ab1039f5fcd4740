"""What `one` does differently for a problem on a device: few reads, and no transfers to the device.

The decisions are made on the host, by the numbers of a trial, all of which come in one read. The
small algebra stays on the device: its results are needed there, and what the host needs of them,
the slope of the direction, comes with the numbers of the next trial.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_extra as xpx

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.bounded import along as along_path
from lbfgs_xp.solvers.bounded import free_variables, penalised_gradient, reduced
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.state import LBFGSState


class Trial(NamedTuple):
    """The numbers of a trial, which may be pending.

    norm : the largest component of the gradient g.
    bend, size, squared : y . d, y . y and g . g, with y the change of the gradient and d the
        direction of the search; y and g are weighted.
    held : how many variables a bound holds.
    """

    norm: Any
    bend: Any
    size: Any
    squared: Any
    held: Any = 0.0


def measure(
    space: Space, solver: Any, state: LBFGSState, gradient: Array, x: Any = None
) -> tuple[Array, Trial]:
    """g . d and the other numbers of a trial along the state's direction d.

    x : where the gradient was taken; None for the last trial.
    """
    inner, along = gradient, state.direction
    held: tuple[Array, ...] = ()
    if state.path is not None:
        xp, alpha = space.xp, state.search.alpha
        x = state.trial if x is None else x
        limits = solver.limits(space, x, gradient)
        inner = penalised_gradient(limits, gradient)
        free = free_variables(space, limits, x, inner)
        near = free_variables(
            space, limits, x, inner, state.pairs.gamma if state.pairs.count else None
        )
        if free is not None:
            inner = reduced(space, free, inner)
            held = (xp.sum(xp.astype(~near, space.backend.dtype)),)
        along = along_path(space, state.path, state.x, x, alpha, along)
    numbers = space.backend.jit(_numbers, space)(inner, state.gradient, along, state.weights)
    slope = numbers[0]
    if state.path is not None:
        slope = space.dot(penalised_gradient(state.path, gradient), along)
    return slope, Trial(*space.later(*numbers[1:], *held))


def _numbers(
    space: Space, gradient: Array, old: Array, direction: Array, weights: Any
) -> tuple[Array, ...]:
    y, dot = gradient - old, space.dot
    slope, bend, norm = dot(gradient, direction), dot(y, direction), space.max_abs(gradient)
    if weights is not None:
        y, gradient = y * weights, gradient * weights
    return slope, norm, bend, dot(y, y), dot(gradient, gradient)


def with_pair(
    space: Space, state: LBFGSState, trial: Trial, alpha: float, slope: float, gradient: Array,
    scale: bool,
) -> tuple[Pairs, Array]:
    """The pairs with that of the step alpha d, if it has enough curvature, and W g there."""
    pairs, bend, size = state.pairs, now(trial.bend), now(trial.size)
    rho = curvature.enough(space, alpha * bend, size, slope)
    m = pairs.diagonal.shape[0]
    before = state.with_gradient
    if before is not None and (
        curvature.reads_twice(space, pairs.rows) or not curvature.differs(size, state.squared)
    ):
        before = None
    turn = space.backend.jit(_turned, space, rho > 0.0, donate=(2,))
    *arrays, with_gradient = turn(
        pairs.rows, pairs.inverse, pairs.gram, pairs.diagonal, pairs.slot, alpha, state.direction,
        gradient, state.gradient, state.weights, before, slope, alpha * bend, size, rho,
    )
    pairs = pairs._replace(**dict(zip(Pairs._fields, arrays, strict=False)))
    if not rho:
        return pairs._replace(count=min(pairs.count, m - 1)), with_gradient
    gamma = alpha * bend / size if scale else pairs.gamma
    return (
        pairs._replace(gamma=gamma, slot=(pairs.slot + 1) % m, count=min(pairs.count + 1, m)),
        with_gradient,
    )


def _turned(
    space: Space, kept: bool, rows: Array, inverse: Array, gram: Array, diagonal: Array, slot: Any,
    alpha: Any, direction: Array, gradient: Array, old: Array, weights: Any, before: Any,
    slope: Any, bend: Any, size: Any, rho: Any,
) -> tuple[Array, Array, Array, Array, Array]:
    """Rows, R^-1, Y'Y and diagonal with the pair of a step in their slot, and W g.

    kept : whether the pair counts. If not, its slot stays empty.
    before : W g of the last iterate, if W y may be a difference; else None.
    slope, bend, size, rho : s . g at the last iterate, s . y, y . y and 1 / s . y.
    """
    m, (write, write_row) = diagonal.shape[0], (xpx.at, space.backend.write_row)
    s = alpha * direction
    if weights is not None:
        s, gradient, old = s / weights, gradient * weights, old * weights
    rows = space.backend.write_pair(rows, slot, s, gradient, old)
    with_gradient = _times(space, rows, gradient)
    column = cross = space.xp.zeros_like(diagonal)
    inverse = write_row(inverse, slot, column)
    if kept:
        if before is None:
            change = _times(space, rows, space.in_full(rows[slot + m, ...]))
        else:
            change = write(with_gradient - before, slot).set(with_gradient[slot] - slope)
            change = write(change, slot + m).set(size)
        column, cross = (inverse @ change[:m]) * -rho, change[m:]
    column = write(column, slot).set(rho)
    inverse = write(inverse, (slice(None), slot)).set(column)
    gram = write(write_row(gram, slot, cross), (slice(None), slot)).set(cross)
    return rows, inverse, gram, write(diagonal, slot).set(bend if kept else 0.0), with_gradient


def _times(space: Space, rows: Array, vector: Array) -> Array:
    if curvature.is_lower(space, rows):
        return space.products_in_full(rows, vector)[0]
    return rows @ vector


def descent(
    space: Space, pairs: Pairs, with_gradient: Array, gradient: Array, weights: Any
) -> tuple[Array, Any]:
    """-H g and its slope, which is pending."""
    _, inverse, gram, diagonal, gamma, *_ = pairs
    direction, slope = space.backend.jit(_descent, space)(
        pairs.rows, inverse, gram, diagonal, gamma, with_gradient, gradient, weights
    )
    return direction, space.later(slope)[0]


def _descent(
    space: Space, rows: Array, inverse: Array, gram: Array, diagonal: Array, gamma: Any,
    with_gradient: Array, gradient: Array, weights: Any,
) -> tuple[Array, Array]:
    pairs = Pairs(rows, inverse, gram, diagonal, gamma, None, None)
    c = curvature.coefficients(space, pairs, with_gradient)
    inner = gradient if weights is None else gradient * weights
    direction = space.descend(c, rows, gamma, inner)
    direction = direction if weights is None else direction * weights
    return direction, space.dot(gradient, direction)
