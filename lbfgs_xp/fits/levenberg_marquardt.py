"""Levenberg-Marquardt: Gauss-Newton steps, damped in the scale of each parameter.

The damped step minimises the linearised residuals of `linear_model`. The damping mu follows the
ratio of actual to predicted decrease (Nielsen 1999, Damping parameter in Marquardt's method).
Geodesic acceleration follows Transtrum & Sethna (2012), Improvements to the Levenberg-Marquardt
algorithm for nonlinear least-squares minimization, but only after a step that the linearised
residuals predicted badly. The first step is damped until it is no longer than x itself, in the
scale D of that model, by analogy with the initial trust region of More (1978, section 6).

Everything is batched: vectors are (B, p), residuals (B, m), scalars (B,), and branches are written
with `where`. Nothing is read back to the host, and JAX compiles these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.linear_algebra import column_norms, divisor, norm, solve_upper
from lbfgs_xp.fits.linear_model import LinearModel, frozen_at_bounds, solve_damped
from lbfgs_xp.fits.settings import FitSettings
from lbfgs_xp.result import CLAIMED, Status
from lbfgs_xp.run import agreement

_RUNNING = int(Status.RUNNING)
# A trial is rejected unless it achieves this share of the predicted decrease.
_ENOUGH = 1e-4
# How often the first damping may be raised, and by how much each time.
_RAISES, _RAISE = 5, 30.0
# Where along the step the second derivative is probed; and how long twice the acceleration may be,
# relative to the step (Transtrum & Sethna, section 5).
_PROBE = 0.1
_LONGEST = 0.75
# Acceleration is tried if the last decrease differed by more than this share from the prediction.
_CURVED = 0.25
# Flags in the result of `going`.
CURVED, HARD, LOST = 2, 4, 8
# Consecutive steps that must be small, or bring no meaningful progress, before a run stops.
_SETTLED = 2
_PATIENCE = 3
# The same while the cost that a change of the parameters could remove is well above rounding: the
# damping, which falls to a third with each such step, may be all that hides it.
_LONG_PATIENCE = 30
# How many times larger than its estimate a rounding error may be, because errors accumulate.
_ADDED_UP = 16.0


class Tally(NamedTuple):
    """How many consecutive steps were small or hidden by rounding, and the lowest optimality since
    rounding began to hide the steps."""

    small_value: Array
    small_step: Array
    stalled: Array
    lowest: Array


class LMState(NamedTuple):
    """The state of a run.

    x, residuals, columns, value, linear : the iterate, and what is known there; columns are the
        columns of the Jacobian (B, p, m).
    mu, growth : the damping, and the factor by which the next rejection raises it.
    factor : (B, p, p), R of the damped problem from which the step was computed.
    step, trial, predicted : the current step, x + step, and the decrease that the linearised
        residuals predict.
    curved : whether the last step was rejected or badly predicted.
    promise : `predicted` of the first step from the iterate. Later steps are damped more and
        predict little decrease even if much is left.
    status, nit : integers.
    """

    x: Array
    residuals: Array
    columns: Array
    value: Array
    linear: LinearModel
    mu: Array
    growth: Array
    factor: Array
    step: Array
    trial: Array
    predicted: Array
    promise: Array
    curved: Array
    status: Array
    nit: Array
    tally: Tally


class Verdict(NamedTuple):
    """How the trial compares with the iterate and the prediction: scalars (B,)."""

    accepted: Array
    hidden: Array
    ratio: Array
    decrease: Array
    value: Array


def begin(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array,
    linear: LinearModel,
) -> LMState:
    """The state at the start, ready for `aim`; `linear` is the result of `linearize` there."""
    fn = space.scalars
    value = settings.loss.cost(space, residuals)
    zero = fn.full(0, value)
    status = fn.where(linear.optimality <= settings.gtol, int(Status.GRADIENT), zero + _RUNNING)
    # Residuals whose squares vanish are as useless as those whose squares overflow.
    vanished = (value == 0.0) & (space.max_abs(residuals) > 0.0)
    usable = fn.isfinite(value) & linear.finite & fn.logical_not(vanished)
    status = fn.where(usable, status, int(Status.NOT_FINITE))
    damping = _cautious(space, x, linear, fn.full(settings.damping, value))
    state = LMState(
        x, residuals, columns, value, linear, damping, fn.full(2.0, value), linear.R, x, x, value,
        value, fn.full(False, value), status, zero, Tally(zero, zero, zero, linear.optimality),
    )
    return _limited(settings, space, state)


def _cautious(space: Space, x: Array, linear: LinearModel, mu: Any) -> Any:
    """The damping, raised while the first step would be longer than x itself, in the scale of the
    parameters: over that distance the linearised residuals mean little."""
    size = norm(space, linear.scale * x)
    for _ in range(_RAISES):
        z, _ = solve_damped(False, space, linear.R, linear.q, mu)
        mu = space.scalars.where((size > 0.0) & (norm(space, z) > size), _RAISE * mu, mu)
    return mu


def going(space: Space, state: LMState, lost: Any = None) -> Array:
    """What the loop must know about each problem: 0 if it has ended; else 1, plus `CURVED` if it
    needs the curvature, plus `HARD` if `aim` must be exact. `LOST` is added to both for problems in
    the mask `lost`."""
    fn = space.scalars
    zero = fn.full(0, state.value)
    kind = 1 + fn.where(state.curved, zero + CURVED, zero)
    kind = kind + fn.where(state.linear.hard, zero + HARD, zero)
    kind = fn.where(state.status == _RUNNING, kind, zero)
    return kind if lost is None else kind + fn.where(lost, zero + LOST, zero)


def aim(exact: bool, space: Space, state: LMState, box: Any) -> LMState:
    """The state with a new step from its iterate: `factor`, `step`, `trial` and `predicted`."""
    xp, linear = space.xp, state.linear
    z, factor = solve_damped(exact, space, linear.R, linear.q, state.mu)
    step = z / linear.scale
    if box is not None:
        step = xp.where(linear.frozen, xp.zeros_like(z), step)
        # Parameters that would leave the box go to their bounds; then the others are solved for
        # again.
        inside = _into(space, state.x + step, box)
        beyond = inside != state.x + step
        fixed = xp.where(beyond, inside - state.x, xp.zeros_like(step))
        free = xp.where(beyond[:, None, :], xp.zeros_like(linear.R), linear.R)
        q = linear.q + space.products(linear.R, fixed * linear.scale)
        z, factor = solve_damped(exact, space, free, q, state.mu)
        step = xp.where(beyond, fixed, z / linear.scale)
        step = xp.where(linear.frozen, xp.zeros_like(step), step)
    return _try(space, state._replace(factor=factor), step, box)


def probe(state: LMState) -> Array:
    """The point at which `accelerate` needs the residuals."""
    return state.x + _PROBE * (state.trial - state.x)


def accelerate(
    settings: FitSettings, space: Space, state: LMState, residuals: Array, box: Any
) -> LMState:
    """The state with its step bent along the curvature of the residuals.

    residuals : the residuals at `probe`.

    Only `step` and `trial` change.
    """
    xp, linear = space.xp, state.linear
    z = state.step * linear.scale
    change = (residuals - state.residuals) * (1.0 / _PROBE)
    if not settings.loss.is_linear:
        rows, _ = settings.weights(space, state.residuals)
        change = change * rows * rows
    linear_change = space.products(xp.matrix_transpose(linear.R), space.products(linear.R, z))
    along = space.products(state.columns, change) / linear.scale - linear_change
    if box is not None:
        still = linear.frozen | (state.trial <= box[0]) | (state.trial >= box[1])
        along = xp.where(still, xp.zeros_like(along), along)
    # The factor 2 / _PROBE of the second difference, halved because half of the acceleration enters
    # the step.
    along = solve_upper(space, state.factor, along * (-1.0 / _PROBE), transposed=True)
    bent = solve_upper(space, state.factor, along)
    # 4 |bent| is the length of twice the full acceleration.
    short = 4.0 * norm(space, bent) <= _LONGEST * norm(space, z)
    step = space.pick(short & state.curved, state.step + bent / linear.scale, state.step)
    return _try(space, state, step, box)._replace(predicted=state.predicted)


def judge(settings: FitSettings, space: Space, state: LMState, residuals: Array) -> Verdict:
    """Judge whether the trial, with these residuals, becomes the next iterate."""
    fn = space.scalars
    value, decrease = settings.loss.decrease(space, state.residuals, residuals)
    predicted = state.predicted
    ratio = decrease / fn.where(predicted > 0.0, predicted, 1.0)
    good = (predicted > 0.0) & (decrease > _ENOUGH * predicted)
    noise = _noise(space, state)
    hidden = (predicted > 0.0) & (_promise(fn, state) <= noise) & (fn.abs(decrease) <= noise)
    accepted = (state.status == _RUNNING) & fn.isfinite(value) & (good | hidden)
    return Verdict(accepted, hidden, fn.where(hidden, 1.0, ratio), decrease, value)


def advance(
    settings: FitSettings, space: Space, state: LMState, verdict: Verdict, residuals: Array,
    columns: Any, linear: Any,
) -> LMState:
    """The state after a trial, ready for `aim`.

    columns, linear : at the trial if it was accepted, else at the iterate; or None if no trial of
        the batch was accepted.
    """
    fn, old = space.scalars, state
    running = state.status == _RUNNING
    accepted = verdict.accepted
    if columns is None:
        accepted = accepted & fn.logical_not(accepted)
        linear, columns = old.linear, old.columns
    else:
        accepted = accepted & linear.finite
        linear = space.merge(accepted, linear, old.linear)
    refused = running & fn.logical_not(accepted)
    mu, growth = _damping_after(space, old, verdict, linear, accepted, refused)
    # Lengths are measured in the scale of the parameters.
    scale, eps = old.linear.scale, space.backend.eps
    length, size = space.max_abs(scale * old.step), space.max_abs(scale * old.x)
    short = (length <= settings.xtol * size) & (settings.xtol > 0.0)
    tally = _tally(settings, space, old, verdict, linear, accepted, short)
    exhausted = refused & ((length <= eps * size) | (mu >= 1.0 / (eps * eps)))
    hidden = accepted & verdict.hidden
    rest = linear.optimality * linear.optimality * old.value
    patience = fn.where(
        rest <= _ADDED_UP * _noise(space, old), _PATIENCE, fn.full(_LONG_PATIENCE, tally.stalled)
    )
    status = fn.where(exhausted | (hidden & (tally.stalled >= patience)), CLAIMED, old.status)
    status = fn.where(tally.small_step >= _SETTLED, int(Status.STEP), status)
    status = fn.where(tally.small_value >= _SETTLED, int(Status.VALUE), status)
    status = fn.where(accepted & (linear.optimality <= settings.gtol), int(Status.GRADIENT), status)
    status = fn.where(running, status, old.status)

    state = LMState(
        space.pick(accepted, old.trial, old.x),
        space.pick(accepted, residuals, old.residuals),
        columns,
        fn.where(accepted, verdict.value, old.value),
        linear, mu, growth, old.factor, old.step, old.trial, old.predicted, _promise(fn, old),
        refused | (fn.abs(verdict.ratio - 1.0) > _CURVED), status,
        fn.where(accepted, old.nit + 1, old.nit),
        tally,
    )
    return _limited(settings, space, state)


def _damping_after(
    space: Space, old: LMState, verdict: Verdict, linear: LinearModel, accepted: Array,
    refused: Array,
) -> tuple[Array, Array]:
    """mu and growth after a trial, by Nielsen's rule."""
    fn = space.scalars
    fall = 2.0 * fn.clip(verdict.ratio, 0.0, 1.0) - 1.0
    eased = old.mu * fn.maximum(1.0 - fall * fall * fall, 1.0 / 3.0)
    mu = fn.where(accepted, fn.maximum(eased, _least(space, linear)), old.mu)
    mu = fn.where(refused, old.mu * old.growth, mu)
    return mu, fn.where(refused, 2.0 * old.growth, fn.full(2.0, mu))


def _tally(
    settings: FitSettings, space: Space, old: LMState, verdict: Verdict, linear: LinearModel,
    accepted: Array, short: Array,
) -> Tally:
    """The counts after a trial; `short` says whether its step was short."""
    fn, before = space.scalars, old.tally
    small = verdict.decrease <= settings.ftol * old.value
    small = small & (old.predicted <= settings.ftol * old.value) & (settings.ftol > 0.0)
    better = linear.optimality <= 0.9 * old.linear.optimality
    # Finite-difference errors make the optimality fluctuate, which is not progress.
    best = linear.optimality <= 0.9 * before.lowest
    lowest = fn.where(
        verdict.hidden, fn.minimum(before.lowest, linear.optimality), linear.optimality
    )
    stalled = fn.where(better, before.stalled, before.stalled + 1)
    hidden = accepted & verdict.hidden
    return Tally(
        fn.where(accepted & small, before.small_value + 1, 0),
        fn.where(accepted & short, before.small_step + 1, 0),
        fn.where(hidden & fn.logical_not(best), stalled, 0),
        fn.where(accepted, lowest, before.lowest),
    )


def ahead(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    length: float,
) -> Array:
    """The point at this relative distance down the gradient, moved into the box."""
    xp = space.xp
    of_rows, of_residuals = settings.weights(space, residuals)
    columns = columns * of_rows[:, None, :]
    scale = divisor(space, space.max_abs(columns))    # the squares of a norm might overflow
    slope = space.products(columns / scale[..., None], residuals * of_residuals)
    slope = xp.where(frozen_at_bounds(space, x, slope, box), xp.zeros_like(slope), slope)
    # At x = 0 the length comes from the slope, which has the unit of a scaled step.
    norm, size = space.max_abs(slope), space.max_abs(scale * x)
    size = xp.where(size > 0.0, size, norm)
    unit = slope / divisor(space, norm)[:, None]    # first, so that no product overflows
    point = x - (length * size)[:, None] * unit / scale
    return point if box is None else _into(space, point, box)


def look(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, ahead: Array,
    residuals_there: Array, columns_there: Array,
) -> tuple[Array, Array]:
    """Whether the residuals ahead agree with the Jacobians, by the trapezoidal rule, and whether
    they lower the cost by more than rounding explains: masks (B,)."""
    change, promised, sizes = residuals_there - residuals, 0.0, 0.0
    off: Any = change
    for r, c in ((residuals, columns), (residuals_there, columns_there)):
        half = 0.5 * space.products(space.xp.matrix_transpose(c), ahead - x)
        of_rows, of_residuals = settings.weights(space, r)
        promised = promised - space.dot(half * of_rows, r * of_residuals)
        off, sizes = off - half, sizes + norm(space, half)
    agrees = agreement.follows_slopes(norm(space, off), sizes)
    level = _ADDED_UP * space.backend.noise * settings.loss.cost(space, residuals)
    _, decrease = settings.loss.decrease(space, residuals, residuals_there)
    return agrees, agrees & (promised > level) & (decrease > 0.5 * promised)


def _try(space: Space, state: LMState, step: Array, box: Any) -> LMState:
    """The state with this step as its trial."""
    linear = state.linear
    trial = state.x + step
    if box is not None:
        trial = _into(space, trial, box)
        step = trial - state.x
    change = space.products(linear.R, step * linear.scale)
    predicted = -space.dot(change, linear.q + 0.5 * change)
    return state._replace(step=step, trial=trial, predicted=predicted)


def _least(space: Space, linear: LinearModel) -> Array:
    """The damping that no longer matters: (eps |c|)^2 for the shortest column c in the scale D,
    which may stem from points at which the columns were much longer."""
    xp = space.xp
    norms = column_norms(space, linear.R)
    least = space.backend.eps * xp.min(divisor(space, norms), axis=-1)
    # Never 0, because a rejection could not raise it.
    return xp.maximum(least * least, xp.full_like(least, 4.0 / space.backend.largest))


def _promise(fn: Any, state: LMState) -> Array:
    return fn.where(state.growth == 2.0, state.predicted, state.promise)


def _noise(space: Space, state: LMState) -> Array:
    """An estimate of the rounding error of the value, including the effect of rounding the
    parameters on the residuals."""
    value, norms = state.value, column_norms(space, state.linear.R) * state.linear.scale
    blur = space.backend.eps * space.sum(space.xp.abs(norms * state.x))
    return space.backend.noise * value + space.xp.sqrt(2.0 * value) * blur


def _limited(settings: FitSettings, space: Space, state: LMState) -> LMState:
    spent = (state.status == _RUNNING) & (state.nit >= settings.maxiter)
    status = space.scalars.where(spent, int(Status.ITERATIONS), state.status)
    return state._replace(status=status)


def _into(space: Space, x: Array, box: Any) -> Array:
    return space.xp.minimum(space.xp.maximum(x, box[0]), box[1])
