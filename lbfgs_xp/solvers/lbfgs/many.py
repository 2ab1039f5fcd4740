"""An L-BFGS step for a batch, in which each problem is in its own search or at a new iterate.

The same steps as in `one`, with `where` for every branch: nothing here is read back to the host,
and JAX can compile it. Not a `Descent`, because it shares its state with `one`;
`test_rows_are_bitwise_single_runs` in tests/run/test_batch.py checks that the two agree.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, STUCK
from lbfgs_xp.solvers import bounded
from lbfgs_xp.solvers.bounded import Path
from lbfgs_xp.solvers.descent import Iterate
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature, restricted
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, endless
from lbfgs_xp.solvers.search import Lowest, advance, at_floor


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`, where `active`."""
    fn, old, pairs, path = space.scalars, state.search, state.pairs, state.path
    along = state.direction
    if path is not None:
        along = bounded.along(space, path, state.x, state.trial, old.alpha, along)
    phi, dphi = space.read(value, space.dot(gradient, along))
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
    iterate = _iterate(solver, space, state, phi, gradient, lowest, taken, rescued)
    alpha = fn.where(rescued, lowest.alpha, old.alpha)

    if path is None:
        pairs, with_gradient = _with_pair(solver, space, state, iterate, alpha, search.dphi0, taken)
    else:
        pairs, with_gradient, path = _within_bounds(
            solver, space, state, iterate, alpha, search.dphi0, taken
        )
    had = state.pairs.count > 0
    decrement = fn.where((taken | lost) & had, -0.5 * search.dphi0, state.decrement)
    # At the precision floor steepest descent would do no better.
    reset = lost & had & fn.logical_not(at_floor(space, decrement, state.value))
    pairs = curvature.forget_many(space, pairs, reset, solver.initial.gamma)
    unbounded = taken & fn.logical_not(had) & (pairs.count == 0) & endless(solver, alpha)
    after: Any = _aim(solver, space, iterate, (pairs, state.weights, with_gradient), path)._replace(
        seen=phi, decrement=decrement, accepted=taken, failed=lost & fn.logical_not(reset),
        unbounded=unbounded,
    )
    # A search that continues or has failed keeps its line.
    turned = taken | reset
    search = fn.choose(turned, after.search, search)
    direction = space.pick(turned, after.direction, state.direction)
    if path is not None:
        path = path._replace(reach=fn.where(turned, after.path.reach, path.reach))
    return after._replace(
        direction=direction,
        search=search,
        trial=bounded.trial(space, path, iterate.x, search.alpha, direction),
        path=path,
        lowest=Lowest(
            fn.where(turned, after.lowest.alpha, lowest.alpha),
            fn.where(turned, after.lowest.value, lowest.value),
            space.pick(turned, iterate.gradient, lowest.gradient),
        ),
    )


def _iterate(
    solver: Any, space: Space, state: LBFGSState, phi: Any, gradient: Array, lowest: Lowest,
    taken: Any, rescued: Any,
) -> Iterate:
    """The new iterate where `taken`: the trial or, where `rescued`, the lowest one."""
    fn, alpha = space.scalars, state.search.alpha
    back = rescued & (lowest.alpha != alpha)
    alpha = fn.where(back, lowest.alpha, alpha)
    lowest_trial = bounded.trial(space, state.path, state.x, alpha, state.direction)
    x = space.pick(back, lowest_trial, state.trial)
    x = space.pick(taken, x, state.x)
    gradient = space.pick(back, lowest.gradient, gradient)
    gradient = space.pick(taken, gradient, state.gradient)
    value = fn.where(taken, fn.where(back, lowest.value, phi), state.value)
    norm = space.read_one(solver.optimality(space, x, gradient))
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
    start, path = space.scalars.full(0.0, value), None
    if solver.box is not None:
        free = bounded.free_variables(space, solver.box, x, gradient)
        path = bounded.path_at(space, solver.box, x, free)
        if free is not None:
            pairs = restricted.to_free(space, pairs, free, solver.scale_initial)
    inner = bounded.reduced(space, path and path.free, gradient)
    with_gradient = space.products(pairs.rows, weighted(inner, weights))
    iterate = Iterate(x, value, gradient, norm, start)
    state = _aim(solver, space, iterate, (pairs, weights, space.fetch(with_gradient)), path)
    trial = bounded.trial(space, state.path, x, state.search.alpha, state.direction)
    return state._replace(trial=trial)


def _within_bounds(
    solver: Any, space: Space, state: LBFGSState, iterate: Iterate, alpha: Any, dphi0: Any,
    taken: Any,
) -> tuple[Pairs, Array, Path]:
    """`_with_pair` of the free variables at the iterate, and the path there without its reach.

    Where they are the same as before, a pair is added as without bounds. Where they have changed,
    the algebra is computed anew.
    """
    fn, weights = space.scalars, state.weights
    old: Any = state.path
    reach = space.spread(fn.where(state.pairs.count > 0, state.pairs.gamma, 0.0))
    found = bounded.free_variables(space, solver.box, iterate.x, iterate.gradient, reach)
    free = space.xp.ones_like(old.free) if found is None else found
    free = space.pick(taken, free, old.free)
    changed = taken & bounded.differ(space, free, old.free)
    s = bounded.step(space, state.x, iterate.x, alpha, state.direction)
    y, inner = iterate.gradient - state.gradient, bounded.reduced(space, free, iterate.gradient)
    slope = space.read_one(space.dot(s, state.gradient))
    slope = fn.where(alpha > old.reach, slope, alpha * dphi0)
    if weights is not None:
        s, y = s / weights, y * weights
    pairs = curvature.write_many(space, state.pairs, s, y, taken)
    with_gradient = space.products(pairs.rows, weighted(inner, weights))
    with_change = space.products(pairs.rows, bounded.reduced(space, free, y))
    kept = curvature.accept_many(
        space, pairs, space.fetch(with_change), slope, taken & fn.logical_not(changed),
        solver.scale_initial,
    )
    if not space.none(changed):
        m = pairs.diagonal.shape[-1]
        fresh = pairs._replace(
            slot=(pairs.slot + 1) % m, count=fn.minimum(pairs.count + 1, fn.full(m, pairs.count))
        )
        kept = _anew(solver, space, fresh, kept, free, changed)
    return kept, space.fetch(with_gradient), old._replace(free=free)


def _anew(
    solver: Any, space: Space, fresh: Pairs, kept: Pairs, free: Array, changed: Array
) -> Pairs:
    """The pairs `kept`, but where `changed`, `fresh` with the algebra of the free variables."""
    if space.small_on_host:
        rows = np.flatnonzero(changed)
        part, mask = space.take((fresh, free), rows)
        part = restricted.to_free(space, part, mask, solver.scale_initial)
        small = space.put(rows, part[1:], tuple(kept)[1:])
        return Pairs(kept.rows, *small)
    new = restricted.to_free(space, fresh, free, solver.scale_initial)
    return space.merge(changed, new._replace(rows=kept.rows), kept)


def _aim(
    solver: Any, space: Space, iterate: Iterate, curvature_there: tuple, path: Path | None
) -> LBFGSState:
    """The state at an iterate, with a direction from there and a search begun along it; its fields
    about the last evaluation are as at a start.

    curvature_there : the pairs, the weights, and W g.
    path : the bounds and the free variables there; None without bounds.
    """
    fn, (x, value, gradient, norm, alpha) = space.scalars, iterate
    pairs, weights, with_gradient = curvature_there
    free = None if path is None else path.free
    inner = bounded.reduced(space, free, gradient)
    direction, slope = quasi_newton(
        space, solver.initial, weights, pairs, inner, with_gradient, 0.0, free
    )
    if path is not None:
        one = fn.full(1.0, value)
        direction = bounded.onto_bounds(space, path, x, gradient, direction, one)
        direction = bounded.clipped(space, path, x, direction, one)
        before, slope = slope, space.read_one(space.dot(gradient, direction))
        # Where clipping has spoilt it, a projected step along the gradient goes down.
        spoilt = fn.logical_not((slope < bounded.KEPT * before) & (slope < 0.0))
        spoilt = spoilt & (pairs.count > 0)
        if not space.none(spoilt):
            plain = space.scale(-pairs.gamma, inner)
            plain = bounded.onto_bounds(space, path, x, gradient, plain, one)
            plain = bounded.clipped(space, path, x, plain, one)
            direction = space.pick(spoilt, plain, direction)
            (slope,) = space.read(space.dot(gradient, direction))
    # If it is not a descent direction, it is dropped together with the pairs.
    bare = (pairs.count == 0) | fn.logical_not(slope < 0.0)
    pairs = curvature.forget_many(space, pairs, bare, solver.initial.gamma)
    plain, plain_slope, first = first_step(
        space, solver.initial, weights, x, value, inner, norm, alpha == 0.0
    )
    if path is not None:
        plain = bounded.onto_bounds(space, path, x, gradient, plain, first)
        plain = bounded.clipped(space, path, x, plain, first)
        (plain_slope,) = space.read(space.dot(gradient, plain))
    direction = space.pick(bare, plain, direction)
    slope = fn.where(bare, plain_slope, slope)
    noise = fn.abs(value) * space.backend.noise
    first = fn.where(bare, first, 1.0)
    if solver.pace is not None:
        first = first * solver.learning_rate(0)
    if path is not None:
        path = path._replace(reach=first)
    search = solver.line_search.begin(value, slope, first, noise)
    no = fn.full(False, value)
    return LBFGSState(
        x, value, gradient, norm, alpha, direction, search, x, value,
        Lowest(fn.full(0.0, value), value, gradient), pairs, None, 0.0, weights, None,
        fn.full(math.inf, value), no, no, no, path,
    )
