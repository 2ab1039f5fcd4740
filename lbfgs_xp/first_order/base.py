"""What all first-order optimizers share: common settings, and the interface init / update."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.formula import Source, source
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.checks import flag, flags, number, optional, real, setting
from lbfgs_xp.first_order import update
from lbfgs_xp.first_order.state import OptimizerState
from lbfgs_xp.first_order.stepping import Stepping
from lbfgs_xp.first_order.tape import Tape, record, tape
from lbfgs_xp.schedules import as_schedule
from lbfgs_xp.solvers.method import Method

_POLICIES = ("ignore", "raise", "skip")
# Settings of the update as a whole, which cannot differ between groups of leaves.
_GLOBAL = ("clip_norm", "on_nonfinite", "groups", "labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrder(Method):
    """The settings that all first-order optimizers share, in addition to their own.

    Parameters
    ----------
    learning_rate : float, schedule or function
        A number of at least 0, an object of `lx.schedules`, or a function step -> number. Steps
        are counted from 0. In a function that JAX transforms, the number may be traced, and may be
        differentiated or mapped over.
    weight_decay : float
        λ ≥ 0. Coupled: λ x is added to the gradient (an l2 penalty). Decoupled: x shrinks by
        learning_rate λ x at each step (Loshchilov & Hutter 2019).
    decoupled_weight_decay : bool
        Whether the weight decay is decoupled.
    clip_norm : float
        The gradient of all leaves together is scaled down to at most this Euclidean norm.
    clip_value : float
        After that, each component is clipped to [-clip_value, clip_value].
    maximize : bool
        Whether to maximise instead of minimise.
    on_nonfinite : "ignore", "raise" or "skip"
        How to treat a gradient with NaN or infinite components. "skip" leaves parameters and state
        unchanged; "raise" raises FloatingPointError. Both must wait for the device.
    labels : function or nested strings
        The label of each leaf: a function of its path, such as "layers.0.bias", or strings nested
        like the parameters.
    groups : mapping of label -> mapping of settings
        Settings that differ for the leaves of a label, such as `{"bias": {"weight_decay": 0.0}}`;
        leaves with other labels keep the settings of the optimizer itself.
    """

    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    maximize: bool = False
    on_nonfinite: Literal["ignore", "raise", "skip"] = "ignore"
    labels: Any = None
    groups: Any = ()

    # Whether `update` also needs the loss of the batch, as a function.
    needs_fun = False
    # Whether each number of a leaf is updated on its own.
    elementwise = True

    if TYPE_CHECKING:  # every optimizer has one, with its own default
        learning_rate: Any = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "learning_rate", as_schedule(self.learning_rate, traced=True))
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
        # Labels nested in other ways are checked once the parameters are known.
        if isinstance(self.labels, numbers.Number):
            raise TypeError(
                f"labels is {self.labels!r}; wanted a function from the path of a leaf to its "
                "label, or a string for each leaf, nested as the parameters"
            )
        self._check()
        set_(self, "groups", self._frozen(self.groups))
        _ = self.variants  # this checks the settings of the groups

    # --- public methods ------------------------------------------------------------------------

    def init(self, params: Any) -> OptimizerState:
        """The state before the first update.

        params : a float or complex array of any shape, or a nested dict, list, tuple or dataclass
            of such arrays, all from one library. Leaves may differ in dtype and, except in JAX, in
            device; clip_norm requires a single device. Tensors with requires_grad=False among
            others that require a gradient are frozen: `update` leaves them, and ignores their
            gradients, which may be None.
        """
        return update.init(self, params)

    def update(
        self, params: Any, grads: Any, state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
    ) -> tuple[Any, OptimizerState]:
        """One step: the new parameters and the new state.

        With JAX it may be called in a compiled function or `jax.lax.scan`, which then computes the
        numbers of a step (rates, corrections), too. Those of the first 4096 steps are constants
        with the bits that they have outside, unless they depend on earlier ones. A rate that a
        function computes with Python's numbers comes from the host after 65,536 steps.

        Parameters
        ----------
        params, grads : the same structure, with leaves of the same shapes, dtypes and devices
            For complex leaves the gradient is df/d(re) + i df/d(im), as in torch.
        state : OptimizerState
            The state returned by `init` or by the last `update`.
        value : float
            The value of the objective. Only a `ReduceOnPlateau` needs it; without a value it does
            not change.
        in_place : bool
            Whether params and the arrays of the state may be overwritten (in JAX, donated); their
            old contents are then lost. On NumPy and torch's CPU nothing large is then allocated.
        reproducible : bool
            Whether to give the same bits on every library (JAX then compiles nothing, and the sums
            for clip_norm are taken in a fixed order).

        Raises
        ------
        TypeError, ValueError
            If params, grads and state do not match; the message says what was passed and what is
            wanted.
        FloatingPointError
            If the gradient is not finite and on_nonfinite="raise".
        """
        in_place, reproducible = flags(in_place=in_place, reproducible=reproducible)
        with np.errstate(all="ignore"):
            return update.update(self, params, grads, state, value, in_place, reproducible)

    def update_leaves(
        self, xs: list[Array], gs: list[Array], state: OptimizerState, *, value: Any = None,
        in_place: bool = False, reproducible: bool = False,
    ) -> tuple[list[Array], OptimizerState]:
        """`update` for leaves and gradients that are known to match the state."""
        with np.errstate(all="ignore"):
            return update.update_leaves(self, xs, gs, state, value, in_place, reproducible)

    def solver(self, layout: Layout) -> Any:
        """The rule as a solver for `lx.minimize`."""
        if any(variant.maximize for variant in self.variants):
            raise ValueError(
                "maximize=True was passed to a minimisation; wanted maximize=False and a function "
                "with the opposite sign"
            )
        return Stepping(self, *update.segments(self, layout))

    # --- what a rule defines -------------------------------------------------------------------

    def _check(self) -> None:
        """Check the rule's own settings."""

    def slots(self) -> dict[str, float]:
        """The arrays that the rule keeps for each leaf, with their initial fill values."""
        return {}

    def slot_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of these arrays for a leaf of this shape."""
        return dict.fromkeys(self.slots(), shape)

    def carried(self) -> tuple[float, ...]:
        """The initial values of the numbers that the rule keeps from step to step."""
        return ()

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The numbers that the formula takes at step t = 1, 2, ..., and those to carry over."""
        return (rate,), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """The new x and slots, by elementwise arithmetic, comparisons and functions of `fn`."""
        raise NotImplementedError

    def decayed(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        shrinkage: Any, **more: Any,
    ) -> tuple[Array, tuple[Array, ...]]:
        """`formula` with decoupled weight decay."""
        return self.formula(fn, x - shrinkage * x, g, slots, numbers, **more)

    # --- the rule with clipping and weight decay -----------------------------------------------

    def all_numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        own, carried = self.numbers(t, rate, carried)
        return (rate * self.weight_decay, *own), carried

    def whole_formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        **more: Any,
    ) -> tuple[Array, tuple[Array, ...]]:
        """`formula` after clipping and weight decay. numbers: shrinkage, [clip factor,] own.

        more : the space, if the rule is not elementwise.
        """
        shrinkage, *own = numbers
        if self.clip_norm is not None:
            factor, *own = own
            g = factor * g
        if self.clip_value is not None:
            g = fn.clip(g, -self.clip_value, self.clip_value)
        if self.maximize:
            g = -g
        if self.weight_decay and self.decoupled_weight_decay:
            return self.decayed(fn, x, g, slots, tuple(own), shrinkage, **more)
        if self.weight_decay:
            g = g + self.weight_decay * x
        return self.formula(fn, x, g, slots, tuple(own), **more)

    @functools.cached_property
    def rule(self) -> FirstOrder:
        """The settings without the learning rate, so that compiled code serves every rate."""
        return dataclasses.replace(self, learning_rate=0.0, labels=None, groups=())

    @functools.cached_property
    def _recorded(self) -> Any:
        """The recorded formula."""
        slots = self.slots()
        numbers, _ = self.all_numbers(1, 0.0, self.carried())
        count = len(numbers) + (self.clip_norm is not None)
        return record(self.whole_formula, len(slots), count)

    @functools.cached_property
    def tape(self) -> Tape:
        """The formula as operations on registers, to be run block by block."""
        return tape(*self._recorded)

    @functools.cached_property
    def kernel(self) -> Source:
        """The formula as source code, for libraries that compile it."""
        return source(*self._recorded)

    @functools.cached_property
    def variants(self) -> tuple[FirstOrder, ...]:
        """The optimizer itself, followed by the optimizers of its groups."""
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
        """`groups` as nested pairs, which can be hashed."""
        if not isinstance(groups, (Mapping, tuple)) or not all(
            isinstance(label, str) and isinstance(settings, (Mapping, tuple))
            for label, settings in dict(groups).items()
        ):
            raise TypeError(
                f"groups is {groups!r}; wanted a mapping from labels to mappings of settings, such "
                'as {"bias": {"weight_decay": 0.0}}'
            )
        if groups and self.labels is None:
            raise ValueError("groups was passed without labels; wanted a label for each leaf")
        own = {field.name for field in dataclasses.fields(self)} - set(_GLOBAL)
        for label, settings in dict(groups).items():
            if strange := dict(settings).keys() - own:
                raise ValueError(
                    f"groups[{label!r}] sets {', '.join(map(str, strange))}; wanted settings among "
                    + ", ".join(sorted(own))
                )
        return tuple((label, tuple(dict(s).items())) for label, s in dict(groups).items())
