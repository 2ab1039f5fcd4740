"""A first step in the parameters in which the model is linear alone, such as amplitudes.

From a start that is far off, a step in all parameters changes a rate while the amplitude before it
is still wrong by orders of magnitude, and the fit runs away along a flat valley. With the linear
parameters at their best values for the other ones, the others are judged by what they do to the
data (Golub & Pereyra 1973, The differentiation of pseudo-inverses and nonlinear least squares
problems whose variables separate; here for the first step alone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits import jacobian
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits.linear_algebra import column_norms, divisor, identity, norm
from lbfgs_xp.fits.linear_model import solve_damped
from lbfgs_xp.fits.settings import FitSettings

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit

# A model is far too small if the linearised residuals ask for a step so many times the size of x,
# and far too large if the residuals are so many times the data.
_FAR = 3.0
# Residuals are linear along a step if they follow their derivatives up to this share of the change;
# and how far to move a parameter, relative to its size, to see whether they are.
_STRAIGHT, _PART = 0.01, 0.5
# Combinations of columns shorter than this share of the longest one are left as they are: linear
# parameters that the start hardly tells apart would be thrown far, with opposite signs.
_SHORTEST = 0.1
# A column that varies by less than this share belongs to a constant.
_EVEN = 0.01


class Tried(NamedTuple):
    """A state with its trial, the residuals there, and their verdict."""

    state: lm.LMState
    residuals: Array
    verdict: lm.Verdict


def tried(fit: Fit, first: Tried) -> Tried:
    """The first trial of a fit; or, in its place, a step in the linear parameters."""
    objective, space, state = fit.here, fit.space, first.state
    if fit.plan.solver != "dense" or objective.in_chunks or not fit.affords(calls(state)):
        return first
    far = lm.starts_far(space, state, first.verdict)
    if not space.batched and not far:
        return first
    data = None if objective.data is None else fit.fetch(objective.data[1])
    # Of a batch, this is the only read.
    if not space.any(far := far & is_off(space, state, data)):
        return first
    kept = space.xp.zeros_like(state.x)
    units = identity(space, state.x.shape[-1])
    for i in range(units.shape[0]):
        kept = kept + linear_along(space, state, fit.box_here, fit.residuals, units[i, :])
    return stepped(fit.plan.settings, space, first, fit.box_here, fit.residuals, far, kept)


def calls(state: lm.LMState) -> int:
    """How often the residuals are asked for to make such a step."""
    return state.x.shape[-1] + 1


def is_off(space: Space, state: lm.LMState, data: Array | None) -> Any:
    """Where the model is far too small or too large at the start: a mask (B,)."""
    size = norm(space, state.linear.scale * state.x)
    wanted = norm(space, _wanted(space, state, space.xp.ones_like(state.x)))
    off = (size > 0.0) & (wanted > _FAR * size)
    if data is None:
        return off
    return off | (norm(space, state.residuals) > _FAR * norm(space, data))


def linear_along(
    space: Space, state: lm.LMState, box: Any, ask: Callable, unit: Array
) -> Array:
    """The unit vector for problems whose residuals, which `ask` returns, are linear along it, and 0
    for others, (B, p)."""
    xp, x = space.xp, state.x
    size = xp.where(x == 0.0, xp.ones_like(x), _PART * xp.abs(x))
    # Downhill, where the fit would go, too; but not out of the bounds.
    uphill = space.products(state.columns, state.residuals) > 0.0
    steps = xp.where(uphill, -size, size)
    if box is not None:
        inside = (x + steps >= box[0]) & (x + steps <= box[1])
        steps = xp.where(inside, steps, -steps)
    trial = lm.within(space, x + steps * unit, box)
    linear = _follows(space, state, trial - x, ask(trial))
    one = space.scalars.full(1.0, state.value)
    return space.per_problem(space.scalars.where(linear, one, 0.0 * one)) * unit


def stepped(
    settings: FitSettings, space: Space, first: Tried, box: Any, ask: Callable, far: Any,
    kept: Array,
) -> Tried:
    """The first trial; or in problems that are `far`, a step in the parameters marked by 1 in
    `kept`, if that leads lower and is as predicted."""
    state, verdict = first.state, first.verdict
    kept = _without_flips(space, state, kept)
    new = lm.towards(settings, space, state, _step(space, state, box, kept), box)
    residuals = ask(new.trial)
    found = lm.judge(settings, space, new, residuals)
    best = space.scalars.where(verdict.accepted, verdict.value, state.value)
    lower = far & found.accepted & (found.value < best)
    lower = lower & _follows(space, state, new.step, residuals)
    # The radius is new already.
    found = found._replace(ratio=space.scalars.full(lm.UNDECIDED, found.value))
    return space.merge(lower, Tried(new, residuals, found), first)


def _follows(space: Space, state: lm.LMState, step: Array, residuals: Array) -> Any:
    """Where the residuals after a step are as their derivatives say, and changed at all: a mask."""
    change = jacobian.push(space, state.columns, step)
    size, off = norm(space, change), norm(space, residuals - state.residuals - change)
    return (size > 0.0) & (off <= _STRAIGHT * size)


def _wanted(space: Space, state: lm.LMState, kept: Array) -> Array:
    """The step, in the scale D, to the best values of the parameters marked by 1 in `kept`, as far
    as the residuals are linear."""
    R = state.linear.R * kept[..., None, :]
    shortest = _SHORTEST * space.xp.max(column_norms(space, R), axis=-1)
    damping = space.scalars.maximum(shortest * shortest, 4.0 / space.backend.largest)
    return kept * solve_damped(True, space, R, state.linear.q, damping)[0]


def _without_flips(space: Space, state: lm.LMState, kept: Array) -> Array:
    """`kept`, but constants alone if all amplitudes would change their sign, as of a peak at the
    wrong place: the shape is wrong then, not the sign."""
    xp, columns = space.xp, state.columns
    step = _wanted(space, state, kept) / state.linear.scale
    spread = xp.max(columns, axis=-1) - xp.min(columns, axis=-1)
    varies = (kept > 0.0) & (spread > _EVEN * space.max_abs(columns))
    stays = varies & (state.x * (state.x + step) >= 0.0)
    wrong = varies & xp.logical_not(xp.any(stays, axis=-1, keepdims=True))
    return xp.where(wrong, xp.zeros_like(kept), kept)


def _step(space: Space, state: lm.LMState, box: Any, kept: Array) -> Array:
    """The same step in the parameters, or as far on the way as no bound is near."""
    xp, x = space.xp, state.x
    step = _wanted(space, state, kept) / state.linear.scale
    if box is None:
        return step
    room = lm.WAY * xp.where(step > 0.0, box[1] - x, x - box[0])
    part = xp.where(xp.abs(step) > room, room / divisor(space, xp.abs(step)), xp.ones_like(x))
    return space.per_problem(xp.min(part, axis=-1)) * step
