"""Levenberg-Marquardt: Gauss-Newton steps within a trust region, in the scale of each parameter.

The step minimises the linearised residuals of `linear_model` within a radius that follows the ratio
of actual to predicted decrease (More 1978, The Levenberg-Marquardt algorithm: implementation and
theory).

Vectors are (B, p), residuals (B, m), scalars (B,), and branches are written with `where`: nothing
is read back to the host, and JAX compiles these functions. For one problem on the host, the same
functions take (p,), (m,) and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits import jacobian
from lbfgs_xp.fits.linear_algebra import column_norms, divisor, norm, solve_upper, substitute
from lbfgs_xp.fits.linear_model import LinearModel, frozen_at_bounds, solve_damped
from lbfgs_xp.fits.settings import FitSettings
from lbfgs_xp.result import CLAIMED, Status
from lbfgs_xp.run import agreement

_RUNNING = int(Status.RUNNING)
# A trial is rejected unless it achieves this share of the predicted decrease.
_ENOUGH = 1e-4
# How often the damping is refined until the step fits the radius (the second number is for devices
# and compiled code, which do not check whether it does), and how much longer the step may be.
REFINED, _REFINED_BLINDLY, LONGER = 8, 1, 1.1
# A step that the linearised residuals predicted well lets the radius grow to this many times its
# length; in a run without a failure yet, if they were wrong by less than half of the second share,
# by as much more.
_GROWTH, _TRUSTED = 2.0, 0.01
_OUT_OF_HIDING = 10.0
# A step is good if it achieves this share of the predicted decrease. After others, a parameter goes
# at most this share of the way to a bound: at a bound, as with an amplitude of 0, others may count
# for nothing.
_GOOD, WAY = 0.75, 0.5
# A ratio that leaves the radius as it is.
UNDECIDED = 0.5
# A first step that is predicted up to this share is one of a linear problem.
_LINEAR = 1e-4
# By which factor the rate of a step may be below that of the one before: slow parts may be small.
_FASTER = 0.2
# A step is as long as the linearised residuals ask if it promises this share of what they do.
_WHOLE = 0.99
# Columns are nearly dependent if the smallest singular value is this share of the largest.
_NEAR = 1e-5
# A singular value is known if it exceeds the errors of the columns by this factor.
_RESOLVED = 10.0
# Flags in the result of `going`.
HARD, LOST = 2, 4
# Consecutive steps that must be small before a run stops.
_SETTLED = 2
# Consecutive trials without progress before a run stops: if what is left to gain, as far as single
# parameters show it, is at the level of rounding; if that is so within the radius; and otherwise.
_PATIENCE, _LONG_PATIENCE, _LONGEST_PATIENCE = 3, 10, 30
# The cost is looked at after this many trials, and whenever their number has doubled. If each of
# them since then gained at most this power of eps of it, the fit has stalled.
_FIRST_MARK, _CRAWL = 64.0, 0.75
# How many times larger than its estimate a rounding error may be, because errors accumulate.
_ADDED_UP = 16.0
# The longest look changes the residuals by at least this many times what rounding hides; and a look
# is conclusive if it changes them by this many times as much.
_FAR, _VISIBLE = 100.0, 4.0
# How many times its standard deviation measured noise may be: in sums of many residuals, and in the
# norm of their difference between two points.
_SPREAD, _APART = 4.0, 3.0
# By which part of the slopes Simpson's rule may be off: it is by 1/9 for a power of 6.
_POWERS = 0.15
# The longest look, relative to the residuals, as a power of eps, so that rounding that cannot be
# estimated does not hide it.
_LONGEST = 1 / 6


class Tally(NamedTuple):
    """How many consecutive steps were small, and how many consecutive trials brought no progress;
    value, optimality and share where they began to; the number of trials, the next one at which
    to look whether the cost still falls, and the cost when that was decided."""

    small_value: Array
    small_step: Array
    stalled: Array
    value: Array
    optimality: Array
    share: Array
    trials: Array
    next_mark: Array
    marked: Array


class LMState(NamedTuple):
    """The state of a run.

    x, residuals, columns, value, linear : the iterate, and what is known there; columns are the
        columns of the Jacobian (B, p, m), or its `Products`, and linear is a `LinearModel` or a
        `FreeModel`.
    radius, mu : the longest step, in the scale D, and the damping that keeps the step within it.
    step, trial, predicted : the current step, x + step, and the decrease that the linearised
        residuals predict.
    refused : whether a step from the iterate has been rejected.
    bold : whether the radius has never been reduced.
    good : whether the last step was accepted and predicted well.
    noise : the standard deviation of the noise of each residual, if it was measured, else 0.
    promise : `predicted` of the first step from the iterate. Later steps are shorter and predict
        little decrease even if much is left.
    rate : the share at the iterate relative to that at the one before, but at least `_FASTER` of
        the last rate; 1 at the start.
    status, nit : integers.
    """

    x: Array
    residuals: Array
    columns: Array
    value: Array
    linear: Any
    radius: Array
    mu: Array
    step: Array
    trial: Array
    predicted: Array
    promise: Array
    rate: Array
    refused: Array
    bold: Array
    good: Array
    noise: Array
    status: Array
    nit: Array
    tally: Tally


class Verdict(NamedTuple):
    """How the trial compares with the iterate and the prediction: scalars (B,).

    blur : how far rounding the parameters of the iterate changes its residuals.
    """

    accepted: Array
    hidden: Array
    ratio: Array
    decrease: Array
    value: Array
    blur: Array


class _Numbers(NamedTuple):
    """The scalars of a state and of its linear model."""

    value: Array
    radius: Array
    mu: Array
    predicted: Array
    promise: Array
    rate: Array
    refused: Array
    bold: Array
    status: Array
    nit: Array
    tally: Tally
    optimality: Array
    share: Array

    @classmethod
    def of(cls, state: LMState) -> _Numbers:
        linear = state.linear
        return cls(
            state.value, state.radius, state.mu, state.predicted, state.promise, state.rate,
            state.refused, state.bold, state.status, state.nit, state.tally, linear.optimality,
            linear.share,
        )


class _Limits(NamedTuple):
    """Tolerances and the budget, as in `FitSettings`, and those of the dtype.

    crawl : the least part of the cost by which each step must fall in the long run.
    """

    gtol: float
    ftol: float
    xtol: float
    maxiter: int
    eps: float
    noise: float
    crawl: float

    @classmethod
    def of(cls, settings: FitSettings, space: Space) -> _Limits:
        own = settings.gtol, settings.ftol, settings.xtol, settings.maxiter
        eps = space.backend.eps
        return cls(*own, eps, space.backend.noise, eps**_CRAWL)


class _Sizes(NamedTuple):
    """Lengths of the step and of x in the scale of the iterate: Euclidean, and the largest
    components."""

    length: Array
    longest: Array
    x: Array


def begin(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array,
    linear: LinearModel,
) -> LMState:
    """The state at the start, ready for `aim`; `linear` is the linear model there."""
    fn = space.scalars
    value = settings.loss.cost(space, residuals)
    zero = fn.full(0, value)
    status = fn.where(linear.share <= settings.gtol, int(Status.GRADIENT), zero + _RUNNING)
    # Residuals whose squares lose their digits are as useless as those whose squares overflow.
    vanished = (value < 4.0 / space.backend.largest) & (space.max_abs(residuals) > 0.0)
    usable = fn.isfinite(value) & linear.finite & fn.logical_not(vanished)
    status = fn.where(usable, status, int(Status.NOT_FINITE))
    no, nothing = fn.full(False, value), fn.full(0.0, value)
    state = LMState(
        x, residuals, columns, value, linear, _first_radius(settings, space, x, linear, value),
        nothing, x, x, value, value, fn.full(1.0, value), no, fn.logical_not(no), no, nothing,
        status, zero,
        Tally(
            zero, zero, zero, value, linear.optimality, linear.share, nothing,
            fn.full(_FIRST_MARK, value), value,
        ),
    )
    return state._replace(status=_within_budget(fn, settings.maxiter, status, state.nit))


def _first_radius(
    settings: FitSettings, space: Space, x: Array, linear: LinearModel, value: Array
) -> Array:
    """The size of x or, at x = 0, that of the residuals: farther away they may be anything."""
    size = norm(space, linear.scale * x)
    unit = space.xp.ones_like(value) if settings.own_scale else space.xp.sqrt(2.0 * value)
    return settings.factor * space.scalars.where(size > 0.0, size, unit)


def going(space: Space, state: LMState, lost: Any = None) -> Array:
    """What the loop must know about each problem: 0 if it has ended; else 1, plus `HARD` if `aim`
    must be exact. `LOST` is added to both for problems in the mask `lost`."""
    return space.scalars.fused(_kind, state.status, state.linear.hard, lost)


def _kind(fn: Scalars, status: Any, hard: Any, lost: Any) -> Any:
    zero = fn.full(0, status)
    kind = 1 + fn.where(hard, zero + HARD, zero)
    kind = fn.where(status == _RUNNING, kind, zero)
    return kind if lost is None else kind + fn.where(lost, zero + LOST, zero)


def doubtful(
    space: Space, state: LMState, errors: Callable[[], Array]
) -> tuple[Array, Array]:
    """Which problems only the error of finite differences may have ended: those that claim to be
    at the precision floor, and those with nearly dependent columns, masks (B,).

    errors : returns those of the derivatives of the residuals, (B, p).
    """
    claimed = state.status == CLAIMED
    blur = _blur(space, state.linear, state.noise)
    above = state.value > _noise(space.scalars, space.backend.noise, state.value, blur)
    ended = claimed | (state.status == int(Status.GRADIENT))
    near = ended & state.linear.hard
    if not space.small_on_host or space.any(near):
        least, most = _singular_values(space, state.linear)
        near = near & ((least < _NEAR * most) | unresolved(space, state, errors()))
    return claimed & above, near & above


def unresolved(space: Space, state: LMState, errors: Array) -> Array:
    """Whether errors of the residuals' derivatives, (B, p), hide dependent columns: a mask (B,)."""
    root = math.sqrt(state.residuals.shape[-1])
    errors = root * space.max_abs(errors / state.linear.scale)
    return _singular_values(space, state.linear)[0] < _RESOLVED * errors


def _singular_values(space: Space, linear: LinearModel) -> tuple[Array, Array]:
    """The least singular value that is not 0, and the largest, if the model is `hard`."""
    xp, values = space.xp, norm(space, linear.R)
    least = xp.min(xp.where(values > 0.0, values, xp.full_like(values, math.inf)), axis=-1)
    return least, xp.max(values, axis=-1)


def aim(exact: bool, space: Space, state: LMState, box: Any) -> LMState:
    """The state with a new step from its iterate: `mu`, `step`, `trial` and `predicted`."""
    xp, linear = space.xp, state.linear
    z, mu = _within(exact, space, linear.R, linear.q, state)
    step = z / linear.scale
    if box is not None:
        step = xp.where(linear.frozen, xp.zeros_like(z), step)
        # Parameters that would leave the box go towards their bounds; then the others are solved
        # for again.
        inside = within(space, state.x + step, box)
        beyond = inside != state.x + step
        fn = space.scalars
        reach = space.per_problem(fn.where(state.good, fn.full(1.0, state.value), WAY))
        fixed = xp.where(beyond, reach * (inside - state.x), xp.zeros_like(step))
        free = xp.where(beyond[..., None, :], xp.zeros_like(linear.R), linear.R)
        q = linear.q + space.products(linear.R, fixed * linear.scale)
        z, _ = solve_damped(exact, space, free, q, mu)
        step = xp.where(beyond, fixed, z / linear.scale)
        step = xp.where(linear.frozen, xp.zeros_like(step), step)
    return _try(space, state._replace(mu=mu), step, box)


def _within(
    exact: bool, space: Space, R: Array, q: Array, state: LMState
) -> tuple[Array, Array]:
    """The minimum z of |q + R z| with |z| within the radius, and the damping that this takes
    (Nocedal & Wright, algorithm 4.3)."""
    fn, mu = space.scalars, _least(space, R)
    # In units of the residuals, whose squares may overflow; a power of 2, which rounds nothing.
    unit = 2.0 ** space.xp.floor(space.xp.log2(divisor(space, norm(space, q))))
    q, radius = q / space.per_problem(unit), state.radius / unit
    # So little damping does not matter yet: R of normal equations is regular and triangular.
    z, factor = solve_damped(exact, space, R, q, mu) if exact else (substitute(space, R, -q), R)
    for _ in range(REFINED if space.small_on_host else _REFINED_BLINDLY):
        length = norm(space, z)
        over = fn.fused(_over, length, radius, state.status)
        if space.none(over):
            break
        slope = norm(space, solve_upper(space, factor, z, transposed=True))
        mu = fn.fused(_damped, over, mu, length, slope, radius)
        shorter, factor = solve_damped(exact, space, R, q, mu)
        z = space.pick(over, shorter, z)    # whatever the others do, the same bits
    return z * space.per_problem(unit), mu


def _over(fn: Scalars, length: Any, radius: Any, status: Any) -> Any:
    """Which running problems have a step beyond the radius."""
    return (length > LONGER * radius) & (status == _RUNNING)


def _damped(fn: Scalars, over: Any, mu: Any, length: Any, slope: Any, radius: Any) -> Any:
    """The next damping, by a step of Newton's method for a length equal to the radius."""
    part = length / fn.where(slope > 0.0, slope, 1.0)
    more = part * part * (length - radius) / fn.where(radius > 0.0, radius, 1.0)
    return fn.where(over, mu + more, mu)


def judge(settings: FitSettings, space: Space, state: LMState, residuals: Array) -> Verdict:
    """Judge whether the trial, with these residuals, becomes the next iterate."""
    value, decrease = settings.loss.decrease(space, state.residuals, residuals)
    return space.scalars.fused(
        _judged, space.backend.noise, _Numbers.of(state), _number(space, value),
        _number(space, decrease), _blur(space, state.linear, state.noise),
    )


def _judged(
    fn: Scalars, rounding: float, old: _Numbers, value: Any, decrease: Any, blur: Any
) -> Verdict:
    predicted = old.predicted
    ratio = decrease / fn.where(predicted > 0.0, predicted, 1.0)
    good = (predicted > 0.0) & (decrease > _ENOUGH * predicted)
    noise = _noise(fn, rounding, old.value, blur)
    hidden = (predicted > 0.0) & (_promise(fn, old) <= noise) & (fn.abs(decrease) <= noise)
    accepted = (old.status == _RUNNING) & fn.isfinite(value) & (good | hidden)
    return Verdict(accepted, hidden, fn.where(hidden, 1.0, ratio), decrease, value, blur)


def starts_far(space: Space, state: LMState, verdict: Verdict) -> Array:
    """Where the first trial is shorter than the linearised residuals ask for, and not as they
    predict: a mask (B,)."""
    return space.scalars.fused(_starts_far, _Numbers.of(state), verdict.ratio)


def _starts_far(fn: Scalars, old: _Numbers, ratio: Any) -> Any:
    first = (old.status == _RUNNING) & (old.nit == 0) & (old.tally.trials == 0.0)
    whole = old.predicted >= _WHOLE * old.share * old.share * old.value
    return first & fn.logical_not(whole | (fn.abs(ratio - 1.0) <= _LINEAR))


def towards(
    settings: FitSettings, space: Space, state: LMState, step: Array, box: Any
) -> LMState:
    """The state with this step as its trial, and with the radius of a fit that starts there."""
    state = _try(space, state, step, box)
    radius = _first_radius(settings, space, state.trial, state.linear, state.value)
    return state._replace(radius=radius)


def foreseen(settings: FitSettings, space: Space, state: LMState, verdict: Verdict) -> Array:
    """Where the share at an accepted trial is at most gtol if it falls at the rate of the last
    steps: a mask (B,)."""
    return space.scalars.fused(_foreseen, settings.gtol, _Numbers.of(state), verdict.ratio)


def _foreseen(fn: Scalars, gtol: float, old: _Numbers, ratio: Any) -> Any:
    whole = old.predicted >= _WHOLE * old.share * old.share * old.value
    return whole & (ratio >= _GOOD) & (old.rate * old.share <= gtol)


def advance(
    settings: FitSettings, space: Space, state: LMState, verdict: Verdict, residuals: Array,
    columns: Any, linear: Any,
) -> LMState:
    """The state after a trial, ready for `aim`.

    columns, linear : at the trial if it was accepted, else at the iterate; or None if no trial of
        the batch was accepted.
    """
    fn, old = space.scalars, state
    accepted = verdict.accepted
    if columns is None:
        accepted = accepted & fn.logical_not(accepted)
        linear, columns = old.linear, old.columns
    else:
        accepted = accepted & linear.finite
    # Lengths are measured in the scale of the parameters.
    step = old.linear.scale * old.step
    lengths = norm(space, step), space.max_abs(step), space.max_abs(old.linear.scale * old.x)
    sizes = _Sizes(*(_number(space, length) for length in lengths))
    every = space.every(accepted)
    if linear is not old.linear and not every:
        linear = space.merge(accepted, linear, old.linear)
    new = fn.fused(
        _after, _Limits.of(settings, space), _Numbers.of(old), verdict, accepted, linear.optimality,
        linear.share, sizes, _blur(space, linear, old.noise),
    )
    return LMState(
        old.trial if every else space.pick(accepted, old.trial, old.x),
        residuals if every else space.pick(accepted, residuals, old.residuals),
        columns, new.value, linear, new.radius, new.mu, old.step, old.trial, new.predicted,
        new.promise, new.rate, new.refused, new.bold, new.good, old.noise, new.status, new.nit,
        new.tally,
    )


class _After(NamedTuple):
    """The scalars of the state after a trial."""

    value: Array
    radius: Array
    mu: Array
    predicted: Array
    promise: Array
    rate: Array
    refused: Array
    bold: Array
    good: Array
    status: Array
    nit: Array
    tally: Tally


def _after(
    fn: Scalars, limits: _Limits, old: _Numbers, verdict: Verdict, accepted: Any, cosine: Any,
    share: Any, sizes: _Sizes, blur: Any,
) -> _After:
    """cosine, share : of the new linear model. blur : at the trial, by that model."""
    running = old.status == _RUNNING
    refused = running & fn.logical_not(accepted)
    radius = _radius_after(fn, limits.eps, old, verdict, refused, sizes.length)
    short = (sizes.longest <= limits.xtol * sizes.x) & (limits.xtol > 0.0)
    tally = _tally(fn, limits, old, verdict, cosine, share, accepted, short)
    exhausted = refused & (sizes.longest <= limits.eps * sizes.x)
    hidden = accepted & verdict.hidden
    level = _ADDED_UP * _noise(fn, limits.noise, old.value, verdict.blur)
    patience = fn.full(_LONGEST_PATIENCE, tally.stalled)
    patience = fn.where(_promise(fn, old) <= level, _LONG_PATIENCE, patience)
    patience = fn.where(hidden & (cosine * cosine * old.value <= level), _PATIENCE, patience)
    # Each step may fall by more than rounding, and all of them by nothing that matters.
    since = 0.5 * limits.crawl * old.tally.next_mark * old.value
    crawls = (tally.next_mark > old.tally.next_mark) & (old.tally.marked - tally.marked <= since)
    # Residuals that rounding x accounts for say nothing more.
    vanished = accepted & (verdict.value <= _noise(fn, limits.noise, verdict.value, blur))
    stalls = crawls | (tally.stalled >= patience)
    status = fn.where(exhausted | vanished | stalls, CLAIMED, old.status)
    status = fn.where(tally.small_step >= _SETTLED, int(Status.STEP), status)
    status = fn.where(tally.small_value >= _SETTLED, int(Status.VALUE), status)
    # The share of a singular Jacobian does not fall, however close the minimum is.
    singular = share > 0.5 * old.share
    flat = (share <= limits.gtol) | (hidden & singular & (cosine <= limits.gtol))
    status = fn.where(accepted & flat, int(Status.GRADIENT), status)
    status = fn.where(running, status, old.status)
    nit = fn.where(accepted, old.nit + 1, old.nit)
    rate = share / fn.where(old.share > 0.0, old.share, 1.0)
    rate = fn.where(accepted, fn.maximum(rate, _FASTER * old.rate), old.rate)
    return _After(
        fn.where(accepted, verdict.value, old.value), radius, old.mu, old.predicted,
        _promise(fn, old), rate, refused, old.bold & (radius >= old.radius),
        accepted & (verdict.ratio >= _GOOD), _within_budget(fn, limits.maxiter, status, nit), nit,
        tally,
    )


def _radius_after(
    fn: Scalars, eps: float, old: _Numbers, verdict: Verdict, refused: Any, length: Any
) -> Any:
    """The radius after a trial (More 1978, section 7); length : of the step."""
    ratio = verdict.ratio
    # The minimum of the parabola through the value and slope at x and the value at the trial.
    slope = 2.0 * old.predicted - old.mu * length * length
    bent = slope / fn.where(verdict.decrease < 0.0, 2.0 * (slope - verdict.decrease), slope)
    bent = fn.where(verdict.decrease < 0.0, fn.clip(bent, 0.1, 0.5), 0.5)
    shrunk = fn.where(fn.isfinite(verdict.value), bent, 0.1) * fn.minimum(
        old.radius, 10.0 * length
    )
    # The better the prediction, the farther it holds.
    better = _TRUSTED / fn.maximum(fn.abs(ratio - 1.0), eps)
    growth = fn.where(old.bold, fn.maximum(_GROWTH, better), _GROWTH)
    # Within this radius rounding hides what a step does.
    growth = fn.where(verdict.hidden, fn.maximum(growth, _OUT_OF_HIDING), growth)
    grown = fn.where(ratio >= _GOOD, growth * length, old.radius)
    grown = fn.maximum(grown, old.radius)
    return fn.where(refused | (ratio <= 0.25), shrunk, grown)


def _tally(
    fn: Scalars, limits: _Limits, old: _Numbers, verdict: Verdict, optimality: Any, share: Any,
    accepted: Any, short: Any,
) -> Tally:
    """The counts after a trial; optimality, share : of the new linear model; short : whether its
    step was short."""
    before = old.tally
    small = verdict.decrease <= limits.ftol * old.value
    small = small & (old.predicted <= limits.ftol * old.value) & (limits.ftol > 0.0)
    value = fn.where(accepted, verdict.value, old.value)
    # Finite-difference errors make the optimality fluctuate, which is not progress.
    better = accepted & (
        (value < before.value - _noise(fn, limits.noise, value, verdict.blur))
        | (optimality <= 0.9 * before.optimality)
        | (share <= 0.9 * before.share)
    )
    due = before.trials + 1.0 >= before.next_mark
    return Tally(
        fn.where(accepted & small, before.small_value + 1, 0),
        fn.where(accepted & short, before.small_step + 1, 0),
        fn.where(better, 0, before.stalled + 1),
        fn.where(better, value, before.value),
        fn.where(better, optimality, before.optimality),
        fn.where(better, share, before.share),
        before.trials + 1.0,
        fn.where(due, 2.0 * before.next_mark, before.next_mark),
        fn.where(due, value, before.marked),
    )


def lengths(eps: float) -> list[float]:
    """How far to look, relative to the residuals: the shorter looks are for residuals that are
    curved much more strongly than most."""
    longest = eps**_LONGEST
    return agreement.lengths(longest, longest / 1024.0)


def ahead(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, noise: Array,
    scale: Array, box: Any, length: float,
) -> Array:
    """The point down the gradient, in the scale of each parameter, that changes the residuals by
    this share of their norm or by what rounding cannot hide; moved into the box."""
    xp = space.xp
    of_rows, of_residuals = settings.weights(space, residuals)
    hidden = hidden_change(space, x, residuals, columns, noise)
    columns = jacobian.weighted(columns, of_rows)
    # Between the columns here, which may vanish, and the longest ones, which may be those of a
    # steep start.
    here = jacobian.norms(space, columns)
    scale = divisor(space, xp.where(here > 0.0, xp.sqrt(here) * xp.sqrt(scale), scale))
    slope = jacobian.pull(space, columns, residuals * of_residuals, scale)
    slope = xp.where(frozen_at_bounds(space, x, slope, box), xp.zeros_like(slope), slope)
    unit = slope / space.per_problem(divisor(space, space.max_abs(slope)))
    far = _FAR / space.backend.eps**_LONGEST * hidden
    far = length * xp.maximum(norm(space, residuals), far)
    step = space.per_problem(far) * unit / scale
    point = x - xp.where(xp.isfinite(step), step, xp.zeros_like(step))
    return within(space, point, box)


def hidden_change(
    space: Space, x: Array, residuals: Array, columns: Array, noise: Array
) -> Array:
    """The norm of a change of the residuals that rounding or noise hides."""
    blur = space.sum(jacobian.norms(space, columns) * space.xp.abs(x))
    rounding = _ADDED_UP * space.backend.eps * (norm(space, residuals) + blur)
    return rounding + _APART * math.sqrt(residuals.shape[-1]) * noise


def look(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, noise: Array,
    ahead: Array, residuals_there: Array, columns_there: Array,
) -> tuple[Array, Array, Array]:
    """Whether the residuals ahead agree with the Jacobians, by the trapezoidal rule; whether they
    differ by more than rounding; and whether they lower the cost by more than rounding: masks (B,).
    """
    change, promised, sizes = residuals_there - residuals, 0.0, 0.0
    off: Any = change
    for r, c in ((residuals, columns), (residuals_there, columns_there)):
        half = 0.5 * jacobian.push(space, c, ahead - x)
        of_rows, of_residuals = settings.weights(space, r)
        promised = promised - space.dot(half * of_rows, r * of_residuals)
        off, sizes = off - half, sizes + norm(space, half)
    hidden = hidden_change(space, x, residuals, columns, noise)
    off = norm(space, off)
    agrees = agreement.follows_slopes(off, sizes, hidden)
    # What only rounding made agree would not agree so well.
    clear = agreement.follows_slopes(off, sizes) & (sizes > hidden)
    level = _level(settings, space, x, residuals, columns, noise)
    _, decrease = settings.loss.decrease(space, residuals, residuals_there)
    lower = agrees & (promised > level) & (decrease > 0.5 * promised)
    return agrees, clear | (sizes > _VISIBLE * hidden), lower


def aside(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, noise: Array,
    scale: Array, box: Any, length: float,
) -> tuple[Array, Array]:
    """A point half way down the gradient, and the point at the end of the way: `ahead`, or as near
    as rounding hides what the slope at x promises."""
    point = ahead(settings, space, x, residuals, columns, noise, scale, box, length)
    promised = _promised(settings, space, residuals, columns, point - x)
    level = _level(settings, space, x, residuals, columns, noise)
    share = 0.5 * level / space.scalars.maximum(promised, 0.5 * level)
    step = space.per_problem(share) * (point - x)
    return x + 0.5 * step, x + step


def rises(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, noise: Array,
    half: tuple[Array, Array, Array], end: tuple[Array, Array, Array],
) -> Array:
    """Whether the slope at x promises nothing on this way, along which the cost rises as the
    Jacobians say by Simpson's rule: a mask (B,).

    half, end : the points of `aside`, with the residuals and the columns there.
    """
    way = end[0] - x
    slopes = [jacobian.push(space, c, way) / 6.0 for c in (columns, half[2], end[2])]
    slopes[1] = 4.0 * slopes[1]
    off = end[1] - residuals - slopes[0] - slopes[1] - slopes[2]
    sizes = norm(space, slopes[0]) + norm(space, slopes[1]) + norm(space, slopes[2])
    hidden = hidden_change(space, x, residuals, columns, noise)
    level = _level(settings, space, x, residuals, columns, noise)
    lower_half, lower = (
        settings.loss.decrease(space, residuals, there[1])[1] for there in (half, end)
    )
    promised = _promised(settings, space, residuals, columns, way)
    agrees = norm(space, off) <= _POWERS * sizes + hidden
    return agrees & (promised <= level) & (lower_half <= level) & (lower < -level)


def change(
    settings: FitSettings, space: Space, residuals: Array, others: Array
) -> tuple[Array, Array]:
    """By how much other residuals raise the cost, (B,), and whether they differ by more than
    rounding explains."""
    _, decrease = settings.loss.decrease(space, residuals, others)
    rounding = _ADDED_UP * space.backend.eps * norm(space, residuals)
    return -decrease, norm(space, others - residuals) > _VISIBLE * rounding


def _promised(
    settings: FitSettings, space: Space, residuals: Array, columns: Array, step: Array
) -> Array:
    """The decrease of the cost over a step by its slope, (B,)."""
    of_rows, of_residuals = settings.weights(space, residuals)
    return -space.dot(jacobian.push(space, columns, step) * of_rows, residuals * of_residuals)


def _level(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, noise: Array
) -> Array:
    """The change of the cost that rounding or noise hides, (B,)."""
    rounding = _ADDED_UP * space.backend.noise * settings.loss.cost(space, residuals)
    hidden = hidden_change(space, x, residuals, columns, noise)
    return rounding + hidden * norm(space, residuals)


def _try(space: Space, state: LMState, step: Array, box: Any) -> LMState:
    """The state with this step as its trial."""
    linear = state.linear
    trial = state.x + step
    if box is not None:
        trial = within(space, trial, box)
        step = trial - state.x
    change = space.products(linear.R, step * linear.scale)
    predicted = -space.dot(change, linear.q + 0.5 * change)
    return state._replace(step=step, trial=trial, predicted=predicted)


def _least(space: Space, R: Array) -> Array:
    """The damping that does not matter yet: (eps |c|)^2 for the shortest column c in the scale D,
    which may stem from points at which the columns were much longer."""
    least = space.backend.eps * space.xp.min(divisor(space, column_norms(space, R)), axis=-1)
    # Never 0, because R may be singular.
    return space.scalars.maximum(least * least, 4.0 / space.backend.largest)


def _promise(fn: Scalars, state: Any) -> Any:
    return fn.where(state.refused, state.promise, state.predicted)


def _blur(space: Space, linear: LinearModel, noise: Array) -> Array:
    """How far rounding the parameters, or noise, changes the norm of the residuals."""
    return space.backend.eps * linear.reach + _SPREAD * noise


def _number(space: Space, scalar: Array) -> Any:
    """A scalar; that of one problem as a float, on which Python computes faster."""
    return scalar if space.batched else float(scalar)


def _noise(fn: Scalars, noise: float, value: Any, blur: Any) -> Any:
    """An estimate of the rounding error of a value; noise : that of the backend."""
    return noise * value + fn.sqrt(2.0 * value) * blur


def _within_budget(fn: Scalars, maxiter: int, status: Any, nit: Any) -> Any:
    """The status, ended where the iterations are spent."""
    spent = (status == _RUNNING) & (nit >= maxiter)
    return fn.where(spent, int(Status.ITERATIONS), status)


def within(space: Space, x: Array, box: Any) -> Array:
    """The nearest point in the box, if there is one."""
    return x if box is None else space.xp.minimum(space.xp.maximum(x, box[0]), box[1])


class Steps:
    """What does not depend on how a step is found, prepared for one space."""

    def __init__(self, settings: FitSettings, space: Space):
        self.settings, self.space, prepare = settings, space, space.backend.jit
        self.begin = prepare(begin, settings, space)
        self.going = prepare(going, space)
        self.judge = prepare(judge, settings, space)
        self.foreseen = prepare(foreseen, settings, space)
        self.advance = prepare(advance, settings, space)
        self.ahead = prepare(ahead, settings, space)
        self.look = prepare(look, settings, space)
        self.aside = prepare(aside, settings, space)
        self.rises = prepare(rises, settings, space)
        self.change = prepare(change, settings, space)
