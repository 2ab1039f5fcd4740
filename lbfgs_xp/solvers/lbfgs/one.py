"""An L-BFGS step for one problem: Python floats and plain branches."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import Pending, now
from lbfgs_xp.arrays.scalars import named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, SEARCHING, Search
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature, remote
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, Pace, endless
from lbfgs_xp.solvers.search import Lowest, at_floor, begun, search_from


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`."""
    rule, measured = solver.line_search, None
    if space.remote:
        slope, measured = remote.measure(space, state, gradient)
        phi, dphi = space.read(value, slope)
        state = state._replace(search=begun(rule, state.search))
        if state.pairs.count and not state.search.dphi0 < 0.0:
            return _start_again(solver, space, state, phi, state.decrement)
    else:
        phi, dphi = float(value), space.read_one(space.dot(gradient, state.direction))
    old = state.search
    search = rule.advance(old, phi, dphi)
    lower = search.best_phi < old.best_phi
    if search.status == ACCEPTED or (
        state.pairs.count == 0
        and solver.initial.scales_first
        and lower
        and dphi - old.dphi0 > space.backend.eps * -old.dphi0
    ):
        return _arrive(
            solver, space, state, search, state.trial, old.alpha, phi, phi, gradient, measured
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
        x, measured = space.move(state.x, alpha, state.direction), None
    return _arrive(solver, space, state, search, x, alpha, best, phi, best_gradient, measured)


def _arrive(
    solver: Any, space: Space, state: LBFGSState, search: Search, x: Array, alpha: float,
    value: float, seen: float, gradient: Array, measured: Any,
) -> LBFGSState:
    """The state at a new iterate.

    measured : what `remote.measure` returned for it, if it is the last trial.
    """
    weights, slope = state.weights, alpha * search.dphi0
    if space.remote:
        if measured is None:
            _, measured = remote.measure(space, state, gradient)
        norm, squared = now(measured.norm), now(measured.squared)
        pairs, with_gradient = remote.with_pair(
            space, state, measured, alpha, slope, gradient, solver.scale_initial
        )
    else:
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
        pairs = curvature.accept(space, pairs, with_change, slope, solver.scale_initial)
    bare = state.pairs.count == 0
    decrement = state.decrement if bare else -0.5 * search.dphi0
    far = endless(solver.line_search, solver.initial.scales_first, alpha)
    return _aim(
        solver, space, (x, value, gradient, norm, alpha), (pairs, with_gradient, squared, weights),
        seen, state.pace, decrement, bare and pairs.count == 0 and far,
    )


def _give_up(
    solver: Any, space: Space, state: LBFGSState, search: Search, seen: float
) -> LBFGSState:
    """The state after a line without a lower point: drop the memory or, if there is none, fail."""
    decrement = -0.5 * search.dphi0 if state.pairs.count else state.decrement
    # At the precision floor steepest descent would do no better.
    if state.pairs.count == 0 or at_floor(
        space.scalars, space.backend.noise, decrement, state.value
    ):
        return state._replace(
            search=search, seen=seen, decrement=decrement, accepted=False, failed=True
        )
    return _start_again(solver, space, state, seen, decrement)


def _start_again(
    solver: Any, space: Space, state: LBFGSState, seen: float, decrement: float
) -> LBFGSState:
    """The state at the same iterate without a memory."""
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
    slope: Any = 0.0
    if pairs.count:
        direction, slope = quasi_newton(
            space, solver.initial, weights, pairs, gradient, with_gradient, squared
        )
    if not (isinstance(slope, Pending) or slope < 0.0):
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
    search = search_from(
        solver.line_search, value, slope, first, abs(value) * space.backend.noise
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
    state = _aim(
        solver, space, (x, value, gradient, norm, 0.0), (pairs, with_gradient, math.inf, weights),
        value, solver.pace, math.inf, False,
    )
    return state._replace(accepted=False)


def as_row(solver: Any, space: Space, state: LBFGSState) -> LBFGSState:
    """The state with the entries that `many.step` needs, and no others."""
    rule = solver.line_search
    search = begun(rule, state.search)
    if search is not state.search and state.pairs.count and not search.dphi0 < 0.0:
        state = _start_again(
            solver, space, state._replace(search=search), state.seen, state.decrement
        )
        search = begun(rule, state.search)
    lowest = state.lowest or Lowest(0.0, state.value, state.gradient)
    return state._replace(
        search=rule.completed(search), lowest=lowest, with_gradient=None, squared=None
    )
