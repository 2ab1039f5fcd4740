"""A run of `minimize`, which combines an objective, a solver and the stopping rules."""

from __future__ import annotations

import contextvars
import functools
import math
import time
from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays.backend import Array, dtype_name, library_of
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.rows import Rows, Sizes
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.distributed.team import Team
from lbfgs_xp.result import BatchResult, Best, Record, Result, State, Status, joined
from lbfgs_xp.run import compiled, programs, stopping
from lbfgs_xp.run.aux_output import AuxOutput
from lbfgs_xp.run.curvature import Curvature
from lbfgs_xp.run.differences import Known
from lbfgs_xp.run.iteration import (
    Standing,
    after_evaluation,
    is_compilable,
    solver_state_at,
    succeeded,
)
from lbfgs_xp.run.lowest import followed
from lbfgs_xp.run.objective import Objective
from lbfgs_xp.run.plan import Plan, Stage
from lbfgs_xp.run.second_look import SecondLook
from lbfgs_xp.run.snapshot import Snapshot
from lbfgs_xp.run.stopping import Criteria, Progress
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.inverse_hessian import ScaledInverseHessian

_RUNNING = int(Status.RUNNING)
_MESSAGES = {int(member): member.message for member in Status}
# Finite trials in one search after which finite differences are no longer trusted.
_DOUBTFUL = 8


class Run:
    """One call of `minimize` in progress.

    standing, second_look : a `Standing` and a `SecondLook`; None before the start is evaluated.
    rows : which rows of a batch are left.
    deadline : when the current phase must end, by time.perf_counter().
    team : the other processes; None for a run of one process.
    """

    def __init__(
        self, plan: Plan, space: Space, objective: Objective, hess: Any, hessp: Any = None,
        team: Team | None = None,
    ):
        self.plan = plan
        self.team = team
        self.space = space
        self.objective = objective
        self.layout = objective.layout
        self.standing: Any = None
        self.second_look: Any = None
        self.rows, self.sizes = Rows(), Sizes(space.backend)
        self._in_step = False
        self._hess, self._hessp = hess, hessp
        # The array of statuses that was read last, and what was read.
        self._read: tuple[Any, Any] = (None, None)
        # Runs the user's functions in the context of the caller of `minimize`.
        self.in_caller_context = contextvars.copy_context().run
        self._last_deadline = time.perf_counter() + plan.maxtime
        # Prepare all stages now, so that errors in a later one are raised before the first runs.
        self._ahead = [(stage, *self._prepared(stage, hess)) for stage in plan.stages]
        self.ended: list[Result] = []
        # Noise spoils forward differences.
        self._forward = objective.forward and plan.noise.apart is None
        objective.forward, objective.watch = self._forward, self._watch
        self.enter_stage()

    def _prepared(self, stage: Stage, hess: Any) -> tuple[Callable, Callable]:
        """`solver_state_at` for a stage, and the function from its solver to `after_evaluation`."""
        solver, space = stage.solver, self.space
        more: dict[str, Any] = {}
        if solver.needs_hessian:
            hessian = self.objective.hessian(hess)
            more["hessian"] = lambda x: self.in_caller_context(hessian, x)
        if solver.needs_products:
            more["products"] = self._products(hess)
        # A single problem runs on Python floats and branches, which cannot be compiled, and a
        # Hessian is a user's function.
        prepare: Any = functools.partial
        if space.batched and is_compilable(solver) and not space.reproducible:
            prepare = functools.partial(space.backend.jit, steps=math.prod(self.layout.shape))

        def after(solver: Solver) -> Callable:
            measure_steps = stage.criteria.xtol > 0.0
            return functools.partial(
                prepare(after_evaluation, solver, space, measure_steps), **more
            )

        return functools.partial(prepare(solver_state_at, solver, space), **more), after

    def _products(self, hess: Any) -> Callable[[Array, Array], Callable[[Array], Array]]:
        """The function from x and its gradient to that from a vector to the Hessian times it."""
        call, space = self.in_caller_context, self.space
        if self._hessp is None and hess is not None:
            hessian = self.objective.hessian(hess)

            def by_matrix(x: Array, gradient: Array) -> Callable[[Array], Array]:
                return functools.partial(space.products, call(hessian, x))

            return by_matrix
        products = self.objective.products(self._hessp)

        def at(x: Array, gradient: Array) -> Callable[[Array], Array]:
            return functools.partial(call, call(products, x, gradient))

        return at

    def enter_stage(self) -> None:
        """Make the next stage the current one."""
        stage, self.state_at, self._after_of = self._ahead.pop(0)
        self.method, self.solver, self.criteria = stage.name, stage.solver, stage.criteria
        if self.objective.differs:
            self.set_differences(self._forward)
        self._after = self._after_of(self.solver)
        self._pure = None
        if is_compilable(self.solver) and not self.space.reproducible and self.team is None:
            self._pure = self.objective.pure()
        self.deadline = min(self._last_deadline, time.perf_counter() + stage.maxtime)

    def set_differences(self, forward: bool) -> None:
        """Take the gradient by forward or by central differences from now on."""
        self.objective.forward, eps = forward, self.space.backend.eps
        self.criteria = self.criteria._replace(
            calls_per_trial=self.objective.calls_per_trial(forward), trials=_DOUBTFUL,
            # Forward differences are doubted whenever they fail, so their error is no excuse. For
            # central ones it is eps^(2/3) if third derivatives are of the order of f, mostly less.
            lost=0.0 if self._forward and not forward else self.criteria.lost, forward=forward,
            error=eps if forward else 0.1 * eps ** (2 / 3),
            relative=8.0 * eps**0.5 if self.criteria.relative > 0.0 else 0.0,
        )

    # --- beginning -----------------------------------------------------------------------------

    def begin(self, x: Array, state: State | None) -> None:
        """Evaluate the start, or the iterate of an earlier run."""
        space, solver, objective = self.space, self.solver, self.objective
        start, learned = x, None
        earlier: State | None = None    # the state, if the same solver goes on from it
        at_best: Any = False
        if state is not None:
            state = _checked_state(state, x, self.method, solver, space, self.layout)
            space.queue.take_over(state.space.queue)
            if state.differences is not None:
                objective.differences.known = state.differences
            if objective.forward and state.central:
                self.set_differences(forward=False)
            learned = solver.learned(space, state.solver_state)
            # If the iterate is the best point, the start is the same whatever the answer.
            compare = space.equal_later if state.solver_state.x is state.best.x else space.equal
            at_best = compare(x, state.best.x)
            earlier = state if state.solver == solver else None
            if at_best is True:
                start = state.solver_state.x
        if solver.projects and not (earlier is not None and now(at_best)):
            start = solver.project(space, start)
        untouched = space.backend.own(start)
        began = time.perf_counter()
        value, gradient, aux, _ = self.evaluate(start)
        if self._pure is not None or (space.backend.compiles and len(self.plan.stages) > 1):
            # A later stage may run compiled where the first does not.
            space.backend.to_host(value)    # waits
            self._chunk = compiled.Chunk(time.perf_counter() - began)
        unchanged = space.equal_later(start, untouched)
        (extent,) = space.later(space.max_abs(start))
        change: Any = None
        if earlier is not None:
            (change,) = space.later(space.max_abs(gradient - earlier.solver_state.gradient))
        noise = self._noise_for(self.plan.noise.apart)
        inner = self.state_at(start, value, gradient, learned, **noise)
        if not now(unchanged):
            raise ValueError(
                "fun changed x in place; wanted a function that leaves its argument unchanged"
            )
        best = Best(start, inner.value, gradient, inner.gradient_norm, inner.value)
        self.aux = AuxOutput(aux)
        if space.batched:
            self.aux = AuxOutput.of(aux, space, self.layout.batch[0])
        resumed = None
        if earlier is not None and now(at_best) and not space.any(stopping.differ(
            space.scalars, self.criteria, earlier.progress, earlier.solver_state.value,
            inner.value, now(change),
        )):
            # Several runs may resume from a state, and each overwrites what it has learned.
            inner = solver.resume(earlier.solver_state)
            resumed = earlier.progress
            if earlier.differences is not None:
                # What they have just measured once more.
                objective.differences.known = earlier.differences
            best, self.aux = earlier.best, self.aux._replace(value=earlier.aux)
        progress = stopping.start(
            space.scalars, self.criteria, inner.value, inner.gradient_norm, now(extent),
            objective.nfev, self.plan.noise.apart, resumed,
        )
        objective.in_products = 0
        self.standing = Standing(inner, progress, best)
        self.second_look = SecondLook(self)
        if resumed is not None and earlier is not None and earlier.looks is not None:
            self.second_look.memory = earlier.looks
        if objective.differs and resumed is None:
            if self.plan.noise.apart is None:
                self.second_look.noise.look_at_differences()
            elif self.solver.takes_noise:
                self.second_look.restarts.among_noise(self.standing.progress.status == _RUNNING)

    def try_at(self, x: Array) -> tuple[Any, Any, float]:
        """Value and aux at x, and how many seconds they take."""
        began, aux, objective = time.perf_counter(), None, self.objective
        if objective.differs and not objective.has_aux:
            value, _ = self.value_at(x)
        else:
            value, _, aux, _ = self.evaluate(x)
        if self._pure is not None:
            self.space.backend.to_host(value)    # waits
        return value, aux, time.perf_counter() - began

    def resume_at(self, saved: Snapshot, aux: AuxOutput, seconds: float) -> None:
        """Stand where another run stood. An evaluation takes about so many seconds."""
        self.standing, self.criteria, self.aux = saved.standing, saved.criteria, aux
        self.second_look = SecondLook(self)
        self._chunk = compiled.Chunk(seconds)
        if saved.rows.here is not None:
            self._set_rows(saved.rows, self._per_row())

    def is_at(self, position: Snapshot | None) -> bool:
        """Whether the run stands at a position, with no step begun."""
        waits = self.team is not None and self.team.in_first_message
        if position is None or (self._in_step and not waits):
            return False
        return self.standing is position.standing

    def _begin_next_stage(self) -> bool:
        """Begin the next stage at the best point so far; return whether there is one."""
        self.rejoin_rows()
        if not self._ahead:
            return False
        space, objective, (_, p, best) = self.space, self.objective, self.standing
        fn, ended = space.scalars, self._result_of_stage()
        before = objective.nfev - objective.in_products
        x, value, gradient, aux = best.x, self.to_user(best.value), best.gradient, self.aux
        solver = self._ahead[0][0].solver
        if solver.projects:
            x = solver.project(space, x)
        moved = not space.equal(x, best.x)
        if moved:
            value, gradient, found, _ = self.evaluate(x)
            aux = aux._replace(value=found)
        self.ended.append(ended)
        self.enter_stage()
        self.criteria = stopping.later(fn, self.criteria, p, self.plan.maxiter, self.plan.maxfun)
        inner = self.state_at(
            x, value, gradient, None, **self._noise_for(self.standing.progress.noise)
        )
        norm, count = inner.gradient_norm, objective.nfev - before
        objective.in_products = 0
        p = stopping.again(fn, self.criteria, p, inner.value, norm, count)
        best = Best(x, inner.value, gradient, norm, inner.value if moved else best.lowest)
        self.standing, self.aux = Standing(inner, p, best), aux
        self.second_look = SecondLook(self)
        return True

    def afresh(self, x: Array, value: Any, gradient: Array, **unit: Array) -> Any:
        """The solver's state at x without what it has learned. It keeps the decrement of the last
        step, by which a failure is judged, because a new state has none yet.

        unit : the size of each variable, if the solver `rescales`.
        """
        unit = {**unit, **self._noise_for(self.standing.progress.noise)}
        fresh = self.state_at(x, self.to_user(value), gradient, None, **unit)
        return fresh._replace(decrement=self.standing.solver_state.decrement)

    def _noise_for(self, noise: Any) -> dict[str, Any]:
        return {} if noise is None or not self.solver.takes_noise else {"noise": noise}

    # --- advancing -----------------------------------------------------------------------------

    def goes_on(self) -> bool:
        """Whether any problem is running; if none is, resume some or begin the next stage."""
        while not self.is_running():
            if self.second_look.resumes():
                return True
            if not self._begin_next_stage():
                return False
        return True

    def is_running(self) -> bool:
        """Whether any problem is still running: for a batch, the only read per evaluation. Rows
        leave the batch here once enough of them are done."""
        space, status = self.space, self.standing.progress.status
        if not space.batched:
            return status == _RUNNING
        running = status == _RUNNING
        count, size = space.count(running), status.shape[0]
        if count == 0:
            return False
        fewer = self.sizes.next(size, count)
        if fewer < size:
            self._set_rows(*self.rows.part(space, self._per_row(), running, fewer))
        return True

    def is_late(self) -> bool:
        """Whether the time of the phase is over, in one process of many."""
        late = time.perf_counter() >= self.deadline
        return late if self.team is None else self.team.is_late(late)

    def is_out_of_time(self) -> bool:
        """Whether the time of the whole run is over, in one process of many; if one `is_late`."""
        over = time.perf_counter() >= self._last_deadline
        return over if self.team is None else any(self.team.engine.gather(over))

    def value_at(self, x: Array) -> tuple[Any, int]:
        """The value at x alone, with the penalty, and how many calls of fun this took."""
        value = self.in_caller_context(self.objective.value, x)
        return self._watch(x, value), 1

    def _watch(self, x: Array, value: Any) -> Any:
        """The value at x with the penalty, given that without; note it if it is the lowest one that
        a run by differences has seen."""
        value = self.solver_here().penalised(self.space, x, value)
        if self.objective.differs:
            differences = self.objective.differences
            known = differences.known
            lowest = followed(self.space.backend, known.lowest, x, value)
            if lowest is not known.lowest:
                differences.known = known._replace(lowest=lowest)
        return value

    def evaluate(self, x: Array) -> tuple[Any, Array, Any, int]:
        """The value at x with the penalty, the gradient of fun, aux, and how many calls of fun this
        took."""
        objective = self.objective
        before = objective.nfev - objective.in_products
        value, gradient, aux = self.in_caller_context(objective.evaluate, x)
        objective.in_products = 0
        return self._watch(x, value), gradient, aux, objective.nfev - before

    def advance(self) -> bool:
        """Evaluate the trial and update the run; return whether an iteration may have ended."""
        value, gradient, aux, count = self.evaluate(self.standing.solver_state.trial)
        self._in_step = True
        standing, better = self._after(self.standing, self.criteria, value, gradient, count)
        self._in_step = False
        self.move_to(standing, aux, better)
        if self.objective.differs:
            self.second_look.noise.look_at_search()
        return self.space.batched or self.standing.solver_state.accepted

    def advance_compiled(self) -> bool:
        """Make many evaluations in one compiled program, if there is one; return whether it did."""
        space, evaluation, standing = self.space, self._pure, self.standing
        if evaluation is None:
            return False
        least = 0
        if not space.batched:
            inner = self.solver.as_row(space, standing.solver_state)
            if inner is None:
                self._pure = None
                return False
            standing = standing._replace(solver_state=inner)
        else:
            least = self.sizes.floor(standing.progress.status.shape[0])
        began = time.perf_counter()
        self._in_step = True
        standing, value, made = self.in_caller_context(
            compiled.advance, space, self.solver_here(), self.criteria.xtol > 0.0, evaluation,
            standing, self.criteria, self.objective.args, self.aux.value, self.aux.places,
            self._chunk.within(self.deadline - began), least,
        )
        self.objective.nfev += made
        # A single statement, which no interrupt can split.
        self.standing, self.aux = standing, self.aux._replace(value=value)
        self._in_step = False
        self._chunk.took(made, time.perf_counter() - began)
        return True

    def move_to(self, standing: Standing, aux: Any, better: Any) -> None:
        """Adopt a new standing, and the aux of an evaluation where it is `better` than the best."""
        of_best = self._aux_of_best(aux, better) if self.objective.has_aux else self.aux
        # A single statement, which no interrupt can split.
        self.standing, self.aux = standing, of_best

    def _aux_of_best(self, value: Any, better: Any) -> AuxOutput:
        """The auxiliary output of the better point; in a batch, for each problem separately."""
        space, old = self.space, self.aux
        if not space.batched:
            return AuxOutput(value) if better else old
        new = old.followed_by(value, space, self.standing.progress.status.shape[0])
        kept = [i for i, place in enumerate(old.places) if place in new.places]
        if len(kept) < len(old.places):
            old = old._replace(places=new.places)
            left = tuple(
                (numbers, (standing, criteria, tuple(of_rows[i] for i in kept), known))
                for numbers, (standing, criteria, of_rows, known) in self.rows.left
            )
            self.rows, self.aux = self.rows._replace(left=left), old
        return new.with_rows(space.merge(better, new.rows(), old.rows()))

    def repeat(self, times: int, step: Callable, going: Any, *carry: Any) -> tuple:
        """`carry` after `going, *carry = step(k, going, *carry)` for k = 0, 1, ..., so many times
        at most, while a problem is `going`."""
        for k in range(times):
            going, *carry = step(k, going, *carry)
            if not self.space.any(going):
                break
        return tuple(carry)

    def once(self, rows: Any, step: Callable, *more: Any) -> bool:
        """Take `step(rows, *more)`, which changes the run, if there are any of these rows; return
        whether there are."""
        there_are = bool(self.space.any(rows))
        if there_are:
            step(rows, *more)
        return there_are

    def either(self, condition: Any, first: Callable, second: Callable) -> Any:
        """The result of `first` if the condition holds, else that of `second`."""
        return first() if condition else second()

    def each(self, function: Callable, points: list[Array]) -> tuple[list[Any], list[Array]]:
        """What a function (x) -> (number, vector) returns at each of several points."""
        numbers, vectors = zip(*map(function, points), strict=True)
        return list(numbers), list(vectors)

    def note(self, progress: Progress) -> None:
        self.standing = self.standing._replace(progress=progress)

    # --- the rows of a batch -------------------------------------------------------------------

    def rejoin_rows(self) -> None:
        """Put the rows that have left back into the batch."""
        if self.rows.here is not None:
            self._set_rows(Rows(), self.rows.join(self.space, self._per_row()))

    def _per_row(self) -> tuple[Standing, Criteria, tuple, Known]:
        """Everything that has an entry for each row of the batch."""
        return self.standing, self.criteria, self.aux.rows(), self.objective.differences.known

    def _set_rows(self, rows: Rows, per_row: tuple[Standing, Criteria, tuple, Known]) -> None:
        """Make these rows the batch; `per_row` is what `_per_row` holds for them."""
        standing, criteria, of_rows, self.objective.differences.known = per_row
        aux = self.aux.with_rows(of_rows)
        # A single statement, which no interrupt can split.
        self.rows, self.standing, self.criteria, self.aux = rows, standing, criteria, aux
        self.objective.restrict_to(None if rows.here is None else self.space.send(rows.here))
        self._after = self._after_of(self.solver_here())
        if self._pure is not None:
            self._pure = self.objective.pure()

    def solver_here(self) -> Solver:
        """The solver for the rows that make up the batch."""
        if self.rows.here is None:
            return self.solver
        return self.solver.of_rows(self.space, self.layout.batch[0], self.rows.here)

    # --- ending --------------------------------------------------------------------------------

    def end(self, status: Status) -> None:
        """End the problems that are still running or were not confirmed."""
        p = self.standing.progress
        running = p.status <= _RUNNING    # or an end that was not confirmed
        self.note(p._replace(status=self.space.scalars.where(running, int(status), p.status)))

    def stop(self, status: Status) -> None:
        """End the run, including the problems that later stages would have continued."""
        if self._ahead:
            self.rejoin_rows()
            fn, p = self.space.scalars, self.standing.progress
            # No later stage could have continued these.
            lost = (p.status == int(Status.NOT_FINITE)) | (p.status == int(Status.UNBOUNDED))
            self.note(p._replace(status=fn.where(lost, p.status, _RUNNING)))
        self.end(status)

    def recover_from_interrupt(self) -> None:
        """Restart the solver from its iterate if a step was interrupted, which may have overwritten
        half of what it has learned."""
        if not self._in_step or self.space.sharded:
            # (Other processes are heard before a step overwrites anything.)
            return
        self.rejoin_rows()
        state = self.standing.solver_state
        fresh = self.afresh(state.x, state.value, state.gradient)
        self.standing, self._in_step = self.standing._replace(solver_state=fresh), False

    def at_end(self) -> tuple[Space, Any, Best]:
        """The space of the user's problems, and the solver's state and the best point in it."""
        state, _, best = self.standing
        return self.space, state, best

    def record(self) -> Record:
        shown = self.rows.join(self.space, _shown(self.standing), lambda left: _shown(left[0]))
        # A copy, because the callback may change it.
        x = self.space.backend.own(shown.x)
        return Record(self.layout.to_tree(x), *(self.to_user(scalar) for scalar in shown[1:]))

    def state_here(self) -> State:
        """A copy of the state of the run."""
        whole, _, of_rows, known = self.rows.join(self.space, self._per_row())
        return self._state(
            whole._replace(solver_state=self.solver.resume(whole.solver_state)),
            self.aux.with_rows(of_rows).value, known,
        )

    def _state(self, standing: Standing, aux: Any, known: Known) -> State:
        """What another run continues from."""
        looks = None if self.second_look is None else self.second_look.memory
        state = State(
            self.solver, self.space, standing.solver_state, standing.best, aux,
            self._forward and not self.objective.forward, known, standing.progress,
            self.layout.scale_key, looks,
        )
        programs.keep_states(self.space.backend)
        return state

    def _code(self) -> Any:
        """The status of each problem; an end that is not confirmed counts as running."""
        status = self.standing.progress.status
        return self.space.scalars.where(status < _RUNNING, _RUNNING, status)

    def codes(self) -> Any:
        """The same on the host, an integer or an array (B,), read once."""
        space, status = self.space, self.standing.progress.status
        if self._read[0] is not status:
            code = self._code()
            on_host = not space.batched or space.small_on_host
            self._read = status, code if on_host else space.backend.to_host(code)
        return self._read[1]

    def result(self) -> Result:
        last = self._result_of_stage()
        return last if len(self.plan.stages) == 1 else joined([*self.ended, last])

    def _result_of_stage(self) -> Result:
        """The result of the current stage, with the counts of the whole run so far."""
        self.rejoin_rows()
        space, layout = self.space, self.layout
        state, p, best = self.standing
        status: Any
        message: Any
        code = self._code()
        norm = best.gradient_norm
        if not (space.remote or space.sharded):
            norm = space.read_one(self.solver.optimality(space, best.x, best.gradient))
        if space.batched:
            status, message = code, [_MESSAGES[int(each)] for each in self.codes()]
        else:
            status = Status(code)  # type: ignore[call-arg]
            message = status.message
        own = space.backend.own    # the state keeps the originals
        kind = BatchResult if space.batched else Result
        return kind(
            x=layout.to_tree(own(best.x)),
            fun=self.to_user(best.value),
            jac=layout.gradient_tree(own(best.gradient)),
            gradient_norm=self.to_user(norm),
            nit=self.to_user(p.nit),
            nfev=self.to_user(p.nfev + self.objective.in_products),
            nhev=self.objective.nhev,
            success=self.to_user(succeeded(code)),
            status=self.to_user(status),
            message=message,
            aux=self.aux.value,
            hess_inv=self._inverse_hessian(),
            active=self._active(best),
            state=self._state(
                self.standing, self.aux.value, self.objective.differences.known
            ),
            _curvature=Curvature(
                self.objective, self._hess, self._differentiates(), self.to_user(p.first_value)
            ),
        )

    def _differentiates(self) -> bool:
        """Whether the Hessian comes from automatic differentiation if it is not given."""
        objective = self.objective
        given = objective.jac is not None or objective.differs or objective.returns_both
        wanted = not given or any(stage.solver.needs_hessian for stage in self.plan.stages)
        return wanted and objective.backend.differentiates and not any(self.layout.complex)

    def _inverse_hessian(self) -> Any:
        found = self.solver.inverse_hessian(self.space, self.standing.solver_state)
        if found is None:
            return None
        layout = self.layout
        if layout.scale is not None:
            found = ScaledInverseHessian(self.space, found, layout.scale)
        return found.named(layout.numbers_tree)

    def _active(self, best: Best) -> Any:
        """`res.active`."""
        box = self.solver.box
        if box is None:
            return None
        xp, none = self.space.xp, self.space.xp.zeros_like(best.x, dtype=self.space.xp.int8)
        lower, upper = box.sides(self.space, best.x)
        low = none != 0 if lower is None else best.x <= lower
        high = none != 0 if upper is None else best.x >= upper
        low = low & ~(high & (best.gradient < 0.0))
        active = xp.where(low, none - 1, xp.where(high, none + 1, none))
        return self.layout.with_frozen(active)

    def to_user(self, scalar: Any) -> Any:
        """One scalar per problem, as the user sees it."""
        return self.space.send(scalar) if self.space.batched else scalar


def _shown(standing: Standing) -> Record:
    """The contents of a record, as vectors and scalars of the run."""
    state, p = standing.solver_state, standing.progress
    return Record(state.x, state.value, state.gradient_norm, state.step, p.nit, p.nfev)


def _checked_state(
    state: Any, x: Array, method: str, solver: Solver, space: Space, layout: Layout
) -> State:
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}; wanted the `state` of a Result")
    if state.space is None:
        raise ValueError(
            "state comes from a function that JAX has compiled; wanted one of a run outside, or a "
            "run in such a function"
        )
    state = checked_contents(state, x, method, solver, layout)
    if state.space != space:
        raise ValueError(
            f"state comes from a run in {state.space!r}; wanted one in {space!r}, like this run"
        )
    return state


def checked_contents(state: State, x: Array, method: str, solver: Solver, layout: Layout) -> State:
    """The state, if it belongs to such variables and such a solver."""
    old = getattr(state.solver_state, "x", None)
    if old is None:
        raise ValueError("state holds no variables; wanted the `state` of a Result")
    found, wanted = (
        f"{library_of(each)}, {dtype_name(each.dtype)}, {tuple(each.shape)}" for each in (old, x)
    )
    if found != wanted:
        raise ValueError(f"state belongs to other variables: {found}; wanted {wanted}, like x0")
    if state.x_scale != layout.scale_key:
        raise ValueError("state comes from a run with another x_scale; wanted the same one")
    if not solver.resumes:
        raise ValueError(f"state was passed, but {method} cannot resume from one")
    solver.check_state(state.solver_state)
    return state
