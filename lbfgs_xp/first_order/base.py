"""What all first-order optimizers share: their settings, and the face init / update."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.checks import flag, number, optional, real, setting
from lbfgs_xp.first_order import update
from lbfgs_xp.first_order.kernel import Kernel, kernel
from lbfgs_xp.first_order.state import OptimizerState
from lbfgs_xp.first_order.stepping import Stepping
from lbfgs_xp.first_order.tape import Tape, record
from lbfgs_xp.schedules import as_schedule
from lbfgs_xp.solvers.method import Method

_POLICIES = ("ignore", "raise", "skip")
# Settings of the whole update, which a group of leaves cannot have of its own.
_GLOBAL = ("clip_norm", "on_nonfinite", "groups", "labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """The settings that every first-order optimizer has beside its own.

    Parameters
    ----------
    learning_rate : float, schedule or function
        A number of at least 0, an object of `lx.schedules`, or a function: step -> number. Steps
        count from 0.
    weight_decay : float
        λ ≥ 0. Coupled: λ x is added to the gradient (an l2 penalty). Decoupled: x shrinks by
        learning_rate λ x at each step (Loshchilov & Hutter 2019).
    decoupled_weight_decay : bool
    clip_norm : float
        The gradient of all leaves together is scaled down to at most this Euclidean norm.
    clip_value : float
        After that, each component is clipped to [-clip_value, clip_value].
    maximize : bool
        Climb instead of descending.
    on_nonfinite : "ignore", "raise" or "skip"
        What to do about a gradient with NaN or infinite components. "skip" leaves parameters and
        state as they are; "raise" raises FloatingPointError. Both wait for the device.
    labels : function or nested strings
        The label of each leaf: a function of its path, such as "layers.0.bias", or strings nested
        like the parameters.
    groups : mapping of label -> mapping of settings
        Settings in which the leaves of a label differ, such as `{"bias": {"weight_decay": 0.0}}`;
        leaves of other labels keep the settings of the optimizer itself.
    """

    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    maximize: bool = False
    on_nonfinite: Literal["ignore", "raise", "skip"] = "ignore"
    labels: Any = None
    groups: Any = ()

    if TYPE_CHECKING:  # every optimizer has one, with a default of its own
        learning_rate: Any = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "learning_rate", as_schedule(self.learning_rate))
        self._number("weight_decay")
        for name in ("clip_norm", "clip_value"):
            setting(self, name, optional(number), above=0.0)
        for name in ("decoupled_weight_decay", "maximize"):
            self._flag(name)
        if self.on_nonfinite not in _POLICIES:
            raise ValueError(
                f"on_nonfinite is {self.on_nonfinite!r}; wanted one of "
                + ", ".join(map(repr, _POLICIES))
            )
        self._check()
        set_(self, "groups", self._frozen(self.groups))
        _ = self.variants  # bad settings of a group are refused here

    # --- the face ------------------------------------------------------------------------------

    def init(self, params: Any) -> OptimizerState:
        """The state before the first update.

        params : an array of any shape, float or complex, or a nested dict, list, tuple or
            dataclass of them, of one library. Leaves may differ in dtype, and in device where
            the library is not JAX; clip_norm wants one device.
        """
        return update.init(self, params)

    def update(
        self, params: Any, grads: Any, state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
    ) -> tuple[Any, OptimizerState]:
        """One step: the new parameters and the new state.

        Parameters
        ----------
        params, grads : of one structure, with leaves of the same shapes, dtypes and devices
            For complex leaves the gradient is df/d(re) + i df/d(im), as torch gives it.
        state : what `init` or the last `update` returned.
        value : float
            The value of the objective; only a `ReduceOnPlateau` needs it, and stays where it is
            at a step without one.
        in_place : bool
            Whether params and the arrays of the state may be overwritten (on JAX: donated). The
            old ones are then gone. On NumPy and torch's CPU nothing large is allocated.
        reproducible : bool
            The same bits on every library (JAX then compiles nothing, and sums of clip_norm are
            taken in a fixed order).

        Raises
        ------
        TypeError, ValueError
            for a gradient or state that does not fit params: what was passed, what is wanted.
        FloatingPointError
            for a gradient that is not finite, with on_nonfinite="raise".
        """
        with np.errstate(all="ignore"):
            return update.update(self, params, grads, state, value, in_place, reproducible)

    def update_leaves(
        self, xs: list[Array], gs: list[Array], state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
    ) -> tuple[list[Array], OptimizerState]:
        """`update` of leaves and gradients that are known to fit the state."""
        with np.errstate(all="ignore"):
            return update.update_leaves(self, xs, gs, state, value, in_place, reproducible)

    def solver(self, layout: Layout) -> Any:
        """The same rule as a solver for `lx.minimize`."""
        if any(variant.maximize for variant in self.variants):
            raise ValueError(
                "maximize=True was passed to a minimisation; wanted maximize=False and a function "
                "with the opposite sign"
            )
        return Stepping(self, update.segments(self, layout))

    # --- what a rule tells of itself -----------------------------------------------------------

    def _check(self) -> None:
        """Refuses settings of the rule's own that are out of range."""

    def slots(self) -> dict[str, float]:
        """The arrays that the rule keeps for each leaf, and the number each is filled with."""
        return {}

    def carried(self) -> tuple[float, ...]:
        """Numbers that the rule keeps from step to step, at the start."""
        return ()

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The numbers of step t = 1, 2, ... that the formula wants, and those to carry on."""
        return (rate,), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """The new x and slots, elementwise: arithmetic, comparisons and the functions of `fn`."""
        raise NotImplementedError

    # --- the rule with what stands around it ---------------------------------------------------

    def all_numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        own, carried = self.numbers(t, rate, carried)
        return (rate * self.weight_decay, *own), carried

    def whole_formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """`formula`, after clipping and weight decay. numbers: shrinkage, [clip factor,] own."""
        shrinkage, *own = numbers
        if self.clip_norm is not None:
            factor, *own = own
            g = factor * g
        if self.clip_value is not None:
            g = fn.clip(g, -self.clip_value, self.clip_value)
        if self.maximize:
            g = -g
        if self.weight_decay and self.decoupled_weight_decay:
            x = x - shrinkage * x
        elif self.weight_decay:
            g = g + self.weight_decay * x
        return self.formula(fn, x, g, slots, tuple(own))

    @functools.cached_property
    def rule(self) -> FirstOrder:
        """The settings without the learning rate: what is compiled for these serves every rate."""
        return dataclasses.replace(self, learning_rate=0.0, labels=None, groups=())

    @functools.cached_property
    def tape(self) -> Tape:
        """The formula, recorded."""
        slots = self.slots()
        numbers, _ = self.all_numbers(1, 0.0, self.carried())
        count = len(numbers) + (self.clip_norm is not None)
        return record(self.whole_formula, len(slots), count)

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The recording, for libraries that compile its text."""
        return kernel(self.tape)

    @functools.cached_property
    def variants(self) -> tuple[FirstOrder, ...]:
        """The optimizer itself, and those of its groups."""
        bare = dataclasses.replace(self, labels=None, groups=()) if self.groups else self
        return self, *(dataclasses.replace(bare, **dict(settings)) for _, settings in self.groups)

    # --- checks --------------------------------------------------------------------------------

    def _number(self, name: str, below: float = math.inf) -> None:
        setting(self, name, number, least=0.0, below=below)

    def _pair(self, name: str, below: float = 1.0) -> None:
        value = getattr(self, name)
        pair = tuple(map(real, value)) if isinstance(value, (tuple, list)) else ()
        if len(pair) != 2 or not all(v is not None and 0.0 <= v < below for v in pair):
            raise ValueError(f"{name} is {value!r}; wanted two numbers in [0, {below:g})")
        object.__setattr__(self, name, pair)

    def _flag(self, name: str) -> None:
        setting(self, name, flag)

    def _frozen(self, groups: Any) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
        """`groups` as pairs, which can be hashed."""
        if not isinstance(groups, (Mapping, tuple)) or not all(
            isinstance(label, str) and isinstance(settings, (Mapping, tuple))
            for label, settings in dict(groups).items()
        ):
            raise TypeError(
                f"groups is {groups!r}; wanted a mapping of labels to mappings of settings, such "
                'as {"bias": {"weight_decay": 0.0}}'
            )
        if groups and self.labels is None:
            raise ValueError("groups was passed without labels; wanted a label for each leaf")
        own = {field.name for field in dataclasses.fields(self)} - set(_GLOBAL)
        for label, settings in dict(groups).items():
            if strange := dict(settings).keys() - own:
                raise ValueError(
                    f"groups[{label!r}] sets {', '.join(map(str, strange))}; wanted some of "
                    + ", ".join(sorted(own))
                )
        return tuple((label, tuple(dict(s).items())) for label, s in dict(groups).items())
