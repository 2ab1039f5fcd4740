"""Where a whole run of `minimize` stands, so that another process can go on from there.

Unlike `lx.State`, which begins a new run with what another one has learned, a snapshot holds
everything: finished phases, the rows that have left a batch, counts and looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.rows import Rows
from lbfgs_xp.arrays.tree import flatten, map_leaves, unflatten
from lbfgs_xp.result import BatchResult, Best, Result, Status
from lbfgs_xp.run import stopping
from lbfgs_xp.run.aux_output import AuxOutput
from lbfgs_xp.run.iteration import Standing
from lbfgs_xp.run.stopping import Criteria
from lbfgs_xp.saving import placing
from lbfgs_xp.saving.checkpoint import Saved
from lbfgs_xp.saving.descriptions import described, fingerprint, fingerprints, kinds_of

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_ITERATIONS, _EVALUATIONS = int(Status.ITERATIONS), int(Status.EVALUATIONS)
_RUNNING = int(Status.RUNNING)
# By how much a value may differ where a run goes on, as a power of eps, relative to it.
_SAME = 0.4
# The fields of a result that a file holds.
_OF_RESULT = (
    "fun", "gradient_norm", "nit", "nfev", "nhev", "success", "status", "message",
)
_LIKE_X = ("x", "jac", "active")


class Snapshot(NamedTuple):
    """Where a run stands between two evaluations.

    ended : what is known of the phases that have ended.
    rows : the rows of a batch that are left.
    aux, places : the leaves of the best point's aux, and those that belong to the rows.
    differences : what the finite differences know.
    looks : what the second look knows.
    sizes : what decides when rows leave.
    budgets : maxiter and maxfun of the run.
    done : whether the run has ended.
    """

    ended: tuple[dict[str, Any], ...]
    rows: Rows
    standing: Standing
    criteria: Criteria
    aux: tuple
    places: tuple[int, ...]
    differences: tuple
    forward: bool
    nfev: int
    nhev: int
    looks: dict[str, Any]
    sizes: tuple[float, float]
    budgets: tuple[int, int]
    done: bool = False

    def counts(self) -> dict[str, Any]:
        """What a reader of the file may want to know."""
        return {"phase": len(self.ended), "nfev": self.nfev, "done": self.done}


def described_problem(run: Run, jac: Any, bounds: Any) -> dict[str, Any]:
    """What must not differ between a run and the one that goes on from it."""
    layout, plan = run.layout, run.plan
    return {
        "kind": "minimize",
        "variables": kinds_of(layout.leaves, layout.structure, "x0"),
        "start": fingerprint(layout.start()),
        "phases": [
            {
                "method": described(stage.solver),
                **{
                    name: described(getattr(stage.criteria, name))
                    for name in ("gtol", "relative", "ftol", "xtol")
                },
            }
            for stage in plan.stages
        ],
        "batched": run.space.batched,
        "reproducible": run.space.reproducible,
        "jac": "a function" if callable(jac) else described(jac),
        "diff_step": described(run.objective.differences.step),
        "has_aux": run.objective.has_aux,
        "bounds": described(bounds),
        "x_scale": described(layout.scale),
        "noise": described(plan.noise),
        "args": fingerprints(run.objective.args, "args"),
    }


def of_pieces(problem: dict[str, Any]) -> dict[str, Any]:
    """What of a problem must not differ between processes that each have a piece of it."""
    own = ("variables", "start", "phases", "args")
    whole = {name: problem[name] for name in problem if name not in own}
    for name in ("bounds", "x_scale"):
        whole[name] = problem[name] is not None
    arrays = ("box", "l1", "initial_inverse_hessian", "segments")
    whole["phases"] = [
        {
            **phase,
            "method": {
                name: setting is not None if name in arrays else setting
                for name, setting in phase["method"].items()
            },
        }
        for phase in problem["phases"]
    ]
    whole["dtypes"] = sorted({kind.partition(" ")[0] for kind in problem["variables"].values()})
    return whole


def _of_ended(result: Result) -> dict[str, Any]:
    """What a file holds of the result of a phase."""
    kept = {name: getattr(result, name) for name in _OF_RESULT}
    like_x = {name: getattr(result, name) for name in _LIKE_X}
    return {
        **kept,
        **{name: x if x is None else tuple(flatten(x)[0]) for name, x in like_x.items()},
    }


def _ended_as_result(run: Run, saved: dict[str, Any]) -> Result:
    """The result of a phase, without what a file does not hold: states and inverse Hessians."""
    structure = run.layout.structure
    like_x: dict[str, Any] = {
        name: None if saved[name] is None else unflatten(structure, list(saved[name]))
        for name in _LIKE_X
    }
    kind: Any = BatchResult if run.space.batched else Result
    return kind(**{name: saved[name] for name in _OF_RESULT}, **like_x)


def taken(run: Run, done: bool = False) -> Snapshot:
    """Where a run stands."""
    aux, objective = run.aux, run.objective
    return Snapshot(
        tuple(map(_of_ended, run.ended)), run.rows, run.standing, run.criteria,
        tuple(flatten(aux.value)[0]) if objective.has_aux else (), aux.places,
        objective.differences.memory, objective.forward, objective.nfev, objective.nhev,
        run.second_look.memory, run.sizes.memory, (run.plan.maxiter, run.plan.maxfun), done,
    )


def restore(run: Run, file: Saved) -> bool:
    """Bring a run that has not begun to where another one stood; return whether it goes on."""
    objective, space = run.objective, run.space
    saved: Snapshot = file.position(space.backend)
    for ended in saved.ended:
        run.ended.append(_ended_as_result(run, _as_own(run, ended)))
        run.enter_stage()
    if objective.differs:
        run.set_differences(saved.forward)
    if file.library != space.backend.name:
        saved = _moved(run, saved)
    standing, left = saved.standing, saved.rows.here
    if left is not None:
        objective.restrict_to(space.send(left))
    value, aux, seconds = run.try_at(standing.solver_state.x)
    _check_value(run, value, standing)
    of_best = AuxOutput(aux, saved.places)
    if objective.has_aux:
        of_best = AuxOutput(unflatten(flatten(aux)[1], list(saved.aux)), saved.places)
    objective.differences.memory = saved.differences
    run.resume_at(saved, of_best, seconds)
    objective.nfev, objective.nhev = saved.nfev, saved.nhev
    run.second_look.memory, run.sizes.memory = saved.looks, saved.sizes
    _apply_budgets(run, saved.budgets)
    return not saved.done or run.is_running()


def _moved(run: Run, saved: Snapshot) -> Snapshot:
    """A snapshot of a run with another library, with the arrays that this one would have. (What is
    an array of NumPy here may be one of the library of x there, and vice versa.)"""
    space, layout = run.space, run.layout
    start = layout.start()
    value = space.sum(0.0 * start)
    state = run.state_at(start, value, 0.0 * start, None)
    best = Best(start, state.value, start, state.gradient_norm, state.value)
    standing = Standing(state, stopping.start(
        space.scalars, run.criteria, state.value, state.gradient_norm, state.value, 1
    ), best)
    per_row = standing, run.criteria

    def placed(value: Any, like: Any) -> Any:
        return placing.placed(value, space, layout.size, like)

    def of_row(known: tuple) -> tuple:
        return (*placed(known[:2], per_row), *_as_own(run, known[2:]))

    here, left = saved.rows
    rows = Rows(
        placed(here, None), tuple((placed(which, None), of_row(known)) for which, known in left)
    )
    return saved._replace(
        rows=rows,
        standing=placed(saved.standing, standing), criteria=placed(saved.criteria, run.criteria),
        aux=_as_own(run, saved.aux), differences=_as_own(run, saved.differences),
        looks={name: placed(known, None) for name, known in saved.looks.items()},
    )


def _as_own(run: Run, value: Any) -> Any:
    return map_leaves(lambda leaf: placing.as_own(run.space.backend, leaf), value)


def _check_value(run: Run, value: Any, standing: Standing) -> None:
    """Refuse to go on with a function that has another value at the iterate."""
    space, known = run.space, standing.solver_state.value
    fn, p = space.scalars, standing.progress
    (found,) = space.read(value)
    size = fn.maximum(fn.abs(found), fn.abs(known))
    # Another library rounds in other ways, and a sum of squares near 0 keeps few digits.
    margin = space.backend.eps ** _SAME * size + space.backend.eps * fn.abs(p.first_value)
    same = (fn.abs(found - known) <= fn.maximum(margin, p.noise)) | (found == known)
    same = same | (fn.logical_not(fn.isfinite(known)) & fn.logical_not(fn.isfinite(found)))
    other = fn.logical_not(same)
    if space.any(other):
        what = f"another value in {space.count(other)} rows" if space.batched else (
            f"the value {now(found):.9g} instead of {now(known):.9g}"
        )
        raise ValueError(
            f"fun has {what} at the point where the checkpoint goes on; wanted the same fun and "
            "args as in the run that has saved it, or another path"
        )


def _apply_budgets(run: Run, before: tuple[int, int]) -> None:
    """Take the budgets of this run, and let problems run on that have run out of the old ones."""
    maxiter, maxfun = run.plan.maxiter, run.plan.maxfun
    if (maxiter, maxfun) == before:
        return
    run.rejoin_rows()
    fn, c, p = run.space.scalars, run.criteria, run.standing.progress
    run.criteria = c = c._replace(
        maxiter=fn.where(c.maxiter == before[0], maxiter, c.maxiter),
        maxfun=fn.where(c.maxfun == before[1], maxfun, c.maxfun),
    )
    more = (p.status == _ITERATIONS) & (p.nit < c.maxiter)
    more = more | ((p.status == _EVALUATIONS) & (maxfun > before[1]))
    run.note(stopping.budgets(fn, c, p._replace(status=fn.where(more, _RUNNING, p.status))))
