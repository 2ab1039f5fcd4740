"""An L-BFGS step for one problem: Python floats and plain branches."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import Pending, now
from lbfgs_xp.arrays.scalars import named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, SEARCHING, Search
from lbfgs_xp.solvers import bounded
from lbfgs_xp.solvers.anchor import Anchor, shows_curvature
from lbfgs_xp.solvers.bounded import Path
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature, remote, restricted
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import clipped, quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, Pace, endless
from lbfgs_xp.solvers.search import Lowest, at_floor, begun, hidden, search_from


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`."""
    rule, measured, path = solver.line_search, None, state.path
    if space.remote:
        slope, measured = remote.measure(space, solver, state, gradient)
        phi, dphi = space.read(value, slope)
    else:
        along = state.direction
        if path is not None:
            along = bounded.along(space, path, state.x, state.trial, state.search.alpha, along)
        whole = bounded.penalised_gradient(path, gradient)
        if space.sharded:
            phi, dphi = space.read(value, space.dot(whole, along))
        else:
            phi, dphi = float(value), space.read_one(space.dot(whole, along))
    if isinstance(state.search.dphi0, Pending):
        state = state._replace(search=begun(rule, state.search))
        if state.pairs.count and not state.search.dphi0 < 0.0:
            return _start_again(solver, space, state, phi, state.decrement)
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
        trial = bounded.trial(space, path, state.x, search.alpha, state.direction)
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
        x, measured = bounded.trial(space, path, state.x, alpha, state.direction), None
    return _arrive(solver, space, state, search, x, alpha, best, phi, best_gradient, measured)


def _arrive(
    solver: Any, space: Space, state: LBFGSState, search: Search, x: Array, alpha: float,
    value: float, seen: float, gradient: Array, measured: Any,
) -> LBFGSState:
    """The state at a new iterate.

    measured : what `remote.measure` returned for it, if it is the last trial.
    """
    weights, path, bare = state.weights, state.path, state.pairs.count == 0
    anchor, length, slope = state.anchor, alpha, alpha * search.dphi0
    spoilt = solver.too_large(space, state.x, state.gradient)
    kept = not (spoilt or solver.too_large(space, x, gradient))
    if anchor is not None:
        there = Anchor(x, gradient)
        if kept:
            state, length, slope, kept = _since_anchor(solver, space, state, *there)
            anchor, measured = there if kept else anchor, None
        else:
            anchor = there
    if not kept:
        # Without a change of the gradient, the pair is not kept.
        state, measured = state._replace(gradient=gradient, with_gradient=None), None
    if path is not None:
        path, norm, products = _within_bounds(
            solver, space, state, x, length, slope, gradient, measured
        )
        pairs, with_gradient, squared = products
    elif space.remote:
        if measured is None:
            _, measured = remote.measure(space, solver, state, gradient)
        norm, squared = now(measured.norm), now(measured.squared)
        pairs, with_gradient = remote.with_pair(
            space, state, measured, length, slope, gradient, solver.scale_initial
        )
    else:
        (norm,) = space.later(space.max_abs(gradient))
        s = space.scale(length, state.direction)
        pairs, with_gradient, squared = _with_pair(
            solver, space, state, s, gradient, gradient, None, slope, state.with_gradient
        )
        norm = now(norm)
    decrement = state.decrement if bare or spoilt else -0.5 * search.dphi0
    straight = endless(solver.line_search, solver.initial.scales_first, alpha)
    straight = straight and not _has_pair(space, pairs, state.pairs.slot)
    if straight and not bare:
        # The pairs know nothing of so large a scale, which the next search has to find.
        pairs, with_gradient = curvature.forget(space, pairs, solver.initial.gamma), None
    after = _aim(
        solver, space, (x, value, gradient, norm, alpha), (pairs, with_gradient, squared, weights),
        seen, state.pace, decrement, bare and straight, state.noise, path,
    )
    return after if anchor is None else after._replace(anchor=anchor)


def _since_anchor(
    solver: Any, space: Space, state: LBFGSState, x: Array, gradient: Array
) -> tuple[LBFGSState, float, float, bool]:
    """The state as if a single step of length 1 had led from the anchor to x; that length; s . g at
    the anchor; and whether this pair shows curvature."""
    anchor: Any = state.anchor
    s = x - anchor.x
    slope, bend, squared = space.read(
        space.dot(s, anchor.gradient), space.dot(s, gradient - anchor.gradient), space.dot(s, s)
    )
    state = state._replace(
        x=anchor.x, gradient=anchor.gradient, direction=s, with_gradient=None
    )
    shows = shows_curvature(space.scalars, solver.gradient_error, bend, squared)
    return state, 1.0, slope, shows


def _has_pair(space: Space, pairs: Pairs, slot: int) -> bool:
    """Whether the pair in this slot has enough curvature."""
    diagonal = pairs.diagonal if space.small_on_host else space.backend.to_host(pairs.diagonal)
    return bool(diagonal[slot] > 0.0)


def _with_pair(
    solver: Any, space: Space, state: LBFGSState, s: Array, gradient: Array, inner: Array,
    free: Any, slope: float, before: Any,
) -> tuple[Pairs, Array, float]:
    """The pairs with the step s to this gradient, if it has enough curvature; W g, and g . g.

    inner : the gradient that the direction needs, of the free variables.
    before : W g of the last iterate, if W y may be a difference; else None.
    """
    weights, new, old = state.weights, gradient, state.gradient
    if weights is not None:
        s, new, old, inner = s / weights, new * weights, old * weights, inner * weights
    # The pair takes effect only with `accept`.
    pairs = state.pairs
    rows = space.backend.write_pair(pairs.rows, pairs.slot, s, new, old)
    if rows is not pairs.rows:
        pairs = pairs._replace(rows=rows)
    y = bounded.reduced(
        space, free, space.in_full(rows[pairs.slot + len(pairs.diagonal), :])
    )
    with_gradient, with_change, squared = curvature.products(
        space, pairs, inner, y, slope, before, state.squared
    )
    return (
        curvature.accept(space, pairs, with_change, slope, solver.scale_initial),
        with_gradient, squared,
    )


def _within_bounds(
    solver: Any, space: Space, state: LBFGSState, x: Array, alpha: float, slope: float,
    gradient: Array, measured: Any,
) -> tuple[Path, float, tuple]:
    """The path at a new iterate (without its reach), the norm of the gradient of the free
    variables, and pairs, with_gradient and squared there."""
    path: Any = state.path
    if space.remote and measured is None:
        _, measured = remote.measure(space, solver, state, gradient, x)
    limits = solver.limits(space, x, gradient)
    whole = bounded.penalised_gradient(limits, gradient)
    reach = state.pairs.gamma if state.pairs.count else None
    free = bounded.free_variables(space, limits, x, whole, reach)
    if space.remote and not now(measured.held):
        free = None
    inner = bounded.reduced(space, free, whole)
    s = bounded.step(space, x=state.x, new=x, alpha=alpha, direction=state.direction)
    if alpha > path.reach:
        slope = space.read_one(space.dot(s, bounded.penalised_gradient(path, state.gradient)))
    there = path._replace(free=free)
    before = state.with_gradient
    if path.pull is not None:
        # Its change between iterates is no curvature.
        there, before = bounded.path_at(space, limits, x, free), None
    if not space.remote:
        norm = space.read_one(bounded.optimality(space, limits, x, gradient))
        if _same_free(space, path.free, free):
            return there, norm, _with_pair(
                solver, space, state, s, gradient, inner, free, slope, before
            )
    elif free is path.free is path.pull is None and alpha <= path.reach:
        norm, squared = now(measured.norm), now(measured.squared)
        pairs, with_gradient = remote.with_pair(
            space, state, measured, alpha, slope, gradient, solver.scale_initial
        )
        return there, norm, (pairs, with_gradient, squared)
    else:
        norm = now(measured.norm)
    weights, old, pairs = state.weights, state.gradient, state.pairs
    new = gradient
    if weights is not None:
        s, new, old, inner = s / weights, new * weights, old * weights, inner * weights
    m, slot = pairs.diagonal.shape[-1], pairs.slot
    pairs = pairs._replace(
        rows=space.backend.write_pair(pairs.rows, slot, s, new, old),
        slot=(slot + 1) % m, count=min(pairs.count + 1, m),
    )
    pairs = restricted.to_free(space, pairs, free, solver.scale_initial)
    if pairs.count == 1 and not _has_pair(space, pairs, slot):
        pairs = pairs._replace(slot=slot, count=0)    # the scale is still unknown
    return there, norm, (pairs, curvature.small_products(space, pairs.rows, inner), math.inf)


def _same_free(space: Space, one: Any, other: Any) -> bool:
    """Whether two masks of free variables, or None for all, are the same."""
    if one is None or other is None:
        return one is other
    return not bounded.differ(space, one, other)


def _give_up(
    solver: Any, space: Space, state: LBFGSState, search: Search, seen: float
) -> LBFGSState:
    """The state after a line without a lower point: drop the memory or, if there is none, fail."""
    decrement = -0.5 * search.dphi0 if state.pairs.count else state.decrement
    # At the precision floor steepest descent would do no better.
    if state.pairs.count == 0 or at_floor(
        space.scalars, space.backend.noise, decrement, state.value, state.noise
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
        False, state.noise, state.path,
    )
    return after._replace(accepted=False, anchor=state.anchor)


def _aim(
    solver: Any, space: Space, iterate: tuple, curvature_there: tuple, seen: float,
    pace: Pace | None, decrement: float, unbounded: bool, noise: float, path: Path | None,
) -> LBFGSState:
    """The state at an iterate, with a direction from there and a search begun along it.

    iterate : x, value, gradient, its norm, and the step length that led there.
    curvature_there : pairs, with_gradient, squared and weights of the state.
    path : the bounds and the free variables there; None without bounds.
    """
    (x, value, gradient, norm, alpha), (pairs, with_gradient, squared, weights) = (
        iterate, curvature_there
    )
    first = rate = 1.0
    slope: Any = 0.0
    if pace is not None:
        rate, memory = solver.learning_rate.follow(pace.memory, pace.iteration, value)
        pace = Pace(pace.iteration + 1, memory)
        # A schedule may end at 0, with which no search can begin.
        rate = rate if rate > 0.0 else space.backend.eps
    free = None if path is None else path.free
    whole = bounded.penalised_gradient(path, gradient)
    inner = bounded.reduced(space, free, whole)
    clip = solver.clipped(space, inner, norm)
    if pairs.count:
        direction, slope = quasi_newton(
            space, solver.initial, weights, pairs, inner, with_gradient, squared, free
        )
        direction, slope = clipped(
            space, solver, clip, weights, pairs, inner, direction, slope, free
        )
        if path is not None:
            direction, slope = bounded.shortened(
                space, path, x, whole, direction, slope, pairs.gamma, first=rate
            )
    stationary = norm == 0.0 and pairs.count > 0    # the pairs are right, and of use for `hess_inv`
    if not (isinstance(slope, Pending) or slope < 0.0 or stationary):
        # There are no pairs, or they do not give a descent direction.
        if pairs.count:
            pairs, with_gradient = curvature.forget(space, pairs, solver.initial.gamma), None
        direction, slope, first = first_step(
            space, solver.initial, weights, x, value, inner, norm, alpha == 0.0, clip
        )
        if path is not None:
            plain = direction
            direction = bounded.fitted(space, path, x, whole, direction, first * rate)
            if direction is not plain:
                slope = space.read_one(space.dot(whole, direction))
    first *= rate
    if path is not None:
        path = path._replace(reach=first)
    blur = hidden(space.scalars, space.backend.noise, value, noise)
    search = search_from(solver.line_search, value, slope, first, blur)
    trial = bounded.trial(space, path, x, search.alpha, direction)
    return named(LBFGSState, (
        x, value, gradient, norm, alpha, direction, search, trial, seen, None, pairs,
        with_gradient, squared, weights, pace, decrement, True, False, unbounded, noise,
        path, None,
    ))


def begin(
    solver: Any, space: Space, x: Array, value: float, gradient: Array, norm: float,
    pairs: Pairs, weights: Any, noise: float,
) -> LBFGSState:
    """The state at the start of a run; `pairs` may come from an earlier run."""
    path = None
    if solver.projects:
        limits = solver.limits(space, x, gradient)
        whole = bounded.penalised_gradient(limits, gradient)
        free = bounded.free_variables(space, limits, x, whole)
        if free is not None and space.remote and bool(space.backend.to_host(space.xp.all(free))):
            free = None
        if free is not None and pairs.count:
            pairs = restricted.to_free(space, pairs, free, solver.scale_initial)
        path = bounded.path_at(space, limits, x, free)
    inner = bounded.penalised_gradient(path, gradient)
    inner = weighted(bounded.reduced(space, path and path.free, inner), weights)
    if pairs.count:
        with_gradient = curvature.small_products(space, pairs.rows, inner)
    else:
        with_gradient = space.small_zeros(pairs.rows.shape[:1])  # without touching the rows
    state = _aim(
        solver, space, (x, value, gradient, norm, 0.0), (pairs, with_gradient, math.inf, weights),
        value, solver.pace, math.inf, False, noise, path,
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
    known: tuple = (None, None)
    if curvature.remembers(space, state.pairs.rows):
        known = state.with_gradient, state.squared
        if known[0] is None or known[1] is None:
            # Beside an infinite g . g any change is small, so W y is not taken as a difference.
            known = space.small_zeros(state.pairs.rows.shape[:1]), math.inf
    return state._replace(
        search=rule.completed(search), lowest=lowest, with_gradient=known[0], squared=known[1]
    )
