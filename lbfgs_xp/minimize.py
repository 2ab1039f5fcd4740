"""`minimize`: its arguments, the main loop, and the handling of exceptions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import is_array, is_tracing
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.returned import stops
from lbfgs_xp.arrays.rows import Rows
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.distributed.sharded import ShardedFixedOrderSpace, ShardedSpace, ShardedTeam
from lbfgs_xp.distributed.team import Engine, Team, set_up_together
from lbfgs_xp.result import BatchResult, Record, Result, State, Status, attach
from lbfgs_xp.run import implicit, traced
from lbfgs_xp.run.loop import Run
from lbfgs_xp.run.objective import Objective
from lbfgs_xp.run.plan import Plan, plan_of, refuse_phases
from lbfgs_xp.run.progress import Live
from lbfgs_xp.run.snapshot import described_problem, of_pieces, restore, taken
from lbfgs_xp.saving.checkpoint import Checkpoint, Keeper, Terminated
from lbfgs_xp.saving.checkpoint import checked as checked_checkpoint
from lbfgs_xp.saving.together import keeping_together
from lbfgs_xp.solvers.method import Limits
from lbfgs_xp.typing import Jacobian, MinimizeSettings, OnError, PhasesOf

# From this many numbers in x on, the C library may request every temporary from the system.
_LARGE = 2**10
# A relative change of a value that neither rounding nor the order of a sum explains.
_ROUNDING = 1e-3


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[False] = False,
    **settings: Unpack[MinimizeSettings],
) -> Result: ...


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[True],
    **settings: Unpack[MinimizeSettings],
) -> BatchResult: ...


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: bool,
    **settings: Unpack[MinimizeSettings],
) -> Result | BatchResult: ...


@checks.reject_foreign_keywords(
    tol="gtol (for the gradient), ftol (for the value) or xtol (for x)",
    **checks.OF_THE_METHOD,
    constraints="lx.augmented_lagrangian, where inequalities are c(x) <= 0 (in SciPy, >= 0)",
)
@on_device_of("x0")
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    method: PhasesOf = None,
    jac: Jacobian = None,
    diff_step: float | None = None,
    hess: Callable[..., Any] | None = None,
    hessp: Callable[..., Any] | None = None,
    has_aux: bool = False,
    bounds: Any = None,
    l1: Any = None,
    x_scale: Any = None,
    noise: float | tuple[float, float] | None = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 15_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    batched: bool = False,
    pass_rows: bool = False,
    reproducible: bool = False,
    on_error: OnError = (),
    callback: Callable[[Record], Any] | None = None,
    progress: bool = False,
    state: State | None = None,
    checkpoint: Checkpoint | None = None,
    distributed: Engine | None = None,
    differentiable: bool = False,
) -> Result:
    """Minimise a function of arrays, for one problem or for many at once.

    Parameters
    ----------
    fun : function
        fun(x, *args) -> value: a real number or 0-d array; for a batch, an array (B,). It must not
        change x in place. On JAX, a function compiled with `jax.jit` is compiled together with the
        solver, as one loop; any other is called from Python for each evaluation. If `minimize`
        itself is called inside `jax.jit`, `jax.vmap` or `jax.lax.scan`, the whole run is part of
        that program, and the result holds its arrays.
    x0 : array of any shape, float or complex; or a nested dict, list, tuple or dataclass of arrays
        The start. The whole run uses its library, device and dtype. On CuPy, functions of the user
        are called with that device current. Tensors with requires_grad=False among others that
        require a gradient are frozen: they stay as they are. (If none requires one, all change.)
        With JAX, nodes and dataclasses that are registered with it may be nested, too, and None.
    args : tuple
        Further arguments of fun (and of jac and hess).
    method : None, str, optimizer, solver, or a list of phases
        "lbfgs", "bfgs", "newton", "projected_gradient", "adam", ..., or an object such as
        `lx.LBFGS(memory_size=20)` or `lx.Adam(1e-2)`. "auto" or None: BFGS for a batch of problems
        with at most 20 variables each, and L-BFGS for all others. The methods of a list run one
        after another: `[lx.Adam(1e-3).until(maxiter=1000), lx.LBFGS()]`. Each starts at the best
        point so far and stops by its own limits (`until`, `lx.Phase`) or by those below. The
        budgets below apply to the whole run.
    jac : None, True, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX). True: fun returns (value, gradient). A
        function: jac(x, *args) -> gradient, with the structure of x. For complex x the gradient is
        df/d(re) + i df/d(im). "3-point": central differences, 2n extra evaluations per gradient.
        "2-point": forward differences, n extra evaluations per gradient. Near a minimum their
        error exceeds the gradient, so the run switches to central differences once a search has
        failed or taken 8 trials, or once a small gradient may be nothing more than that error.
    diff_step : None or float
        The step of the finite differences, relative to each variable (to 1 if it is 0). None:
        measured. If fun turns out to be noisy (like an integrator of low accuracy, or a function
        with few digits), central differences take steps over which it bends by many times its
        noise. A step that is given stays; how the run ends depends on the noise all the same.
    hess : None or function
        For methods that need the Hessian (`lx.Newton`); x must be real. None: automatic
        differentiation (PyTorch, JAX). A function: hess(x, *args) -> (n, n), for a batch
        (B, n, n). If x is not a single vector, the n variables are all its numbers, flattened in
        the order of its leaves.
    hessp : None or function
        For methods that need products with the Hessian (`lx.NewtonCG`): hessp(x, p, *args) -> the
        Hessian at x times p, with p and the product like x. None: from `hess` if it is passed, by
        automatic differentiation if `jac` is None, else differences of two gradients, which count
        in `nfev` and, from the next evaluation on, in `maxfun`.
    has_aux : bool
        Whether fun returns (value, aux) instead of value (with jac=True, ((value, aux),
        gradient)); `res.aux` belongs to the best point.
    bounds : None or (lower, upper)
        fun is only evaluated within the bounds. Each side is None, a number, an array that
        broadcasts to x0, or has the structure of x0 with such leaves. What a dict does not name has
        no bound, as in `({"b": 0.0}, None)`. Infinite entries impose no bound; equal ones fix a
        variable. A start outside the bounds is moved to the nearest point inside. Newton's method
        and gradient descent with a line search take no bounds.
    l1 : None, number, array, or the structure of x0
        The weights of an L1 penalty, finite numbers of at least 0. fun + sum(l1 |x|) is minimised,
        by OWL-QN (Andrew & Gao 2007) in L-BFGS; fun and jac leave the penalty out. `res.fun`, the
        values in records and every tolerance of the value include it. `res.jac` is the gradient of
        fun; gtol and `gradient_norm` refer to the pseudo-gradient, the subgradient of least norm.
        Variables that the penalty holds at 0 are exactly 0. The weights broadcast to x0; what a
        dict does not name, such as an intercept, has none. For a batch, an array (B,) holds one
        weight for each problem: a whole path of weights in one call. x0 must be real. Bounds may be
        passed, too; other methods take no penalty.
    x_scale : None, number, array, or the structure of x0
        The size of a typical change of each variable, above 0: an array that broadcasts to x0, or
        nested like x0, where a dict may name only some (the others have 1). The run takes place in
        the variables x / x_scale, as in SciPy, for variables of very different sizes: gtol, xtol,
        `gradient_norm` and the settings of the method refer to them; `x`, `jac`, `hess_inv`, bounds
        and all functions refer to x. Rounded to powers of 2, so that scaling changes no digit.
    noise : None, float, or (float, float)
        The size of the errors of fun: of the value or, as a pair, of the value and of each
        component of the gradient (with `x_scale`, of the scaled one). They should be independent.
        What is not given is measured once no lower point is found. With noise that is known from
        the start, searches do not compare values whose difference it explains, pairs (s, y) of
        quasi-Newton methods are kept only where it does not explain y (Shi, Xie, Byrd & Nocedal
        2022), central differences take steps that suit it, and the run has more patience. It ends
        as `PRECISION` where noise hides what is left. Too much ends a run early. Too little does no
        harm: where no lower point is found, the noise of the value is measured all the same (Moré &
        Wild 2011), and if it is more than 4 times what was given, the run continues with that.
    gtol : float
        Stop when the largest component of the gradient is at most this; within bounds, without the
        components of variables that a bound holds. (For `lx.ProjectedGradient`, the largest one of
        P(x - gradient) - x, where P is the projection.) Default: relative to the smallest of the
        first three gradients of the run (of the first phase), so that the units of fun do not
        matter: sqrt(eps), 1.5e-8, for float64, and 8 eps, 1e-6, for float32; with finite
        differences 8 sqrt(eps). The value must then have settled, too, and a look down the
        gradient in the units of each variable must promise nothing lower.
    ftol, xtol : float
        Stop when in two successive iterations the value changes by at most ftol |value|, or x by
        at most xtol max(1, largest |x|). With 0, the default, a run continues until the gradient
        is small, or rounding or noise hides any better point.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets; maxiter and maxfun apply to each problem of a batch. maxfun counts every call of
        fun, including those for finite differences, and is enforced inside the line search; only
        the evaluation of the start, which always takes place, may exceed it. With finite
        differences a run stops early if what is left does not cover a value and its gradient.
    batched : bool
        x0 is (B, ...) and fun maps it to (B,): B independent problems, each with its own memory,
        line search and status. Problems that are done leave the batch, so fun soon receives fewer
        than B rows. An array in args whose first axis is B holds data of the rows: fun receives
        the entries of its rows. A 1-d array that is as long as another axis of x0 is shared by all
        rows instead, with a warning. (On JAX, which compiles for each shape, a batch only shrinks
        to 1024, 4096, 16384, ... rows, some of which may be done already.) All other functions of
        vectors, such as a projection, also see only the remaining rows.
    pass_rows : bool
        For a batch: call fun (and jac, hess) as fun(x, rows, *args), where rows holds the indices
        of the rows of x, an integer array (k,) of the same library, and args are left as they are.
    reproducible : bool
        Take every sum in a fixed order: the same bits on every library whose elementary operations
        round as IEEE 754 specifies, if fun does its part (see `lx.fixed_sum`). Slower.
    on_error : class of exceptions, or tuple of them
        An exception of these classes, such as `numpy.linalg.LinAlgError`, counts as nan: the trial
        was too far, and a shorter step follows. At the start it is raised. Not for a batch.
    callback : function
        callback(record) after each iteration (for a batch, each evaluation), with a `Record`.
        Returning a true value (also a tuple that is not empty) or raising StopIteration stops the
        run.
    progress : bool
        Show a live status line in the terminal.
    state : State
        `res.state` of an earlier run, to resume from. With that run's x as x0 and the same fun, 30
        iterations followed by 30 more give the same iterates as 60, at the cost of one extra
        evaluation. With another x0 or fun, the run starts there with the curvature gathered so
        far. A list of phases cannot be resumed; its last method can, from the final state.
    checkpoint : None or Checkpoint
        Where the run saves itself from time to time, `lx.Checkpoint("run.npz")`. If there is such
        a file, the run goes on from it, instead of x0 and state.
    distributed : None, lx.distributed.torch() or lx.distributed.mpi()
        The run takes place in many processes, each of which calls minimize with the same arguments
        and returns from fun what its own part of the data contributes. Values and gradients are
        added up, so all take the same steps and return the same result; an exception in one ends
        all. The callback is called in each.
    differentiable : bool
        PyTorch: whether `x`, `fun`, `jac` and `aux` of the result are differentiable functions of
        the tensors in args that require a gradient, and of those that fun holds. `fun` is then a
        tensor. In JAX they always are: under `jax.grad` and the like, nothing has to be passed. By
        the implicit function theorem; variables at a bound stay there. If the Hessian is singular,
        so that there is no derivative, `numpy.linalg.LinAlgError` is raised when one is asked for
        (for a batch there is a warning, and nan for its row), and a run that has failed warns.

    Returns
    -------
    Result, or BatchResult with batched=True

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message says what was passed and what is wanted.
    Exception
        Whatever fun, jac, hess or callback raises is passed on, with the best point so far attached
        to the exception as its attribute `result`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> res = lx.minimize(fun, np.zeros(2), jac=True)
    >>> res.x, res.status.name
    (array([3., 3.]), 'GRADIENT')
    """
    has_aux, batched, pass_rows, reproducible, progress, differentiable = checks.flags(
        has_aux=has_aux, batched=batched, pass_rows=pass_rows, reproducible=reproducible,
        progress=progress, differentiable=differentiable,
    )
    settings = dict(
        method=method, diff_step=diff_step, has_aux=has_aux, bounds=bounds, x_scale=x_scale,
        gtol=gtol, ftol=ftol, xtol=xtol, maxiter=maxiter, maxfun=maxfun, maxtime=maxtime,
        batched=batched, pass_rows=pass_rows, reproducible=reproducible, on_error=on_error,
        callback=callback, progress=progress, checkpoint=checkpoint, distributed=distributed,
        l1=l1, noise=noise,
    )
    if not implicit.is_wanted(differentiable, x0):
        return _run(fun, x0, args, jac=jac, hess=hess, hessp=hessp, state=state, **settings)[1]

    if distributed is not None:
        raise ValueError(
            "distributed was passed where the solution is to be differentiable, or inside a "
            "function that JAX transforms (jit, vmap, grad, ...); wanted one of them: each process "
            "knows only its part of the Hessian"
        )

    def find(
        functions: dict[str, Any], x0: Any, args: tuple, state: Any = state
    ) -> implicit.Found:
        return implicit.found_of(*_run(x0=x0, args=args, state=state, **functions, **settings))

    functions = {"fun": fun, "jac": jac, "hess": hess, "hessp": hessp}
    inside = isinstance(state, State) and state.space is None
    return implicit.solved(
        find, functions, x0, args, carried=(state,) if inside else (), bounds=bounds, l1=l1,
        x_scale=x_scale,
    )


def _run(
    fun: Callable[..., Any], x0: Any, args: Any, *, jac: Any, hess: Any, hessp: Any, method: Any,
    diff_step: Any, has_aux: bool, bounds: Any, x_scale: Any, gtol: Any, ftol: Any, xtol: Any,
    maxiter: Any, maxfun: Any, maxtime: Any, batched: bool, pass_rows: bool, reproducible: bool,
    on_error: Any, callback: Any, progress: bool, state: Any, checkpoint: Any, distributed: Any,
    l1: Any, noise: Any,
) -> tuple[Run, Result]:
    """The run of `minimize`, at its end, and its result."""
    limits = Limits(maxiter, maxfun, maxtime, gtol, ftol, xtol)
    if is_tracing((x0, args)):
        traced.refuse(
            maxtime=maxtime, callback=callback, on_error=on_error, reproducible=reproducible,
            progress=progress, checkpoint=checkpoint, distributed=distributed, hessp=hessp,
        )
        inside = traced.solve(
            fun, x0, args, method=method, limits=limits, jac=jac, hess=hess, has_aux=has_aux,
            bounds=bounds, l1=l1, x_scale=x_scale, noise=noise, batched=batched,
            pass_rows=pass_rows, state=state,
        )
        return inside, inside.result()
    with set_up_together(distributed):
        is_piece = isinstance(distributed, Engine) and distributed.sharded
        layout = Layout(x0, batched, is_piece=is_piece).in_units(x_scale)
        plan = plan_of(method, limits, bounds, l1, noise, hess, hessp, layout)
        callback = checks.callback(callback)
        on_error = checks.exceptions("on_error", on_error, batched)
        refuse_phases(state, plan)
        objective = Objective(fun, args, jac, has_aux, layout, pass_rows, level=7)
        objective.differences.step = checks.optional(checks.number)(
            "diff_step", diff_step, above=0.0
        )
        if bounds is not None:
            objective.stay_within(*layout.sides(bounds))
        if math.prod(layout.shape) >= _LARGE:
            layout.backend.keep_freed_memory()
        checked_checkpoint(checkpoint)
        team = None if distributed is None else _team(distributed, is_piece, objective, plan)
        if isinstance(team, ShardedTeam):
            kind: Any = ShardedFixedOrderSpace if reproducible else ShardedSpace
            space: Space = kind(layout.backend, team)
        else:
            space = (FixedOrderSpace if reproducible else Space)(layout.backend, batched)
        run = Run(plan, space, objective, hess, hessp, team)
        describe = functools.partial(described_problem, run, jac, bounds)
        settings: Any = None if team is None else describe()
    if team is not None:
        saves = checkpoint and (checkpoint.every, checkpoint.keep)
        team.check_equal("whether and how often the run is saved", saves)
    if isinstance(team, ShardedTeam):
        team.check_equal("the settings", (of_pieces(settings), plan.maxiter, plan.maxfun))
        team.measure(reproducible)
    elif team is not None:
        team.check_equal("x0", layout.backend.to_host(layout.start()).tobytes())
        # Each process has its own data.
        own = {**settings, "args": None}
        team.check_equal("the settings", (own, plan.maxiter, plan.maxfun))
    # Trials that overflow are normal, so NumPy's warnings are off; but not inside the user's
    # functions, which run in the caller's context.
    changed: list[str] = []
    with (
        Live(progress) as live,
        np.errstate(all="ignore"),
        contextlib.nullcontext() if team is None else team.patient(),
        keeping_together(checkpoint, describe, layout.backend.name, team) as keeper,
    ):
        try:
            if keeper is None or keeper.saved is None:
                run.begin(layout.start(), state)
                goes_on = True
            else:
                goes_on = restore(run, keeper.saved)
            objective.forgive(on_error)
            if goes_on:
                with layout.backend.where_nan_is_normal():
                    _carry_on(run, callback, live, keeper)
                    changed = _of_changing_functions(run)
            if team is not None:
                team.end()
        except (KeyboardInterrupt, Terminated) as stop:
            if team is not None:
                team.leave(stop)
            # A run within fun of another one has not received the signal itself.
            if run.standing is None or (keeper is None and isinstance(stop, Terminated)):
                raise
            if keeper is not None:
                keeper.save_if_intact()
            run.recover_from_interrupt()
            run.stop(Status.INTERRUPTED)
        except Exception as error:
            if team is not None:
                team.leave(error)
            _explain_dtype(error, layout)
            if run.standing is not None:
                with contextlib.suppress(Exception):
                    if keeper is not None:
                        keeper.save_if_intact()
                    run.recover_from_interrupt()
                _explain_rows(error, run.rows, run.layout)
                result = run.result()
                value = "the values" if is_array(result.fun) else f"value {result.fun}"
                attach(error, result, f"the best point so far, with {value}")
            raise
    result = run.result()
    if changed:
        old = result.message if space.batched else [result.message]
        messages = [new or known for new, known in zip(changed, old, strict=True)]
        message: Any = messages if space.batched else messages[0]
        result = dataclasses.replace(result, message=message)
    layout.keep_frozen(result.x)
    return run, result


def _team(engine: Engine, sharded: bool, objective: Objective, plan: Plan) -> Team:
    """The processes of the run, which the objective then tells of each evaluation."""
    team = (ShardedTeam if sharded else Team)(engine, lambda: objective.layout)
    solvers = [stage.solver for stage in plan.stages]
    if any(solver.needs_hessian or solver.needs_products for solver in solvers):
        raise ValueError("distributed was passed with a method that needs the Hessian of fun, of "
                         'which each process knows a part; wanted another, such as "lbfgs"')
    if sharded and objective.layout.batch:
        raise ValueError(
            "distributed was passed with sharded=True and batched=True; wanted one of them: the "
            "problems of a batch are independent, so let each process solve some of them"
        )
    if sharded and not all(solver.shards for solver in solvers):
        names = ", ".join(stage.name for stage in plan.stages if not stage.solver.shards)
        raise ValueError(
            f"distributed was passed with sharded=True and {names}, which needs all variables in "
            'one process; wanted "lbfgs", "gradient_descent" or a first-order optimizer'
        )
    objective.share(team.shared)
    return team


def _carry_on(
    run: Run, callback: Callable[[Record], Any] | None, live: Live, keeper: Keeper | None
) -> None:
    """Advance the run until it has ended or the callback stops it."""
    watched = live.shown or callback is not None
    advanced = False
    position: Any = None
    if keeper is not None:
        keeper.follow(lambda: position if run.is_at(position) else None)
    while run.goes_on():
        if keeper is not None:
            position = taken(run)
            keeper.visit(position, advanced)
        if run.is_late():
            if keeper is not None and run.is_out_of_time():
                # Not after the end, from where nothing could go on.
                keeper.save_last(position)
                keeper = None
            run.end(Status.TIME)
            continue
        if not watched and run.advance_compiled():
            advanced = True
            continue
        advanced = run.advance()
        stopped = False
        if advanced and watched:
            record = run.record()
            live.show(record)
            stopped = callback is not None and _stops(run, callback, record)
        if run.team is not None:
            stopped = run.team.is_stopped(stopped)
        if stopped:
            if keeper is not None:
                keeper.save_last(taken(run))
            run.stop(Status.CALLBACK)
            return
    if keeper is not None:
        keeper.save_last(taken(run, done=True))


def _stops(run: Run, callback: Callable[[Record], Any], record: Record) -> bool:
    """Whether the callback stops the run."""
    ask = functools.partial(stops, callback, record, run.in_caller_context)
    record.take = run.state_here
    try:
        return ask() if run.team is None else run.team.call(ask)
    finally:
        record.take = None    # it would keep the whole run


def _of_changing_functions(run: Run) -> list[str]:
    """What to say of each problem whose last search failed because fun has changed since the best
    point was found; "" of the others."""
    run.rejoin_rows()
    if not np.any(run.codes() == int(Status.LINE_SEARCH)):
        return []
    space, fn, (_, p, best) = run.space, run.space.scalars, run.standing
    unpaid = p.nfev + 1 + run.criteria.calls_per_trial > run.plan.maxfun
    failed = (p.status == int(Status.LINE_SEARCH)) & fn.logical_not(unpaid)
    if not space.any(failed):
        return []
    value, _, _, count = run.evaluate(best.x)
    (value,), known = space.read(value), best.value
    run.note(p._replace(nfev=fn.where(failed, p.nfev + count, p.nfev)))
    same = fn.abs(value - known) <= _ROUNDING * fn.maximum(fn.abs(value), fn.abs(known))
    changed = failed & fn.logical_not(same)
    if not space.any(changed):
        return []
    if space.batched:
        host = space.backend.to_host
        rows = zip(*(host(run.to_user(part)) for part in (changed, known, value)), strict=True)
    else:
        rows = zip((changed,), (known,), (value,), strict=True)
    return [
        f"fun changes between calls: at the best point it was {before:.9g} and is now {now:.9g}; "
        "a search needs the same function throughout (no new data or points in a callback, no "
        "dropout, no random numbers)" if other else ""
        for other, before, now in rows
    ]


def _explain_dtype(error: BaseException, layout: Layout) -> None:
    """Note the dtypes of x0, in case other arrays in the user's functions do not match them."""
    with contextlib.suppress(Exception):
        if "dtype" in str(error) and "wanted" not in str(error):    # not one of our own checks
            dtypes = sorted({str(leaf.dtype) for leaf in layout.leaves})
            error.add_note(f"lbfgs_xp: functions are passed {', '.join(dtypes)}, like x0")


def _explain_rows(error: BaseException, rows: Rows, layout: Layout) -> None:
    """Explain a possible mismatch of row counts."""
    if rows.here is None:
        return
    left, count = rows.here.shape[0], layout.batch[0]
    with contextlib.suppress(Exception):
        error.add_note(
            f"lbfgs_xp: functions were passed {left} of the {count} rows, because rows that are "
            "done leave the batch; pass data of the rows as args=, or get the indices of the rows "
            f"with pass_rows=True (an array in args whose first axis is {count} counts as data of "
            "the rows, but a 1-d array as shared if another axis of x0 has that length)"
        )
