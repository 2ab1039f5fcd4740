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
from lbfgs_xp.result import Status, table
from lbfgs_xp.solvers import lbfgs
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.state import LBFGSState
from lbfgs_xp.solvers.search import at_floor
from lbfgs_xp.torch.flat import Flat
from lbfgs_xp.torch.settings import OptimizerSettings

# The initial room for pairs, doubled whenever it is full: most runs end long before torch's default
# of 100 pairs, which would take most of the memory for a large model.
_ROOM = 8


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

    memory : what is kept from call to call.
        func_evals, n_iter : the evaluations and iterations so far.
        where : the indices of the parameters to which the rest belongs.
        pairs : the fields of `Pairs`, or None.
        pending : a step that was taken but not evaluated (to x + step direction, with value and
            gradient at x), or None.
        retry : the next trial of a search that ran out of budget before it found a lower point, or
            None.
    """

    def __init__(
        self, settings: OptimizerSettings, flat: Flat, closure: Callable, memory: dict[str, Any]
    ):
        self.settings = settings
        self.solver = settings.solver()
        self.flat = flat
        self.closure = torch.enable_grad()(closure)
        self.memory = memory
        self.state: LBFGSState | None = None
        self.nit = self.nfev = 0
        self.status = Status.RUNNING
        self.torn = self.moved = False

    def go(self) -> None:
        s, state = self.settings, self._begin()
        if not (math.isfinite(state.value) and math.isfinite(state.gradient_norm)):
            self.status = Status.NOT_FINITE
        elif state.gradient_norm <= s.tolerance_grad:
            self.status = Status.GRADIENT
        elif s.lr == 0.0:
            self.status = Status.STEP
        while self.status is Status.RUNNING:
            if self.nfev >= max(s.max_eval, 2):
                self._settle(state)
                self.status = Status.EVALUATIONS
                break
            if state.search.evaluations == 0:
                state = self._set_out(state)
                if state.search.dphi0 > -s.tolerance_change:
                    self.status = Status.VALUE
                    break
                if s.fixed and self.nit == s.max_iter - 1:
                    # As in torch: if the batch changes, the value here would be of no use.
                    self.nit, self.moved, self.status = self.nit + 1, True, Status.ITERATIONS
                    break
            self.flat.write(state.trial)
            before, state = state, self._tell(state, *self._evaluate())
            self._judge(before, state)

    def leave(self) -> StepResult | None:
        """Set the parameters and the memory to where the step has ended."""
        if (state := self.state) is None:
            return None
        self.flat.write(state.trial if self.moved else state.x)
        memory, search = self.memory, state.search
        memory["n_iter"] += self.nit
        memory["where"] = self.flat.where
        # In the middle of an update, the pairs may be partly old and partly new.
        memory["pairs"] = None if self.torn else self._packed(state)
        memory["pending"] = memory["retry"] = None
        if self.moved:
            memory["pending"] = {
                "x": state.x, "value": state.value, "gradient": state.gradient,
                "direction": state.direction, "step": search.alpha,
            }
        elif self.status is Status.EVALUATIONS and search.evaluations:
            memory["retry"] = search.alpha
        sign = -1.0 if self.settings.maximize else 1.0
        return StepResult(
            sign * state.value, state.gradient_norm, self.nit, self.nfev, self.status,
            _MESSAGES.get(self.status, self.status.message),
        )

    # --- the parts of a step -------------------------------------------------------------------

    def _begin(self) -> LBFGSState:
        """The state at the current parameters."""
        x = self.flat.read()
        self.space = space = Space(x)
        self.loss = None
        value, gradient = self._evaluate()
        pairs, pending = self._known(x), self.memory["pending"]
        if pairs is None:
            room = min(_ROOM, self.settings.history_size)
            pairs = curvature.empty(space, len(x), room, (), self.solver.initial.gamma)
        elif pending is not None:
            old = self._init(pending["x"], pending["value"], pending["gradient"], pairs)
            old = old._replace(direction=pending["direction"])
            old = _begin_at(self.solver, space, old, pending["step"])
            if space.equal(x, old.trial):
                return self._tell(old, value, gradient)
        return self._init(x, value, gradient, pairs)

    def _evaluate(self) -> tuple[float, Tensor]:
        loss = self.closure()
        self.nfev += 1
        self.memory["func_evals"] += 1
        if self.loss is None:
            self.loss = loss
        try:
            value = float(loss)
        except TypeError:
            raise TypeError(
                f"closure returned a {type(loss).__name__}; wanted the loss as a number or a "
                "tensor with one element"
            ) from None
        if all(p.grad is None for p in self.flat.params):
            raise ValueError(
                "closure left no gradients; wanted one that calls loss.backward() and returns loss"
            )
        gradient = self.flat.gradient()
        return (-value, -gradient) if self.settings.maximize else (value, gradient)

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
            state = self._init(state.x, state.value, state.gradient, wider)
        alpha = float(s.lr)
        begins = memory["n_iter"] + self.nit == 0 if s.fixed else pairs.count == 0
        if begins:
            size = self.space.read_one(self.space.sum(abs(state.gradient)))
            alpha *= min(1.0, 1.0 / size)
        if memory["retry"] is not None:
            alpha, memory["retry"] = memory["retry"], None
        self.state = _begin_at(self.solver, self.space, state, alpha)
        return self.state

    def _judge(self, before: LBFGSState, state: LBFGSState) -> None:
        """Set the status if the step ends here; most tests apply only after an iteration."""
        s, space = self.settings, self.space
        if state.failed:
            # Unlike in `minimize`, this is not confirmed by another evaluation: a step must not
            # call the closure more often than torch does. (`test_a_floor_is_that_of_minimize` in
            # tests/torch/test_torch_face.py holds the two equal.)
            floor = at_floor(space.scalars, space.backend.noise, state.decrement, state.value)
            self.status = Status.PRECISION if floor else Status.LINE_SEARCH
        if not state.accepted:
            return
        self.nit += 1
        if state.gradient_norm <= s.tolerance_grad:
            self.status = Status.GRADIENT
        elif space.read_one(space.max_abs(state.x - before.x)) <= s.tolerance_change:
            self.status = Status.STEP
        elif abs(state.value - before.value) < s.tolerance_change:
            self.status = Status.VALUE
        elif self.nit == s.max_iter:
            self.status = Status.ITERATIONS

    def _settle(self, state: LBFGSState) -> None:
        """End a search that is out of evaluations: its lowest trial becomes the iterate."""
        search, lowest = state.search, state.lowest
        if search.evaluations == 0 or not search.best_phi < search.phi0:
            return
        trial = self.space.move(state.x, lowest.alpha, state.direction)
        state = state._replace(trial=trial, search=search._replace(alpha=lowest.alpha))
        self.solver = dataclasses.replace(self.solver, line_search=Fixed())
        self._tell(state, lowest.value, lowest.gradient)
        self.nit += 1

    # --- the pairs, as stored in the memory ----------------------------------------------------

    def _packed(self, state: LBFGSState) -> dict[str, Any]:
        # In the middle of a search, the pairs may include one from a trial.
        pairs = state.pairs
        if state.search.evaluations:
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
    noise = abs(state.value) * space.backend.noise
    rule: Any = solver.line_search
    search: Search = rule.begin(state.value, now(state.search.dphi0), alpha, noise)
    return state._replace(search=search, trial=space.move(state.x, search.alpha, state.direction))


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


_MESSAGES = {
    Status.GRADIENT: "the gradient is small: its largest component is at most tolerance_grad",
    Status.VALUE: "the loss has settled: its change, or the slope along the direction, is less "
    "than tolerance_change",
    Status.STEP: "the parameters have settled: none changes by more than tolerance_change",
    Status.ITERATIONS: "the step has used its max_iter iterations",
    Status.EVALUATIONS: "the step has used its max_eval evaluations",
}
