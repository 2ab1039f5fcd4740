"""The effect of one evaluation on a run: pure functions, which JAX can compile for a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import Scalars, named, picked
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.result import Best, Status
from lbfgs_xp.run import stopping
from lbfgs_xp.run.stopping import Criteria, Progress
from lbfgs_xp.solvers.contract import Solver

_RUNNING = int(Status.RUNNING)
_SUCCESSES = [int(member) for member in Status if member.success]


class Standing(NamedTuple):
    """Where a run stands: everything that an evaluation changes."""

    solver_state: Any
    progress: Progress
    best: Best


class _Seen(NamedTuple):
    """The parts of a solver's state that `_account` needs: see `lbfgs_xp.solvers.contract`."""

    x: Array
    value: Any
    gradient_norm: Any
    trial: Array
    seen: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


class _Numbers(NamedTuple):
    """The scalars of a solver's state that `stopping.update` needs."""

    value: Any
    gradient_norm: Any
    seen: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


class _Scores(NamedTuple):
    """The scalars of `Best`."""

    value: Any
    gradient_norm: Any
    lowest: Any


def is_compilable(solver: Solver) -> bool:
    """Whether a step can be compiled. (The Hessian is a user's function, and some solvers work on
    the host.)"""
    return solver.compiles and not (solver.needs_hessian or solver.needs_products)


def solver_state_at(
    solver: Solver, space: Space, x: Array, value: Any, gradient: Array, learned: Any, **more: Any
) -> Any:
    """The solver's state at x, with what an earlier run has learned, or None."""
    known = () if learned is None else (learned,)
    return solver.init(space, x, value, gradient, *known, **more)


def after_evaluation(
    solver: Solver, space: Space, measure_steps: bool, standing: Standing, criteria: Criteria,
    value: Any, gradient: Array, count: int, **more: Any,
) -> tuple[Standing, Any]:
    """Where a run stands once value and gradient at the trial are known, and whether the trial is
    the best point. Pure, except that it may overwrite what the solver has learned.

    count : how many evaluations this took.
    more : what the solver needs besides.
    """
    old = standing.solver_state
    running = standing.progress.status == _RUNNING
    measured = None
    if space.remote:
        # Before the step, so that these numbers arrive with those that the step reads.
        norm = None
        if not solver.projects:
            (norm,) = space.later(solver.optimality(space, old.trial, gradient))
        measured = norm, _lengths(space, old.x, old.trial) if measure_steps else None
    state = solver.step(space, old, value, gradient, running, **more)
    account: Any = _account
    arguments: tuple = (solver, space, measure_steps)
    seen = old, state
    if space.batched and not (space.reproducible or is_compilable(solver)):
        # The solver's step cannot be compiled, but the rest of the iteration can.
        account, arguments = space.backend.jit(_account, *arguments), ()
        seen = picked(_Seen, old), picked(_Seen, state)
    progress, best, better = account(
        *arguments, criteria, standing.progress, standing.best, *seen, gradient, count, measured
    )
    return named(Standing, (state, progress, best)), better


def _account(
    solver: Solver, space: Space, measure_steps: bool, criteria: Criteria, progress: Progress,
    best: Best, old: Any, new: Any, gradient: Array, count: int, measured: Any,
) -> tuple[Progress, Best, Any]:
    """Progress and best point after a step, and whether the trial is the best point.

    measured : for one problem on a device, the optimality of the trial and the lengths of the step
        to it.
    """
    fn = space.scalars
    running = progress.status == _RUNNING
    norm, lengths = (None, None) if measured is None else measured
    if lengths is not None and new.x is not old.trial:
        lengths = None
    if measure_steps and lengths is None and not (space.remote and not new.accepted):
        lengths = _lengths(space, old.x, new.x)
    step, size = (None, None) if lengths is None else map(now, lengths)
    # What serves one problem need not be picked from its state.
    numbers: tuple = (old, new)
    if space.batched:
        numbers = picked(_Numbers, old), picked(_Numbers, new)
    progress = fn.fused(stopping.update, criteria, progress, *numbers, step, size, count)
    best, better = better_point(
        solver, space, criteria, best, old.trial, new, gradient, running, progress.noise, norm
    )
    return progress, best, better


def _lengths(space: Space, old: Array, new: Array) -> Any:
    """The largest component of the step from `old` to `new`, and of `new`."""
    return space.later(space.max_abs(new - old), space.max_abs(new))


def better_point(
    solver: Solver, space: Space, criteria: Criteria, best: Best, trial: Array, state: Any,
    gradient: Array, running: Any, noise: Any, norm: Any = None,
) -> tuple[Best, Any]:
    """The best point, now that the trial has been evaluated, and whether it is the trial.

    The lower value wins; among values that agree with the lowest up to rounding and noise, the
    smallest gradient wins.

    noise : how far apart two values may be through noise that was measured, or 0.
    norm : the optimality of the trial, if it is known or pending.
    """
    fn = space.scalars
    value, slack = state.seen, 2.0 * criteria.noise
    near: Any = None
    if not space.batched or space.small_on_host:
        # Looking at the numbers costs nothing, and saves most of the rest.
        taken = state.accepted & (state.value == value)
        margin = fn.maximum(slack * fn.abs(best.lowest), noise)
        if fn.every(taken & running & (value < best.lowest - margin)):
            return named(Best, (trial, value, gradient, state.gradient_norm, value)), taken
        near = running & (value <= best.lowest + margin)
        if fn.every(fn.logical_not(near)):
            return best, near
        if fn.every(taken):
            norm = state.gradient_norm
    if norm is None:
        norm = space.read_one(solver.optimality(space, trial, gradient))
    scores = _Scores(best.value, best.gradient_norm, best.lowest)
    better, new = fn.fused(_compared, slack, scores, value, now(norm), running, noise, near)
    if fn.every(fn.logical_not(better)):
        return best._replace(lowest=new.lowest), better
    best = Best(
        space.pick(better, trial, best.x),
        new.value,
        space.pick(better, gradient, best.gradient),
        new.gradient_norm,
        new.lowest,
    )
    return best, better


def _compared(
    fn: Scalars, slack: float, best: _Scores, value: Any, norm: Any, running: Any, noise: Any,
    near: Any,
) -> tuple[Any, _Scores]:
    """Where a trial with this value and norm is better than the best point, and the new scores.

    near : where the value is not above the lowest one by more than rounding; computed if None.
    """
    if near is None:
        margin = fn.maximum(slack * fn.abs(best.lowest), noise)
        near = running & (value <= best.lowest + margin)
    usable = near & fn.isfinite(value) & fn.isfinite(norm)
    lowest = fn.where(usable & (value < best.lowest), value, best.lowest)
    limit = lowest + fn.maximum(slack * fn.abs(lowest), noise)
    better = usable & (value <= limit) & ((norm < best.gradient_norm) | (best.value > limit))
    return better, _Scores(
        fn.where(better, value, best.value), fn.where(better, norm, best.gradient_norm), lowest
    )


def succeeded(status: Any) -> Any:
    """Which problems ended successfully, from the integers of their statuses."""
    success = status != status
    for code in _SUCCESSES:
        success = success | (status == code)
    return success
