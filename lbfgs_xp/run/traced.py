"""A run inside a function that is being compiled: all of it is one program, without the host.

It is `Run` with loops of the program in place of those of Python. One problem is a batch of one,
because a batch is written without branches: where the loop in Python asks whether a mask holds
anywhere, a program computes all that may follow, and the rows outside the mask stay as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.scalars import map_tuple
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, flatten, unflatten
from lbfgs_xp.result import BatchResult, Best, Result, State, Status
from lbfgs_xp.run import programs, stopping
from lbfgs_xp.run.aux_output import AuxOutput
from lbfgs_xp.run.iteration import Standing, after_evaluation, solver_state_at, succeeded
from lbfgs_xp.run.loop import Run, checked_contents
from lbfgs_xp.run.objective import Objective
from lbfgs_xp.run.plan import Stage, plan_of, refuse_phases
from lbfgs_xp.run.second_look import SecondLook
from lbfgs_xp.solvers.inverse_hessian import ScaledInverseHessian
from lbfgs_xp.solvers.method import Limits

_RUNNING = int(Status.RUNNING)
# A program cannot choose between strings.
MESSAGE = "lx.Status(int(status)) says why the run ended"
# The attributes of a result that hold arrays.
_PARTS = (
    "x", "fun", "jac", "gradient_norm", "nit", "nfev", "success", "status", "aux", "hess_inv",
    "active", "phases", "state",
)


def refuse(**settings: Any) -> None:
    """Refuse what takes the host, if it was passed."""
    for name, value in settings.items():
        if not (value is None or value is False or (isinstance(value, tuple) and not value)):
            raise ValueError(
                f"{name} is {checks.shown(value)} inside a function that JAX compiles; wanted it "
                "unset there, where the run is part of a program that does not return to Python"
            )


def solve(
    fun: Callable, x0: Any, args: Any, *, method: Any, limits: Limits, jac: Any, hess: Any,
    has_aux: bool, bounds: Any, l1: Any, x_scale: Any, noise: Any, batched: bool, pass_rows: bool,
    state: Any,
) -> TracedRun:
    """The run of `lx.minimize` inside a function that is being compiled, at its end."""
    layout = Layout(x0, batched, traced=True)
    backend = layout.backend
    if not backend.compiles:
        raise TypeError(
            f"x0 is an array of {backend.name} inside a function that JAX compiles; wanted one of "
            "JAX, such as jax.numpy.asarray(x0)"
        )
    with backend.at_once():
        layout = layout.in_units(x_scale)
        plan = plan_of(method, limits, bounds, l1, noise, hess, None, layout)
    refuse_phases(state, plan)
    for stage in plan.stages:
        if stage.maxtime < math.inf:
            refuse(maxtime=stage.maxtime)
        if not stage.solver.in_programs:
            raise ValueError(
                f"{stage.name} has settings that need the host; wanted, inside a function that JAX "
                "compiles, no function of one vector, no learning rate that depends on values, "
                "on_nonfinite='ignore' and, for L-BFGS, a constant learning rate"
            )
    objective = Objective(fun, args, jac, has_aux, layout, pass_rows)
    if objective.differs:
        raise ValueError(
            f"jac is {jac!r} inside a function that JAX compiles; wanted None, True or a function"
        )
    run = TracedRun(plan, Space(backend, batched=True), objective, hess)
    run.begin(layout.start(), state)
    run.to_the_end()
    return run


class TracedRun(Run):
    """`Run`, as a part of a program."""

    def _prepared(self, stage: Stage, hess: Any) -> tuple[Callable, Callable]:
        solver, space = stage.solver, self.space
        more: dict[str, Any] = {}
        if solver.needs_hessian:
            more["hessian"] = functools.partial(self._hessian_at, self.objective.hessian(hess))

        def after(solver: Any) -> Callable:
            return functools.partial(
                after_evaluation, solver, space, stage.criteria.xtol > 0.0, **more
            )

        return functools.partial(solver_state_at, solver, space, **more), after

    # --- one problem, as a batch of one --------------------------------------------------------

    def _hessian_at(self, hessian: Callable, x: Array) -> Array:
        return hessian(x) if self.layout.batch else hessian(x[0, ...])[None, ...]

    def evaluate(self, x: Array) -> tuple[Any, Array, Any, int]:
        evaluation = self.objective.evaluation()
        if self.layout.batch:
            value, gradient, aux = evaluation(self.objective.args, x)
        else:
            value, gradient, aux = evaluation(self.objective.args, x[0, ...])
            value, gradient = self.space.xp.reshape(value, (1,)), gradient[None, ...]
            aux = _each(lambda leaf: leaf[None, ...] if is_array(leaf) else leaf, aux)
        return self.solver.penalised(self.space, x, value), gradient, aux, 1

    def _of_user(self, tree: Any) -> Any:
        """(Nested) named tuples without the axis of the batch of one."""
        return tree if self.layout.batch else map_tuple(_first, tree)

    # --- beginning, advancing and looking ------------------------------------------------------

    def begin(self, x: Array, state: Any) -> None:
        space, solver = self.space, self.solver
        if not self.layout.batch:
            x = x[None, ...]
        if solver.projects:
            x = solver.project(space, x)
        learned: Any = None
        if state is not None:
            state = self._checked(state, x)
            learned = solver.learned(space, state.solver_state)
            # All rows or none, because some solvers keep numbers for all of them.
            moved = space.xp.any(x != state.best.x)
            if state.solver == solver:
                # The best point need not be the last one.
                x = space.xp.where(moved, x, state.solver_state.x)
        value, gradient, aux, count = self.evaluate(x)
        x, value, gradient, aux = self.space.backend.alike(x, value, gradient, aux)
        self._refuse_to_wait(x)
        noise = self._noise_for(self.plan.noise.apart)
        inner = self._inner_at(x, value, gradient, learned, **noise)
        self.aux = AuxOutput.of(aux, space, x.shape[0])
        norm, extent = inner.gradient_norm, space.max_abs(x)
        best = Best(x, inner.value, gradient, norm, inner.value)

        def standing(inner: Any, best: Best, resumed: Any = None) -> Standing:
            return Standing(inner, stopping.start(
                space.scalars, self.criteria, inner.value, inner.gradient_norm, extent, count,
                self.plan.noise.apart, resumed,
            ), best)

        self.standing = standing(inner, best)
        if state is not None and state.solver == solver:
            old = state.solver_state
            other = moved | stopping.differ(
                space.scalars, self.criteria, state.progress, old.value, inner.value,
                space.max_abs(gradient - old.gradient),
            )
            same = space.xp.logical_not(space.xp.any(other))

            def chosen(old: Any, new: Any) -> Any:
                return space.xp.where(same, old, new) if _has_value(old) else new

            resumed = standing(old, state.best, state.progress)
            self.standing = map_tuple(chosen, resumed, self.standing)
            self.aux = self._aux_of_best(state.aux, space.scalars.full(True, value) & same)
        self.second_look = _TracedLook(self)

    def _checked(self, state: Any, x: Array) -> State:
        """A state of an earlier run, as it is inside."""
        if not isinstance(state, State):
            raise TypeError(f"state is a {type(state).__name__}; wanted the `state` of a Result")
        state = programs.for_programs(state)
        return checked_contents(state, x, self.method, self.solver, self.layout)

    def _refuse_to_wait(self, x: Array) -> None:
        axes = self.space.backend.shared_axes(self.evaluate, (x,), x)
        if axes:
            raise ValueError(
                f"fun communicates over {', '.join(axes)}, where x0 or its value differs, or may "
                "differ because of check_vma=False; wanted, inside jax.shard_map, either no "
                "communication or the same x and value everywhere, which JAX checks by default"
            )

    def _inner_at(
        self, x: Array, value: Any, gradient: Array, learned: Any = None, **noise: Any
    ) -> Any:
        """The solver's state at the start of a stage."""
        inner = self.state_at(x, value, gradient, learned, **noise)
        # It may restart in other units, and a loop keeps the form of its state.
        return self.solver.in_units(self.space, inner) if self.solver.rescales else inner

    def _begin_next_stage(self) -> bool:
        if not self._ahead:
            return False
        space, (_, p, best) = self.space, self.standing
        fn, solver = space.scalars, self._ahead[0][0].solver
        x, value, gradient = best.x, best.value, best.gradient
        self.ended.append(self._result_of_stage())
        moved = fn.full(False, value)
        if solver.projects:
            x = solver.project(space, x)
            moved = space.xp.any(x != best.x, axis=-1)
            there, slopes, found, _ = self.evaluate(x)
            value, gradient = fn.where(moved, there, value), space.pick(moved, slopes, gradient)
            if self.objective.has_aux:
                self.aux = self._aux_of_best(found, moved)
        self.enter_stage()
        self.criteria = stopping.later(fn, self.criteria, p, self.plan.maxiter, self.plan.maxfun)
        inner = self._inner_at(
            x, value, gradient, **self._noise_for(self.standing.progress.noise)
        )
        norm, count = inner.gradient_norm, fn.where(moved, fn.full(1, value), 0)
        p = stopping.again(fn, self.criteria, p, inner.value, norm, count)
        lowest = fn.where(moved, inner.value, best.lowest)
        self.standing = Standing(inner, p, Best(x, inner.value, gradient, norm, lowest))
        self.second_look = _TracedLook(self)
        return True

    def is_running(self) -> bool:
        """True: which problems run is known only when the program runs."""
        return True

    def to_the_end(self) -> None:
        """Advance and look until all problems have stopped, in all stages."""
        self._to_the_end_of_stage()
        while self._begin_next_stage():
            self._to_the_end_of_stage()

    def _to_the_end_of_stage(self) -> None:
        look: Any = self.second_look

        def goes_on(_: Any) -> Any:
            return self._any(self.standing.progress.status <= _RUNNING)

        def advance_and_look(carry: Any) -> Any:
            self.loop(
                lambda _: self._any(self.standing.progress.status == _RUNNING),
                lambda carry: (self._advance_inside(), carry)[1], carry,
            )
            if not self.solver.searches:
                return carry
            self.loop(
                lambda due: due & self._any(look.is_due()),
                lambda due: (look.resumes(), due & False)[1], self.space.xp.asarray(True),
            )
            return carry

        self.loop(goes_on, advance_and_look, ())

    def _advance_inside(self) -> bool:
        # A single problem runs inside its loop, so that masks of running ones are constants.
        p = self.standing.progress
        if p.status.size == 1:
            self.note(p._replace(status=self.space.scalars.full(_RUNNING, p.status)))
        return self.advance()

    def _inside(self, rows: Any) -> Any:
        """The rows for which a loop takes a step: a single one always takes it."""
        return rows | True if rows.size == 1 else rows

    def loop(self, goes_on: Callable, step: Callable, carry: Any) -> Any:
        """`carry` after `carry = step(carry)` as long as `goes_on(carry)`, in a loop of the program
        that also carries whatever the run changes."""

        def within(function: Callable, both: tuple) -> tuple:
            """What the run holds after `function(carry)`, and its result.

            Nothing of a loop may stay in the run when its part of the program is complete."""
            before = self._held
            self._held, carry = both
            try:
                out = function(carry)
                return self._held, out
            finally:
                self._held = before

        start = self._held, carry
        self._held, carry = self.space.backend.while_loop(
            lambda both: within(goes_on, both)[1], functools.partial(within, step), start
        )
        return carry

    def repeat(self, times: int, step: Callable, going: Any, *carry: Any) -> tuple:
        full, zero = self.space.backend.full, self.space.xp.asarray(0)
        carry = tuple(full((), each) if isinstance(each, float) else each for each in carry)

        def goes_on(both: tuple) -> Any:
            k, going, _ = both
            return (k < times) & self._any(going)

        def once(both: tuple) -> tuple:
            k, going, carry = both
            going, *carry = step(k, self._inside(going), *carry)
            return k + 1, going, tuple(carry)

        return self.loop(goes_on, once, (zero, going, carry))[2]

    def once(self, rows: Any, step: Callable, *more: Any) -> bool:
        # A loop, before which all that the step takes is computed once instead of in each result.
        def taken(carry: tuple) -> tuple:
            rows, *more = carry
            step(self._inside(rows), *more)
            return rows & False, *more

        self.loop(lambda carry: self._any(carry[0]), taken, (rows, *more))
        return True

    def either(self, condition: Any, first: Callable, second: Callable) -> Any:
        return self.space.backend.either(condition, first, second)

    def each(self, function: Callable, points: list[Array]) -> tuple[list[Any], list[Array]]:
        xp, count = self.space.xp, len(points)
        places, stacked = xp.arange(count), xp.stack(points)

        def put(k: Any, new: Array, rows: Array) -> Array:
            here = xp.reshape(places == k, (count,) + (1,) * new.ndim)
            return xp.where(here, new, rows)

        def step(carry: tuple) -> tuple:
            k, numbers, vectors = carry
            number, vector = function(stacked[k, ...])
            return k + 1, put(k, number, numbers), put(k, vector, vectors)

        start = xp.asarray(0), xp.zeros_like(stacked[..., 0]), xp.zeros_like(stacked)
        _, numbers, vectors = self.loop(lambda carry: carry[0] < count, step, start)
        return [numbers[k, ...] for k in range(count)], [vectors[k, ...] for k in range(count)]

    def afresh(self, x: Array, value: Any, gradient: Array, **unit: Array) -> Any:
        fresh = super().afresh(x, value, gradient, **unit)
        return self.solver.in_units(self.space, fresh) if self.solver.rescales else fresh

    @property
    def _held(self) -> tuple:
        restarts = self.second_look.restarts
        return self.standing, self.aux.value, restarts.departures, restarts.departed

    @_held.setter
    def _held(self, held: tuple) -> None:
        restarts = self.second_look.restarts
        self.standing, value, restarts.departures, restarts.departed = held
        self.aux = self.aux._replace(value=value)

    def _any(self, mask: Any) -> Any:
        return self.space.xp.any(mask)

    # --- ending --------------------------------------------------------------------------------

    def _result_of_stage(self) -> Result:
        layout, space = self.layout, self.space
        batched = bool(layout.batch)
        code, optimality = self._code(), self.solver.optimality
        (_, p, best), aux = self.standing, self.aux.value
        known = self.objective.differences.known
        state = self._state(self.standing, aux, known)._replace(space=None, differences=None)
        norm = optimality(space, best.x, best.gradient)
        if not batched:
            best, p, code, norm = (self._of_user(each) for each in (best, p, code, norm))
            aux = _each(_first, aux)
        kind: Any = BatchResult if batched else Result
        space.backend.keep_parts(kind, _PARTS, ("_curvature",))
        return kind(
            x=layout.to_tree(best.x),
            fun=best.value,
            jac=layout.gradient_tree(best.gradient),
            gradient_norm=norm,
            nit=p.nit,
            nfev=p.nfev,
            success=succeeded(code),
            status=code,
            message=MESSAGE,
            aux=aux,
            hess_inv=self._inverse_hessian(),
            active=self._active(best),
            state=state,
        )

    def at_end(self) -> tuple[Space, Any, Best]:
        space, state, best = super().at_end()
        if not self.layout.batch:
            space, state, best = Space(space.backend), self._of_user(state), self._of_user(best)
        return space, state, best

    def _inverse_hessian(self) -> Any:
        (space, state, _), layout = self.at_end(), self.layout.without_values()
        found = self.solver.inverse_hessian(space, state)
        if found is None:
            return None
        if layout.scale is not None:
            found = ScaledInverseHessian(space, found, layout.scale)
        for kind in (type(found), ScaledInverseHessian):
            space.backend.keep_parts(kind, kind.parts, ())
        return found.named(layout.numbers_tree)


class _TracedLook(SecondLook):
    """`SecondLook` with loops of the program."""

    run: TracedRun

    def resumes(self) -> bool:
        self._confirm()
        return self.restarts.from_best()

    def is_due(self) -> Any:
        """Whether an end is provisional, or a run may have settled above its best point."""
        state, p, best = self.run.standing
        return (p.status < _RUNNING) | (succeeded(p.status) & (state.value > best.value))

    def _take_looks(self, lengths: list[float]) -> None:
        run, xp = self.run, self.run.space.xp
        table = xp.asarray(lengths, dtype=run.space.backend.dtype)

        def goes_on(k: Any) -> Any:
            claimed = run.standing.progress.status == _RUNNING
            return (k < len(lengths)) & run._any(claimed)

        def step(k: Any) -> Any:
            self.pending()
            self.look(table[k], first=k == 0)
            return k + 1

        run.loop(goes_on, step, xp.asarray(0))
        self.refute()


def _has_value(entry: Any) -> bool:
    return is_array(entry) or isinstance(entry, (bool, int, float))


def _first(leaf: Any) -> Any:
    return leaf[0, ...] if is_array(leaf) and leaf.ndim > 0 else leaf


def _each(function: Callable, aux: Any) -> Any:
    leaves, structure = flatten(aux)
    return unflatten(structure, [leaf if leaf is None else function(leaf) for leaf in leaves])
