"""An L-BFGS step of a batch: every problem in a search, or at a new iterate, of its own.

The same steps as in `one`, with `where` for every branch: nothing here is read back to the host,
and JAX can compile it.
"""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.backend import Array
from lbfgs_xp.line_search import ACCEPTED, STUCK
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, endless
from lbfgs_xp.solvers.search import Lowest, advance
from lbfgs_xp.space import Space


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any
) -> LBFGSState:
    """The state after value and gradient at `state.trial` were seen, where `active`."""
    fn = space.scalars
    rule, eps = solver.line_search, space.backend.eps
    old, alpha, pairs = state.search, state.search.alpha, state.pairs
    phi, dphi = space.read(value, space.dot(gradient, state.direction))
    search = advance(fn, rule, old, phi, dphi, active)

    lower = active & (search.best_phi < old.best_phi)
    accepted = active & (search.status == ACCEPTED)
    if solver.initial.scales_first:
        bent = dphi - old.dphi0 > eps * -old.dphi0
        accepted = accepted | (lower & bent & (pairs.count == 0))
    lowest = Lowest(
        fn.where(lower, alpha, state.lowest.alpha),
        fn.where(lower, phi, state.lowest.value),
        space.pick(lower, gradient, state.lowest.gradient),
    )
    stuck = active & (search.status == STUCK) & fn.logical_not(accepted)
    rescued = stuck & (search.best_phi < search.phi0)
    lost = stuck & fn.logical_not(rescued)
    taken = accepted | rescued

    # The new iterate: the trial, or where the search got stuck the lowest one.
    back = rescued & (lowest.alpha != alpha)
    alpha = fn.where(back, lowest.alpha, alpha)
    x = space.pick(back, space.move(state.x, alpha, state.direction), state.trial)
    x = space.pick(taken, x, state.x)
    gradient = space.pick(back, lowest.gradient, gradient)
    gradient = space.pick(taken, gradient, state.gradient)
    new_value = fn.where(taken, fn.where(back, lowest.value, phi), state.value)
    norm = space.read_one(space.max_abs(gradient))

    s, y = space.scale(alpha, state.direction), gradient - state.gradient
    if state.weights is not None:
        s, y = s / state.weights, y * state.weights
    pairs = curvature.write_many(space, pairs, s, y, taken)
    with_gradient = space.products(pairs.rows, weighted(gradient, state.weights))
    with_change = space.products(pairs.rows, y)
    had = pairs.count > 0
    decrement = fn.where((taken | lost) & had, -0.5 * search.dphi0, state.decrement)
    pairs = curvature.accept_many(
        space, pairs, space.fetch(with_change), alpha * search.dphi0, taken, solver.scale_initial
    )
    # At rounding level steepest descent would do no better.
    at_floor = decrement <= fn.abs(state.value) * space.backend.noise
    reset = lost & had & fn.logical_not(at_floor)
    pairs = curvature.forget_many(space, pairs, reset, solver.initial.gamma)

    unbounded = taken & fn.logical_not(had) & (pairs.count == 0) & endless(solver, alpha)
    after = _aim(
        solver, space, x, new_value, phi, gradient, norm, fn.where(taken, alpha, state.step),
        pairs, state.weights, decrement, space.fetch(with_gradient), taken,
        lost & fn.logical_not(reset), unbounded,
    )
    # Where a search goes on, or has failed, it keeps its line.
    turned = taken | reset
    search = fn.choose(turned, after.search, search)
    direction = space.pick(turned, after.direction, state.direction)
    return after._replace(
        direction=direction,
        search=search,
        trial=space.move(x, search.alpha, direction),
        lowest=Lowest(
            fn.where(turned, after.lowest.alpha, lowest.alpha),
            fn.where(turned, after.lowest.value, lowest.value),
            space.pick(turned, gradient, lowest.gradient),
        ),
    )


def begin(
    solver: Any, space: Space, x: Array, value: Any, gradient: Array, norm: Any, pairs: Pairs,
    weights: Any,
) -> LBFGSState:
    """The state at the start of a run; `pairs` may be those of an earlier one."""
    fn = space.scalars
    with_gradient = space.products(pairs.rows, weighted(gradient, weights))
    no = fn.full(False, value)
    state = _aim(
        solver, space, x, value, value, gradient, norm, fn.full(0.0, value), pairs, weights,
        fn.full(math.inf, value), space.fetch(with_gradient), no, no, no,
    )
    return state._replace(trial=space.move(x, state.search.alpha, state.direction))


def _aim(
    solver: Any, space: Space, x: Array, value: Any, seen: Any, gradient: Array, norm: Any,
    alpha: Any, pairs: Pairs, weights: Any, decrement: Any, with_gradient: Array, accepted: Any,
    failed: Any, unbounded: Any,
) -> LBFGSState:
    """The state at x with a direction from there, and a search begun along it."""
    fn = space.scalars
    direction, slope = quasi_newton(
        space, solver.initial, weights, pairs, gradient, with_gradient, 0.0
    )
    # Nothing is gained by a direction without descent; it goes together with the pairs.
    bare = (pairs.count == 0) | fn.logical_not(slope < 0.0)
    pairs = curvature.forget_many(space, pairs, bare, solver.initial.gamma)
    plain, plain_slope, first = first_step(
        space, solver.initial, weights, x, value, gradient, norm, alpha == 0.0
    )
    direction = space.pick(bare, plain, direction)
    slope = fn.where(bare, plain_slope, slope)
    noise = fn.abs(value) * space.backend.noise
    first = fn.where(bare, first, 1.0)
    if solver.pace is not None:
        first = first * solver.learning_rate(0)
    search = solver.line_search.begin(value, slope, first, noise)
    return LBFGSState(
        x, value, gradient, norm, alpha, direction, search, x, seen,
        Lowest(fn.full(0.0, value), value, gradient), pairs, None, 0.0, weights, None,
        decrement, accepted, failed, unbounded,
    )
