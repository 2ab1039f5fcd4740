"""The loop of a fit: Levenberg-Marquardt steps around the user's residuals."""

from __future__ import annotations

import contextlib
import contextvars
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, identity, namespace_of
from lbfgs_xp.arrays.returned import stops
from lbfgs_xp.arrays.rows import Rows, Sizes, compiled_size
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits import flat, jacobian, linear_model, linear_start, small
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits.jacobian import Products
from lbfgs_xp.fits.linear_algebra import FEW, norm
from lbfgs_xp.fits.linear_model import LinearModel
from lbfgs_xp.fits.matrix_free import FreeSteps
from lbfgs_xp.fits.names import free_names, shortened
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchLeastSquaresResult, FitRecord, LeastSquaresResult
from lbfgs_xp.fits.settings import FitPlan, FitSettings
from lbfgs_xp.fits.sharpening import Sharpening
from lbfgs_xp.projections import Box
from lbfgs_xp.result import CLAIMED, Status, attach
from lbfgs_xp.run import agreement
from lbfgs_xp.saving.checkpoint import Terminated

_RUNNING = int(Status.RUNNING)
_STATUSES = {int(status): status for status in Status}
# How a message begins to name parameters.
NO_RESPONSE = "the residuals do not respond to"
# Statuses whose message differs from that of `minimize`.
MESSAGES = {
    Status.GRADIENT: (
        "the residuals are stationary: what a change of the parameters could still remove of them "
        "is at most the share gtol, or hidden by rounding"
    ),
    Status.LINE_SEARCH: (
        "none of the steps tried lowers the cost: residuals and Jacobian disagree, or there is a "
        "kink, a jump, a large rounding error or the edge of the domain of the residuals here"
    ),
    Status.NOT_FINITE: (
        "the residuals or their Jacobian at the start are not finite (is there a nan in the "
        "data?), or the squares of the residuals are outside the range of the dtype (a sigma of "
        "their size helps)"
    ),
}
# The most elements of a Jacobian for which the algebra of one problem runs on the host.
_SMALL = 2**16
# Of more than this part of the rows, columns are evaluated together with those of all others.
_MOST_OF = 0.9


class _Outcome(NamedTuple):
    """What is kept of each problem for the result."""

    x: Array
    value: Array
    residuals: Array
    columns: Array
    noise: Array
    scale: Array
    optimality: Array
    nit: Array
    status: Array


def _outcome(state: lm.LMState) -> _Outcome:
    return _Outcome(
        state.x, state.value, state.residuals, state.columns, state.noise, state.linear.scale,
        state.linear.optimality, state.nit, state.status,
    )


class _Steps(lm.Steps):
    """Steps from the array of the Jacobian."""

    def __init__(self, settings: FitSettings, space: Space):
        super().__init__(settings, space)
        prepare = space.backend.jit
        self._aim = prepare(lm.aim, False, space)
        self._aim_exactly = prepare(lm.aim, True, space)
        self._linearize = prepare(linear_model.linearize, settings, space)
        self._decompose = prepare(linear_model.decompose, settings, space)

    def guess(
        self, x: Array, residuals: Array, columns: Array, box: Any, largest: Any
    ) -> LinearModel:
        """`linearize` without a read, which may lose too many digits in problems flagged `hard`."""
        few = x.shape[-1] <= FEW
        return (self._linearize if few else self._decompose)(x, residuals, columns, box, largest)

    def aim(self, state: lm.LMState, box: Any, going: np.ndarray) -> lm.LMState:
        """The state with its next trial."""
        if small.fits(self.space, state.x.shape[-1]) and box is None and not state.linear.hard:
            return small.aim(self.space, state)
        hard = going >= lm.HARD
        if not hard.any():
            return self._aim(state, box)
        if hard.all():
            return self._aim_exactly(state, box)
        rows = _padded(self.space.backend, np.flatnonzero(hard), hard.size)
        # Their R, which is not triangular, may be singular: LAPACK would refuse the whole batch.
        linear, none = state.linear, self.space.xp.zeros_like(state.linear.R)
        easy = linear._replace(R=self.space.pick_rows(linear.hard, none, linear.R))
        new = self._aim(state._replace(linear=easy), box)._replace(linear=linear)
        exact = self._aim_exactly(*self.space.take((state, box), rows))
        return _replaced(self.space, rows, exact, new, "mu", "step", "trial", "predicted")

    def linearize(
        self, x: Array, residuals: Array, columns: Array, box: Any, largest: Any
    ) -> tuple[LinearModel, bool]:
        """The linearised residuals, and whether all are known to be finite. One host transfer."""
        space = self.space
        arguments = (x, residuals, columns, box, largest)
        if small.fits(space, x.shape[-1]):
            found = small.linearize(self.settings, space, *arguments)
            return (self._decompose(*arguments), False) if found is None else (found, True)
        linear = self.guess(*arguments)
        if x.shape[-1] > FEW:
            return linear, False
        hard = space.backend.to_host(linear.hard)
        if not hard.any():
            return linear, True
        if hard.all():
            return self._decompose(*arguments), False
        # Usually only a few, and each costs as much as ten others.
        rows = _padded(space.backend, np.flatnonzero(hard), hard.size)
        exact = self._decompose(*space.take(arguments, rows))
        return space.put(rows, exact, linear), False


def _padded(backend: Backend, rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, padded with the last one if each new shape would be compiled anew."""
    if not backend.compiles:
        return rows
    return np.concatenate([rows, np.full(compiled_size(rows.size, size) - rows.size, rows[-1])])


def _replaced(
    space: Space, rows: np.ndarray, new: lm.LMState, old: lm.LMState, *names: str
) -> lm.LMState:
    """The old state with these rows taken from `new`, in the fields of these names."""
    parts = space.put(
        rows, *(tuple(getattr(state, name) for name in names) for state in (new, old))
    )
    return old._replace(**dict(zip(names, parts, strict=True)))


def run_fit(objective: Residuals, box: Any, plan: FitPlan) -> LeastSquaresResult:
    """Run the loop, which reads from the device once per evaluation of the residuals or Jacobian.

    With `plan.compact`, problems that have ended leave the batch.
    """
    # Trials may overflow, so NumPy's warnings are off; but the user's functions run in the context
    # of the caller, where warnings stay as the caller has set them.
    in_caller_context = contextvars.copy_context().run
    with np.errstate(all="ignore"), contextlib.ExitStack() as stack:
        fit = Fit(objective, box, plan, in_caller_context)
        stack.callback(objective.forget)
        objective.forgiven = plan.on_error
        stack.enter_context(objective.backend.where_nan_is_normal())
        sharpening, end, keeps = Sharpening(fit), plan.end, plan.keeps
        if keeps is not None:
            keeps.begin(fit, sharpening)
        watched = plan.callback is not None or (plan.live is not None and plan.live.shown)
        try:
            while end is None:
                if keeps is not None:
                    keeps.visit(fit, sharpening)
                if not (going := fit.going()).any():
                    fit.rejoin_rows()
                    if sharpening.resumes():
                        continue
                    fit.confirm()
                    if sharpening.explains():
                        continue
                    flat.refute_silence(fit)
                    break
                if (end := fit.spent(fit.calls(going))) is None:
                    before = fit.state.nit
                    fit.advance(fit.compact(going))
                    sharpening.watch()
                    if watched and fit.moved_from(before) and fit.told(in_caller_context):
                        end = Status.CALLBACK
                        if keeps is not None:
                            keeps.note(fit, sharpening)
        except (KeyboardInterrupt, Terminated) as stop:
            # A fit within a run that has received the signal ends with that run.
            if keeps is None and isinstance(stop, Terminated):
                raise
            end = Status.INTERRUPTED
        except Exception as error:
            attach(error, fit.result(None), "the best point so far")
            raise
        return fit.result(end)


class Fit:
    """One call of `run_fit` in progress.

    objective, box : of all problems; here, box_here : of the problems in the batch.
    confirmed : the statuses on the host, once provisional ones are being confirmed; else None.
    known, silence : what they were confirmed from; see `_Silence`.
    begins : whether no step has been tried yet.
    stationary : which problems are known to be at a minimum where the Jacobian vanishes.
    in_caller_context : calls a function of the user in the context of the caller.
    send, fetch : transfer arrays to and from the user's functions if the algebra is on the host.
    """

    def __init__(self, objective: Residuals, box: Any, plan: FitPlan, in_caller_context: Callable):
        self.plan, self.in_caller_context = plan, in_caller_context
        self.objective = self.here = objective
        layout = objective.layout
        backend = outer = layout.backend
        x, shape, box = layout.start(), layout.shape, _shaped(box, layout.shape)
        scale = None if plan.scale is None else backend.xp.reshape(plan.scale, shape)
        if box is not None:
            x = backend.xp.minimum(backend.xp.maximum(x, box[0]), box[1])
        objective.bounds, objective.calls.most = box, plan.maxfun
        untouched = backend.own(x)
        residuals = in_caller_context(objective, x)
        if not Space(backend).equal(x, untouched):
            raise ValueError(
                "residuals changed x in place; wanted a function that leaves its argument unchanged"
            )
        # A small problem is faster on the host, where there is no latency and no compilation. A
        # large one on a device is a batch of one, in which nothing is read.
        numbers = layout.size * math.prod(residuals.shape)
        free = plan.solver != "dense"
        one = not layout.batched and (outer.on_host or numbers <= _SMALL or free)
        if not one and not layout.batched:
            x, residuals, box, scale = _shaped((x, residuals, box, scale), (1, -1))
            objective.bounds = box
        if free:
            in_caller_context(objective.check_rows, x, residuals)
        columns = in_caller_context(objective.columns, x, residuals)
        self.send: Callable = identity
        self.fetch: Callable = identity
        self._twins = _Twins(outer)
        # Where NumPy sees the memory of a library, its operations take less time to call.
        seen = outer.reads_are_free and not objective.calls_per_jacobian
        if not outer.on_host and (one or plan.on_host or seen):
            self.send, self.fetch = self._twins.send, self._twins.fetch
            backend = Backend.of(self.fetch(x))
            x, residuals, columns = map(self.fetch, (x, residuals, columns))
            box = None if box is None else tuple(map(self.fetch, box))
            scale = None if scale is None else self.fetch(scale)
        self.space = Space(backend, batched=not one)
        self.steps: Any = _Steps(plan.settings, self.space)
        if free:
            self.steps = FreeSteps(plan.settings, self.space, plan.solver, self.residuals)
        self.rows, self.sizes, self.box = Rows(), Sizes(backend), box
        self.box_here = box
        self.confirmed: Any = None
        self.begins = True
        self.stationary = np.zeros(layout.batch or (1,), dtype=bool)
        linear, _ = self.steps.linearize(x, residuals, columns, box, scale)
        self.state = self.steps.begin(x, residuals, columns, linear)
        self._going: Any = None

    def going(self) -> np.ndarray:
        """See `lm.going`."""
        if self._going is None:
            self._going = self.of_rows(self.steps.going(self.state))
        return self._going

    def calls(self, going: np.ndarray) -> int:
        """How many calls of the residuals another step with its Jacobian takes."""
        accelerates = int(self.plan.solver == "dual")
        return 1 + self.objective.calls_per_jacobian + accelerates

    def affords(self, calls: int) -> bool:
        """Whether the budget allows this many calls."""
        return self.objective.calls.nfev + calls <= self.plan.maxfun

    def spent(self, calls: int) -> Status | None:
        """The status of a budget that does not allow this many calls; None if all do."""
        if not self.affords(calls):
            return Status.EVALUATIONS
        return Status.TIME if time.perf_counter() >= self.plan.deadline else None

    def compact(self, going: np.ndarray) -> np.ndarray:
        """Remove problems that have ended from the batch, if enough have; return `going` of the
        others."""
        size = going.size
        if self.plan.compact:
            size = self.sizes.next(size, int(np.count_nonzero(going)))
        if size == going.size:
            return going
        space, running = self.space, self.state.status == _RUNNING
        fewer, (box, (state, of_differences)) = self.rows.part(
            space, (self.box_here, self._per_row()), running, size, lambda known: known[1]
        )
        part = self.objective.take(space.backend.to_host(fewer.here))
        part.differences.per_row = of_differences
        # In one statement, so that an interrupt leaves them consistent.
        self.rows, self.here, self.state, self.box_here, self._going = fewer, part, state, box, None
        return self.going()

    def rejoin_rows(self) -> None:
        """Put the rows that have left back into the batch."""
        if self.rows.here is None:
            return
        whole = self.objective
        state, whole.differences.per_row = self.rows.join(self.space, self._per_row())
        # In one statement, so that an interrupt leaves them consistent.
        self.rows, self.here, self.state, self.box_here, self._going = (
            Rows(), whole, state, self.box, None
        )

    def _per_row(self) -> tuple[lm.LMState, tuple]:
        """Everything that has an entry for each row of the batch, except the bounds."""
        return self.state, self.here.differences.per_row

    def _outcome(self) -> _Outcome:
        """What is known of all problems."""
        return self.rows.join(
            self.space, _outcome(self.state), lambda known: _outcome(known[0])
        )

    def stay_with(self, rows: Rows) -> None:
        """Have only some rows in the batch, as in a fit from which the others have left."""
        self.rows, self.here = rows, self.objective.take(self.space.backend.to_host(rows.here))
        self.box_here = self.space.take(self.box, rows.here)

    def begin_at(self, x: np.ndarray, nit: Any) -> None:
        """Begin at these parameters, after so many steps."""
        backend, own, state = self.space.backend, self.plan.settings.own_scale, self.state
        x = backend.from_host(np.reshape(x, state.x.shape), state.x.dtype)
        residuals = self.residuals(x)
        columns = self.columns_at(x, residuals)
        linear, _ = self.steps.linearize(
            x, residuals, columns, self.box, state.linear.scale if own else None
        )
        state = self.steps.begin(x, residuals, columns, linear)
        self.move_to(state._replace(nit=state.nit + self._scalars(nit)))

    def _scalars(self, numbers: Any) -> Any:
        """Integers of the problems, on the host, as they are in the state."""
        if not self.space.batched:
            return int(np.reshape(numbers, (-1,))[0])
        return self.space.backend.from_host(np.reshape(numbers, (-1,)), self.state.nit.dtype)

    def advance(self, going: np.ndarray) -> None:
        """Try one step of each problem."""
        space, steps, box = self.space, self.steps, self.box_here
        state = steps.aim(self.state, box, going)
        residuals = self.ask(self.here, state.trial)
        verdict = steps.judge(state, residuals)
        if self.begins:
            self.begins = False
            first = linear_start.Tried(state, residuals, verdict)
            state, residuals, verdict = linear_start.tried(self, first)
        # A read costs more on a device than a Jacobian that turns out not to be needed.
        blind = not space.backend.reads_are_free and going.size > 1
        if not blind and not space.any(verdict.accepted):
            self.move_to(steps.advance(state, verdict, residuals, None, None))
            return
        at, known = state.trial, residuals
        if not space.every(verdict.accepted):
            # The model may have no value at a trial that was rejected.
            at = space.pick(verdict.accepted, at, state.x)
            known = space.pick(verdict.accepted, known, state.residuals)
        columns = self.columns_after(state, verdict, at, known)
        arguments = at, known, columns, box, state.linear.scale
        if blind:
            linear = steps.guess(*arguments)
            after = steps.advance(state, verdict, residuals, columns, linear)
            going = self.of_rows(steps.going(after, linear.hard & verdict.accepted))
            if not (going & lm.LOST).any():
                self.move_to(after, going)
                return
        linear, finite = steps.linearize(*arguments)
        if not finite:
            columns = space.merge(linear.finite, columns, state.columns)
        self.move_to(steps.advance(state, verdict, residuals, columns, linear))

    def move_to(self, state: lm.LMState, going: Any = None) -> None:
        # In one statement, so that an interrupt leaves the two consistent.
        self.state, self._going = state, going

    # --- confirming a precision floor; see `agreement.confirm` ---------------------------------

    def confirm(self) -> None:
        """Confirm or refute that rounding ended a fit, by checking whether residuals and Jacobian
        agree at a point ahead."""
        backend = self.space.backend
        self.known = self._outcome()
        self.silence = self._silence(self.known)
        # Filled in place, so that an interrupt loses nothing.
        self.confirmed = np.array(self.of_rows(self.known.status))
        agreement.confirm(self, lm.lengths(backend.eps))
        flat.doubt(self)
        self._doubt_floors()

    def _doubt_floors(self) -> None:
        """Refute claims of a precision floor where rounding, as between parameters that cancel, or
        noise exceeds the data: nothing of them has been fitted."""
        floors, data = self.confirmed == int(Status.PRECISION), self.objective.data
        if data is None or not floors.any():
            return
        space, known = self.space, self.known
        hidden = lm.hidden_change(space, known.x, known.residuals, known.columns, known.noise)
        size = self.of_rows(norm(space, self.fetch(data[1])))
        drowned = (size > 0.0) & (self.of_rows(hidden) > size)
        self.confirmed[floors & drowned] = int(Status.LINE_SEARCH)

    def pending(self) -> bool:
        claimed = self.confirmed == CLAIMED
        if claimed.any() and (end := self.spent(1 + self.objective.calls_per_jacobian)):
            self.confirmed[claimed] = int(end)
            return False
        return bool(claimed.any())

    def look(self, length: float, first: bool) -> None:
        rows = np.flatnonzero(self.confirmed == CLAIMED)
        agrees, visible, lower = self.looked(length, rows)
        # If rounding hides even the longest look, nothing contradicts the claim.
        self.confirmed[rows[agrees & (visible | first)]] = int(Status.PRECISION)
        self.confirmed[rows[lower]] = int(Status.LINE_SEARCH)

    def looked(self, length: float, rows: np.ndarray) -> list[np.ndarray]:
        """What a look of this length shows of these problems; see `lm.look`."""
        space, backend, known = self.space, self.space.backend, self.known
        at = (known.x, known.residuals, known.columns, known.noise, known.scale, self.box)
        objective: Any = self.objective
        some = self.plan.compact and not backend.compiles
        if some:
            at, objective = space.take(at, rows), objective.take(rows)
        *here, scale, box = at
        ahead = self.steps.ahead(*here, scale, box, length)
        if objective.in_chunks:
            x, _, _, noise = here
            both = self.in_caller_context(objective.together, self.send(x), self.send(ahead))
            residuals, columns_here, found, columns = map(self.fetch, both)
            here = [x, residuals, columns_here, noise]
        else:
            found = self.ask(objective, ahead)
            columns = self.ask(objective.columns, ahead, found)
        looks = map(self.of_rows, self.steps.look(*here, ahead, found, columns))
        return [look if some else look[rows] for look in looks]

    def refute(self) -> None:
        if (self.confirmed == CLAIMED).any():
            flat.confirm(self)
        self.confirmed[self.confirmed == CLAIMED] = int(Status.LINE_SEARCH)

    # --- the functions of the user at the iterates ----------------------------------------------

    def residuals(self, x: Array) -> Array:
        """The residuals (B, m) of the problems in the batch at x (B, p)."""
        return self.ask(self.here, x)

    def columns(self) -> Array:
        """The columns (B, p, m) of the Jacobian of the problems in the batch at their iterates."""
        return self.columns_at(self.state.x, self.state.residuals)

    def columns_at(self, x: Array, residuals: Array) -> Array:
        """The same at other iterates."""
        return self.ask(self.here.columns, x, residuals)

    def columns_after(
        self, state: lm.LMState, verdict: lm.Verdict, x: Array, residuals: Array
    ) -> Array:
        """The columns at x, where accepted problems have moved. Others need none, and neither do
        those that will end there and are close to where the last differences were taken."""
        space, here = self.space, self.here
        if here.in_chunks or not here.backend.reads_are_free:
            return self.columns_at(x, residuals)
        needed, ends = verdict.accepted, self.steps.foreseen(state, verdict)
        if space.any(ends) and (served := here.serves(x)) is not None:
            needed = needed & space.scalars.logical_not(ends & served)
        if not space.any(needed):
            return self.state.columns
        return self._columns_of(needed, x, residuals)

    def columns_of(self, mask: Array) -> Array:
        """`columns` of the problems in the mask, and those of the state for the others: a batch has
        one doubtful problem among a thousand."""
        return self._columns_of(mask, self.state.x, self.state.residuals)

    def _columns_of(self, mask: Array, x: Array, residuals: Array) -> Array:
        space, here, known = self.space, self.here, self.state.columns
        if not self.plan.compact or here.backend.compiles:
            return self.columns_at(x, residuals)
        rows = np.flatnonzero(self.of_rows(mask))
        if rows.size > _MOST_OF * x.shape[0]:
            return self.columns_at(x, residuals)
        part = here.take_at(self.send(x), rows)
        columns = self.ask(part.columns, *space.take((x, residuals), rows))
        columns, here.differences.per_row = space.put(
            rows, (columns, part.differences.per_row), (known, here.differences.per_row)
        )
        return columns

    @property
    def transfers(self) -> list[tuple[Array, Array]]:
        """The last arrays that are known on the host and on the device, to be saved."""
        return self._twins.recent

    @transfers.setter
    def transfers(self, transfers: list[tuple[Array, Array]]) -> None:
        self._twins.recent = transfers

    # --- the outcome ---------------------------------------------------------------------------

    def moved_from(self, before: Array) -> bool:
        """Whether some problem has accepted a step since its count of steps was `before`."""
        space, now = self.space, self.state.nit
        # Rows that have left are another batch, whose steps are not those of the one before.
        return np.shape(now) != np.shape(before) or space.any(now > before)

    def told(self, in_caller_context: Callable) -> bool:
        """Tell the status line and the callback where the fit is; whether the latter stops it."""
        record, plan = self.record(), self.plan
        if plan.live is not None:
            plan.live.show(record)
        return plan.callback is not None and stops(plan.callback, record, in_caller_context)

    def record(self) -> FitRecord:
        """Where the fit is now, for a callback, in arrays of its own."""
        layout = self.objective.layout
        outcome = self._outcome()
        x, cost, residuals, nit = outcome.x, outcome.value, outcome.residuals, outcome.nit
        if layout.batched:
            x, residuals, cost, nit = *map(self.send, (x, residuals, cost)), self._counts(nit)
        else:
            x, residuals = self._alone(x), self._alone(residuals)
            cost, nit = float(self.of_rows(cost)[0]), int(self.of_rows(nit)[0])
        own = layout.backend.own
        calls = self.objective.calls.nfev
        return FitRecord(layout.to_tree(own(x)), cost, own(residuals), nit, calls)

    def mask_of(self, rows: np.ndarray) -> Array:
        """A mask of the problems, given on the host, for the algebra."""
        return self.space.backend.from_host(rows, self.space.xp.bool) if self.space.batched else (
            bool(rows[0])
        )

    def of_rows(self, numbers: Any) -> np.ndarray:
        """Scalars of the problems on the host, (B,)."""
        return self.space.backend.to_host(numbers).reshape(-1)

    def _counts(self, counts: Array) -> Array:
        """Counts (B,) for the user."""
        outer = self.objective.layout.backend
        if self.space.backend is outer:
            return counts
        return outer.from_host(counts, outer.index_dtype)

    def _alone(self, array: Array) -> Array:
        """An array of the only problem, without an axis for problems, for the user."""
        return self.send(array[0, ...] if self.space.batched else array)

    def ask(self, function: Callable, *arrays: Array) -> Array:
        """Call a function of the user with these arrays."""
        return self.fetch(self.in_caller_context(function, *map(self.send, arrays)))

    def result(self, end: Status | None) -> LeastSquaresResult:
        """The result; `end` is the status of problems that are still running."""
        backend = self.space.backend
        codes = self.confirmed
        if codes is None:
            outcome = self._outcome()
            silence, codes = self._silence(outcome), np.array(self.of_rows(outcome.status))
            if self.objective.calls_per_jacobian:
                # Nobody has looked at it.
                none = silence.everywhere & (self.of_rows(outcome.value) > 0.0)
                codes[none & (codes == int(Status.GRADIENT))] = int(Status.LINE_SEARCH)
        else:
            outcome, silence = self.known, self.silence
        codes[codes == CLAIMED] = _RUNNING
        if end is not None:
            codes[codes == _RUNNING] = int(end)
        matrix: Any = outcome.columns
        if not isinstance(matrix, Products):
            matrix = backend.xp.matrix_transpose(matrix)
        silent = silence.inside & ~self.stationary[:, None]
        statuses = [_STATUSES[code] for code in codes.tolist()]
        messages = [MESSAGES.get(status, status.message) for status in statuses]
        for row in np.flatnonzero(silent.any(axis=-1)):
            messages[row] += self._named(silent[row])
        layout, calls = self.objective.layout, self.objective.calls
        if layout.batched:
            outer = layout.backend
            success = np.asarray([status.success for status in statuses])
            x, cost, residuals, matrix, optimality = map(self.send, (
                outcome.x, outcome.value, outcome.residuals, matrix, outcome.optimality
            ))
            nit = self._counts(outcome.nit)
            return BatchLeastSquaresResult(
                layout.to_tree(x), cost, residuals, matrix, optimality, nit, calls.nfev,
                calls.njev, self.here.derivatives, outer.from_host(success, outer.xp.bool),
                outer.from_host(codes, outer.xp.int32), messages,
            )
        numbers = (outcome.value, outcome.optimality, outcome.nit)
        cost, optimality, nit = (self.of_rows(number)[0] for number in numbers)
        x, residuals = map(self._alone, (outcome.x, outcome.residuals))
        if not isinstance(matrix, Products):
            matrix = self._alone(matrix)
        return LeastSquaresResult(
            layout.to_tree(x), float(cost), residuals, matrix, float(optimality), int(nit),
            calls.nfev, calls.njev, self.here.derivatives, statuses[0].success, statuses[0],
            messages[0],
        )

    def _silence(self, outcome: _Outcome) -> _Silence:
        space, to_host = self.space, self.space.backend.to_host
        silent = np.asarray(to_host(jacobian.largest(space, outcome.columns)) == 0.0)
        inside = moves = np.ones_like(silent)
        if self.box is not None:
            x, low, high = map(to_host, (outcome.x, *self.box))
            inside, moves = (x > low) & (x < high), low < high
        inside, moves, silent = (
            mask.reshape(self.stationary.size, -1) for mask in (inside, moves, silent)
        )
        return _Silence(silent & inside, (silent | ~moves).all(axis=-1) & moves.any(axis=-1))

    def _named(self, silent: np.ndarray) -> str:
        """What a message adds about such parameters."""
        objective = self.objective
        names = free_names(objective.names, objective.layout)
        found = [name for name, is_silent in zip(names, silent, strict=True) if is_silent]
        return f"; {NO_RESPONSE} {shortened(found)}"


class _Silence(NamedTuple):
    """Parameters to which the residuals do not respond, on the host.

    inside : a mask (B, p) of those that are within their bounds.
    everywhere : (B,), whether it is all that have room to move; differences say nothing then.
    """

    inside: np.ndarray
    everywhere: np.ndarray


def _shaped(tree: Any, shape: tuple[int, ...]) -> Any:
    """Arrays in (nested) tuples, or None, with this shape."""
    if tree is None or isinstance(tree, tuple):
        return tree and tuple(_shaped(each, shape) for each in tree)
    return namespace_of(tree).reshape(tree, shape)


class _Twins:
    """Transfers between the host and a device, each array only once."""

    def __init__(self, backend: Backend):
        self._backend = backend
        # The last trial, with its residuals and its Jacobian.
        self.recent: list[tuple[Array, Array]] = []

    def send(self, host: Array) -> Array:
        for known, array in self.recent:
            if known is host:
                return array
        return self._pair(host, self._backend.from_host(host, self._backend.dtype))[1]

    def fetch(self, array: Array) -> Array:
        if isinstance(array, (np.ndarray, np.generic, float, Products)):
            return array
        return self._pair(self._backend.to_host(array), array)[0]

    def _pair(self, host: Array, array: Array) -> tuple[Array, Array]:
        self.recent = [*self.recent[-3:], (host, array)]
        return host, array


def box_of(bounds: Any, layout: Layout) -> Any:
    """None, or the bounds as two arrays (B, p)."""
    if bounds is None:
        return None
    box = Box(*layout.sides(bounds))
    shape = (*layout.batch, layout.size) if layout.batched else (1, layout.size)
    xp, backend = layout.xp, layout.backend
    return tuple(
        xp.broadcast_to(backend.adopt(side, "bounds"), shape)
        for side in (box.lower, box.upper)
    )
