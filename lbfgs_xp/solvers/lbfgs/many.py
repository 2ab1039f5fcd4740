"""An L-BFGS step for a batch, in which each problem is in its own search or at a new iterate.

The same steps as in `one`, with `where` for every branch: nothing here is read back to the host,
and JAX can compile it. Not a `Descent`, because it shares its state with `one`;
`test_rows_are_bitwise_single_runs` in tests/run/test_batch.py checks that the two agree.
"""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, STUCK
from lbfgs_xp.solvers.descent import Iterate
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, endless
from lbfgs_xp.solvers.search import Lowest, advance, at_floor


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`, where `active`."""
    fn, old, pairs = space.scalars, state.search, state.pairs
    phi, dphi = space.read(value, space.dot(gradient, state.direction))
    search = advance(fn, solver.line_search, old, phi, dphi, active)

    lower = active & (search.best_phi < old.best_phi)
    accepted = active & (search.status == ACCEPTED)
    if solver.initial.scales_first:
        bent = dphi - old.dphi0 > space.backend.eps * -old.dphi0
        accepted = accepted | (lower & bent & (pairs.count == 0))
    lowest = Lowest(
        fn.where(lower, old.alpha, state.lowest.alpha),
        fn.where(lower, phi, state.lowest.value),
        space.pick(lower, gradient, state.lowest.gradient),
    )
    stuck = active & (search.status == STUCK) & fn.logical_not(accepted)
    # Stuck, but lower than the start: the lowest trial is the new iterate.
    rescued = stuck & (search.best_phi < search.phi0)
    lost = stuck & fn.logical_not(rescued)
    taken = accepted | rescued
    iterate = _iterate(space, state, phi, gradient, lowest, taken, rescued)
    alpha = fn.where(rescued, lowest.alpha, old.alpha)

    pairs, with_gradient = _with_pair(solver, space, state, iterate, alpha, search.dphi0, taken)
    had = state.pairs.count > 0
    decrement = fn.where((taken | lost) & had, -0.5 * search.dphi0, state.decrement)
    # At the precision floor steepest descent would do no better.
    reset = lost & had & fn.logical_not(at_floor(space, decrement, state.value))
    pairs = curvature.forget_many(space, pairs, reset, solver.initial.gamma)
    unbounded = taken & fn.logical_not(had) & (pairs.count == 0) & endless(solver, alpha)
    after = _aim(solver, space, iterate, (pairs, state.weights, with_gradient))._replace(
        seen=phi, decrement=decrement, accepted=taken, failed=lost & fn.logical_not(reset),
        unbounded=unbounded,
    )
    # A search that continues or has failed keeps its line.
    turned = taken | reset
    search = fn.choose(turned, after.search, search)
    direction = space.pick(turned, after.direction, state.direction)
    return after._replace(
        direction=direction,
        search=search,
        trial=space.move(iterate.x, search.alpha, direction),
        lowest=Lowest(
            fn.where(turned, after.lowest.alpha, lowest.alpha),
            fn.where(turned, after.lowest.value, lowest.value),
            space.pick(turned, iterate.gradient, lowest.gradient),
        ),
    )


def _iterate(
    space: Space, state: LBFGSState, phi: Any, gradient: Array, lowest: Lowest, taken: Any,
    rescued: Any,
) -> Iterate:
    """The new iterate where `taken`: the trial or, where `rescued`, the lowest one."""
    fn, alpha = space.scalars, state.search.alpha
    back = rescued & (lowest.alpha != alpha)
    alpha = fn.where(back, lowest.alpha, alpha)
    x = space.pick(back, space.move(state.x, alpha, state.direction), state.trial)
    x = space.pick(taken, x, state.x)
    gradient = space.pick(back, lowest.gradient, gradient)
    gradient = space.pick(taken, gradient, state.gradient)
    value = fn.where(taken, fn.where(back, lowest.value, phi), state.value)
    norm = space.read_one(space.max_abs(gradient))
    return Iterate(x, value, gradient, norm, fn.where(taken, alpha, state.step))


def _with_pair(
    solver: Any, space: Space, state: LBFGSState, iterate: Iterate, alpha: Any, dphi0: Any,
    taken: Any,
) -> tuple[Pairs, Array]:
    """The pairs, with the pair of the step to the iterate where `taken`, and W g there."""
    s, y = space.scale(alpha, state.direction), iterate.gradient - state.gradient
    if state.weights is not None:
        s, y = s / state.weights, y * state.weights
    pairs = curvature.write_many(space, state.pairs, s, y, taken)
    with_gradient = space.products(pairs.rows, weighted(iterate.gradient, state.weights))
    with_change = space.products(pairs.rows, y)
    pairs = curvature.accept_many(
        space, pairs, space.fetch(with_change), alpha * dphi0, taken, solver.scale_initial
    )
    return pairs, space.fetch(with_gradient)


def begin(
    solver: Any, space: Space, x: Array, value: Any, gradient: Array, norm: Any, pairs: Pairs,
    weights: Any,
) -> LBFGSState:
    """The state at the start of a run; `pairs` may come from an earlier run."""
    with_gradient = space.products(pairs.rows, weighted(gradient, weights))
    iterate = Iterate(x, value, gradient, norm, space.scalars.full(0.0, value))
    state = _aim(solver, space, iterate, (pairs, weights, space.fetch(with_gradient)))
    return state._replace(trial=space.move(x, state.search.alpha, state.direction))


def _aim(solver: Any, space: Space, iterate: Iterate, curvature_there: tuple) -> LBFGSState:
    """The state at an iterate, with a direction from there and a search begun along it; its fields
    about the last evaluation are as at a start.

    curvature_there : the pairs, the weights, and W g.
    """
    fn, (x, value, gradient, norm, alpha) = space.scalars, iterate
    pairs, weights, with_gradient = curvature_there
    direction, slope = quasi_newton(
        space, solver.initial, weights, pairs, gradient, with_gradient, 0.0
    )
    # If it is not a descent direction, it is dropped together with the pairs.
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
    no = fn.full(False, value)
    return LBFGSState(
        x, value, gradient, norm, alpha, direction, search, x, value,
        Lowest(fn.full(0.0, value), value, gradient), pairs, None, None, weights, None,
        fn.full(math.inf, value), no, no, no,
    )
