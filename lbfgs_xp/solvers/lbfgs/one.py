"""An L-BFGS step for one problem: Python floats and plain branches."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.scalars import named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, SEARCHING, Search
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, Pace, endless
from lbfgs_xp.solvers.search import Lowest, at_floor


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`."""
    old, offered = state.search, None
    if space.remote:
        phi, dphi, old, offered = _offer(space, state, value, gradient)
        state = state._replace(pairs=offered[0])  # the old ones may be overwritten
    else:
        phi, dphi = float(value), space.read_one(space.dot(gradient, state.direction))
    search = solver.line_search.advance(old, phi, dphi)
    lower = search.best_phi < old.best_phi
    if search.status == ACCEPTED or (
        state.pairs.count == 0
        and solver.initial.scales_first
        and lower
        and dphi - old.dphi0 > space.backend.eps * -old.dphi0
    ):
        return _arrive(
            solver, space, state, search, state.trial, old.alpha, phi, phi, gradient, offered
        )

    lowest = Lowest(old.alpha, phi, gradient) if lower else state.lowest
    if search.status == SEARCHING:
        trial = space.move(state.x, search.alpha, state.direction)
        return named(LBFGSState, (
            *state[:6], search, trial, phi, lowest, *state[10:16], False, *state[17:]
        ))
    if not search.best_phi < search.phi0:
        return _give_up(solver, space, state, search, phi)
    # Stuck, but lower than the start: the lowest trial is the new iterate.
    alpha, best, best_gradient = lowest
    if alpha == old.alpha:
        x = state.trial
    else:
        x, offered = space.move(state.x, alpha, state.direction), None
    return _arrive(solver, space, state, search, x, alpha, best, phi, best_gradient, offered)


def _arrive(
    solver: Any, space: Space, state: LBFGSState, search: Search, x: Array, alpha: float,
    value: float, seen: float, gradient: Array, offered: Any,
) -> LBFGSState:
    """The state at a new iterate."""
    weights, slope = state.weights, alpha * search.dphi0
    if offered is None:
        s, new, old = space.scale(alpha, state.direction), gradient, state.gradient
        if weights is not None:
            s, new, old = s / weights, new * weights, old * weights
        # The pair takes effect only with `accept`.
        pairs = state.pairs
        rows = space.backend.write_pair(pairs.rows, pairs.slot, s, new, old)
        if rows is not pairs.rows:
            pairs = pairs._replace(rows=rows)
        norm = space.read_one(space.max_abs(gradient))
        with_gradient, with_change, squared = curvature.products(
            space, pairs, new, slope, state.with_gradient, state.squared
        )
    else:
        pairs, with_gradient, with_change, norm, squared = offered
    bare = pairs.count == 0
    decrement = state.decrement if bare else -0.5 * search.dphi0
    pairs = curvature.accept(space, pairs, with_change, slope, solver.scale_initial)
    return _aim(
        solver, space, (x, value, gradient, norm, alpha), (pairs, with_gradient, squared, weights),
        seen, state.pace, decrement, bare and pairs.count == 0 and endless(solver, alpha),
    )


def _give_up(
    solver: Any, space: Space, state: LBFGSState, search: Search, seen: float
) -> LBFGSState:
    """The state after a line without a lower point: drop the memory or, if there is none, fail."""
    decrement = -0.5 * search.dphi0 if state.pairs.count else state.decrement
    # At the precision floor steepest descent would do no better.
    if state.pairs.count == 0 or at_floor(space, decrement, state.value):
        return state._replace(
            search=search, seen=seen, decrement=decrement, accepted=False, failed=True
        )
    pairs = curvature.forget(space, state.pairs, solver.initial.gamma)
    after = _aim(
        solver, space, state[:5], (pairs, None, 0.0, state.weights), seen, state.pace, decrement,
        False,
    )
    return after._replace(accepted=False)


def _aim(
    solver: Any, space: Space, iterate: tuple, curvature_there: tuple, seen: float,
    pace: Pace | None, decrement: float, unbounded: bool,
) -> LBFGSState:
    """The state at an iterate, with a direction from there and a search begun along it.

    iterate : x, value, gradient, its norm, and the step length that led there.
    curvature_there : pairs, with_gradient, squared and weights of the state.
    """
    (x, value, gradient, norm, alpha), (pairs, with_gradient, squared, weights) = (
        iterate, curvature_there
    )
    first = 1.0
    slope = 0.0
    if pairs.count:
        direction, slope = quasi_newton(
            space, solver.initial, weights, pairs, gradient, with_gradient, squared
        )
    if not slope < 0.0:
        # There are no pairs, or they do not give a descent direction.
        if pairs.count:
            pairs, with_gradient = curvature.forget(space, pairs, solver.initial.gamma), None
        direction, slope, first = first_step(
            space, solver.initial, weights, x, value, gradient, norm, alpha == 0.0
        )
    if pace is not None:
        rate, memory = solver.learning_rate.follow(pace.memory, pace.iteration, value)
        pace = Pace(pace.iteration + 1, memory)
        # A schedule may end at 0, with which no search can begin.
        first *= rate if rate > 0.0 else space.backend.eps
    search = solver.line_search.begin(
        value, slope, first, abs(value) * space.backend.noise
    )
    trial = space.move(x, search.alpha, direction)
    return named(LBFGSState, (
        x, value, gradient, norm, alpha, direction, search, trial, seen, None, pairs,
        with_gradient, squared, weights, pace, decrement, True, False, unbounded,
    ))


def begin(
    solver: Any, space: Space, x: Array, value: float, gradient: Array, norm: float,
    pairs: Pairs, weights: Any,
) -> LBFGSState:
    """The state at the start of a run; `pairs` may come from an earlier run."""
    inner = weighted(gradient, weights)
    if pairs.count:
        with_gradient = space.small_products(pairs.rows, inner)
    else:
        with_gradient = space.small_zeros(pairs.rows.shape[:1])  # without touching the rows
    squared = space.read_one(space.dot(inner, inner)) if space.remote else math.inf
    state = _aim(
        solver, space, (x, value, gradient, norm, 0.0), (pairs, with_gradient, squared, weights),
        value, solver.pace, math.inf, False,
    )
    return state._replace(accepted=False)


def _offer(
    space: Space, state: LBFGSState, value: Any, gradient: Array
) -> tuple[float, float, Search, tuple]:
    """All numbers of an evaluation and of the iteration that it may end, in one read.

    The trial's pair is written before it is known whether the trial will be accepted. This may
    overwrite the oldest pair; but its last direction has already been computed, and a second wait
    for the device would cost more.
    """
    pairs, search = state.pairs, state.search
    measure = space.backend.jit(_measure, space, donate=(1,))
    known = None if is_array(value) else float(value)
    rows, joined = measure(
        pairs.rows, pairs.slot, search.alpha, value if known is None else gradient[0], gradient,
        state.gradient, state.direction, state.weights,
    )
    numbers = space.fetch(joined)
    phi, dphi, dphi0, norm, squared = numbers[:5].tolist()
    phi = phi if known is None else known
    with_gradient, with_change = numbers[5:].reshape(2, -1)
    # The search began with a slope computed from the small products.
    if search.evaluations == 0 and dphi0 < 0.0:
        search = search._replace(dphi0=dphi0)
    pairs = pairs._replace(rows=rows)
    return phi, dphi, search, (pairs, with_gradient, with_change, norm, squared)


def _measure(
    space: Space, rows: Array, slot: Any, alpha: Any, value: Any, gradient: Array, old: Array,
    direction: Array, weights: Any,
) -> tuple[Array, Array]:
    """The rows with the trial's pair, and every number that may be needed of it."""
    backend = space.backend
    s, y, inner = alpha * direction, gradient - old, gradient
    if weights is not None:
        s, y, inner = s / weights, y * weights, gradient * weights
    rows = backend.write_row(rows, slot, s)
    rows = backend.write_row(rows, slot + rows.shape[0] // 2, y)
    return rows, backend.join(
        [
            value,
            space.dot(gradient, direction),
            space.dot(old, direction),
            space.max_abs(gradient),
            space.dot(inner, inner),
            space.products(rows, inner),
            space.products(rows, y),
        ]
    )

