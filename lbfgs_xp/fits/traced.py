"""A fit inside a function that is being compiled: all of it is one program, without the host.

It takes the steps of `loop.Fit` for a batch; one problem is a batch of one. Noise of the residuals
is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits import linear_model, linear_start
from lbfgs_xp.fits.linear_algebra import FEW, identity
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchLeastSquaresResult, LeastSquaresResult
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.result import CLAIMED, Status
from lbfgs_xp.run.iteration import succeeded
from lbfgs_xp.run.traced import MESSAGE, refuse

_RUNNING = int(Status.RUNNING)
# The attributes of a result that hold arrays.
_PARTS = ("x", "cost", "fun", "jac", "optimality", "nit", "nfev", "njev", "success", "status")

_PARTS_OF_REPORT = (
    "x", "covariance", "stderr", "chi2", "reduced_chi2", "deviance", "chi2_priors", "r2",
    "residuals", "n_data", "n_free", "log_likelihood", "nit", "nfev", "njev", "success", "status",
    "_root",
)


def refuse_settings(jac: Any, solver: str = "dense", **settings: Any) -> None:
    """Refuse what such a fit cannot do, if it was passed."""
    refuse(
        jac=jac if isinstance(jac, str) else None, solver=None if solver == "dense" else solver,
        **settings,
    )


def keep_report(backend: Backend, kind: type) -> None:
    """Let the results of `lx.curve_fit` leave a program."""
    backend.keep_parts(kind, _PARTS_OF_REPORT, ("_analysis",))


class _Aim(NamedTuple):
    """The fields of a state that `lm.aim` sets."""

    mu: Array
    step: Array
    trial: Array
    predicted: Array


def run_traced(objective: Residuals, box: Any, plan: FitPlan) -> LeastSquaresResult:
    """`run_fit` as part of a program."""
    return _TracedFit(objective, box, plan).result()


class _TracedFit:
    def __init__(self, objective: Residuals, box: Any, plan: FitPlan):
        self.objective, self.box, self.plan = objective, box, plan
        self.space = Space(objective.backend, batched=True)
        self.xp, self.settings = self.space.xp, plan.settings

    def state(self) -> tuple[lm.LMState, Array]:
        """The state at the end, and the number of calls."""
        layout, xp = self.objective.layout, self.xp
        x = xp.reshape(layout.start(), (-1, layout.size))
        if self.box is not None:
            x = xp.minimum(xp.maximum(x, self.box[0]), self.box[1])
        residuals = self.objective(x)
        columns = self.objective.columns(x, residuals)
        linear = self._linearized(x, residuals, columns, self.plan.scale)
        state = lm.begin(self.settings, self.space, x, residuals, columns, linear)
        state, calls = self._begun(state)
        carry = self._loop(lambda state: state.status == _RUNNING, self._advanced, state, calls)
        return self._confirmed(*carry)

    def _loop(self, goes_on: Callable, step: Callable, state: Any, calls: Array) -> Any:
        """The state after steps as long as the mask `goes_on(state)` holds somewhere, each of which
        calls the residuals once, within the budget; and the number of calls. The status of what
        would go on becomes that of the budget."""
        xp, most = self.xp, self.plan.maxfun

        def unfinished(carry: tuple) -> Any:
            state, calls = carry
            return xp.any(goes_on(state)) & (calls < most)

        state, calls = self.space.backend.while_loop(
            unfinished, lambda carry: (step(carry[0]), carry[1] + 1), (state, calls)
        )
        spent = goes_on(state)
        ended = xp.full_like(state.status, int(Status.EVALUATIONS))
        return state._replace(status=xp.where(spent, ended, state.status)), calls

    # --- a step ----------------------------------------------------------------------------------

    def _linearized(self, x: Array, residuals: Array, columns: Array, largest: Any) -> Any:
        arguments = self.settings, self.space, x, residuals, columns, self.box, largest
        if x.shape[-1] > FEW:
            return linear_model.decompose(*arguments)
        linear = linear_model.linearize(*arguments)
        return self.space.backend.branch(
            linear.hard,
            lambda hard: self.space.merge(hard, linear_model.decompose(*arguments), linear),
            linear,
        )

    def _aimed(self, state: lm.LMState) -> lm.LMState:
        """The state with its next trial."""
        space, box = self.space, self.box

        def aim(exact: bool) -> _Aim:
            found = lm.aim(exact, space, state, box)
            return _Aim(*(getattr(found, name) for name in _Aim._fields))

        if state.x.shape[-1] > FEW:
            return state._replace(**aim(True)._asdict())
        quick = aim(False)
        hard = state.linear.hard & (state.status == _RUNNING)
        found = space.backend.branch(
            hard, lambda hard: space.merge(hard, aim(True), quick), quick
        )
        return state._replace(**found._asdict())

    def _begun(self, state: lm.LMState) -> tuple[lm.LMState, Array]:
        """The state after the first step, and the number of calls; see `linear_start`."""
        space, xp, data = self.space, self.xp, self.objective.data
        calls, more = xp.asarray(1), linear_start.calls(state)
        if self.plan.maxfun < 2 + more:
            return state, calls
        first = self._tried(state)
        far = lm.starts_far(space, first.state, first.verdict)
        far = far & linear_start.is_off(space, state, None if data is None else data[1])
        begun = self._moved(space.backend.branch(far, lambda far: self._led(first, far), first))
        running, led = (xp.astype(xp.any(mask), calls.dtype) for mask in (
            state.status == _RUNNING, far
        ))
        return begun, calls + running + more * led

    def _led(self, first: linear_start.Tried, far: Array) -> linear_start.Tried:
        """The first trial, or the step in the linear parameters of problems that are `far`."""
        space, state, xp = self.space, first.state, self.xp
        last = state.x.shape[-1]
        units = identity(space, last)

        def look(carry: tuple) -> tuple:
            place, kept = carry
            found = linear_start.linear_along(
                space, state, self.box, self.objective, xp.take(units, place, axis=0)
            )
            return place + 1, kept + found

        start = xp.asarray(0), xp.zeros_like(state.x)
        _, kept = space.backend.while_loop(lambda carry: carry[0] < last, look, start)
        return linear_start.stepped(
            self.settings, space, first, self.box, self.objective, far, kept
        )

    def _tried(self, state: lm.LMState) -> linear_start.Tried:
        """The next trial of each problem."""
        state = self._aimed(state)
        residuals = self.objective(state.trial)
        verdict = lm.judge(self.settings, self.space, state, residuals)
        return linear_start.Tried(state, residuals, verdict)

    def _advanced(self, state: lm.LMState) -> lm.LMState:
        """The state after one step of each problem."""
        return self._moved(self._tried(state))

    def _moved(self, tried: linear_start.Tried) -> lm.LMState:
        """The state after a trial."""
        space, (state, residuals, verdict) = self.space, tried
        # The model may have no value at a trial that was rejected.
        at = space.pick(verdict.accepted, state.trial, state.x)
        known = space.pick(verdict.accepted, residuals, state.residuals)
        columns = self.objective.columns(at, known)
        linear = self._linearized(at, known, columns, state.linear.scale)
        columns = space.pick_rows(linear.finite, columns, state.columns)
        return lm.advance(self.settings, space, state, verdict, residuals, columns, linear)

    # --- confirming a precision floor; see `lbfgs_xp.run.agreement` ------------------------------

    def _confirmed(self, state: lm.LMState, calls: Array) -> tuple[lm.LMState, Array]:
        """The state after what has ended by rounding has been looked at."""
        xp, lengths = self.xp, lm.lengths(self.space.backend.eps)
        table = xp.asarray(lengths, dtype=self.space.backend.dtype)

        class Looks(NamedTuple):
            status: Array
            place: Array

        def goes_on(looks: Looks) -> Array:
            return (looks.status == CLAIMED) & (looks.place < len(lengths))

        def look(looks: Looks) -> Looks:
            status, place = looks
            return Looks(self._looked(state, status, table[place[0]], place == 0), place + 1)

        start = Looks(state.status, xp.zeros_like(state.status))
        looks, calls = self._loop(goes_on, look, start, calls)
        refuted = xp.full_like(looks.status, int(Status.LINE_SEARCH))
        status = xp.where(looks.status == CLAIMED, refuted, looks.status)
        return state._replace(status=status), calls

    def _looked(self, state: lm.LMState, status: Array, length: Array, first: Array) -> Array:
        """The statuses after a look as far as `length`."""
        xp, settings, space = self.xp, self.settings, self.space
        here = state.x, state.residuals, state.columns, state.noise
        ahead = lm.ahead(settings, space, *here, state.linear.scale, self.box, length)
        found = self.objective(ahead)
        columns = self.objective.columns(ahead, found)
        agrees, visible, lower = lm.look(settings, space, *here, ahead, found, columns)
        claimed = status == CLAIMED
        floor, failed = (
            xp.full_like(status, int(each)) for each in (Status.PRECISION, Status.LINE_SEARCH)
        )
        # If rounding hides even the longest look, nothing contradicts the claim.
        status = xp.where(claimed & agrees & (visible | first), floor, status)
        return xp.where(claimed & lower, failed, status)

    # --- the outcome -----------------------------------------------------------------------------

    def result(self) -> LeastSquaresResult:
        layout, (state, calls) = self.objective.layout, self.state()

        def of_one(array: Array) -> Array:
            return array if layout.batched else array[0, ...]

        kind: Any = BatchLeastSquaresResult if layout.batched else LeastSquaresResult
        self.space.backend.keep_parts(kind, _PARTS, ())
        matrix = self.xp.matrix_transpose(state.columns)
        return kind(
            layout.to_tree(of_one(state.x)), of_one(state.value), of_one(state.residuals),
            of_one(matrix), of_one(state.linear.optimality), of_one(state.nit), calls, calls,
            self.objective.derivatives, of_one(succeeded(state.status)), of_one(state.status),
            MESSAGE,
        )
