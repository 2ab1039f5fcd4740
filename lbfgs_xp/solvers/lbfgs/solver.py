"""L-BFGS: limited-memory quasi-Newton steps with a line search."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, flag, setting
from lbfgs_xp.line_search import LineSearch, MoreThuente, rule_of
from lbfgs_xp.schedules import Constant, as_schedule
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.initial import Initial
from lbfgs_xp.solvers.lbfgs import curvature, many, one
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.inverse_hessian import InverseHessian
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, Pace
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.typing import LineSearchName

_ALWAYS_0, _ALWAYS_1 = Constant(0.0), Constant(1.0)


@dataclasses.dataclass(frozen=True)
class LBFGS(Method, Solver):
    """Limited-memory BFGS (Liu & Nocedal 1989; Nocedal & Wright, Algorithm 7.5).

    The direction is -H g, where H comes from the last `memory_size` pairs of steps and changes of
    the gradient by the compact form of Byrd, Nocedal & Schnabel (1994). Memory: 2 memory_size + 6
    vectors.

    Parameters
    ----------
    memory_size : int
        How many pairs are kept, at least 1.
    line_search : LineSearch or str
        A rule such as `lx.HagerZhang()`, or its name.
    initial_inverse_hessian : None, float, array of n or of the shape of x, or function
        H before any pair: the identity, a multiple of it, a positive diagonal, or a function that
        maps a vector (..., n) to another (which then goes through the two-loop recursion).
    scale_initial : bool
        Whether the newest pair rescales it by s . y / y . y (Nocedal & Wright, eq. 7.20). With
        True and no `initial_inverse_hessian` the first step is scaled as well: its length is that
        at which the linear model predicts a value of -|f|, at most max(1, largest |x|); and the
        first search ends at the first lower trial that shows curvature, since all it is for is to
        find the scale.
    learning_rate : float above 0, schedule or function
        The first trial of each line search, in units of the quasi-Newton step; with
        `line_search=lx.Fixed()` the step itself. Steps of a schedule are iterations. For a batch,
        a number.

    Raises
    ------
    ValueError, TypeError
        for values outside these ranges, naming what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> solver = lx.LBFGS(memory_size=5, line_search=lx.HagerZhang())
    >>> res = lx.minimize(lambda x: (x @ x, 2 * x), np.ones(3), jac=True, method=solver)
    >>> bool(np.allclose(res.x, 0.0))
    True
    """

    memory_size: int = 10
    line_search: LineSearch | LineSearchName = MoreThuente()
    initial_inverse_hessian: Any = None
    scale_initial: bool = True
    learning_rate: Any = 1.0
    # `initial_inverse_hessian`, understood.
    initial: Initial = dataclasses.field(init=False, repr=False, compare=False)

    resumes = True

    def __post_init__(self) -> None:
        setting(self, "memory_size", count, least=1)
        setting(self, "scale_initial", flag)
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "line_search", rule_of(self.line_search))
        set_(self, "learning_rate", as_schedule(self.learning_rate))
        if self.learning_rate == _ALWAYS_0:
            raise ValueError("learning_rate is 0; wanted a number above 0, or a schedule")
        set_(self, "initial", Initial(self.initial_inverse_hessian, self.scale_initial))

    @property
    def pace(self) -> Pace | None:
        """Where the learning rate stands at the start; None where it is always 1."""
        rate = self.learning_rate
        return None if rate == _ALWAYS_1 else Pace(0, rate.init())

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Pairs | None = None
    ) -> LBFGSState:
        """The state at x, a vector (..., n), where value and gradient are known.

        `learned` are the pairs of an earlier run, to start from its curvature.
        """
        *batch, n = x.shape
        pairs = learned
        if pairs is None:
            pairs = curvature.empty(
                space, n, self.memory_size, tuple(batch), self.initial.gamma
            )
        if space.batched and not isinstance(self.learning_rate, Constant):
            raise ValueError(
                f"learning_rate is {self.learning_rate!r} with batched=True; wanted a number, for "
                "the problems of a batch are at iterations of their own"
            )
        weights = self.initial.weights(space, x)
        value, norm = space.read(value, space.max_abs(gradient))
        begin = many.begin if space.batched else one.begin
        return begin(self, space, x, value, gradient, norm, pairs, weights)

    def step(
        self, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any = True
    ) -> LBFGSState:
        """The state after value and gradient at `state.trial` were seen.

        Trials that overflow are ordinary; `minimize` calls this under `numpy.errstate`.

        Problems of a batch outside the mask `active` stay as they are. The pairs of the old state
        may be overwritten: go on from the new one.
        """
        if space.batched:
            return many.step(self, space, state, value, gradient, active)
        return one.step(self, space, state, value, gradient)

    def inverse_hessian(self, space: Space, state: LBFGSState) -> InverseHessian:
        """The inverse Hessian at the state's iterate, as an operator.

        It shares the pairs of the state: whoever goes on from the state is done with it.
        """
        pairs = self.learned(space, state) if _overwritten(space, state) else state.pairs
        return InverseHessian(space, pairs, state.weights, self.initial.function)

    def learned(self, space: Space, state: LBFGSState) -> Pairs:
        """A copy of the state's pairs, for another run to start from."""
        if _overwritten(space, state):
            return curvature.vacated(space, state.pairs)
        return curvature.copied(state.pairs)

    def resume(self, state: LBFGSState) -> LBFGSState:
        """The same state, with pairs of its own to overwrite."""
        return state._replace(pairs=curvature.copied(state.pairs))

    def check_state(self, state: Any) -> None:
        """Refuses a state that is not one of a solver like this."""
        held = state.pairs.diagonal.shape[-1] if isinstance(state, LBFGSState) else 0
        if held != self.memory_size:
            what = f"{held} pairs" if held else f"a {type(state).__name__}"
            raise ValueError(
                f"state holds {what}; wanted that of LBFGS with memory_size={self.memory_size}"
            )


def _overwritten(space: Space, state: LBFGSState) -> bool:
    """Whether the trial under way lies over the oldest pair, as it does on a device."""
    return space.remote and state.search.evaluations > 0
