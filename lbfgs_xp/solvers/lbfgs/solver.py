"""L-BFGS: limited-memory quasi-Newton steps with a line search."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lbfgs_xp.arrays.backend import Array, dtype_name
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, flag, setting
from lbfgs_xp.line_search import LineSearch, MoreThuente, rule_of
from lbfgs_xp.projections import Box
from lbfgs_xp.schedules import Constant, as_schedule
from lbfgs_xp.solvers import anchor
from lbfgs_xp.solvers.bounded import TakesBounds
from lbfgs_xp.solvers.clipping import ClipsGradients
from lbfgs_xp.solvers.initial import Initial
from lbfgs_xp.solvers.lbfgs import curvature, many, one, restricted
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.lbfgs.inverse_hessian import InverseHessian
from lbfgs_xp.solvers.lbfgs.state import LBFGSState, Pace
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.orthant import L1
from lbfgs_xp.typing import LineSearchName

_DTYPES = ("float32", "bfloat16")
_ALWAYS_0, _ALWAYS_1 = Constant(0.0), Constant(1.0)


@dataclasses.dataclass(frozen=True)
class LBFGS(Method, TakesBounds, ClipsGradients):
    """Limited-memory BFGS (Liu & Nocedal 1989; Nocedal & Wright, Algorithm 7.5).

    The direction is -H g, where H is built from the last `memory_size` pairs of steps and changes
    of the gradient, in the compact form of Byrd, Nocedal & Schnabel (1994). Memory:
    2 memory_size + 8 vectors, with the gradient that fun returns.

    Parameters
    ----------
    memory_size : int
        How many pairs are kept, at least 1.
    line_search : LineSearch or str
        A rule such as `lx.HagerZhang()`, or its name.
    initial_inverse_hessian : None, float, array of n numbers or of the shape of x, or function
        H before any pair: the identity, a multiple of it, a positive diagonal, or a function from
        a vector (..., n) to another (which is then used in the two-loop recursion).
    scale_initial : bool
        Whether the newest pair rescales it by s . y / y . y (Nocedal & Wright, eq. 7.20). If True
        and without `initial_inverse_hessian`, the first step is scaled too: along it the linear
        model falls to -|f|, but it is no longer than max(1, largest |x|). The first search then
        ends at the first lower trial that shows curvature, because it only has to find the scale.
    learning_rate : float above 0, schedule or function
        The first trial of each line search, in units of the quasi-Newton step; with
        `line_search=lx.Fixed()`, the step itself. A schedule counts iterations. For a batch, it
        must be a number.
    history_dtype : None, "float32" or "bfloat16"
        The dtype in which the pairs are kept; None for that of x. float32 pairs of a float64 run
        take half the memory; products with them are summed in the dtype of x. The pairs are rounded
        before anything is computed from them, so H stays positive definite. NumPy and CuPy have no
        bfloat16. Not for a batch.
    clip_norm, clip_value : float above 0 or None
        Where the gradient has a larger Euclidean norm, it is scaled down to clip_norm; after that,
        each component is clipped to [-clip_value, clip_value]. Directions are made of this clipped
        gradient. Slopes and tolerances are those of the gradient itself, and so are the pairs,
        of which those are not kept whose step begins or ends at a gradient that is clipped: a
        memory of a steep stretch far from the minimum would only shorten the next steps. Choose
        limits well above the gradients of an ordinary run.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

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
    history_dtype: Literal["float32", "bfloat16"] | None = None
    # `initial_inverse_hessian`, interpreted.
    initial: Initial = dataclasses.field(init=False, repr=False, compare=False)
    box: Box | None = dataclasses.field(init=False, repr=False, default=None)
    l1: L1 | None = dataclasses.field(init=False, repr=False, default=None)
    gradient_error: float = dataclasses.field(init=False, repr=False, default=0.0)

    supports_l1 = True
    resumes = True
    takes_noise = True

    def __post_init__(self) -> None:
        setting(self, "memory_size", count, least=1)
        setting(self, "scale_initial", flag)
        self._check_clips()
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "line_search", rule_of(self.line_search))
        set_(self, "learning_rate", as_schedule(self.learning_rate))
        if self.learning_rate == _ALWAYS_0:
            raise ValueError("learning_rate is 0; wanted a number above 0, or a schedule")
        if self.history_dtype not in (None, *_DTYPES):
            raise ValueError(
                f"history_dtype is {self.history_dtype!r}; wanted None, "
                f"{' or '.join(map(repr, _DTYPES))}"
            )
        set_(self, "initial", Initial(self.initial_inverse_hessian, self.scale_initial))

    @property
    def pace(self) -> Pace | None:
        """The learning rate's state at the start; None if the rate is always 1."""
        rate = self.learning_rate
        return None if rate == _ALWAYS_1 else Pace(0, rate.init())

    @property
    def shards(self) -> bool:  # type: ignore[override]
        return self.initial.function is None

    @property
    def in_programs(self) -> bool:
        steady = isinstance(self.learning_rate, Constant)
        return self.initial.function is None and steady and self.history_dtype is None

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Pairs | None = None,
        unit: Array | None = None, noise: Any = 0.0,
    ) -> LBFGSState:
        """The state at x, a vector (..., n), with value and gradient there.

        `learned` holds the pairs of an earlier run, to start from its curvature. `unit` is the size
        of each variable: the pairs are then those of the variables x / unit.
        """
        *batch, n = x.shape
        pairs = learned
        if pairs is None:
            pairs = curvature.empty(
                space, n, self.memory_size, tuple(batch), self.initial.gamma,
                self._dtype_of_rows(space),
            )
        if space.batched and not isinstance(self.learning_rate, Constant):
            raise ValueError(
                f"learning_rate is {self.learning_rate!r} with batched=True; wanted a number, "
                "because each problem of a batch is at its own iteration"
            )
        weights = self.initial.weights(space, x) if unit is None else unit
        value, norm = space.read(value, self.optimality(space, x, gradient))
        begin = many.begin if space.batched else one.begin
        state = begin(self, space, x, value, gradient, norm, pairs, weights, noise)
        return state._replace(anchor=anchor.begun(self.gradient_error, x, gradient))

    def _dtype_of_rows(self, space: Space) -> Any:
        """`history_dtype` as a dtype of the library of x, or None."""
        name, backend = self.history_dtype, space.backend
        if name is None:
            return None
        if space.batched:
            raise ValueError(f"history_dtype is {name!r} with batched=True; wanted None")
        dtype = getattr(space.xp, name, None)
        if dtype is None:
            raise ValueError(
                f"history_dtype is {name!r}, which {backend.name} lacks; wanted None or 'float32'"
            )
        return dtype

    def step(
        self, space: Space, state: LBFGSState, value: Any, gradient: Array, active: Any = True
    ) -> LBFGSState:
        """The state after the evaluation of value and gradient at `state.trial`.

        Trials that overflow are normal; `minimize` calls this under `numpy.errstate`.

        Problems of a batch outside the mask `active` stay as they are. The pairs of the old state
        may be overwritten: continue from the new one.
        """
        if space.batched:
            return many.step(self, space, state, value, gradient, active)
        return one.step(self, space, state, value, gradient)

    def as_row(self, space: Space, state: LBFGSState) -> LBFGSState | None:
        if self.projects or state.pace is not None or not self.in_programs:
            # Bounds or l1; a schedule, which a batch does not follow; a function of one vector.
            return None
        return one.as_row(self, space, state)

    @property
    def rescales(self) -> bool:  # type: ignore[override]
        """Whether a run may restart in other units: if none were given."""
        return self.initial.scales_first

    def in_units(self, space: Space, state: LBFGSState) -> LBFGSState:
        """The same state, with weights."""
        if state.weights is not None:
            return state
        return state._replace(weights=space.xp.ones_like(state.x))

    def promise(self, space: Space, state: LBFGSState) -> Any:
        """Half the slope of the next step, if pairs have shaped it."""
        fn, slope = space.scalars, now(state.search.dphi0)
        known = (state.pairs.count > 0) & (slope < 0.0) & (state.search.evaluations == 0)
        if self.clips:
            known = known & fn.logical_not(self.too_large(space, state.x, state.gradient))
        return fn.where(known, -0.5 * slope, 0.0 * state.value)

    def inverse_hessian(self, space: Space, state: LBFGSState) -> InverseHessian:
        """The inverse Hessian at the state's iterate, as an operator.

        It shares the pairs of the state, and is no longer valid after a step from that state.
        """
        free = None if state.path is None else state.path.free
        return InverseHessian(space, state.pairs, state.weights, self.initial.function, free)

    def learned(self, space: Space, state: LBFGSState) -> Pairs | None:
        """A copy of the state's pairs, for another run to start from. Pairs of variables in units
        that only the state knows are left out: the result is then None, or holds none for these
        problems of a batch."""
        pairs = curvature.copied(state.pairs)
        if state.weights is not None and self.rescales:
            if not space.batched:
                return None
            (other,) = space.read(space.max_abs(state.weights - 1.0))
            pairs = curvature.forget_many(space, pairs, other > 0.0, self.initial.gamma)
        if state.path is None or state.path.free is None:
            return pairs
        return restricted.to_free(space, pairs, None, self.scale_initial)

    def resume(self, state: LBFGSState) -> LBFGSState:
        """The same state, with its own copy of the pairs, to overwrite."""
        return state._replace(pairs=curvature.copied(state.pairs))

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        held = state.pairs.diagonal.shape[-1] if isinstance(state, LBFGSState) else 0
        if held != self.memory_size:
            what = f"{held} pairs" if held else f"a {type(state).__name__}"
            raise ValueError(
                f"state holds {what}; wanted the state of LBFGS with "
                f"memory_size={self.memory_size}"
            )
        found, own = (dtype_name(array.dtype) for array in (state.pairs.rows, state.x))
        if found != (wanted := self.history_dtype or own):
            raise ValueError(
                f"state holds pairs in {found}; wanted {wanted}, the history_dtype of this method"
            )
