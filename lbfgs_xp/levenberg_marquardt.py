"""Levenberg-Marquardt: Gauss-Newton steps, damped in the scale of each parameter.

From the iterate x, where the residuals are r and their Jacobian J = Q R, a step s minimises

    |r + J s|^2 + mu |D s|^2,

a problem of size 2p x p once R and Q^T r are known. These come from the normal equations where
those keep enough digits (no column of J lies close to the space of those before it), and from a QR
decomposition of J elsewhere; so does the step. D holds the largest norm that each column of J has
had (More 1978, The Levenberg-Marquardt algorithm, section 6), so that the
unit of a parameter does not matter; mu follows the ratio of actual to predicted decrease (Nielsen
1999, Damping parameter in Marquardt's method). Geodesic acceleration: Transtrum & Sethna (2012),
Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares minimization; here
only after a step that the linear residuals told badly. The first step is damped until it is no
longer than x itself, in the scale of D, as trust regions begin (More 1978, section 6).

Everything is a batch: vectors are (B, p), residuals (B, m), scalars (B,), and a branch is a
`where`. Nothing is read back to the host, and JAX compiles these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp import robust
from lbfgs_xp.backend import Array
from lbfgs_xp.linear_algebra import (
    eliminate,
    normal_matrix,
    qr,
    safe_pivot,
    solve_upper,
    substitute,
)
from lbfgs_xp.result import CLAIMED, Status
from lbfgs_xp.space import Space

_RUNNING = int(Status.RUNNING)
# A trial is refused where it does not bring this share of the decrease that was predicted.
_ENOUGH = 1e-4
# How often the first damping may be raised, and by how much each time.
_RAISES, _RAISE = 5, 30.0
# The least curvature of a robust loss, relative to that of least squares with the same weights.
_LEAST_BEND = 0.01
# Where acceleration looks for the second derivative, along the step; and how long, relative to the
# step, twice the acceleration may be (Transtrum & Sethna, section 5).
_PROBE = 0.1
_LONGEST = 0.75
# It looks where the last decrease differed by more than this share from what was predicted.
_CURVED = 0.25
# Parameters up to which the normal equations are tried; their elimination is written out.
FEW = 16
# Of `going`.
CURVED, HARD = 2, 4
# Steps in a row that must be small, or must tell nothing new, before a run stops.
_SETTLED = 2
_PATIENCE = 3
# The same while much is left that a change of the parameters could take away: the damping, which
# falls to a third with each such step, may be all that hides it.
_LONG_PATIENCE = 30
# What rounding may be many times larger than is known of it, for it adds up.
_ADDED_UP = 16.0
# Residuals agree with their Jacobian where they differ by at most this share of their change.
_SHARE = 0.1


class Settings(NamedTuple):
    """What does not change in a run; the tolerances are those of `lx.least_squares`."""

    loss: str
    f_scale: float
    damping: float
    gtol: float
    ftol: float
    xtol: float
    maxiter: int


class Linear(NamedTuple):
    """The residuals near x as a linear function, in parameters scaled by D: r + Q R D (step).

    R : (B, p, p), of J / D with weighted rows; columns of frozen parameters are 0.
    q : Q^T r (B, p), of the weighted residuals.
    scale : D (B, p).
    frozen : (B, p), parameters at a bound that the gradient pushes against.
    optimality : (B,), the norm of the part of r that a change of the parameters could take away,
        relative to the norm of r.
    finite : (B,)
    hard : (B,), whether the normal equations lose too many digits.
    """

    R: Array
    q: Array
    scale: Array
    frozen: Array
    optimality: Array
    finite: Array
    hard: Array


class LMState(NamedTuple):
    """Where a run stands.

    x, residuals, columns, value, linear : the iterate, and what is known there; columns are those
        of the Jacobian (B, p, m).
    mu, growth : the damping, and the factor by which the next refusal raises it.
    factor : (B, p, p), R of the damped problem that gave the step.
    step, trial, predicted : the step under trial, x + step, the decrease that the linear residuals
        tell.
    curved : whether the last step was refused, or told badly.
    promise : `predicted` of the first step from the iterate. Later ones are damped more, and tell
        of little decrease even where much is left.
    status, nit : integers.
    small_value, small_step, stalled : how many steps in a row were small, or hidden by rounding.
    lowest : the lowest optimality since rounding hides the steps.
    """

    x: Array
    residuals: Array
    columns: Array
    value: Array
    linear: Linear
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
    small_value: Array
    small_step: Array
    stalled: Array
    lowest: Array


class Verdict(NamedTuple):
    """What the residuals at the trial say: scalars (B,)."""

    accepted: Array
    hidden: Array
    ratio: Array
    decrease: Array
    value: Array


def begin(
    settings: Settings, space: Space, x: Array, residuals: Array, columns: Array, linear: Linear
) -> LMState:
    """The state at the start, to be aimed; `linear` is that of `linearize`."""
    fn = space.scalars
    value = _cost(settings, space, residuals)
    zero = fn.full(0, value)
    status = fn.where(linear.optimality <= settings.gtol, int(Status.GRADIENT), zero + _RUNNING)
    # Residuals whose squares vanish are as useless as those whose squares overflow.
    vanished = (value == 0.0) & (space.max_abs(residuals) > 0.0)
    usable = fn.isfinite(value) & linear.finite & fn.logical_not(vanished)
    status = fn.where(usable, status, int(Status.NOT_FINITE))
    damping = _cautious(space, x, linear, fn.full(settings.damping, value))
    state = LMState(
        x, residuals, columns, value, linear, damping, fn.full(2.0, value), linear.R, x, x, value,
        value, fn.full(False, value), status, zero, zero, zero, zero, linear.optimality,
    )
    return _limited(settings, space, state)


def _cautious(space: Space, x: Array, linear: Linear, mu: Any) -> Any:
    """The damping, raised where the first step would be longer than x itself, in the scale of the
    parameters: so far the linear residuals tell little."""
    size = _norm(space, linear.scale * x)
    for _ in range(_RAISES):
        z, _ = _damped(False, space, linear.R, linear.q, mu)
        mu = space.scalars.where((size > 0.0) & (_norm(space, z) > size), _RAISE * mu, mu)
    return mu


def going(space: Space, state: LMState) -> Array:
    """What the loop must know of each problem: 0 if it has ended, else the sum of 1, of `CURVED` if
    it wants to look for curvature, and of `HARD` if `aim` is to be exact."""
    fn = space.scalars
    zero = fn.full(0, state.value)
    kind = 1 + fn.where(state.curved, zero + CURVED, zero)
    kind = kind + fn.where(state.linear.hard, zero + HARD, zero)
    return fn.where(state.status == _RUNNING, kind, zero)


def aim(exact: bool, space: Space, state: LMState, box: Any) -> LMState:
    """The state with a step from its iterate: `factor`, `step`, `trial` and `predicted`."""
    xp, linear = space.xp, state.linear
    z, factor = _damped(exact, space, linear.R, linear.q, state.mu)
    step = z / linear.scale
    if box is not None:
        step = xp.where(linear.frozen, xp.zeros_like(z), step)
        # What would leave the box goes to its bound, and the others are solved for once more.
        inside = _into(space, state.x + step, box)
        beyond = inside != state.x + step
        fixed = xp.where(beyond, inside - state.x, xp.zeros_like(step))
        free = xp.where(beyond[:, None, :], xp.zeros_like(linear.R), linear.R)
        q = linear.q + space.products(linear.R, fixed * linear.scale)
        z, factor = _damped(exact, space, free, q, state.mu)
        step = xp.where(beyond, fixed, z / linear.scale)
        step = xp.where(linear.frozen, xp.zeros_like(step), step)
    return _try(space, state._replace(factor=factor), step, box)


def probe(state: LMState) -> Array:
    """Where acceleration wants the residuals."""
    return state.x + _PROBE * (state.trial - state.x)


def accelerate(
    settings: Settings, space: Space, state: LMState, residuals: Array, box: Any
) -> LMState:
    """The state whose step bends along with the residuals; those at `probe` are given.

    Only `step` and `trial` change.
    """
    xp, linear = space.xp, state.linear
    z = state.step * linear.scale
    change = (residuals - state.residuals) * (1.0 / _PROBE)
    if settings.loss != "linear":
        rows, _ = _weights(settings, space, state.residuals)
        change = change * rows * rows
    linear_change = space.products(xp.matrix_transpose(linear.R), space.products(linear.R, z))
    along = space.products(state.columns, change) / linear.scale - linear_change
    if box is not None:
        still = linear.frozen | (state.trial <= box[0]) | (state.trial >= box[1])
        along = xp.where(still, xp.zeros_like(along), along)
    # Half of 2 / _PROBE: half of the acceleration enters the step.
    along = solve_upper(space, state.factor, along * (-1.0 / _PROBE), transposed=True)
    bent = solve_upper(space, state.factor, along)
    # twice the whole acceleration
    short = 4.0 * _norm(space, bent) <= _LONGEST * _norm(space, z)
    step = space.pick(short & state.curved, state.step + bent / linear.scale, state.step)
    return _try(space, state, step, box)._replace(predicted=state.predicted)


def judge(settings: Settings, space: Space, state: LMState, residuals: Array) -> Verdict:
    """Whether the trial, with these residuals, is the next iterate."""
    fn = space.scalars
    value, decrease = _change(settings, space, state.residuals, residuals)
    predicted = state.predicted
    ratio = decrease / fn.where(predicted > 0.0, predicted, 1.0)
    good = (predicted > 0.0) & (decrease > _ENOUGH * predicted)
    noise = _noise(space, state)
    hidden = (predicted > 0.0) & (_promise(fn, state) <= noise) & (fn.abs(decrease) <= noise)
    accepted = (state.status == _RUNNING) & fn.isfinite(value) & (good | hidden)
    return Verdict(accepted, hidden, fn.where(hidden, 1.0, ratio), decrease, value)


def advance(
    settings: Settings, space: Space, state: LMState, verdict: Verdict, residuals: Array,
    columns: Any, linear: Any,
) -> LMState:
    """The state after a trial, to be aimed.

    columns, linear : those at the trial where it was accepted, elsewhere those at the iterate; or
        None if none was accepted.
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

    # Nielsen's rule.
    eps = space.backend.eps
    fall = 2.0 * fn.clip(verdict.ratio, 0.0, 1.0) - 1.0
    eased = old.mu * fn.maximum(1.0 - fall * fall * fall, 1.0 / 3.0)
    mu = fn.where(accepted, fn.maximum(eased, _least(space, linear)), old.mu)
    mu = fn.where(refused, old.mu * old.growth, mu)
    growth = fn.where(refused, 2.0 * old.growth, fn.full(2.0, mu))

    # Where it stops. Lengths are in the scale of the parameters.
    scale = old.linear.scale
    length, size = space.max_abs(scale * old.step), space.max_abs(scale * old.x)
    small = verdict.decrease <= settings.ftol * old.value
    small = small & (old.predicted <= settings.ftol * old.value) & (settings.ftol > 0.0)
    short = (length <= settings.xtol * size) & (settings.xtol > 0.0)
    better = linear.optimality <= 0.9 * old.linear.optimality
    # Errors of differences make it go up and down, which is no progress.
    best = linear.optimality <= 0.9 * old.lowest
    lowest = fn.where(
        verdict.hidden, fn.minimum(old.lowest, linear.optimality), linear.optimality
    )
    small_value = fn.where(accepted & small, old.small_value + 1, 0)
    small_step = fn.where(accepted & short, old.small_step + 1, 0)
    stalled = fn.where(better, old.stalled, old.stalled + 1)
    hidden = accepted & verdict.hidden
    stalled = fn.where(hidden & fn.logical_not(best), stalled, 0)
    exhausted = refused & ((length <= eps * size) | (mu >= 1.0 / (eps * eps)))
    rest = linear.optimality * linear.optimality * old.value
    patience = fn.where(
        rest <= _ADDED_UP * _noise(space, old), _PATIENCE, fn.full(_LONG_PATIENCE, stalled)
    )
    status = fn.where(exhausted | (hidden & (stalled >= patience)), CLAIMED, old.status)
    status = fn.where(small_step >= _SETTLED, int(Status.STEP), status)
    status = fn.where(small_value >= _SETTLED, int(Status.VALUE), status)
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
        small_value, small_step, stalled, fn.where(accepted, lowest, old.lowest),
    )
    return _limited(settings, space, state)


def lengths(eps: float) -> list[float]:
    """How far to look whether residuals and Jacobian agree, relative to |D x|: first to where
    rounding of the residuals and their second derivatives weigh about the same. Shorter looks are
    for residuals that bend much more than that."""
    return [eps ** (1 / 3) * shorter for shorter in (1.0, 1 / 32, 1 / 1024)]


def ahead(
    settings: Settings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    length: float,
) -> Array:
    """A point so far down the gradient, within the box."""
    xp = space.xp
    of_rows, of_residuals = _weights(settings, space, residuals)
    columns = columns * of_rows[:, None, :]
    scale = _divisor(space, space.max_abs(columns))    # whose square need not be finite
    slope = space.products(columns / scale[..., None], residuals * of_residuals)
    slope = xp.where(_frozen(space, x, slope, box), xp.zeros_like(slope), slope)
    # At x = 0 the step that the slope asks for tells the scale.
    norm, size = space.max_abs(slope), space.max_abs(scale * x)
    size = xp.where(size > 0.0, size, norm)
    unit = slope / _divisor(space, norm)[:, None]    # first, so that no product overflows
    point = x - (length * size)[:, None] * unit / scale
    return point if box is None else _into(space, point, box)


def look(
    settings: Settings, space: Space, x: Array, residuals: Array, columns: Array, ahead: Array,
    residuals_there: Array, columns_there: Array,
) -> tuple[Array, Array]:
    """Whether the residuals there are those that the Jacobians tell, by the trapezoidal rule; and
    whether they lower the cost by more than rounding explains: masks (B,)."""
    change, promised, sizes = residuals_there - residuals, 0.0, 0.0
    off: Any = change
    for r, c in ((residuals, columns), (residuals_there, columns_there)):
        half = 0.5 * space.products(space.xp.matrix_transpose(c), ahead - x)
        of_rows, of_residuals = _weights(settings, space, r)
        promised = promised - space.dot(half * of_rows, r * of_residuals)
        off, sizes = off - half, sizes + _norm(space, half)
    agrees = _norm(space, off) <= _SHARE * sizes
    level = _ADDED_UP * space.backend.noise * _cost(settings, space, residuals)
    _, decrease = _change(settings, space, residuals, residuals_there)
    return agrees, agrees & (promised > level) & (decrease > 0.5 * promised)


def linearize(
    settings: Settings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    largest: Any,
) -> Linear:
    """The linear residuals at x, by the normal equations; `largest` is D of the iterate before.

    What is `hard` is to be had from `decompose`.
    """
    xp, p = space.xp, x.shape[-1]
    weighted = residuals
    if settings.loss != "linear":
        of_rows, of_residuals = _weights(settings, space, residuals)
        columns, weighted = columns * of_rows[:, None, :], residuals * of_residuals
    gram, norms, kept = normal_matrix(space, columns)
    slope = space.products(columns, weighted) / _divisor(space, norms)
    frozen = _frozen(space, x, slope, box)
    if box is not None:
        one = xp.eye(p, dtype=gram.dtype, device=space.backend.placement)
        out = frozen[:, None, :] | frozen[..., None]
        gram = xp.where(out, xp.broadcast_to(one, gram.shape), gram)
        slope = xp.where(frozen, xp.zeros_like(slope), slope)
    rows, least = eliminate(space, xp.concat([gram, slope[..., None]], axis=-1))
    R, q = rows[..., :p], rows[..., p]
    sound = (least > safe_pivot(space)) & xp.all(kept | frozen, axis=-1)
    part = _norm(space, q)
    sound = sound & xp.isfinite(part)
    hard = xp.logical_not(sound)
    return _linear(settings, space, residuals, R, q, part, norms, largest, frozen, sound, hard)


def decompose(
    settings: Settings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    largest: Any,
) -> Linear:
    """`linearize` by a QR decomposition, for any Jacobian."""
    xp, backend = space.xp, space.backend
    finite = xp.all(xp.isfinite(columns), axis=(-2, -1)) & xp.all(xp.isfinite(residuals), axis=-1)
    # What is not finite must not reach a decomposition, where it might harm other problems.
    columns = xp.where(finite[:, None, None], columns, xp.zeros_like(columns))
    residuals = space.pick(finite, residuals, xp.zeros_like(residuals))
    of_rows, of_residuals = _weights(settings, space, residuals)
    columns = columns * of_rows[:, None, :]
    weighted = residuals * of_residuals

    # Sums of squares may overflow where the norms do not.
    unit = _divisor(space, space.max_abs(columns))
    columns = columns / unit[..., None]
    norms = xp.sqrt(space.dot(columns, columns))
    columns = columns / _divisor(space, norms)[..., None]
    norms = norms * unit
    frozen = _frozen(space, x, space.products(columns, weighted), box)
    columns = xp.where(frozen[..., None], xp.zeros_like(columns), columns)

    p, m = columns.shape[-2:]
    if m < p:
        columns = xp.concat([columns, backend.zeros((x.shape[0], p, p - m))], axis=-1)
        weighted = xp.concat([weighted, backend.zeros((x.shape[0], p - m))], axis=-1)
    Q, R = qr(space, xp.matrix_transpose(columns))
    q = _transposed(space, Q, weighted)
    # A column that depends on those before it leaves rounding on the diagonal, and its column of Q
    # is arbitrary.
    one = xp.eye(p, dtype=R.dtype, device=backend.placement)
    diagonal = space.sum(xp.abs(R * one))
    seen = diagonal > max(m, p) * backend.eps
    part = _norm(space, xp.where(seen, q, xp.zeros_like(q)))
    hard = xp.ones_like(finite)
    return _linear(settings, space, residuals, R, q, part, norms, largest, frozen, finite, hard)


def _linear(
    settings: Settings, space: Space, residuals: Array, R: Array, q: Array, part: Array,
    norms: Array, largest: Any, frozen: Array, finite: Array, hard: Array,
) -> Linear:
    """From R of columns of unit length, and the norm of what of q counts."""
    xp = space.xp
    scale = _divisor(space, norms if largest is None else xp.maximum(norms, largest))
    R = xp.where(frozen[:, None, :], xp.zeros_like(R), R * (norms / scale)[:, None, :])
    whole = xp.sqrt(2.0 * _cost(settings, space, residuals))
    optimality = part / _divisor(space, whole)
    return Linear(R, q, scale, frozen, optimality, finite, hard)


def _cost(settings: Settings, space: Space, residuals: Array) -> Array:
    if settings.loss == "linear":
        return 0.5 * space.dot(residuals, residuals)
    return space.sum(robust.cost(space.xp, settings.loss, settings.f_scale, residuals))


def _change(settings: Settings, space: Space, old: Array, new: Array) -> tuple[Array, Array]:
    """The cost of the new residuals, and by how much it is below that of the old ones: term by term
    first, for the difference of the sums would lose digits."""
    if settings.loss == "linear":
        return _cost(settings, space, new), 0.5 * space.dot(old - new, old + new)
    before, after = (
        robust.cost(space.xp, settings.loss, settings.f_scale, r) for r in (old, new)
    )
    return space.sum(after), space.sum(before - after)


def _weights(settings: Settings, space: Space, residuals: Array) -> tuple[Array, Array]:
    return robust.weights(space.xp, settings.loss, settings.f_scale, residuals, _LEAST_BEND)


def _frozen(space: Space, x: Array, slope: Array, box: Any) -> Array:
    """Parameters at a bound that the slope pushes against."""
    if box is None:
        return space.xp.zeros(x.shape, dtype=space.xp.bool, device=space.backend.placement)
    return ((x <= box[0]) & (slope >= 0.0)) | ((x >= box[1]) & (slope <= 0.0))


def _damped(exact: bool, space: Space, R: Array, q: Array, mu: Array) -> tuple[Array, Array]:
    """The z that minimises |q + R z|^2 + mu |z|^2, and R of that problem."""
    xp, p = space.xp, R.shape[-1]
    one = xp.eye(p, dtype=R.dtype, device=space.backend.placement)
    if exact:
        stacked = xp.concat([R, xp.sqrt(mu)[:, None, None] * one], axis=-2)
        Q, factor = qr(space, stacked)
        return solve_upper(space, factor, -_transposed(space, Q[:, :p, :], q)), factor
    transposed = xp.matrix_transpose(R)
    normal = space.matmul(transposed, R) + mu[:, None, None] * one
    right = space.products(transposed, -q)
    rows, _ = eliminate(space, xp.concat([normal, right[..., None]], axis=-1))
    return substitute(space, rows[..., :p], rows[..., p]), rows[..., :p]


def _try(space: Space, state: LMState, step: Array, box: Any) -> LMState:
    """The state with this step under trial."""
    linear = state.linear
    trial = state.x + step
    if box is not None:
        trial = _into(space, trial, box)
        step = trial - state.x
    change = space.products(linear.R, step * linear.scale)
    predicted = -space.dot(change, linear.q + 0.5 * change)
    return state._replace(step=step, trial=trial, predicted=predicted)


def _least(space: Space, linear: Linear) -> Array:
    """The damping that no longer matters: eps^2 of the shortest column, in the scale D, which may
    stem from where the columns were much longer."""
    xp = space.xp
    norms = _column_norms(space, linear.R)
    least = space.backend.eps * xp.min(_divisor(space, norms), axis=-1)
    # Never 0, which no refusal could raise.
    return xp.maximum(least * least, xp.full_like(least, 4.0 / space.backend.largest))


def _promise(fn: Any, state: LMState) -> Array:
    return fn.where(state.growth == 2.0, state.predicted, state.promise)


def _column_norms(space: Space, R: Array) -> Array:
    columns = space.xp.matrix_transpose(R)
    return space.xp.sqrt(space.dot(columns, columns))


def _noise(space: Space, state: LMState) -> Array:
    """What rounding does to the value: at the least what that of the parameters does to the
    residuals."""
    value, norms = state.value, _column_norms(space, state.linear.R) * state.linear.scale
    blur = space.backend.eps * space.sum(space.xp.abs(norms * state.x))
    return space.backend.noise * value + space.xp.sqrt(2.0 * value) * blur


def _divisor(space: Space, u: Array) -> Array:
    """Sizes to divide by: 1 in place of 0."""
    return space.xp.where(u > 0.0, u, space.xp.ones_like(u))


def _limited(settings: Settings, space: Space, state: LMState) -> LMState:
    spent = (state.status == _RUNNING) & (state.nit >= settings.maxiter)
    status = space.scalars.where(spent, int(Status.ITERATIONS), state.status)
    return state._replace(status=status)


def _into(space: Space, x: Array, box: Any) -> Array:
    return space.xp.minimum(space.xp.maximum(x, box[0]), box[1])


def _transposed(space: Space, Q: Array, u: Array) -> Array:
    """Q^T u: (B, m, p), (B, m) -> (B, p)."""
    return space.products(space.xp.matrix_transpose(Q), u)


def _norm(space: Space, u: Array) -> Array:
    return space.xp.sqrt(space.dot(u, u))
