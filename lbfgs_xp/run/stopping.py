"""When and why a run stops: scalars in, `Status` out, for one problem or each in a batch."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any, NamedTuple

from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import FLOATS, Scalars, named
from lbfgs_xp.result import CLAIMED, DOUBTED, FLAT, Status

# Plain integers: members of an enum are slow to look up, and no library accepts them in `where`.
_RUNNING = int(Status.RUNNING)
_GRADIENT = int(Status.GRADIENT)
_VALUE = int(Status.VALUE)
_STEP = int(Status.STEP)
_ITERATIONS = int(Status.ITERATIONS)
_EVALUATIONS = int(Status.EVALUATIONS)
_LINE_SEARCH = int(Status.LINE_SEARCH)
_NOT_FINITE = int(Status.NOT_FINITE)
_UNBOUNDED = int(Status.UNBOUNDED)

# The number of successive small changes after which the value or the step has settled.
_SETTLED = 2
# The terms that cancel in a small gradient may be as large as the gradient was elsewhere, and have
# the corresponding error; this many times that error, because the terms are sums themselves.
_FADED = 1e3
# By differences, whose errors let a run crawl, a value falls visibly if it does so by this share of
# it, or by what matters beside how far it has fallen since the start; below that, by the second
# share.
_CRAWLS, _CREEPS = 1e-4, 1e-2
# The default tolerance is relative to the smallest gradient of the start and the iterates before
# this one, because a start may be much steeper than anything after the first steps.
_FIRST = 3


class Criteria(NamedTuple):
    """Tolerances and budgets.

    relative : the tolerance of the gradient relative to the first ones; 0 if gtol is given.
    lost : the least tolerance, relative to the error of the largest gradient: if the first steps
        solve a problem exactly, later gradients are rounding. 0 for methods without searches, whose
        end no look confirms, and after a switch to central differences, which are sharper.
    part : the part of how far the value has fallen that does not matter.
    eps, noise, largest : properties of the dtype, from `Backend`.
    patience : iterations without meaningful progress after which the precision floor counts as
        reached.
    failure : the status of a failed step that rounding does not explain.
    calls_per_trial : calls of fun per trial, more than one with finite differences.
    trials : finite trials in one iteration after which finite differences are doubted. The step has
        then failed if they are `forward` ones, or if their error explains it.
    forward : whether the gradient comes from forward differences.
    error : the relative error of the gradient: eps, or more with central differences. (That of
        forward ones excuses nothing: central ones replace them.)
    """

    gtol: float
    relative: float
    lost: float
    part: float
    ftol: float
    xtol: float
    maxiter: int
    maxfun: int
    eps: float
    noise: float
    largest: float
    patience: int
    failure: int
    calls_per_trial: int
    trials: int
    forward: bool
    error: float


class Progress(NamedTuple):
    """The progress of a run so far; scalars, or arrays (B,).

    status : integer of `Status`.
    nit, nfev : iterations and evaluations.
    settled_value, settled_step : successive iterations with a small change.
    stalled : iterations since the value last fell visibly, or the gradient norm to less than nine
        tenths of its lowest value.
    reference : the value when it last fell visibly: by more than rounding, and for differences by
        more than their errors let it crawl.
    lowest_norm : the smallest gradient norm so far.
    highest_norm : the largest gradient norm so far.
    trials : trials with a finite value since the last iteration.
    flat : how often a small gradient was not that of a minimum.
    extent : the largest |x| at the start, for looks from x near 0.
    first_value, first_norm : the value at the start and the smallest gradient norm of the first
        iterates, of the first phase if there are several. They give the units of f.
    gtol : the gradient norm that counts as small, from the criteria and `first_norm`.
    claim : for second looks, the end that is yet to be confirmed.
    earlier : iterations of the run that this one resumes.
    noise : how far apart two values may be through noise that was measured or given, or 0.
    measured : how often the run has begun anew because of noise.
    looked : the size of the value where noise of differences was last looked for; nan before.
    """

    status: Any
    nit: Any
    nfev: Any
    settled_value: Any
    settled_step: Any
    stalled: Any
    reference: Any
    lowest_norm: Any
    highest_norm: Any
    trials: Any
    flat: Any
    extent: Any
    first_value: Any
    first_norm: Any
    gtol: Any
    claim: Any
    earlier: Any
    noise: Any
    measured: Any
    looked: Any


def start(
    fn: Scalars, criteria: Criteria, value: Any, norm: Any, extent: Any, nfev: int,
    noise: float | None = None, resumed: Progress | None = None,
) -> Progress:
    """The progress of a run after `nfev` evaluations at its start.

    noise : how far apart two values may be through noise; None if that is not known yet.
    resumed : the progress of the run that this one resumes.
    """
    p = _fresh(fn, criteria, value, norm, extent, nfev, (value, norm))
    if resumed is not None:
        # An end that was confirmed needs no second look.
        done = (p.status <= _RUNNING) & (resumed.status == _GRADIENT) & (norm <= resumed.gtol)
        p = resumed._replace(
            status=fn.where(done, _GRADIENT, p.status), nit=p.nit, nfev=p.nfev, trials=p.trials,
            claim=p.claim, earlier=resumed.earlier + resumed.nit,
            gtol=resumed.gtol if criteria.relative > 0.0 else p.gtol,
        )
        if criteria.error > criteria.eps:
            # The budget may have ended when central differences had just taken over.
            p = where_small(fn, criteria, p, norm)
    if noise is not None:
        p = p._replace(noise=fn.full(noise, p.noise))
    return budgets(fn, criteria, p)


def again(
    fn: Scalars, criteria: Criteria, before: Progress, value: Any, norm: Any, nfev: int
) -> Progress:
    """The progress after `nfev` more evaluations, with everything but the counts started anew."""
    first = before.first_value, before.first_norm
    p = _fresh(fn, criteria, value, norm, before.extent, nfev, first)
    # Only a function without a lower bound keeps its status.
    status = fn.where(before.status == _UNBOUNDED, _UNBOUNDED, p.status)
    nfev = before.nfev + nfev
    p = p._replace(status=status, nit=before.nit, nfev=nfev)
    p = p._replace(flat=before.flat, earlier=before.earlier)
    p = p._replace(noise=before.noise, measured=before.measured, looked=before.looked)
    return budgets(fn, criteria, p)


def _fresh(
    fn: Scalars, criteria: Criteria, value: Any, norm: Any, extent: Any, nfev: int,
    first: tuple[Any, Any],
) -> Progress:
    gtol = _tolerance(fn, criteria, first[1], first[1])
    zero = fn.full(0, value)
    status = fn.full(_RUNNING, value)
    # By the default tolerance, no run ends without an iteration.
    end = FLAT if is_provisional(criteria) else _GRADIENT
    status = fn.where(norm <= criteria.gtol, end, status)
    usable = fn.isfinite(value) & fn.isfinite(norm)
    status = fn.where(usable, status, _NOT_FINITE)
    return Progress(
        status, zero, zero + nfev, zero, zero, zero, value, norm, norm, zero, zero, extent, *first,
        gtol, fn.full(_RUNNING, value), zero, fn.full(0.0, value), zero,
        fn.full(nan, value),
    )


def is_provisional(criteria: Criteria) -> Any:
    """Whether a small gradient is only the claim of an end, even if it is exactly 0, as it is at
    every point of symmetry: by the default tolerance, for methods with searches."""
    return (criteria.relative > 0.0) & (criteria.failure == _LINE_SEARCH)


def where_small(fn: Scalars, criteria: Criteria, p: Progress, norm: Any) -> Progress:
    """The progress, ended where the gradient is small by the tolerance of an earlier start."""
    small = (p.status == _RUNNING) & (norm <= p.gtol)
    end = FLAT if is_provisional(criteria) else _GRADIENT
    return p._replace(status=fn.where(small, end, p.status))


def _tolerance(fn: Scalars, criteria: Criteria, first_norm: Any, highest_norm: Any) -> Any:
    """The gradient norm that counts as small: by default, at least the rounding of the first ones.
    """
    rounding = criteria.lost * criteria.error * highest_norm
    gtol = fn.maximum(criteria.relative * first_norm, rounding)
    gtol = fn.where(first_norm * 0.0 + criteria.relative > 0.0, gtol, criteria.gtol)
    return fn.where(fn.isfinite(gtol), gtol, 0.0)


def hidden(fn: Scalars, criteria: Criteria, p: Progress, value: Any) -> Any:
    """How far apart two values may be through rounding or noise."""
    return fn.maximum(criteria.noise * fn.abs(value), p.noise)


def differ(
    fn: Scalars, criteria: Criteria, p: Progress, value: Any, again: Any, change: Any
) -> Any:
    """Whether two evaluations at one point differ by more than the rounding of two programs.

    change : the largest component of the change of the gradient.
    """
    other = fn.abs(value - again) > hidden(fn, criteria, p, value)
    other = other | (fn.isfinite(value) != fn.isfinite(again))
    return other | (change > _FADED * criteria.error * p.highest_norm)


def negligible(
    fn: Scalars, criteria: Criteria, p: Progress, value: Any, part: Any = None
) -> Any:
    """The change of the value that does not matter: what rounding or noise hides, and this part of
    how far the value has fallen since the start, by default the ordinary one."""
    part = criteria.part if part is None else part
    fallen = fn.abs(p.first_value - value)
    fallen = fn.where(fn.isfinite(fallen), fallen, 0.0)
    return fn.maximum(hidden(fn, criteria, p, value), part * fallen)


def later(fn: Scalars, criteria: Criteria, p: Progress, maxiter: int, maxfun: int) -> Criteria:
    """The criteria of a phase that begins after p: its budgets count from there, but never exceed
    those of the whole run, maxiter and maxfun."""
    # In this order, because the 32-bit counts of a batch must not overflow.
    return criteria._replace(
        maxiter=fn.minimum(p.nit, maxiter - criteria.maxiter) + criteria.maxiter,
        maxfun=fn.minimum(p.nfev, maxfun - criteria.maxfun) + criteria.maxfun,
    )


def update(
    fn: Scalars, criteria: Criteria, p: Progress, old: Any, new: Any, step: Any, size: Any,
    evaluations: int,
) -> Progress:
    """The progress after one more evaluation. Problems that have stopped stay as they are.

    old, new : the solver's states before and after.
    step, size : infinity norms of the step and of x; None if xtol is 0.
    """
    if fn is FLOATS and (after := _ordinary(criteria, p, old, new, evaluations)):
        return after
    running = p.status == _RUNNING
    nfev = fn.where(running, p.nfev + evaluations, p.nfev)
    trials = fn.where(running & fn.isfinite(new.seen), p.trials + 1, p.trials)
    trials = fn.where(new.accepted, 0, trials)
    faded = new.gradient_norm <= _FADED * criteria.error * p.highest_norm
    doubtful = (trials >= criteria.trials) & (faded | criteria.forward)
    failed = new.failed | (running & doubtful)
    if fn.every(fn.logical_not(new.accepted | failed)):
        return budgets(fn, criteria, p._replace(nfev=nfev, trials=trials))

    accepted = new.accepted & running
    value, norm, before = new.value, new.gradient_norm, old.value
    magnitude = fn.maximum(fn.abs(before), fn.abs(value))
    unclear = hidden(fn, criteria, p, magnitude)
    little = negligible(fn, criteria, p, value)
    share = fn.where(fn.abs(value) < little, _CREEPS, fn.full(_CRAWLS, value))
    crawl = fn.maximum(unclear, fn.minimum(share * fn.abs(value), little))
    least = fn.where(unclear * 0.0 + criteria.error > criteria.eps, crawl, unclear)
    lower = accepted & (value < p.reference - least)
    small = (criteria.ftol > 0.0) & (fn.abs(before - value) <= criteria.ftol * magnitude)
    short = norm < 0.0 if step is None else step <= criteria.xtol * fn.maximum(size, 1.0)
    endless = new.unbounded | (value < -0.01 * criteria.largest)
    nit = fn.where(accepted, p.nit + 1, p.nit)
    early = accepted & (nit + p.earlier < _FIRST)
    first_norm = fn.where(early, fn.minimum(norm, p.first_norm), p.first_norm)
    gtol = fn.where(early, _tolerance(fn, criteria, first_norm, p.highest_norm), p.gtol)
    flat = norm <= gtol
    # By the default tolerance, which is relative to the start, the value must have settled, too,
    # unless all of the gradient may be rounding, or it is exactly 0. Even then the end is
    # provisional. Differences may not let the value settle.
    provisional = flat & is_provisional(criteria)
    exact = provisional & (criteria.error <= criteria.eps)
    settled = (before - value <= little) | (norm == 0.0)
    lost = (nit + p.earlier <= _FIRST) & (norm <= criteria.lost * criteria.error * p.highest_norm)
    flat = flat & (settled | lost | fn.logical_not(exact))
    small_gradient = fn.where(provisional, fn.full(FLAT, value), _GRADIENT)
    lowest_norm = fn.where(accepted, fn.minimum(norm, p.lowest_norm), p.lowest_norm)
    highest_norm = fn.where(accepted, fn.maximum(norm, p.highest_norm), p.highest_norm)

    # A step too short to change anything does not count as settled.
    moved = (value != before) | (norm != old.gradient_norm)
    settled_value = fn.where(small & moved, p.settled_value + 1, 0)
    settled_step = fn.where(short & moved, p.settled_step + 1, 0)
    stalled = fn.where(lower | (norm < 0.9 * p.lowest_norm), 0, p.stalled + 1)
    given_up: Any = criteria.failure
    hopeless = stalled >= criteria.patience
    if not fn.every(fn.logical_not(hopeless | failed)):
        # Rounding may explain the lack of progress if little decrease was predicted, or if the
        # gradient has fallen so far that what is left may be its error. Otherwise it is a failure.
        crawls = hopeless & (value < p.reference - unclear)
        rounding = (now(new.decrement) <= unclear) | faded | crawls
        # A failure by forward differences is left to central ones.
        doubted = fn.where(rounding | criteria.forward, _LINE_SEARCH, fn.full(DOUBTED, value))
        doubted = fn.where(rounding, CLAIMED, doubted)
        searches = fn.full(True, norm) & (criteria.failure == _LINE_SEARCH)
        given_up = fn.where(searches, doubted, criteria.failure)
    status = fn.where(hopeless, given_up, p.status)
    status = fn.where(settled_step >= _SETTLED, _STEP, status)
    status = fn.where(settled_value >= _SETTLED, _VALUE, status)
    status = fn.where(endless, _UNBOUNDED, status)
    status = fn.where(flat, small_gradient, status)
    status = fn.where(accepted, status, p.status)
    status = fn.where(running & failed, given_up, status)
    after = Progress(
        status,
        nit,
        nfev,
        fn.where(accepted, settled_value, p.settled_value),
        fn.where(accepted, settled_step, p.settled_step),
        fn.where(accepted, stalled, p.stalled),
        fn.where(lower, value, p.reference),
        lowest_norm,
        highest_norm,
        trials,
        p.flat,
        p.extent,
        p.first_value,
        first_norm,
        gtol,
        p.claim,
        p.earlier,
        p.noise,
        p.measured,
        p.looked,
    )
    return budgets(fn, criteria, after)


def _ordinary(
    criteria: Criteria, p: Progress, old: Any, new: Any, evaluations: int
) -> Progress | None:
    """`update` for one problem in the usual case, in which there is only a lower value or one more
    trial of a search to note; None in any other case."""
    c = criteria
    status, nit, nfev, _, _, _, reference, lowest_norm, highest_norm, trials = p[:10]
    nfev += evaluations
    if status != _RUNNING or nfev + c.calls_per_trial > c.maxfun:
        return None
    if not new.accepted:
        trials += isfinite(new.seen)
        if new.failed or trials >= c.trials:
            return None
        return named(Progress, (status, nit, nfev) + p[3:9] + (trials,) + p[10:])
    value, norm = new.value, new.gradient_norm
    if (
        value < reference - max(c.noise * abs(old.value), c.noise * abs(value), p.noise)
        and (c.error <= c.eps or value < reference - _CREEPS * abs(value))
        and value >= -0.01 * c.largest
        and norm > p.gtol
        and _FIRST < nit + 1 < c.maxiter
        and not (c.ftol or c.xtol or new.unbounded)
    ):
        lowest_norm = norm if norm < lowest_norm else lowest_norm
        highest_norm = norm if norm > highest_norm else highest_norm
        return named(
            Progress,
            (status, nit + 1, nfev, 0, 0, 0, value, lowest_norm, highest_norm, 0) + p[10:],
        )
    return None


def budgets(fn: Scalars, criteria: Criteria, p: Progress) -> Progress:
    """End the problems that are still running and have spent their iterations or evaluations."""
    unpaid = p.nfev + criteria.calls_per_trial > criteria.maxfun
    spent = unpaid | (p.nit >= criteria.maxiter)
    if fn.every(fn.logical_not(spent)):
        return p
    running = p.status == _RUNNING
    status = fn.where(running & unpaid, _EVALUATIONS, p.status)
    status = fn.where(running & (p.nit >= criteria.maxiter), _ITERATIONS, status)
    return p._replace(status=status)
