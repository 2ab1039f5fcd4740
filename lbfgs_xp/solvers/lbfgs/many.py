"""An L-BFGS step for a batch, in which each problem is in its own search or at a new iterate.

The same steps as in `one`, with `where` for every branch: nothing here is read back to the host,
and JAX can compile it. Not a `Descent`, because it shares its state with `one`;
`test_rows_are_bitwise_single_runs` in tests/run/test_batch.py checks that the two agree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, STUCK, LineSearch, Search
from lbfgs_xp.solvers import bounded
from lbfgs_xp.solvers.anchor import moved, shows_curvature
from lbfgs_xp.solvers.bounded import Path
from lbfgs_xp.solvers.descent import Iterate
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.lbfgs import curvature, restricted
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.direction import clipped, quasi_newton, weighted
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, endless
from lbfgs_xp.solvers.orthant import Orthant
from lbfgs_xp.solvers.search import Lowest, advance, at_floor, hidden


class _Numbers(NamedTuple):
    """The scalars of a state that `_judged` needs; count is that of the pairs."""

    search: Search
    value: Any
    step: Any
    lowest_alpha: Any
    lowest_value: Any
    decrement: Any
    count: Any
    noise: Any


class _Verdict(NamedTuple):
    """What a trial means for each problem.

    search : after the trial.
    lower : whether the trial is the lowest of the search.
    lowest_alpha, lowest_value : of the lowest trial.
    taken : whether there is a new iterate: the trial or, where `back`, the lowest one.
    alpha, value, step : the step length to the new iterate, the value there, and the step length
        that has led to the current iterate. The last two are those of the state if there is none.
    slope : alpha g . d.
    reset : whether the pairs are dropped, to search along steepest descent.
    turned : taken or reset, so that there is a new line.
    failed : whether steepest descent has failed, or rounding hides what it could gain.
    had : whether there were pairs.
    endless : whether the step was so long that, without curvature, the function counts as unbounded
        or, if there were pairs, these are dropped.
    """

    search: Search
    lower: Any
    lowest_alpha: Any
    lowest_value: Any
    taken: Any
    back: Any
    alpha: Any
    value: Any
    step: Any
    slope: Any
    decrement: Any
    reset: Any
    turned: Any
    failed: Any
    had: Any
    endless: Any


def step(
    solver: Any, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any
) -> LBFGSState:
    """The state after the evaluation of value and gradient at `state.trial`, where `active`."""
    fn, backend, path = space.scalars, space.backend, state.path
    along = state.direction
    if path is not None:
        along = bounded.along(space, path, state.x, state.trial, state.search.alpha, along)
    whole = bounded.penalised_gradient(path, gradient)
    phi, dphi = space.read(value, space.dot(whole, along))
    numbers = _Numbers(
        state.search, state.value, state.step, state.lowest.alpha, state.lowest.value,
        state.decrement, state.pairs.count, state.noise,
    )
    told = fn.fused(
        _judged, solver.line_search, solver.initial.scales_first, backend.eps, backend.noise,
        numbers, phi, dphi, active,
    )
    lowest = Lowest(
        told.lowest_alpha, told.lowest_value,
        space.pick(told.lower, gradient, state.lowest.gradient),
    )
    state = state._replace(search=told.search, lowest=lowest, unbounded=fn.full(False, phi))
    iterate = _iterate(solver, space, state, told, gradient)
    if path is None:
        s = space.scale(told.alpha, state.direction)
    else:
        s = bounded.step(space, state.x, iterate.x, told.alpha, state.direction)
        before = bounded.penalised_gradient(path, state.gradient)
        (slope,) = space.read(space.dot(s, before))
        told = told._replace(slope=fn.where(told.alpha > path.reach, slope, told.slope))
    new, old, anchor, shows = iterate.gradient, state.gradient, state.anchor, told.taken
    if anchor is not None:
        s, old = space.pick(told.taken, iterate.x, anchor.x) - anchor.x, anchor.gradient
        slope, bend, squared = space.read(
            space.dot(s, old), space.dot(s, new - old), space.dot(s, s)
        )
        told = told._replace(slope=slope)
        shows = shows & shows_curvature(fn, solver.gradient_error, bend, squared)
    if state.weights is not None:
        s, new, old = s / state.weights, new * state.weights, old * state.weights
    y = new - old
    if anchor is not None:
        y = space.pick(shows, y, space.xp.zeros_like(y))
    if solver.clips:
        before = solver.too_large(space, state.x, state.gradient)
        spoilt = before | solver.too_large(space, iterate.x, iterate.gradient)
        # Without a change of the gradient, the pair is not kept.
        y, shows = space.pick(spoilt, space.xp.zeros_like(y), y), shows | spoilt
        told = told._replace(decrement=fn.where(before, state.decrement, told.decrement))
    if anchor is not None:
        anchor = moved(space, anchor, shows & told.taken, iterate.x, iterate.gradient)
        state = state._replace(anchor=anchor)
    pairs = curvature.write_many(space, state.pairs, s, y, told.taken)
    # Whatever leaves a branch is copied. Where there is no new iterate, `iterate` is the old one.
    there = {"x": iterate.x, "gradient": iterate.gradient}
    nothing: dict[str, Any] = dict.fromkeys(there)
    rows, state = pairs.rows, state._replace(**nothing, pairs=pairs._replace(rows=None))

    def from_iterate(turned: Any) -> LBFGSState:
        verdict, old = told._replace(turned=turned), state._replace(pairs=pairs)
        after = _from_iterate(solver, space, old, verdict, iterate, y)
        return after._replace(
            **nothing, pairs=after.pairs._replace(rows=None), anchor=state.anchor
        )

    after = space.some(told.turned, from_iterate, state)._replace(**there)
    return after._replace(
        trial=bounded.trial(space, after.path, after.x, after.search.alpha, after.direction),
        pairs=after.pairs._replace(rows=rows), seen=phi, decrement=told.decrement,
        accepted=told.taken, failed=told.failed,
    )


def _from_iterate(
    solver: Any, space: Space, state: LBFGSState, told: _Verdict, iterate: Iterate, y: Array
) -> LBFGSState:
    """The state at the new iterates, with a new line where the search has `turned`.

    y : the change of the gradient; the pairs hold it already.
    """
    fn, weights, pairs, path = space.scalars, state.weights, state.pairs, state.path
    inner, taken = iterate.gradient, told.taken
    changed: Any = None
    if path is not None:
        path, changed = _path_at(solver, space, state, iterate, taken)
        inner = bounded.penalised_gradient(path, inner)
        inner, y = (bounded.reduced(space, path.free, u) for u in (inner, y))
        taken = taken & fn.logical_not(changed)
    inside = weighted(inner, weights)
    with_gradient = space.products(pairs.rows, inside)
    # Since an anchor, y may be the change over several steps.
    before = state.with_gradient if state.anchor is None else None
    with_change = curvature.change_many(
        space, pairs, with_gradient, y, told.slope, before, state.squared
    )
    kept = curvature.accept_many(
        space, pairs, space.fetch(with_change), told.slope, taken, solver.scale_initial
    )
    if path is not None and not space.none(changed):
        kept = _anew(solver, space, pairs, kept, path.free, changed)
    kept, told = _found_scale(solver, space, pairs.slot, kept, told)
    there = kept, weights, space.fetch(with_gradient)
    after = _aim(solver, space, iterate, there, state.noise, path, told)
    if path is not None:
        reach = fn.where(told.turned, after.path.reach, path.reach)    # type: ignore[union-attr]
        after = after._replace(path=path._replace(reach=reach))
    if state.with_gradient is not None:
        after = after._replace(with_gradient=there[2], squared=space.dot(inside, inside))
    # A search that continues or has failed keeps its line.
    gradient = space.pick(told.turned, iterate.gradient, state.lowest.gradient)
    return after._replace(
        direction=space.pick(told.turned, after.direction, state.direction),
        lowest=after.lowest._replace(gradient=gradient),
    )


def _found_scale(
    solver: Any, space: Space, slot: Any, pairs: Pairs, told: _Verdict
) -> tuple[Pairs, _Verdict]:
    """The pairs, dropped where a step showed a scale of which they know nothing; the verdict, with
    `endless` where the function counts as unbounded.

    slot : of the pair of this step.
    """
    fn, straight = space.scalars, told.endless
    if not space.none(straight):
        straight = straight & fn.logical_not(_has_pair(space, pairs, slot))
        pairs = curvature.forget_many(space, pairs, straight & told.had, solver.initial.gamma)
    return pairs, told._replace(endless=straight & fn.logical_not(told.had))


def _path_at(
    solver: Any, space: Space, state: LBFGSState, iterate: Iterate, taken: Any
) -> tuple[Path, Any]:
    """The path from the new iterates without its reach, and where its free variables have changed.

    Where they have not, a pair is added as without bounds; where they have, the algebra is computed
    anew.
    """
    old: Any = state.path
    reach = space.scalars.where(state.pairs.count > 0, state.pairs.gamma, 0.0)
    limits = solver.limits(space, iterate.x, iterate.gradient)
    whole = bounded.penalised_gradient(limits, iterate.gradient)
    found = bounded.free_variables(space, limits, iterate.x, whole, space.spread(reach))
    free = space.xp.ones_like(old.free) if found is None else found
    free = space.pick(taken, free, old.free)
    new = old._replace(free=free)
    if old.pull is not None:
        sides = (space.pick(taken, *each) for each in zip(limits, _sides(old), strict=True))
        new = new._replace(**dict(zip(Orthant._fields, sides, strict=True)))
    return new, taken & bounded.differ(space, free, old.free)


def _sides(path: Path) -> Orthant:
    return Orthant(path.lower, path.upper, path.pull)


def _anew(
    solver: Any, space: Space, pairs: Pairs, kept: Pairs, free: Array, changed: Array
) -> Pairs:
    """The pairs `kept`, but where `changed`, `pairs` and the pair in their next slot, with the
    algebra of the free variables."""
    fn, slot, m = space.scalars, pairs.slot, pairs.diagonal.shape[-1]
    full = fn.full(m, pairs.count)
    pairs = pairs._replace(slot=(slot + 1) % m, count=fn.minimum(pairs.count + 1, full))
    if space.small_on_host:
        rows = np.flatnonzero(changed)
        part, mask = space.take((pairs, free), rows)
        part = restricted.to_free(space, part, mask, solver.scale_initial)
        new = Pairs(kept.rows, *space.put(rows, part[1:], tuple(kept)[1:]))
    else:
        new = restricted.to_free(space, pairs, free, solver.scale_initial)
    # Without any curvature, the scale is still unknown.
    bare = changed & (new.count == 1) & fn.logical_not(_has_pair(space, new, slot))
    new = new._replace(
        rows=kept.rows, slot=fn.where(bare, slot, new.slot), count=fn.where(bare, 0, new.count)
    )
    return new if space.small_on_host else space.merge(changed, new, kept)


def _has_pair(space: Space, pairs: Pairs, slot: Any) -> Any:
    """Where the pair in this slot has enough curvature."""
    own = space.small_arange(pairs.diagonal.shape[-1]) == slot[..., None]
    diagonal = space.scalars.where(own, pairs.diagonal, 0.0)
    return space.small.sum(diagonal, axis=-1) > 0.0


def _judged(
    fn: Scalars, rule: LineSearch, probes: bool, eps: float, rounding: float, state: _Numbers,
    phi: Any, dphi: Any, active: Any,
) -> _Verdict:
    old = state.search
    search = advance(fn, rule, old, phi, dphi, active)

    lower = active & (search.best_phi < old.best_phi)
    accepted = active & (search.status == ACCEPTED)
    had = state.count > 0
    if probes:
        bent = dphi - old.dphi0 > eps * -old.dphi0
        accepted = accepted | (lower & bent & fn.logical_not(had))
    lowest_alpha = fn.where(lower, old.alpha, state.lowest_alpha)
    lowest_value = fn.where(lower, phi, state.lowest_value)
    stuck = active & (search.status == STUCK) & fn.logical_not(accepted)
    # Stuck, but lower than the start: the lowest trial is the new iterate.
    rescued = stuck & (search.best_phi < search.phi0)
    lost = stuck & fn.logical_not(rescued)
    taken = accepted | rescued
    back = rescued & (lowest_alpha != old.alpha)
    alpha = fn.where(back, lowest_alpha, old.alpha)
    value = fn.where(taken, fn.where(back, lowest_value, phi), state.value)
    decrement = fn.where((taken | lost) & had, -0.5 * search.dphi0, state.decrement)
    # At the precision floor steepest descent would do no better.
    floor = at_floor(fn, rounding, decrement, state.value, state.noise)
    reset = lost & had & fn.logical_not(floor)
    return _Verdict(
        search, lower, lowest_alpha, lowest_value, taken, back, alpha, value,
        fn.where(taken, alpha, state.step), alpha * search.dphi0, decrement, reset,
        taken | reset, lost & fn.logical_not(reset), had, taken & endless(rule, probes, alpha),
    )


def _iterate(
    solver: Any, space: Space, state: LBFGSState, told: _Verdict, gradient: Array
) -> Iterate:
    """The new iterate where there is one."""
    lowest = bounded.trial(space, state.path, state.x, told.alpha, state.direction)
    x = space.pick(told.back, lowest, state.trial)
    x = space.pick(told.taken, x, state.x)
    gradient = space.pick(told.back, state.lowest.gradient, gradient)
    gradient = space.pick(told.taken, gradient, state.gradient)
    norm = space.read_one(solver.optimality(space, x, gradient))
    return Iterate(x, told.value, gradient, norm, told.step)


def begin(
    solver: Any, space: Space, x: Array, value: Any, gradient: Array, norm: Any, pairs: Pairs,
    weights: Any, noise: Any,
) -> LBFGSState:
    """The state at the start of a run; `pairs` may come from an earlier run."""
    start, path = space.scalars.full(0.0, value), None
    if solver.projects:
        limits = solver.limits(space, x, gradient)
        whole = bounded.penalised_gradient(limits, gradient)
        free = bounded.free_variables(space, limits, x, whole)
        path = bounded.path_at(space, limits, x, free)
        if free is not None:
            pairs = restricted.to_free(space, pairs, free, solver.scale_initial)
    inner = bounded.penalised_gradient(path, gradient)
    inner = bounded.reduced(space, path and path.free, inner)
    inner = weighted(inner, weights)
    with_gradient = space.products(pairs.rows, inner)
    iterate = Iterate(x, value, gradient, norm, start)
    there = pairs, weights, space.fetch(with_gradient)
    state = _aim(solver, space, iterate, there, space.scalars.full(noise, value), path)
    if path is None and curvature.remembers(space, pairs.rows):
        state = state._replace(with_gradient=there[2], squared=space.dot(inner, inner))
    trial = bounded.trial(space, state.path, x, state.search.alpha, state.direction)
    return state._replace(trial=trial)


def _aim(
    solver: Any, space: Space, iterate: Iterate, curvature_there: tuple, noise: Any,
    path: Path | None,
    told: _Verdict | None = None,
) -> LBFGSState:
    """The state at an iterate, with a direction from there and a search begun along it; its other
    fields about the last evaluation are as at a start.

    curvature_there : the pairs, the weights, and W g.
    path : the bounds and the free variables there; None without bounds.
    told : the verdict on the last trial: where there is no new line, the old search continues.
    """
    fn, (x, value, gradient, norm, alpha) = space.scalars, iterate
    pairs, weights, with_gradient = curvature_there
    free = None if path is None else path.free
    whole = bounded.penalised_gradient(path, gradient)
    inner = bounded.reduced(space, free, whole)
    direction, slope = quasi_newton(
        space, solver.initial, weights, pairs, inner, with_gradient, 0.0, free
    )
    clip = solver.clipped(space, inner, norm)
    direction, slope = clipped(
        space, solver, clip, weights, pairs, inner, direction, slope, free
    )
    rate = None if solver.pace is None else solver.learning_rate(0)
    length = 1.0 if rate is None else rate
    if path is not None:
        direction, slope = bounded.shortened(
            space, path, x, whole, direction, slope, pairs.gamma, pairs.count > 0, length
        )
    plain, plain_slope, first = first_step(
        space, solver.initial, weights, x, value, inner, norm, alpha == 0.0, clip
    )
    if path is not None:
        plain = bounded.fitted(space, path, x, whole, plain, first * length)
        (plain_slope,) = space.read(space.dot(whole, plain))
    # If it is not a descent direction, it is dropped together with the pairs.
    bare, search, lowest_alpha, lowest_value, unbounded = fn.fused(
        _searched, solver.line_search, rate, space.backend.noise, value, slope, pairs.count,
        plain_slope, first, noise, norm, told,
    )
    if path is not None:
        reach = fn.where(bare, first, 1.0)
        path = path._replace(reach=reach if rate is None else reach * rate)
    pairs = curvature.forget_many(space, pairs, bare, solver.initial.gamma)
    direction = space.pick(bare, plain, direction)
    no = fn.full(False, value)
    return LBFGSState(
        x, value, gradient, norm, alpha, direction, search, x, value,
        Lowest(lowest_alpha, lowest_value, gradient), pairs, None, None, weights, None,
        fn.full(math.inf, value), no, no, unbounded, noise, path,
    )


def _searched(
    fn: Scalars, rule: LineSearch, rate: Any, rounding: float, value: Any, slope: Any, count: Any,
    plain_slope: Any, first: Any, noise: Any, norm: Any, told: _Verdict | None,
) -> tuple[Any, Search, Any, Any, Any]:
    """Where the first direction of a run is needed, and the pairs are dropped; the search, its
    lowest step and value, and whether the function is unbounded.

    plain_slope, first : the slope along that direction, and its first step.
    """
    # At a gradient of 0 the pairs are right, and of use for `hess_inv`.
    bare = (count == 0) | fn.logical_not((slope < 0.0) | (norm == 0.0))
    if told is not None:
        bare = bare | told.reset
    slope = fn.where(bare, plain_slope, slope)
    first = fn.where(bare, first, 1.0)
    if rate is not None:
        first = first * rate
    search = rule.begin(value, slope, first, hidden(fn, rounding, value, noise))
    if told is None:
        return bare, search, fn.full(0.0, value), value, fn.full(False, value)
    return (
        bare,
        fn.choose(told.turned, search, told.search),
        fn.where(told.turned, 0.0, told.lowest_alpha),
        fn.where(told.turned, value, told.lowest_value),
        told.endless,
    )
