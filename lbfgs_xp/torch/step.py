"""One step of the optimizer: iterations of L-BFGS on the loss that a closure computes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import Fixed, Search
from lbfgs_xp.projections import Box
from lbfgs_xp.result import Status, table
from lbfgs_xp.run import agreement
from lbfgs_xp.solvers import bounded, lbfgs
from lbfgs_xp.solvers.lbfgs import curvature, restricted
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.state import LBFGSState
from lbfgs_xp.solvers.search import at_floor, hidden
from lbfgs_xp.torch.closure import Closure
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.foreign import pairs_of
from lbfgs_xp.torch.settings import OptimizerSettings

# The initial room for pairs, doubled whenever it is full: most runs end long before torch's default
# of 100 pairs, which would take most of the memory for a large model.
_ROOM = 8
# So many doubtful trials in a row call for a look; see `Step._doubt`.
_DOUBTS = 2
# Ends that no wrong gradient may cause.
_SETTLED = (Status.GRADIENT, Status.VALUE, Status.STEP)
# Without a line search, a loss that has grown by this factor has diverged.
_FAR = 1e10


@dataclasses.dataclass(frozen=True, repr=False)
class StepResult:
    """The outcome of the last `LBFGS.step`.

    Attributes
    ----------
    fun, gradient_norm : float
        The loss at the last point that was accepted and evaluated, and the largest component of
        its gradient. (Without a line search, the parameters are one step further on.)
    nit, nfev : int
        Iterations, and calls of the closure.
    status : lx.Status
        Why the step ended.
    message : str
        The status in a sentence.
    """

    fun: float
    gradient_norm: float
    nit: int
    nfev: int
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)


class Step:
    """One call of `LBFGS.step` in progress.

    state, lowest : the current state, and that with the lowest value; None before the first
        evaluation.
    torn : whether the pairs of the state may be partly old and partly new.
    moved : whether the step ends at the trial, which has not been evaluated.
    looked : whether function and gradient have been compared in this step; see `_look`.
    memory : what is kept from call to call.
        func_evals, n_iter : the evaluations and iterations so far.
        where : the indices of the parameters to which the rest belongs.
        pairs : the fields of `Pairs`, or None.
        pending : a step that was taken but not evaluated (to x + step direction, with value and
            gradient at x), or None.
        retry : the next trial of a search that ran out of budget before it found a lower point, or
            None.
        clears : whether closure is known to clear the gradients of earlier calls.
        doubts, off : the numbers of doubtful trials in a row; see `_doubt`.
        scale : the size of the loss at the start, or of its first change; None before that.
        taken : the curvature from a state of torch, until it is used; see `foreign`.
    """

    def __init__(
        self, settings: OptimizerSettings, box: Box | None, flat: Flat, closure: Callable,
        memory: dict[str, Any],
    ):
        self.settings = settings
        self.solver = settings.solver()
        if box is not None:
            # Directions are shortened for the first trial that the learning rate leads to.
            rate = settings.lr if settings.lr > 0.0 else 1.0
            self.solver = dataclasses.replace(self.solver, learning_rate=rate).with_bounds(box)
        self.flat = flat
        sign = -1.0 if settings.maximize else 1.0
        self.closure = Closure(closure, flat, sign, memory["clears"])
        self.memory = memory
        self.state: LBFGSState | None = None
        self.lowest: Any = None
        self.nit = 0
        self.status = Status.RUNNING
        self.message = ""
        self.torn = self.moved = self.looked = False
        # Whether there was no curvature to start from.
        self.fresh = True

    def go(self) -> None:
        s, state = self.settings, self._begin()
        if self.status is Status.RUNNING:
            self._judge_start(state)
        while self.status is Status.RUNNING:
            if self._spent():
                self._settle(state)
                self.status = Status.EVALUATIONS
                break
            if self.memory["doubts"] >= _DOUBTS and not self.looked:
                self._look(state)
                continue
            if state.search.evaluations == 0:
                state = self._set_out(state)
                if state.search.dphi0 > -s.tolerance_change:
                    self.status = Status.VALUE
                    break
                if s.fixed and self.nit == s.max_iter - 1:
                    # As in torch: if the batch changes, the value here would be of no use.
                    self.nit, self.moved, self.status = self.nit + 1, True, Status.ITERATIONS
                    break
            value, gradient = self._at(state.trial)
            if self.status is not Status.RUNNING:
                break
            before, state = state, self._tell(state, value, gradient)
            self._note(before, state, value, gradient)
            if state.value < self.lowest.value:
                self.lowest = state
        if self.status in _SETTLED and self.memory["off"] >= _DOUBTS and not self._spent():
            self._look(state)
        if self.status is Status.DIVERGED:
            # Its pairs may be overwritten.
            self.state, self.torn = self.lowest, True

    def leave(self) -> StepResult | None:
        """Set the parameters and the memory to where the step has ended."""
        if (state := self.state) is None:
            if self.solver.projects:
                start = self.flat.read()
                self.flat.write(self.solver.project(Space(start), start))
            return None
        self.flat.write(state.trial if self.moved else state.x)
        memory, search = self.memory, state.search
        memory["n_iter"] += self.nit
        memory["clears"] = self.closure.clears
        memory["where"] = self.flat.where
        # In the middle of an update, the pairs may be partly old and partly new.
        memory["pairs"] = None if self.torn else self._packed(state)
        memory["pending"] = memory["retry"] = None
        if self.moved:
            memory["pending"] = {
                "x": state.x, "value": state.value, "gradient": state.gradient,
                "direction": state.direction, "step": search.alpha,
                "reach": None if state.path is None else state.path.reach,
            }
        elif self.status is Status.EVALUATIONS and search.evaluations:
            memory["retry"] = search.alpha
        sign = -1.0 if self.settings.maximize else 1.0
        return StepResult(
            sign * state.value, state.gradient_norm, self.nit, self.closure.calls, self.status,
            self.message or _MESSAGES.get(self.status, self.status.message),
        )

    def _spent(self) -> bool:
        return self.closure.calls >= max(self.settings.max_eval, 2)

    # --- the parts of a step -------------------------------------------------------------------

    def _begin(self) -> LBFGSState:
        """The state at the current parameters."""
        start = self.flat.read()
        self.space = space = Space(start)
        if self.solver.projects:
            start = self.solver.project(space, start)
            self.flat.write(start)
        self.memory["func_evals"] += 1
        value, gradient, x, fault = self.closure(start)
        if fault and self.solver.projects and not space.equal(self.solver.project(space, x), x):
            x = start
        # If closure has moved the start, as if into a domain, that is the start.
        if fault and math.isfinite(value) and space.equal(x, start):
            self.status, self.message = Status.LINE_SEARCH, fault
        memory, most = self.memory, self.settings.history_size
        if memory["taken"] is not None:
            memory["pairs"] = pairs_of(memory["taken"], gradient, min(_ROOM, most), most)
            memory["where"], memory["taken"] = self.flat.where, None
        pairs, pending = self._known(x), memory["pending"]
        self.fresh = pairs is None or memory["n_iter"] == 0
        if pairs is None:
            pairs = curvature.empty(space, len(x), min(_ROOM, most), (), self.solver.initial.gamma)
        elif pending is not None:
            old = self._init(pending["x"], pending["value"], pending["gradient"], pairs)
            old = old._replace(direction=pending["direction"])
            if old.path is not None and pending["reach"] is not None:
                old = old._replace(path=old.path._replace(reach=pending["reach"]))
            old = _begin_at(self.solver, space, old, pending["step"])
            if space.equal(start, old.trial):
                self.lowest = old
                if fault:
                    self.status, self.message = Status.LINE_SEARCH, fault
                    return old
                state = self._tell(old, value, gradient)
                self.lowest = state if state.value < old.value else old
                return state
        self.lowest = self._init(x, value, gradient, pairs)
        return self.lowest

    def _at(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at x; the step ends if something is wrong with them."""
        self.flat.write(x)
        self.memory["func_evals"] += 1
        value, gradient, _, fault = self.closure(x)
        if fault:
            self.status, self.message = Status.LINE_SEARCH, fault
        return value, gradient

    def _judge_start(self, state: LBFGSState) -> None:
        s = self.settings
        if not (math.isfinite(state.value) and math.isfinite(state.gradient_norm)):
            self.status = Status.NOT_FINITE
        elif state.gradient_norm <= max(s.tolerance_grad, 0.0):
            self.status = Status.GRADIENT
        elif s.lr == 0.0:
            self.status = Status.STEP
        else:
            self._judge_size(state)

    def _init(self, x: Tensor, value: float, gradient: Tensor, pairs: Pairs) -> LBFGSState:
        with np.errstate(all="ignore"):
            self.state = self.solver.init(self.space, x, value, gradient, pairs)
        return self.state

    def _tell(self, state: LBFGSState, value: float, gradient: Tensor) -> LBFGSState:
        self.torn = True
        with np.errstate(all="ignore"):
            self.state = self.solver.step(self.space, state, value, gradient)
        self.torn = False
        return self.state

    def _set_out(self, state: LBFGSState) -> LBFGSState:
        """The state with a new search that starts at the step that torch tries first."""
        s, memory, pairs = self.settings, self.memory, state.pairs
        if pairs.count == len(pairs.diagonal) < s.history_size and pairs.slot == 0:
            wider = _wider(self.space, pairs, s.history_size)
            if state.path is not None:
                wider = restricted.to_free(self.space, wider, None, self.solver.scale_initial)
            state = self._init(state.x, state.value, state.gradient, wider)
        alpha = float(s.lr)
        begins = self.fresh and self.nit == 0 if s.fixed else pairs.count == 0
        if begins:
            size = self.space.read_one(self.space.sum(abs(self._steepest(state))))
            alpha *= min(1.0, 1.0 / size)
        if state.path is not None and pairs.count == 0 and alpha > 0.0:
            state = self._refitted(state, alpha)
        if memory["retry"] is not None:
            alpha, memory["retry"] = memory["retry"], None
        self.state = after = _begin_at(self.solver, self.space, state, alpha)
        if memory["scale"] is None:
            memory["scale"] = max(abs(after.value), alpha * abs(after.search.dphi0))
        return after

    def _refitted(self, state: LBFGSState, alpha: float) -> LBFGSState:
        """The state before any curvature, along steepest descent, shortened so that the trial at
        alpha stays within the bounds."""
        space, path = self.space, state.path
        assert path is not None
        downhill = -self._steepest(state)
        direction = bounded.fitted(space, path, state.x, state.gradient, downhill, alpha)
        slope = space.read_one(space.dot(state.gradient, direction))
        return state._replace(
            direction=direction, path=path._replace(reach=alpha),
            search=state.search._replace(dphi0=slope),
        )

    def _steepest(self, state: LBFGSState) -> Tensor:
        """The gradient of the free variables, clipped."""
        inner = self.solver.reduced(self.space, state.x, state.gradient, state.gradient)
        clip = self.solver.clipped(self.space, inner, state.gradient_norm)
        return inner if clip is None else clip.gradient

    def _note(self, before: LBFGSState, state: LBFGSState, value: float, gradient: Tensor) -> None:
        """Set the status if the step ends at this trial, and count what is doubtful about it."""
        space, change = self.space, value - before.value
        hidden = agreement.hidden_by_rounding(space.scalars, space.backend, before.value)
        if state.failed:
            # Unlike in `minimize`, this is not confirmed by another evaluation: a step must not
            # call the closure more often than torch does. (`test_a_floor_is_that_of_minimize` in
            # tests/torch/test_torch_face.py holds the two equal.)
            floor = at_floor(
                space.scalars, space.backend.noise, state.decrement, state.value, state.noise
            )
            self.status = Status.PRECISION if floor else Status.LINE_SEARCH
        if not (state.accepted or hidden < change < math.inf):
            return
        way, alpha = before.direction, before.search.alpha
        if before.path is not None:
            way, alpha = before.trial - before.x, 1.0
        slope, length = space.read(space.dot(gradient, way), space.max_abs(state.x - before.x))
        first = now(before.search.dphi0)
        if before.path is not None:
            first = space.read_one(space.dot(before.gradient, way))
        self._doubt(change, alpha * first, alpha * slope, hidden)
        if state.accepted:
            self._judge(before, state, length)

    def _judge(self, before: LBFGSState, state: LBFGSState, length: float) -> None:
        """Set the status if the step ends with this iteration, which has moved x by `length`."""
        s = self.settings
        self.nit += 1
        self._judge_size(state)
        if self.status is not Status.RUNNING:
            return
        # A step may be short only because a trial that was not finite has shortened it.
        blocked = math.isfinite(now(before.search.cap))
        if state.gradient_norm <= max(s.tolerance_grad, 0.0):
            self.status = Status.GRADIENT
        elif not blocked and length <= s.tolerance_change:
            self.status = Status.STEP
        elif not blocked and abs(state.value - before.value) < s.tolerance_change:
            self.status = Status.VALUE
        elif self.nit == s.max_iter:
            self.status = Status.ITERATIONS

    def _judge_size(self, state: LBFGSState) -> None:
        """Set the status if the loss has left all bounds."""
        scale = self.memory["scale"]
        if self.settings.fixed and scale is not None and state.value > _FAR * scale:
            self.status, self.message = Status.DIVERGED, _DIVERGED
        elif state.value < -(self.space.backend.largest ** 0.5):
            self.status = Status.UNBOUNDED

    def _doubt(self, change: float, first: float, last: float, hidden: float) -> None:
        """Count the doubtful trials in a row.

        change : of the loss.
        first, last : what the slopes at the start and at the trial predict for it.

        doubts : those at which the loss is higher although it still falls according to the slope.
            Short steps with a wrong gradient are like that, and few others.
        off : those at which the change of the loss is not the one that the slopes predict.
        """
        memory = self.memory
        contrary = change > hidden and last < 0.0
        memory["doubts"] = memory["doubts"] + 1 if contrary else 0
        slopes = abs(first) + abs(last)
        if slopes > 4.0 * hidden and math.isfinite(change):
            off = abs(change - 0.5 * (first + last))
            fine = agreement.follows_slopes(off, slopes, hidden)
            memory["off"] = 0 if fine else memory["off"] + 1

    def _look(self, state: LBFGSState) -> None:
        """Decide by one more evaluation, close to the iterate, whether function and gradient
        agree."""
        space, self.looked, self.memory["doubts"] = self.space, True, 0
        ended = self.status
        length = agreement.lengths_of(space.backend.eps)[0]
        extent = space.read_one(space.max_abs(state.x))
        x = agreement.ahead(self.solver, space, state.x, state.gradient, extent, length)
        value, gradient = self._at(x)
        look = agreement.look(space, state, x, value, gradient)
        if self.status is not ended or not math.isfinite(value):
            return
        if look.agrees:
            self.memory["off"] = 0
            return
        first, last = space.read(
            space.dot(state.gradient, x - state.x), space.dot(gradient, x - state.x)
        )
        sign = -1.0 if self.settings.maximize else 1.0
        self.status = Status.LINE_SEARCH
        self.message = (
            "function and gradient disagree: over a short step the loss changes by "
            f"{sign * (value - state.value):.3g}, but by {sign * 0.5 * (first + last):.3g} "
            "according to the gradient (or there is a kink or a jump here); wanted the gradient of "
            "the loss that closure returns, and the same loss for the same parameters"
        )

    def _settle(self, state: LBFGSState) -> None:
        """End a search that is out of evaluations: its lowest trial becomes the iterate."""
        search, lowest = state.search, state.lowest
        if search.evaluations == 0 or not search.best_phi < search.phi0:
            return
        trial = bounded.trial(self.space, state.path, state.x, lowest.alpha, state.direction)
        state = state._replace(trial=trial, search=search._replace(alpha=lowest.alpha))
        box, self.solver = self.solver.box, dataclasses.replace(self.solver, line_search=Fixed())
        self.solver = self.solver if box is None else self.solver.with_bounds(box)
        self._tell(state, lowest.value, lowest.gradient)
        self.nit += 1

    # --- the pairs, as stored in the memory ----------------------------------------------------

    def _packed(self, state: LBFGSState) -> dict[str, Any]:
        # In the middle of a search, the pairs may include one from a trial.
        pairs = state.pairs
        if state.path is not None and state.path.free is not None:
            pairs = restricted.to_free(
                self.space, curvature.copied(pairs), None, self.solver.scale_initial
            )
        elif state.search.evaluations:
            pairs = curvature.copied(state.pairs)
        return {
            key: torch.from_numpy(part) if isinstance(part, np.ndarray) else part
            for key, part in pairs._asdict().items()
        }

    def _known(self, x: Tensor) -> Pairs | None:
        """The pairs of the last step, if they belong to this vector; else None."""
        saved = self.memory["pairs"]
        if saved is None or self.memory["where"] != self.flat.where:
            return None
        rows, room = saved["rows"], len(saved["diagonal"])
        if rows[0].shape != x.shape or rows.dtype != x.dtype or rows.device != x.device:
            return None
        if room > self.settings.history_size:
            return None
        like = self.space.small_zeros(())
        small = {k: _placed(saved[k], like) for k in ("inverse", "gram", "diagonal")}
        return Pairs(**saved | small)


def _begin_at(
    solver: lbfgs.LBFGS, space: Space, state: LBFGSState, alpha: float
) -> LBFGSState:
    """The state with a new search that starts at the trial alpha."""
    noise = hidden(space.scalars, space.backend.noise, state.value, state.noise)
    rule: Any = solver.line_search
    search: Search = rule.begin(state.value, now(state.search.dphi0), alpha, noise)
    trial = bounded.trial(space, state.path, state.x, search.alpha, state.direction)
    return state._replace(search=search, trial=trial)


def _placed(saved: Tensor, like: Any) -> Any:
    """A part of the pairs where the small algebra runs: as an array of NumPy, or on the device."""
    return saved.cpu().numpy() if isinstance(like, np.ndarray) else saved.to(like)


def _wider(space: Space, pairs: Pairs, most: int) -> Pairs:
    """Copy a full ring, whose oldest pair is in slot 0, to one with room for twice as many pairs.
    """
    m, n = len(pairs.diagonal), pairs.rows.shape[1]
    size = min(2 * m, most)
    wider = curvature.empty(space, n, size, (), pairs.gamma)
    wider.rows[:m], wider.rows[size : size + m] = pairs.rows[:m], pairs.rows[m:]
    wider.inverse[:m, :m], wider.gram[:m, :m] = pairs.inverse, pairs.gram
    wider.diagonal[:m] = pairs.diagonal
    return wider._replace(slot=m, count=m)


_DIVERGED = (
    "the loss has grown by a factor of more than 1e10: the learning rate is too large for steps "
    "without a line search, or the gradient is wrong; the parameters are those with the lowest "
    "loss of this step"
)
_MESSAGES = {
    Status.GRADIENT: "the gradient is small: its largest component is at most tolerance_grad",
    Status.VALUE: "the loss has settled: its change, or the slope along the direction, is less "
    "than tolerance_change",
    Status.STEP: "the parameters have settled: none changes by more than tolerance_change",
    Status.ITERATIONS: "the step has used its max_iter iterations",
    Status.EVALUATIONS: "the step has used its max_eval evaluations",
}
