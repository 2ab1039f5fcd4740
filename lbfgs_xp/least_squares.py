"""Nonlinear least squares: the loop around Levenberg-Marquardt, and the checks of the arguments."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks, robust
from lbfgs_xp import levenberg_marquardt as lm
from lbfgs_xp.backend import Array, Backend
from lbfgs_xp.projections import Box
from lbfgs_xp.residuals import Residuals
from lbfgs_xp.result import CLAIMED, Status, attach, table
from lbfgs_xp.rows import Rows, Sizes, compiled_size
from lbfgs_xp.space import Space
from lbfgs_xp.tree import Layout

_RUNNING = int(Status.RUNNING)
_STATUSES = {int(status): status for status in Status}
# Where the sentence is another one than that of a minimum.
_MESSAGES = {
    Status.GRADIENT: (
        "the residuals are stationary: the share of them that a change of the parameters could "
        "still take away (optimality) is at most gtol"
    ),
    Status.LINE_SEARCH: (
        "no step tried lowers the cost: residuals and Jacobian disagree, or they have a kink, a "
        "jump, large rounding errors or the end of their domain here"
    ),
    Status.NOT_FINITE: (
        "the residuals or their Jacobian at the start are not finite (is there a nan in the "
        "data?), or the squares of the residuals are beyond the range of the dtype"
    ),
}
# Elements of a Jacobian up to which the host does the algebra of one problem.
_SMALL = 2**16
# Problems of which it pays to pick out some, for an evaluation of their own.
_FEWEST = 64


@dataclasses.dataclass(frozen=True)
class LeastSquaresResult:
    """The outcome of `lx.least_squares`.

    For a batch of B problems `cost`, `optimality`, `nit`, `success` and `status` are arrays (B,) of
    the library of x0; `status` then holds the integers of `lx.Status`.

    Attributes
    ----------
    x : of the structure, library, device and dtype of x0
        The point with the lowest cost.
    cost : float, or array (B,)
        Half the sum of the losses of the residuals; of their squares, without a loss.
    fun : array (m,), or (B, m)
        The residuals at x.
    jac : array (m, p), or (B, m, p)
        Their Jacobian, in the order in which the leaves of x0 lie in a row.
    optimality : float, or array (B,)
        |Q^T r| / |r|, with Q an orthonormal basis of the columns of the Jacobian (those of
        parameters that rest at a bound left out): the share of the residuals that a change of the
        parameters could still take away.
    nit : int, or array (B,)
        Steps taken.
    nfev, njev : int
        Calls of residuals (those for differences included), and of the Jacobian.
    success, status, message
        Whether and why the run ended; see `lx.Status`. `GRADIENT` means optimality <= gtol.
    """

    x: Any
    cost: Any
    fun: Any = dataclasses.field(repr=False)
    jac: Any = dataclasses.field(repr=False)
    optimality: Any
    nit: Any
    nfev: int
    njev: int
    success: Any
    status: Any
    message: Any

    def __repr__(self) -> str:
        return table(self)


@checks.called_here(
    **dict.fromkeys(("maxfev", "max_nfev"), "maxfun"),
    x_scale="nothing: parameters are scaled by their columns of the Jacobian",
)
def least_squares(
    residuals: Callable,
    x0: Any,
    args: tuple = (),
    *,
    jac: Any = None,
    bounds: Any = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 10_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    damping: float = 1e-3,
    acceleration: bool = True,
    batched: bool = False,
    compact: bool = False,
) -> LeastSquaresResult:
    """Minimise half the sum of the squares of residuals, for one problem or for many at once.

    By Levenberg and Marquardt's method; see `lbfgs_xp.levenberg_marquardt`.

    Parameters
    ----------
    residuals : function
        residuals(x, *args) -> real array (m,); for a batch (B, m).
    x0 : array of any shape, float; or a nested dict, list, tuple or dataclass of them
        The start. Its library and device are those of the whole run.
    args : tuple
        Further arguments of residuals (and jac).
    jac : None, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX). A function: jac(x, *args) -> (m, p), for a
        batch (B, m, p), over all p numbers of x in the order of its leaves. "2-point", "3-point":
        finite differences, p or 2p more evaluations each.
    bounds : None or (lower, upper)
        Each side is None, a number, an array that broadcasts to x0, or of the structure of x0 with
        such leaves. Infinities are no bounds. A start outside is moved to the nearest point inside.
    loss : "linear", "soft_l1", "huber" or "cauchy"
        What a residual r costs: with z = (r / f_scale)^2, half f_scale^2 times z,
        2 (sqrt(1 + z) - 1), z up to 1 and 2 sqrt(z) - 1 from there, or log(1 + z).
    f_scale : float
        From what size on a residual is an outlier, in the unit of the residuals.
    gtol : float
        Stop where `optimality` of the result is at most this: the step that is left is then, for
        each parameter, at most gtol sqrt(m - p) of its standard error. Default: eps^0.6 of
        the dtype, 4e-10 for float64.
    ftol, xtol : float
        Stop where in two steps running the cost falls by at most ftol cost, or x, in the scale of
        its parameters, moves by at most xtol |x|. With 0, the default, a run goes on until the
        gradient is small or the dtype cannot tell a better point.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets; maxfun and maxtime for a batch as a whole (in `curve_fit` maxfun for each piece).
        maxfun counts every call, those of differences included; only the start may exceed it, which
        is evaluated in any case.
    damping : float
        The damping at the start, relative to the squared norms of the columns of the Jacobian.
        Larger: shorter first steps.
    acceleration : bool
        Whether steps follow the curvature of the residuals, for one more evaluation each, after a
        step that their slopes told badly. Along narrow curved valleys that saves most of the steps.
    batched : bool
        x0 is (B, ...) and residuals maps it to (B, m): B independent problems, each with its own
        damping and status.
    compact : bool
        For a batch: whether residuals and jac may be called with some of the rows alone, in place
        of all B, so that those that have ended cost nothing more. Of `args` they then get those
        rows of arrays with two or more axes whose first counts B.

    Returns
    -------
    LeastSquaresResult

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What residuals or jac raise goes through, with the best point so far attached as the
        attribute `result` of the exception.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def rosenbrock(x):
    ...     return np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> res = lx.least_squares(rosenbrock, np.asarray([-1.2, 1.0]), jac="3-point")
    >>> bool(np.allclose(res.x, 1.0)), res.success
    (True, True)
    """
    if not isinstance(args, tuple):
        args = (args,)
    layout = Layout(x0, batched)
    objective = Residuals(residuals, args, jac, layout, layout.backend.is_compiled(residuals))
    how = plan(
        layout.backend, loss, f_scale, gtol, ftol, xtol, maxiter, maxfun, maxtime, damping,
        acceleration, compact,
    )
    return run(objective, bounds_of(bounds, layout), how)


class Plan(NamedTuple):
    """How to run: the settings and the budgets, checked; `end` is why to end at once, if so."""

    settings: lm.Settings
    maxfun: float
    deadline: float
    acceleration: bool
    compact: bool
    end: Status | None = None


def plan(
    backend: Backend, loss: str, f_scale: float, gtol: float | None, ftol: float, xtol: float,
    maxiter: int | None, maxfun: int | None, maxtime: float | None, damping: float,
    acceleration: bool, compact: bool,
) -> Plan:
    settings = lm.Settings(
        robust.check(loss),
        checks.number("f_scale", f_scale, above=0.0),
        checks.number("damping", damping, above=0.0),
        checks.tolerance("gtol", backend.eps**0.6 if gtol is None else gtol),
        checks.tolerance("ftol", ftol),
        checks.tolerance("xtol", xtol),
        _most(checks.budget("maxiter", maxiter, 0)),
    )
    limit = checks.optional(checks.seconds)("maxtime", maxtime)
    seconds = math.inf if limit is None else limit
    return Plan(
        settings, _most(checks.budget("maxfun", maxfun, 1)), time.perf_counter() + seconds,
        bool(acceleration), bool(compact),
    )


class _Outcome(NamedTuple):
    """What remains of each problem."""

    x: Array
    value: Array
    residuals: Array
    columns: Array
    optimality: Array
    nit: Array
    status: Array


def _outcome(state: lm.LMState) -> _Outcome:
    return _Outcome(
        state.x, state.value, state.residuals, state.columns, state.linear.optimality, state.nit,
        state.status,
    )


class _Steps:
    """The functions of `levenberg_marquardt`, for one space."""

    def __init__(self, settings: lm.Settings, space: Space):
        self.space, prepare = space, space.backend.jit
        self.begin = prepare(lm.begin, settings, space)
        self.going = prepare(lm.going, space)
        self._aim = prepare(lm.aim, False, space)
        self._aim_exactly = prepare(lm.aim, True, space)
        self.accelerate = prepare(lm.accelerate, settings, space)
        self.judge = prepare(lm.judge, settings, space)
        self.advance = prepare(lm.advance, settings, space)
        self.ahead = prepare(lm.ahead, settings, space)
        self.look = prepare(lm.look, settings, space)
        self._linearize = prepare(lm.linearize, settings, space)
        self._decompose = prepare(lm.decompose, settings, space)

    def aim(self, state: lm.LMState, box: Any, going: np.ndarray) -> lm.LMState:
        """The state with a step to try."""
        hard = going >= lm.HARD
        if not hard.any():
            return self._aim(state, box)
        if hard.all():
            return self._aim_exactly(state, box)
        rows = _padded(self.space.backend, np.flatnonzero(hard), hard.size)
        new = self._aim(state, box)
        exact = self._aim_exactly(*self.space.take((state, box), rows))
        return _replaced(self.space, rows, exact, new, "factor", "step", "trial", "predicted")

    def linearize(
        self, x: Array, residuals: Array, columns: Array, box: Any, largest: Any
    ) -> tuple[lm.Linear, bool]:
        """The linear residuals; and whether all are finite for certain. One read."""
        space = self.space
        arguments = (x, residuals, columns, box, largest)
        if x.shape[-1] > lm.FEW:
            return self._decompose(*arguments), False
        linear = self._linearize(*arguments)
        hard = space.backend.to_host(linear.hard)
        if not hard.any():
            return linear, True
        if hard.all():
            return self._decompose(*arguments), False
        # Few as a rule, and each costs as much as ten others.
        rows = _padded(space.backend, np.flatnonzero(hard), hard.size)
        exact = self._decompose(*space.take(arguments, rows))
        return space.put(rows, exact, linear), False


def _padded(backend: Backend, rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, the last repeated where each new shape would be compiled anew."""
    if not backend.compiles:
        return rows
    return np.concatenate([rows, np.full(compiled_size(rows.size, size) - rows.size, rows[-1])])


def _curved(backend: Backend, going: np.ndarray) -> Any:
    """The rows that look for curvature; None where it is better to ask for all."""
    rows = np.flatnonzero(going & lm.CURVED)
    few = going.size >= _FEWEST and 2 * rows.size <= going.size
    return rows if few and not backend.compiles else None


def _replaced(
    space: Space, rows: np.ndarray, new: lm.LMState, old: lm.LMState, *names: str
) -> lm.LMState:
    """The old state with those of its rows that are in `new`, in the fields of these names."""
    parts = space.put(
        rows, *(tuple(getattr(state, name) for name in names) for state in (new, old))
    )
    return old._replace(**dict(zip(names, parts, strict=True)))


def run(objective: Residuals, box: Any, plan: Plan) -> LeastSquaresResult:
    """The loop: one read for each evaluation, of the residuals or of their Jacobian.

    Problems that have ended leave the batch, where `plan.compact`.
    """
    # Trials that overflow are ordinary, so NumPy's warnings are off; but not inside the user's
    # functions, which run in the context of the caller.
    outside = contextvars.copy_context().run
    with np.errstate(all="ignore"):
        fit = _Fit(objective, box, plan, outside)
        end = plan.end
        try:
            while end is None and (going := fit.going()).any():
                if (end := fit.spent(fit.calls(going))) is None:
                    fit.advance(fit.compact(going))
            if end is None:
                fit.confirm()
        except KeyboardInterrupt:
            end = Status.INTERRUPTED
        except Exception as error:
            attach(error, fit.result(None), "the best point so far")
            raise
        return fit.result(end)


class _Fit:
    """One call of `run`, under way.

    objective, box : of all problems; here, box_here : of those in the batch.
    confirmed : the statuses, once those that have to be were confirmed.
    outside : calls a function of the user's.
    send, fetch : arrays to the user's functions, and from them, where the host does the algebra.
    """

    def __init__(self, objective: Residuals, box: Any, plan: Plan, outside: Callable):
        self.plan, self.outside = plan, outside
        self.objective = self.here = objective
        layout = objective.layout
        backend = outer = layout.backend
        x = backend.xp.reshape(layout.start(), (-1, layout.size))
        if box is not None:
            x = backend.xp.minimum(backend.xp.maximum(x, box[0]), box[1])
        untouched = backend.own(x)
        residuals = outside(objective, x)
        if not Space(backend).equal(x, untouched):
            raise ValueError(
                "residuals changed x in place; wanted a function that leaves its argument as it is"
            )
        columns = outside(objective.columns, x, residuals)

        # A small problem is quicker on the host, where nothing waits or is compiled.
        self.send = self.fetch = _same
        if not layout.batched and math.prod(columns.shape) <= _SMALL:
            self.send = functools.partial(outer.from_host, dtype=outer.dtype)
            self.fetch = outer.to_host
            x, residuals, columns = map(self.fetch, (x, residuals, columns))
            box = None if box is None else tuple(map(self.fetch, box))
            backend = Backend(x)
        # One problem is a batch of one: the same text serves both.
        self.space = Space(backend, batched=True)
        self.steps = _Steps(plan.settings, self.space)
        self.rows, self.sizes, self.box = Rows(), Sizes(backend), box
        self.box_here = box
        self.confirmed: np.ndarray | None = None
        linear, _ = self.steps.linearize(x, residuals, columns, box, None)
        self.state = self.steps.begin(x, residuals, columns, linear)

    def going(self) -> np.ndarray:
        """See `lm.going`."""
        return self.space.backend.to_host(self.steps.going(self.state))

    def calls(self, going: np.ndarray) -> int:
        """How often another step with its Jacobian calls the residuals."""
        return int(self._wants_probe(going)) + 1 + self.objective.calls_per_jacobian

    def spent(self, calls: int) -> Status | None:
        """Which budget does not allow so many calls; None: they do."""
        if self.objective.calls.nfev + calls > self.plan.maxfun:
            return Status.EVALUATIONS
        return Status.TIME if time.perf_counter() >= self.plan.deadline else None

    def compact(self, going: np.ndarray) -> np.ndarray:
        """Lets problems that have ended leave the batch, where enough have; `going` of the others.
        """
        size = going.size
        if self.plan.compact:
            size = self.sizes.next(size, int(np.count_nonzero(going)))
        if size == going.size:
            return going
        space, running = self.space, self.state.status == _RUNNING
        fewer, rest = self.rows.part(
            space, (self.state, self.box_here), running, size, lambda known: _outcome(known[0])
        )
        part = self.objective.take(space.backend.to_host(fewer.here))
        # In one statement, which no interruption can part.
        self.rows, self.here, (self.state, self.box_here) = fewer, part, rest
        return self.going()

    def advance(self, going: np.ndarray) -> None:
        """Tries one step of each problem."""
        space, steps, box = self.space, self.steps, self.box_here
        state = steps.aim(self.state, box, going)
        if self._wants_probe(going):
            state = self._bend(state, going)
        residuals = self._ask(self.here, state.trial)
        verdict = steps.judge(state, residuals)
        found: Any = None
        linear = None
        if space.any(verdict.accepted):
            # Where the trial was not accepted the model may have no value.
            at = space.pick(verdict.accepted, state.trial, state.x)
            known = space.pick(verdict.accepted, residuals, state.residuals)
            found = self._ask(self.here.columns, at, known)
            linear, finite = steps.linearize(at, known, found, box, state.linear.scale)
            if not finite:
                found = space.pick_rows(linear.finite, found, state.columns)
        self.state = steps.advance(state, verdict, residuals, found, linear)

    def _wants_probe(self, going: np.ndarray) -> bool:
        return self.plan.acceleration and bool((going & lm.CURVED).any())

    def _bend(self, state: lm.LMState, going: np.ndarray) -> lm.LMState:
        """The state with accelerated steps, where they are wanted."""
        space, box, here = self.space, self.box_here, self.here
        rows = _curved(space.backend, going) if self.plan.compact else None
        if rows is None:
            return self.steps.accelerate(state, self._ask(here, lm.probe(state)), box)
        near, box = space.take((state, box), rows)
        bent = self.steps.accelerate(near, self._ask(here.take(rows), lm.probe(near)), box)
        return _replaced(space, rows, bent, state, "step", "trial")

    def confirm(self) -> None:
        """Confirms or refutes that rounding ended a fit, by looks whether residuals and Jacobian
        agree ahead of it; where a budget does not allow one, that is what ended it."""
        space, backend = self.space, self.space.backend
        known = self.rows.join(space, _outcome(self.state))
        # Filled in place, so that an interruption loses nothing.
        self.confirmed = status = np.array(backend.to_host(known.status))
        for length in lm.lengths(backend.eps):
            rows = np.flatnonzero(status == CLAIMED)
            if not rows.size:
                break
            if end := self.spent(1 + self.objective.calls_per_jacobian):
                status[rows] = int(end)
                break
            at = (known.x, known.residuals, known.columns, self.box)
            objective, some = self.objective, self.plan.compact and not backend.compiles
            if some:
                at, objective = space.take(at, rows), objective.take(rows)
            *here, box = at
            ahead = self.steps.ahead(*here, box, length)
            found = self._ask(objective, ahead)
            columns = self._ask(objective.columns, ahead, found)
            looks = self.steps.look(*here, ahead, found, columns)
            agrees, lower = (
                look if some else look[rows] for look in map(backend.to_host, looks)
            )
            status[rows[agrees]] = int(Status.PRECISION)
            status[rows[lower]] = int(Status.LINE_SEARCH)
        status[status == CLAIMED] = int(Status.LINE_SEARCH)

    def _ask(self, function: Callable, *arrays: Array) -> Array:
        """What a function of the user's returns."""
        return self.fetch(self.outside(function, *map(self.send, arrays)))

    def result(self, end: Status | None) -> LeastSquaresResult:
        """The result; `end`: why problems that still run do so no longer."""
        backend = self.space.backend
        outcome = self.rows.join(self.space, _outcome(self.state))
        codes = self.confirmed
        if codes is None:
            codes = np.array(backend.to_host(outcome.status))
        codes[codes == CLAIMED] = _RUNNING
        if end is not None:
            codes[codes == _RUNNING] = int(end)
        jacobian = backend.xp.matrix_transpose(outcome.columns)
        statuses = [_STATUSES[int(code)] for code in codes]
        messages = [_MESSAGES.get(status, status.message) for status in statuses]
        layout, calls = self.objective.layout, self.objective.calls
        if layout.batched:
            success = np.asarray([status.success for status in statuses])
            return LeastSquaresResult(
                layout.to_tree(outcome.x), outcome.value, outcome.residuals, jacobian,
                outcome.optimality, outcome.nit, calls.nfev, calls.njev,
                backend.from_host(success, backend.xp.bool),
                backend.from_host(codes, backend.xp.int32), messages,
            )
        numbers = (outcome.value, outcome.optimality, outcome.nit)
        cost, optimality, nit = (backend.to_host(number)[0] for number in numbers)
        x, residuals, jacobian = (
            self.send(array)[0, ...] for array in (outcome.x, outcome.residuals, jacobian)
        )
        return LeastSquaresResult(
            layout.to_tree(x), float(cost), residuals, jacobian, float(optimality), int(nit),
            calls.nfev, calls.njev, statuses[0].success, statuses[0], messages[0],
        )


def _same(array: Array) -> Array:
    return array


# --- the arguments -----------------------------------------------------------------------------


def bounds_of(bounds: Any, layout: Layout) -> Any:
    """None, or the bounds as two arrays (B, p)."""
    if bounds is None:
        return None
    lower, upper = checks.bounds(bounds)
    box = Box(
        layout.spread(lower, "the lower bound", -math.inf),
        layout.spread(upper, "the upper bound", math.inf),
    )
    shape = (*layout.batch, layout.size) if layout.batched else (1, layout.size)
    xp, backend = layout.xp, layout.backend
    return tuple(
        xp.broadcast_to(backend.adopt(side, "bounds"), shape)
        for side in (box.lower, box.upper)
    )


def _most(limit: int | None) -> int:
    # Counts of a batch are 32-bit integers.
    unlimited = 2**31 - 1
    return unlimited if limit is None else min(limit, unlimited)
