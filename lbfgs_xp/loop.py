"""What the loop of `minimize` joins: an objective, a solver and the rules for stopping."""

from __future__ import annotations

import contextvars
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp import agreement, stopping
from lbfgs_xp.auxiliary import Auxiliary
from lbfgs_xp.backend import Array
from lbfgs_xp.methods import Plan, Stage
from lbfgs_xp.objective import Objective
from lbfgs_xp.phases import joined
from lbfgs_xp.result import CLAIMED, Best, Record, Result, State, Status
from lbfgs_xp.rows import Rows, Sizes
from lbfgs_xp.scalars import named
from lbfgs_xp.solvers.contract import optimality
from lbfgs_xp.space import Space
from lbfgs_xp.stopping import Criteria, Progress

_RUNNING, _LINE_SEARCH = int(Status.RUNNING), int(Status.LINE_SEARCH)
_GRADIENT, _EVALUATIONS = int(Status.GRADIENT), int(Status.EVALUATIONS)
_PRECISION, _NOT_FINITE = int(Status.PRECISION), int(Status.NOT_FINITE)
_HIGHER = int(Status.HIGHER)
_SUCCESSES = [int(member) for member in Status if member.success]
# How often a run may set out again from its best point.
_DEPARTURES = 10
# Finite trials of one search after which differences are no longer trusted.
_DOUBTFUL = 8
# How often gtol must go into the error of a forward difference before a small one is not believed.
# Where f is of order 1 it does so twice, and a small one is right as a rule.
_BLIND = 100.0


class _Now(NamedTuple):
    """Where a run stands: all that one evaluation changes."""

    solver: Any
    progress: Progress
    best: Best


class Run:
    """One call of `minimize`, under way."""

    def __init__(self, plan: Plan, space: Space, objective: Objective, hess: Any):
        self.plan = plan
        self.space = space
        self.objective = objective
        self.layout = objective.layout
        self.now: Any = None    # a _Now, once the start is known
        self.rows, self.sizes = Rows(), Sizes(space.backend)
        self._stepping = False
        # Runs the user's functions as the caller of `minimize` would.
        self.outside = contextvars.copy_context().run
        self._last_deadline = time.perf_counter() + plan.maxtime
        # All of them now, so that what a later phase lacks is told before the first one runs.
        self._ahead = [(stage, *self._prepared(stage, hess)) for stage in plan.stages]
        self._ended: list[Result] = []
        self._forward = objective.forward
        self._enter()

    def _prepared(self, stage: Stage, hess: Any) -> tuple[Callable, Callable]:
        """Of a phase: `_init`, and from its solver to `_after`."""
        solver, space = stage.solver, self.space
        more: dict[str, Any] = {}
        if getattr(solver, "needs_hessian", False):
            hessian = self.objective.hessian(hess)
            more["hessian"] = lambda x: self.outside(hessian, x)
        # One problem runs on Python floats and branches, which nothing can compile, and a Hessian
        # is a function of the user's.
        compiled = space.batched and _compilable(solver) and not space.reproducible
        prepare = space.backend.jit if compiled else functools.partial

        def after(solver: Any) -> Callable:
            return functools.partial(
                prepare(_after, solver, space, stage.criteria.xtol > 0.0), **more
            )

        return functools.partial(prepare(_init, solver, space), **more), after

    def _enter(self) -> None:
        """Makes the next phase the one under way."""
        stage, self._init, self._after_of = self._ahead.pop(0)
        self.method, self.solver, self.criteria = stage.name, stage.solver, stage.criteria
        if self.objective.differs:
            self._differ(self._forward)
        self._after = self._after_of(self.solver)
        self.deadline = min(self._last_deadline, time.perf_counter() + stage.maxtime)
        self._departures: Any = 0

    def begin(self, x: Array, state: State | None) -> None:
        """Evaluates the start, or where an earlier run stands."""
        space, solver, objective = self.space, self.solver, self.objective
        start, pairs, earlier = x, None, None
        if state is not None:
            state = _checked(state, x, self.method, solver, space)
            if objective.forward and state.central:
                self._differ(False)
            pairs = solver.pairs(space, state.solver)
            earlier = state if space.equal(x, state.best.x) else None
        if earlier is not None:
            start = earlier.solver.x
        if hasattr(solver, "project") and (earlier is None or earlier.method != solver):
            start = solver.project(space, start)
        untouched = space.backend.own(start)
        value, gradient, aux = self.outside(objective, start)
        if not space.equal(start, untouched):
            raise ValueError(
                "fun changed x in place; wanted a function that leaves its argument as it is"
            )
        inner = self._init(start, value, gradient, pairs)
        best = Best(start, inner.value, gradient, inner.gradient_norm, inner.value)
        self.aux = Auxiliary(aux)
        if space.batched:
            self.aux = Auxiliary.of(aux, space, self.layout.batch[0])
        if (
            earlier is not None
            and earlier.method == solver
            and space.equal(inner.value, earlier.solver.value)
            and space.equal(inner.gradient, earlier.solver.gradient)
        ):
            # A state may serve several runs, and a run overwrites its pairs in place.
            inner = solver.resume(earlier.solver)
            best, self.aux = earlier.best, self.aux._replace(value=earlier.aux)
        extent = space.read_one(space.max_abs(start))
        progress = stopping.start(
            space.scalars, self.criteria, inner.value, inner.gradient_norm, extent, objective.nfev
        )
        self.now = _Now(inner, progress, best)
        self._departed = inner.value

    def goes_on(self) -> bool:
        """Whether something runs, or sets out again now that nothing does."""
        while not self.running():
            self.confirm()
            if self.go_on_from_best() or self.sharpen():
                return True
            if not self.next_phase():
                return False
        return True

    def running(self) -> bool:
        """Whether some problem has not stopped: the one read of an evaluation of a batch, from
        which rows leave where enough are done."""
        space, status = self.space, self.now.progress.status
        if not space.batched:
            return status == _RUNNING
        running = status == _RUNNING
        count, size = space.count(running), status.shape[0]
        if count == 0:
            return False
        fewer = self.sizes.next(size, count)
        if fewer < size:
            self._go_on_with(*self.rows.part(space, self._known(), running, fewer))
        return True

    def _whole(self) -> None:
        """Puts the rows that have left back into the batch."""
        if self.rows.here is not None:
            self._go_on_with(Rows(), self.rows.join(self.space, self._known()))

    def _known(self) -> tuple[_Now, Criteria, tuple]:
        """All that has an entry for each row of the batch."""
        return self.now, self.criteria, self.aux.rows()

    def _go_on_with(self, rows: Rows, known: tuple[_Now, Criteria, tuple]) -> None:
        """Makes these rows, of which this is known, the batch."""
        space, (now, criteria, of_rows) = self.space, known
        aux = self.aux.with_rows(of_rows)
        # In one statement, which no interruption can part.
        self.rows, self.now, self.criteria, self.aux = rows, now, criteria, aux
        self.objective.of_rows(None if rows.here is None else space.send(rows.here))
        if hasattr(self.solver, "of_rows"):
            self._after = self._after_of(self._solver_here())

    def _solver_here(self) -> Any:
        """The solver of the rows that make up the batch."""
        if self.rows.here is None or not hasattr(self.solver, "of_rows"):
            return self.solver
        return self.solver.of_rows(self.space, self.layout.batch[0], self.rows.here)

    def advance(self) -> bool:
        """One evaluation and what follows from it; whether an iteration may have ended."""
        before = self.objective.nfev
        value, gradient, aux = self.outside(self.objective.evaluate, self.now.solver.trial)
        count = self.objective.nfev - before
        self._stepping = True
        now, better = self._after(self.now, self.criteria, value, gradient, count)
        self._stepping = False
        aux = self._of_best(aux, better) if self.objective.has_aux else self.aux
        # In one statement, which no interruption can part.
        self.now, self.aux = now, aux
        return self.space.batched or self.now.solver.accepted

    def mend(self) -> None:
        """After an interruption within a step, which may have overwritten half of what the solver
        has learned: it sets out afresh from its iterate."""
        if not self._stepping:
            return
        self._whole()
        state = self.now.solver
        fresh = self._afresh(state.x, state.value, state.gradient)
        self.now, self._stepping = self.now._replace(solver=fresh), False

    def _afresh(self, x: Array, value: Any, gradient: Array) -> Any:
        """The solver at x, without what it has learned of the curvature. What its last step
        promised is kept: a new one promises nothing yet, and a failure is judged by it."""
        fresh = self._init(x, self._public(value), gradient, None)
        return fresh._replace(decrement=self.now.solver.decrement)

    def _of_best(self, value: Any, better: Any) -> Auxiliary:
        """The auxiliary output of the better point; in a batch, of each problem on its own."""
        space, old = self.space, self.aux
        if not space.batched:
            return Auxiliary(value) if better else old
        new = old.followed_by(value, space, self.now.progress.status.shape[0])
        kept = [i for i, place in enumerate(old.places) if place in new.places]
        if len(kept) < len(old.places):
            old = old._replace(places=new.places)
            left = tuple(
                (numbers, (now, criteria, tuple(of_rows[i] for i in kept)))
                for numbers, (now, criteria, of_rows) in self.rows.left
            )
            self.rows, self.aux = self.rows._replace(left=left), old
        return new.with_rows(space.merge(better, new.rows(), old.rows()))

    def confirm(self) -> None:
        """Confirms or refutes that rounding ended a run, by looks ahead along the gradient; where a
        budget does not allow one, that is what ended it."""
        self._whole()
        fn, p = self.space.scalars, self.now.progress
        p = p._replace(status=fn.where(p.status == CLAIMED, _RUNNING, p.status))
        lengths = agreement.lengths(self.space.backend.eps)
        for length in lengths:
            unpaid = p.nfev + self.criteria.calls_per_trial > self.criteria.maxfun
            status = fn.where(unpaid & (p.status == _RUNNING), _EVALUATIONS, p.status)
            self.now = self.now._replace(progress=p._replace(status=status))
            if time.perf_counter() >= self.deadline:
                self.end(Status.TIME)
            if not self.running():
                return
            self._look(length, length == lengths[0])
            p = self.now.progress
        self.end(Status.LINE_SEARCH)

    def _look(self, length: float, first: bool) -> None:
        """One evaluation, for runs to be confirmed; it decides some of them."""
        space, objective, criteria = self.space, self.objective, self.criteria
        fn, solver, (state, p, best) = space.scalars, self._solver_here(), self.now
        x = agreement.ahead(solver, space, state.x, state.gradient, p.extent, length)
        before = objective.nfev
        value, gradient, aux = self.outside(objective, x)
        look = agreement.look(space, state, x, value, gradient)
        running = p.status == _RUNNING
        # Hidden at once, nothing speaks against it; later, all that was to be seen did.
        hidden = fn.full(_PRECISION if first else _LINE_SEARCH, p.status)
        status = fn.where(running & look.agrees, _PRECISION, p.status)
        status = fn.where(running & fn.logical_not(look.visible), hidden, status)
        status = fn.where(running & look.lower, _HIGHER, status)
        nfev = fn.where(running, p.nfev + (objective.nfev - before), p.nfev)
        seen = state._replace(seen=look.value, accepted=fn.full(False, look.value))
        best, better = _better(solver, space, criteria, best, x, seen, gradient, running)
        of_best = self._of_best(aux, better) if objective.has_aux else self.aux
        # In one statement, which no interruption can part.
        self.now, self.aux = _Now(state, p._replace(status=status, nfev=nfev), best), of_best

    def go_on_from_best(self) -> bool:
        """Sets out again from the best point where a run has settled elsewhere.

        A trial that was passed over may be lower than all that came after it, in another valley.
        From a point that it has set out from before, the run would only go the same way again.
        """
        self._whole()
        if not getattr(self.solver, "searches", True):
            return False
        space, fn, (state, p, best) = self.space, self.space.scalars, self.now
        limit = best.value + 4.0 * self.criteria.noise * fn.abs(best.value)
        looked = p.status == _HIGHER
        elsewhere = (_succeeded(p.status) & (state.value > limit)) | looked
        if not space.any(elsewhere):
            return False
        p = p._replace(status=fn.where(elsewhere, _HIGHER, p.status))
        self.now = self.now._replace(progress=p)
        elsewhere = elsewhere & (best.value < self._departed) & (self._departures < _DEPARTURES)
        if not space.any(elsewhere):
            return False
        self._departures = fn.where(elsewhere, self._departures + 1, self._departures)
        self._departed = fn.where(elsewhere, best.value, self._departed)
        fresh = self._afresh(best.x, best.value, best.gradient)
        norm = fresh.gradient_norm
        again = stopping.again(fn, self.criteria, p, fresh.value, norm, 0)
        # A look has found the gradient to be right, however large it was elsewhere.
        highest = fn.where(looked, norm, fn.maximum(p.highest_norm, norm))
        again = again._replace(highest_norm=highest)
        self.now = space.merge(elsewhere, _Now(fresh, again, best), _Now(state, p, best))
        return self.running()

    def sharpen(self) -> bool:
        """Goes on with central differences where the error of forward ones may be all that ended
        a run: a failed search, or a gradient that is small next to what they can tell. Where a
        budget does not allow it, that gradient is no success."""
        objective = self.objective
        if not objective.forward:
            return False
        self._whole()
        space, criteria, (state, p, best) = self.space, self.criteria, self.now
        fn = space.scalars
        # That of rounding, eps |f| at either end of steps of sqrt(eps), at the least.
        error = 2.0 * space.backend.eps**0.5 * fn.abs(best.value)
        small = (p.status == _GRADIENT) & (error > _BLIND * criteria.gtol)
        unpaid = p.nfev + objective.calls_per_trial(forward=False) > criteria.maxfun
        late = fn.full(time.perf_counter() >= self.deadline, p.nfev)
        doubted = (small | (p.status == _LINE_SEARCH)) & fn.logical_not(unpaid | late)
        status = fn.where(small & late, int(Status.TIME), p.status)
        status = fn.where(small & unpaid, _EVALUATIONS, status)
        p = p._replace(status=status)
        self.now = self.now._replace(progress=p)
        if not space.any(doubted):
            return False
        self._differ(False)
        before = objective.nfev
        _, gradient, _ = self.outside(objective, best.x)
        fresh = self._afresh(best.x, best.value, gradient)
        norm, count = fresh.gradient_norm, objective.nfev - before
        again = stopping.again(fn, self.criteria, p, fresh.value, norm, count)
        # Where the differences look past the end of the domain, it ends as it did.
        beyond = again.status == _NOT_FINITE
        flat = state.gradient_norm <= criteria.gtol
        ended = fn.where(flat, fn.full(_GRADIENT, again.status), _LINE_SEARCH)
        status = fn.where(beyond, ended, again.status)
        again = again._replace(status=status, highest_norm=fn.maximum(p.highest_norm, norm))
        p = space.merge(doubted, again, p)
        sharper = best._replace(gradient=gradient, gradient_norm=norm)
        known = doubted & fn.logical_not(beyond)
        self.now = space.merge(known, _Now(fresh, p, sharper), _Now(state, p, best))
        return self.running()

    def _differ(self, forward: bool) -> None:
        """Takes the gradient by forward or by central differences."""
        self.objective.forward, eps = forward, self.space.backend.eps
        self.criteria = self.criteria._replace(
            calls_per_trial=self.objective.calls_per_trial(forward), trials=_DOUBTFUL,
            # Forward ones are doubted wherever they fail; so their error is no excuse. That of
            # central ones is eps^(2/3) where third derivatives are of the order of f, mostly less.
            forward=forward, error=eps if forward else 0.1 * eps ** (2 / 3),
        )

    def next_phase(self) -> bool:
        """Begins the next phase, at the best point so far; whether there is one."""
        self._whole()
        if not self._ahead:
            return False
        space, objective, (_, p, best) = self.space, self.objective, self.now
        fn, ended, before = space.scalars, self._phase(), objective.nfev
        x, value, gradient, aux = best.x, self._public(best.value), best.gradient, self.aux
        solver = self._ahead[0][0].solver
        if hasattr(solver, "project"):
            x = solver.project(space, x)
        moved = not space.equal(x, best.x)
        if moved:
            value, gradient, found = self.outside(objective, x)
            aux = aux._replace(value=found)
        self._ended.append(ended)
        self._enter()
        self.criteria = stopping.later(fn, self.criteria, p, self.plan.maxiter, self.plan.maxfun)
        inner = self._init(x, value, gradient, None)
        norm, count = inner.gradient_norm, objective.nfev - before
        p = stopping.again(fn, self.criteria, p, inner.value, norm, count)
        best = Best(x, inner.value, gradient, norm, inner.value if moved else best.lowest)
        self.now, self.aux, self._departed = _Now(inner, p, best), aux, inner.value
        return True

    def end(self, status: Status) -> None:
        """Ends what still runs, or was not confirmed."""
        p = self.now.progress
        running = (p.status == _RUNNING) | (p.status == CLAIMED)
        ended = self.space.scalars.where(running, int(status), p.status)
        self.now = self.now._replace(progress=p._replace(status=ended))

    def stop(self, status: Status) -> None:
        """Ends the run: what still runs, and what later phases were meant to go on with."""
        if self._ahead:
            self._whole()
            fn, p = self.space.scalars, self.now.progress
            # These are beyond help.
            lost = (p.status == int(Status.NOT_FINITE)) | (p.status == int(Status.UNBOUNDED))
            p = p._replace(status=fn.where(lost, p.status, _RUNNING))
            self.now = self.now._replace(progress=p)
        self.end(status)

    def record(self) -> Record:
        shown = self.rows.join(self.space, _shown(self.now), lambda left: _shown(left[0]))
        # A copy, for the callback may do with it what it likes.
        x = self.space.backend.own(shown.x)
        return Record(self.layout.to_tree(x), *(self._public(scalar) for scalar in shown[1:]))

    def result(self) -> Result:
        last = self._phase()
        return last if len(self.plan.stages) == 1 else joined([*self._ended, last])

    def _phase(self) -> Result:
        """The result of the phase under way; its counts are those of the run so far."""
        self._whole()
        space, layout = self.space, self.layout
        state, p, best = self.now
        status: Any
        message: Any
        code = space.scalars.where(p.status == CLAIMED, _RUNNING, p.status)
        success = _succeeded(code)
        norm = space.read(optimality(self.solver, space, best.x, best.gradient))[0]
        if space.batched:
            status, message = code, _messages(space, code)
        else:
            status = Status(code)  # type: ignore[call-arg]
            message = status.message
        own = space.backend.own    # the state goes on to hold the others
        return Result(
            x=layout.to_tree(own(best.x)),
            fun=self._public(best.value),
            jac=layout.to_tree(own(best.gradient)),
            gradient_norm=self._public(norm),
            nit=self._public(p.nit),
            nfev=self._public(p.nfev),
            nhev=self.objective.nhev,
            success=self._public(success),
            status=self._public(status),
            message=message,
            aux=self.aux.value,
            hess_inv=self._inverse_hessian(),
            state=State(
                self.solver, space, state, best, self.aux.value,
                self._forward and not self.objective.forward,
            ),
        )

    def _inverse_hessian(self) -> Any:
        make = getattr(self.solver, "inverse_hessian", None)
        if make is None:
            return None
        return make(self.space, self.now.solver).named(self.layout.to_tree)

    def _public(self, scalar: Any) -> Any:
        """A scalar of each problem as the user sees it."""
        return self.space.send(scalar) if self.space.batched else scalar


def _shown(now: _Now) -> Record:
    """What a record shows of a run."""
    state, p = now.solver, now.progress
    return Record(state.x, state.value, state.gradient_norm, state.step, p.nit, p.nfev)


def _init(
    solver: Any, space: Space, x: Array, value: Any, gradient: Array, pairs: Any, **more: Any
) -> Any:
    known = () if pairs is None else (pairs,)
    return solver.init(space, x, value, gradient, *known, **more)


def _after(
    solver: Any, space: Space, measure_steps: bool, now: _Now, criteria: Criteria, value: Any,
    gradient: Array, count: int, hessian: Any = None,
) -> tuple[_Now, Any]:
    """Where a run stands once value and gradient at the trial are known, and whether the trial is
    the best point. Pure, but for the buffers of the pairs."""
    running = now.progress.status == _RUNNING
    if hessian is None:
        state = solver.step(space, now.solver, value, gradient, running)
    else:
        state = solver.step(space, now.solver, value, gradient, running, hessian=hessian)
    if space.batched and not (space.reproducible or _compilable(solver)):
        # What can be compiled of the iteration, apart from the solver.
        account = space.backend.jit(_account, solver, space, measure_steps)
        progress, best, better = account(
            criteria, now.progress, now.best, _seen(now.solver), _seen(state), gradient, count
        )
    else:
        progress, best, better = _account(
            solver, space, measure_steps, criteria, now.progress, now.best, now.solver, state,
            gradient, count,
        )
    return named(_Now, (state, progress, best)), better


class _Seen(NamedTuple):
    """What `_account` looks at: see `lbfgs_xp.solvers.contract`."""

    x: Array
    value: Any
    gradient_norm: Any
    trial: Array
    seen: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


def _seen(state: Any) -> _Seen:
    return _Seen(*(getattr(state, name) for name in _Seen._fields))


def _compilable(solver: Any) -> bool:
    """Whether a step can be compiled: a Hessian is a function of the user's, and some solvers work
    on the host."""
    return getattr(solver, "compiles", True) and not getattr(solver, "needs_hessian", False)


def _account(
    solver: Any, space: Space, measure_steps: bool, criteria: Criteria, progress: Progress,
    best: Best, old: Any, new: Any, gradient: Array, count: int,
) -> tuple[Progress, Best, Any]:
    """What a step means for the run, and whether the trial is the best point."""
    fn = space.scalars
    running = progress.status == _RUNNING
    step = size = None
    if measure_steps:
        step, size = space.read(space.max_abs(new.x - old.x), space.max_abs(new.x))
    progress = stopping.update(fn, criteria, progress, old, new, step, size, count)
    best, better = _better(solver, space, criteria, best, old.trial, new, gradient, running)
    return progress, best, better


def _better(
    solver: Any, space: Space, criteria: Criteria, best: Best, trial: Array, state: Any,
    gradient: Array, running: Any,
) -> tuple[Best, Any]:
    """The best point, now that the trial was seen, and whether it is the trial.

    The lower value wins; of those that agree with the lowest to rounding, the smallest gradient.
    """
    fn = space.scalars
    value = state.seen
    taken = state.accepted & (state.value == value)
    slack = 2.0 * criteria.noise
    margin = slack * fn.abs(best.lowest)
    if fn.every(taken & running & (value < best.lowest - margin)):
        return named(Best, (trial, value, gradient, state.gradient_norm, value)), taken
    near = running & (value <= best.lowest + margin)
    if fn.every(fn.logical_not(near)):
        return best, near
    norm = space.read_one(optimality(solver, space, trial, gradient))
    usable = near & fn.isfinite(value) & fn.isfinite(norm)
    lowest = fn.where(usable & (value < best.lowest), value, best.lowest)
    limit = lowest + slack * fn.abs(lowest)
    better = usable & (value <= limit) & ((norm < best.gradient_norm) | (best.value > limit))
    if fn.every(fn.logical_not(better)):
        return best._replace(lowest=lowest), better
    best = Best(
        space.pick(better, trial, best.x),
        fn.where(better, value, best.value),
        space.pick(better, gradient, best.gradient),
        fn.where(better, norm, best.gradient_norm),
        lowest,
    )
    return best, better


def _succeeded(status: Any) -> Any:
    """Which problems ended where they were meant to, from the integers of their statuses."""
    success = status != status
    for code in _SUCCESSES:
        success = success | (status == code)
    return success


def _messages(space: Space, status: Array) -> list[str]:
    messages = {int(member): member.message for member in Status}
    codes = status if space.on_host else space.backend.to_host(status)
    return [messages[int(code)] for code in codes]


def _checked(state: Any, x: Array, method: str, solver: Any, space: Space) -> State:
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}; wanted the `state` of a Result")
    old = getattr(state.solver, "x", None)
    if old is None or type(old) is not type(x) or old.shape != x.shape or old.dtype != x.dtype:
        raise ValueError(
            "state belongs to other variables: "
            f"{getattr(old, 'dtype', None)} {tuple(getattr(old, 'shape', ()))}; "
            f"wanted {x.dtype} {tuple(x.shape)}, like x0"
        )
    if state.space != space:
        raise ValueError(
            f"state comes from a run in {state.space!r}; wanted one in {space!r}, as this run is"
        )
    if not hasattr(solver, "check_state"):
        raise ValueError(f"state was passed, but {method} cannot go on from one")
    solver.check_state(state.solver)
    return state
