"""Learning-rate schedules: `schedule(step)` is the learning rate at that step.

A schedule is a small frozen object. It does not count steps, so it can be evaluated at any step in
any order, shared, compared, hashed and pickled. Steps are counted from 0; after its end a schedule
stays at its last value. `ReduceOnPlateau` is the exception: it depends on values instead of steps,
and its state is passed in and out.

Each name means the same in all of them:

* `learning_rate`: the reference rate, and the highest one unless a factor raises it;
* `initial`, `final`: the rate at step 0, if it is a different one, and the rate at the end;
* `minimum`: a lower bound of the rate;
* `steps`: the number of steps until the end; in the first `warmup_steps` the rate rises linearly;
* `delay`: the number of steps before anything changes;
* `factor`, `every`: what the rate is multiplied by, and the number of steps from one factor to the
  next;
* `boundaries`: the steps at which something changes, in increasing order;
* `power`, `shape`: the exponent and the form of a curve.

>>> from lbfgs_xp import schedules
>>> schedule = schedules.Cosine(0.1, steps=1000, warmup_steps=200)
>>> [round(schedule(step), 3) for step in (0, 100, 200, 600, 1000, 5000)]
[0.0, 0.05, 0.1, 0.05, 0.0, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, NamedTuple, NoReturn

from lbfgs_xp.checks import (
    Settings,
    count,
    flag,
    integer,
    is_traced,
    number,
    real,
    shown,
)
from lbfgs_xp.drawing import axes
from lbfgs_xp.elementary import (
    cos,
    counted,
    either,
    largest,
    maximum,
    minimum,
    power,
    sqrt,
    where,
)

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Exponential",
    "Factor",
    "Function",
    "InverseSquareRoot",
    "Linear",
    "MultiStep",
    "OneCycle",
    "PiecewiseConstant",
    "PiecewiseInterpolate",
    "PlateauState",
    "Polynomial",
    "Product",
    "ReduceOnPlateau",
    "Schedule",
    "Sequence",
    "StepDecay",
    "Warmup",
    "WarmupStableDecay",
    "as_schedule",
]


def as_schedule(value: Any, name: str = "learning_rate", traced: bool = False) -> Schedule:
    """Turn a number, a schedule or a function from step to rate into a schedule.

    A number of at least 0 becomes a `Constant`, a schedule stays as it is, and any other callable
    becomes a `Function`. If `traced`, so does a number without a value, in a function that JAX
    transforms. Errors call the value `name`.

    Raises ValueError for a number that is negative, NaN or infinite, and TypeError for anything
    else.

    >>> as_schedule(0.1)
    Constant(learning_rate=0.1)
    >>> as_schedule(lambda step: 1.0 / (1 + step))(3)
    0.25
    """
    if isinstance(value, Schedule):
        return value
    if _rate(value) is not None:
        return Constant(value)
    if callable(value) and not isinstance(value, type):
        return Function(value)
    if traced and is_traced(value):
        return Function(lambda step: value)
    error = TypeError if real(value) is None else ValueError
    raise error(
        f"{name} is {shown(value)}; wanted a number of at least 0, a schedule such as "
        "lx.schedules.Cosine(0.1, steps=1000), or a function from step to learning rate"
    )


# Settings of torch and optax -> those here with that meaning, the first that the schedule has.
_FOREIGN = {
    "lr": ("learning_rate", "initial"),
    **dict.fromkeys(("max_lr", "peak_value", "peak_lr"), ("learning_rate",)),
    "init_value": ("initial", "learning_rate"),
    **dict.fromkeys(("end_value", "final_lr"), ("final",)),
    **dict.fromkeys(("eta_min", "min_lr"), ("final", "minimum")),
    "base_lr": ("minimum", "learning_rate"),
    "alpha": ("final, which is a rate and not a factor",),
    **dict.fromkeys(
        ("start_factor", "div_factor"), ("initial, which is a rate and not a factor",)
    ),
    **dict.fromkeys(
        ("end_factor", "final_div_factor"), ("final, which is a rate and not a factor",)
    ),
    **dict.fromkeys(("T_max", "total_iters", "total_steps"), ("steps",)),
    **dict.fromkeys(("transition_steps", "step_size"), ("steps", "every")),
    **dict.fromkeys(("decay_steps",), ("steps",)),
    **dict.fromkeys(("T_0", "step_size_up"), ("period", "up_steps")),
    "step_size_down": ("down_steps",),
    "T_mult": ("growth",),
    **dict.fromkeys(("gamma", "decay_rate"), ("factor",)),
    **dict.fromkeys(("milestones", "boundaries_and_scales"), ("boundaries",)),
    "scales": ("factors",),
    "transition_begin": ("delay",),
    "exponent": ("power",),
    "pct_start": ("warmup_fraction",),
    **dict.fromkeys(("anneal_strategy", "interpolate_type"), ("shape",)),
    "schedulers": ("schedules",),
}


@dataclass(frozen=True, eq=False)
class Schedule(Settings):
    """The base of all schedules, with calls, plots and checks of the settings.

    To write a schedule, derive a frozen dataclass and implement `rate`; `span` is optional. Fields
    with one of the names above are checked; a `shape` must be a string, and one of the class's
    `shapes` if it has any.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Harmonic(Schedule):
    ...     learning_rate: float
    ...     def rate(self, step):
    ...         return self.learning_rate / (1 + step)
    >>> Harmonic(0.1)(4)
    0.02
    """

    foreign = _FOREIGN
    shapes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "shape":
                _checked_shape(self, value)
            if field.name not in _CHECKS or (value is None and field.default is None):
                continue
            check, limits = _CHECKS[field.name]
            # Assignment is not possible, because the dataclass is frozen.
            try:
                checked = check(field.name, value, **limits)
            except ValueError as error:
                raise ValueError(f"{error}{_of_optax(field.name, value)}") from None
            object.__setattr__(self, field.name, checked)
        minimum, highest = getattr(self, "minimum", 0.0), getattr(self, "learning_rate", math.inf)
        if minimum > highest:
            raise ValueError(f"minimum is {minimum}; wanted at most learning_rate, {highest}")

    def __call__(self, step: int) -> float:
        """The learning rate at `step`, an integer of at least 0.

        In a function that JAX compiles, the step may be a traced integer, and so is the rate then.
        There the rate no longer changes after step 2^31 - 2, or 2^63 - 2 with `jax_enable_x64`.

        Raises TypeError if the step is not an integer, and ValueError if it is negative or if the
        rate is not a finite number of at least 0. (Of traced ones the values are not known.)
        """
        known = integer(step)
        if known is None and is_traced(step, "integral"):
            return self._traced(step)
        if known is None:
            raise TypeError(f"step is {step!r}; wanted an integer, counted from 0")
        if known < 0:
            raise ValueError(f"step is {step!r}; wanted at least 0")
        given = self.rate(known)
        rate = _rate(given)
        if rate is None and is_traced(given, "real floating"):
            return given
        if rate is None:
            raise ValueError(
                f"{self!r} gives {given!r} at step {known}; wanted a finite number of at least 0"
            )
        return rate

    def rate(self, step: int) -> float:
        """The learning rate at a step, which is known to be an integer of at least 0."""
        raise NotImplementedError(f"{type(self).__name__} needs a method rate(step)")

    @property
    def traceable(self) -> bool:
        """Whether the rate of a step without a value can be computed in a program of JAX."""
        # Python's own functions may take another path at a step without a value, and say nothing.
        return type(self).rate.__module__ == __name__ or real(self.rate(0)) is None

    def _traced(self, step: Any) -> Any:
        """The rate at a traced step."""
        if not self.traceable:
            raise TypeError(
                f"step is traced, but {self!r} computes with Python's numbers; wanted a step with "
                "a value, or a schedule whose rate is computed by jax.numpy"
            )
        # An integer of 32 bits would be divided in float32 where the default is float64.
        step = counted(step)
        try:
            return self.rate(step)
        except OverflowError:
            raise ValueError(
                f"{self!r} counts more steps than integers of {step.dtype} hold; wanted fewer, or "
                "jax_enable_x64"
            ) from None

    def init(self) -> Any:
        """The state before the first step: None if the schedule depends only on the step."""
        return None

    def follow(self, state: Any, step: int, value: Any) -> tuple[float, Any]:
        """The rate of a step that starts at `value` (None if unknown), and the state after it."""
        return self(step), state

    @property
    def span(self) -> int:
        """A number of steps that shows its course: until its end, or over a few cycles."""
        return 100

    def plot(self, steps: int | None = None, ax: Any = None) -> Any:
        """Plot the rate at steps 0 to `steps`, by default `span`.

        ax : the matplotlib Axes to draw into, by default those of a new figure.

        Returns the Axes. Raises ImportError if matplotlib is not installed.
        """
        last = self.span if steps is None else count("steps", steps, 1)
        # about 10,000 points at most, more than any screen shows
        shown = range(0, last + 1, 1 + last // 10_000)
        rates = [self(step) for step in shown]
        ax = axes(ax)
        ax.plot(shown, rates, label=type(self).__name__)
        ax.set_xlabel("step")
        ax.set_ylabel("learning rate")
        return ax


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step; `optax.constant_schedule`.

    >>> Constant(0.1)(1000)
    0.1
    """

    learning_rate: float

    def rate(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class Function(Schedule):
    """Any function from step to learning rate, such as an optax schedule.

    It must return a finite number of at least 0.

    >>> Function(lambda step: 0.1 / (1 + step))(4)
    0.02
    """

    function: Callable[[int], float]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"function is {self.function!r}; wanted a function from step to learning rate"
            )

    def rate(self, step: int) -> float:
        return self.function(step)

    @property
    def traceable(self) -> bool:
        return real(self.function(0)) is None


# ---- falling by factors -------------------------------------------------------------------------


@dataclass(frozen=True)
class Exponential(Schedule):
    """A rate that is multiplied by `factor` in every `every` steps, gradually or in jumps.

        learning_rate factor^((step - delay) / every)

    staircase : whether the exponent is rounded down, so that the rate changes in jumps.
    final : a lower bound of the rate if factor < 1, otherwise an upper one; None for no bound.

    Equivalent to `torch.optim.lr_scheduler.ExponentialLR(gamma=factor)`, and to
    `optax.exponential_decay`, whose names are init_value, decay_rate, transition_steps (every),
    transition_begin (delay) and end_value.

    >>> Exponential(0.1, 0.5, every=10)(20)
    0.025
    """

    learning_rate: float
    factor: float
    _: KW_ONLY
    every: int = 1
    staircase: bool = False
    delay: int = 0
    final: float | None = None

    def rate(self, step: int) -> float:
        passed = maximum(step - self.delay, 0)
        count = passed // self.every if self.staircase else passed / self.every
        rate = self.learning_rate * power(self.factor, count)
        if self.final is None:
            return rate
        return maximum(rate, self.final) if self.factor < 1.0 else minimum(rate, self.final)

    @property
    def span(self) -> int:
        return self.delay + _hundredfold(self.factor, self.every)


@dataclass(frozen=True)
class Factor(Schedule):
    """A rate that is multiplied by `factor` after every `every` steps, down to a floor.

        max(minimum, learning_rate factor^floor(step / every))

    >>> schedule = Factor(0.1, 0.5, every=10, minimum=0.03)
    >>> schedule(9), schedule(10), schedule(1000)
    (0.1, 0.05, 0.03)
    """

    learning_rate: float
    factor: float
    _: KW_ONLY
    every: int = 1
    minimum: float = 0.0

    def rate(self, step: int) -> float:
        return maximum(self.minimum, self.learning_rate * power(self.factor, step // self.every))

    @property
    def span(self) -> int:
        return _hundredfold(self.factor, self.every)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """A rate that is multiplied by `factor` after every `every` steps.

        learning_rate factor^floor(step / every)

    Equivalent to `torch.optim.lr_scheduler.StepLR(step_size=every, gamma=factor)`.

    >>> [round(StepDecay(0.1, 30)(step), 6) for step in (29, 30, 60)]
    [0.1, 0.01, 0.001]
    """

    learning_rate: float
    every: int
    factor: float = 0.1

    def rate(self, step: int) -> float:
        return self.learning_rate * power(self.factor, step // self.every)

    @property
    def span(self) -> int:
        return _hundredfold(self.factor, self.every)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """A rate that is multiplied by `factor` at each boundary.

        learning_rate factor^k

    where k is the number of boundaries at or before the step.

    Equivalent to `torch.optim.lr_scheduler.MultiStepLR(milestones=boundaries, gamma=factor)`.

    >>> [round(MultiStep(0.1, (30, 80))(step), 6) for step in (29, 30, 80)]
    [0.1, 0.01, 0.001]
    """

    learning_rate: float
    boundaries: tuple[int, ...]
    factor: float = 0.1

    def rate(self, step: int) -> float:
        return self.learning_rate * power(self.factor, _passed(self.boundaries, step))

    @property
    def span(self) -> int:
        return _beyond(self.boundaries)


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """learning_rate times the product of the factors whose boundaries are at or before the step.

    factors : one number of at least 0 for each boundary.

    Equivalent to `optax.piecewise_constant_schedule(boundaries_and_scales=dict(zip(boundaries,
    factors)))`.

    >>> [PiecewiseConstant(0.1, (30, 80), (0.5, 2.0))(step) for step in (29, 30, 80)]
    [0.1, 0.05, 0.1]
    """

    learning_rate: float
    boundaries: tuple[int, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_factor_each(self)

    def rate(self, step: int) -> float:
        product = 1.0
        for boundary, factor in zip(self.boundaries, self.factors, strict=True):
            product *= where(step >= boundary, factor, 1.0)
        return self.learning_rate * product

    @property
    def span(self) -> int:
        return _beyond(self.boundaries)


@dataclass(frozen=True)
class PiecewiseInterpolate(Schedule):
    """A curve through learning_rate at step 0 and, at each boundary, the rate before times its
    factor; constant after the last.

    factors : one number of at least 0 for each boundary.
    shape : "linear" or "cosine", between two boundaries.

    Equivalent to `optax.piecewise_interpolate_schedule(shape, learning_rate,
    boundaries_and_scales=dict(zip(boundaries, factors)))`.

    >>> schedule = PiecewiseInterpolate(0.1, (10, 20), (2.0, 0.5))
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 15, 20, 30)]
    [0.1, 0.15, 0.2, 0.15, 0.1, 0.1]
    """

    learning_rate: float
    boundaries: tuple[int, ...]
    factors: tuple[float, ...]
    _: KW_ONLY
    shape: str = "linear"

    shapes = ("linear", "cosine")

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_factor_each(self)

    def rate(self, step: int) -> float:
        bends, rate = [(0, self.learning_rate)], self.learning_rate
        for boundary, factor in zip(self.boundaries, self.factors, strict=True):
            rate *= factor
            bends.append((boundary, rate))
        return _between(bends, self.shape, step)

    @property
    def span(self) -> int:
        return _beyond(self.boundaries)


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """A linear warmup, after which the rate falls like an inverse square root.

        learning_rate min(t / warmup_steps, sqrt(warmup_steps / t)),  t = step + 1

    The rate rises to `learning_rate` at t = warmup_steps and then falls. With learning_rate =
    1 / sqrt(d_model warmup_steps), this is the schedule of Vaswani et al. (2017), "Attention is all
    you need", section 5.3.

    >>> schedule = InverseSquareRoot(0.1, warmup_steps=100)
    >>> schedule(49), schedule(99), schedule(399)
    (0.05, 0.1, 0.05)
    """

    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps is {self.warmup_steps!r}; wanted at least 1")

    def rate(self, step: int) -> float:
        t = step + 1
        return self.learning_rate * minimum(t / self.warmup_steps, sqrt(self.warmup_steps / t))

    @property
    def span(self) -> int:
        return 10 * self.warmup_steps


# ---- from one rate to another -------------------------------------------------------------------


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line, up or down, from `initial` at step `delay` to `final`, `steps` later.

    Equivalent to `torch.optim.lr_scheduler.LinearLR` with initial = lr start_factor, final =
    lr end_factor and steps = total_iters, and to `optax.linear_schedule`, whose names are
    init_value, end_value, transition_steps and transition_begin (delay).

    >>> [Linear(0.3, 0.1, 10)(step) for step in (0, 5, 10, 15)]
    [0.3, 0.2, 0.1, 0.1]
    """

    initial: float
    final: float
    steps: int
    _: KW_ONLY
    delay: int = 0

    def rate(self, step: int) -> float:
        return _blend(self.initial, self.final, 1.0 - _share(step - self.delay, self.steps))

    @property
    def span(self) -> int:
        return self.delay + self.steps


@dataclass(frozen=True)
class Polynomial(Schedule):
    """From `learning_rate` to `final` along a power of the remaining share of the steps.

        final + (learning_rate - final) (1 - t / steps)^power,  t = step - delay

    Equivalent to `torch.optim.lr_scheduler.PolynomialLR(total_iters=steps)`, and to
    `optax.polynomial_schedule`, whose names are init_value, end_value, transition_steps and
    transition_begin (delay).

    >>> [Polynomial(0.1, 10, power=2.0)(step) for step in (0, 5, 10)]
    [0.1, 0.025, 0.0]
    """

    learning_rate: float
    steps: int
    _: KW_ONLY
    power: float = 1.0
    final: float = 0.0
    delay: int = 0

    def rate(self, step: int) -> float:
        left = 1.0 - _share(step - self.delay, self.steps)
        return _blend(self.learning_rate, self.final, left**self.power)

    @property
    def span(self) -> int:
        return self.delay + self.steps


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from `learning_rate` down to `final`, optionally after a linear warmup.

        final + (learning_rate - final) ((1 + cos(pi s)) / 2)^power

    where s goes from 0 to 1 over the steps after the warmup. Loshchilov & Hutter (2017), "SGDR",
    eq. 5.

    steps : the total length, including the warmup.
    initial : the rate at step 0 of a warmup.

    Equivalent to `torch.optim.lr_scheduler.CosineAnnealingLR(T_max=steps, eta_min=final)`, which
    however rises again after T_max; to `optax.cosine_decay_schedule(decay_steps=steps,
    exponent=power)` with alpha = final / learning_rate; and to `optax.warmup_cosine_decay_schedule`
    with init_value = initial, peak_value = learning_rate, end_value = final and
    decay_steps = steps.

    >>> [round(Cosine(0.1, 100, final=0.02)(step), 6) for step in (0, 50, 100, 150)]
    [0.1, 0.06, 0.02, 0.02]
    """

    learning_rate: float
    steps: int
    _: KW_ONLY
    final: float = 0.0
    power: float = 1.0
    warmup_steps: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; wanted less than steps, {self.steps}"
            )

    def rate(self, step: int) -> float:
        share = _share(step - self.warmup_steps, self.steps - self.warmup_steps)
        return _after_warmup(
            self, step, _blend(self.learning_rate, self.final, _cosine(share) ** self.power)
        )

    @property
    def span(self) -> int:
        return self.steps


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """A linear warmup, a plateau at `learning_rate`, and a decay to `final`.

    shape : the form of the decay: "linear", "cosine", or "1-sqrt", which is 1 - sqrt(s) after the
        fraction s of the decay (Hägele et al. 2024, "Scaling laws and compute-optimal training
        beyond fixed training durations", section 3).
    initial : the rate at step 0 of the warmup.

    With the shape "linear", equivalent to `optax.join_schedules` of linear_schedule,
    constant_schedule and linear_schedule.

    >>> schedule = WarmupStableDecay(0.1, warmup_steps=10, stable_steps=80, decay_steps=10)
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 90, 95, 100)]
    [0.0, 0.05, 0.1, 0.1, 0.05, 0.0]
    """

    learning_rate: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    _: KW_ONLY
    shape: str = "linear"
    initial: float = 0.0
    final: float = 0.0

    shapes = ("linear", "cosine", "1-sqrt")

    def rate(self, step: int) -> float:
        share = _share(step - self.warmup_steps - self.stable_steps, self.decay_steps)
        return _after_warmup(
            self, step, _blend(self.learning_rate, self.final, _SHAPES[self.shape](share))
        )

    @property
    def span(self) -> int:
        return self.warmup_steps + self.stable_steps + self.decay_steps


@dataclass(frozen=True)
class OneCycle(Schedule):
    """A rise from `initial` to `learning_rate` and a fall to `final`, both with the same shape.

    Smith & Topin (2018), "Super-convergence".

    steps : the length; the last step, steps - 1, has the rate `final`.
    warmup_fraction : the fraction of the steps up to the peak, which is at step
        warmup_fraction steps - 1.
    shape : "cosine" or "linear".
    three_phase : whether the rate first falls back to `initial`, as it rose, and then to `final`.
    initial : by default learning_rate / 25.
    final : by default initial / 10000.

    Equivalent to `torch.optim.lr_scheduler.OneCycleLR` with max_lr = learning_rate, total_steps =
    steps, pct_start = warmup_fraction, anneal_strategy = shape, div_factor = learning_rate /
    initial and final_div_factor = initial / final. `optax.cosine_onecycle_schedule` and, with three
    phases, `optax.linear_onecycle_schedule` end at transition_steps = steps - 1, and have the same
    values if their bends are at the same steps.

    >>> [round(OneCycle(0.1, 100)(step), 6) for step in (0, 29, 99)]
    [0.004, 0.1, 0.0]
    """

    learning_rate: float
    steps: int
    _: KW_ONLY
    warmup_fraction: float = 0.3
    shape: str = "cosine"
    three_phase: bool = False
    initial: float | None = None
    final: float | None = None

    shapes = ("cosine", "linear")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.three_phase and self.warmup_fraction > 0.5:
            raise ValueError(
                f"warmup_fraction is {self.warmup_fraction!r}; wanted at most 0.5 with three_phase"
            )

    def rate(self, step: int) -> float:
        initial = self.learning_rate / 25.0 if self.initial is None else self.initial
        final = initial / 1e4 if self.final is None else self.final
        peak, end = self.warmup_fraction * self.steps - 1, self.steps - 1
        bends = [(0, initial), (peak, self.learning_rate), (end, final)]
        if self.three_phase:
            bends.insert(2, (2 * peak, initial))
        return _between(bends, self.shape, step)

    @property
    def span(self) -> int:
        return self.steps


# ---- cycles -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Cosine decays from `learning_rate` towards `minimum`, one after another.

    Loshchilov & Hutter (2017), "SGDR: stochastic gradient descent with warm restarts".

    period : the length of the first decay.
    growth : the ratio of the length of each decay to the one before, an integer of at least 1.

    Equivalent to `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(T_0=period, T_mult=growth,
    eta_min=minimum)`.

    >>> [round(CosineRestarts(0.1, 10, growth=2)(step), 6) for step in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.1, 0.05, 0.1]
    """

    learning_rate: float
    period: int
    _: KW_ONLY
    growth: int = 1
    minimum: float = 0.0

    def rate(self, step: int) -> float:
        passed = period = self.period
        if self.growth == 1:
            share = step % period / period
        else:
            share = _share(step, period)
            while passed <= largest(step):
                period *= self.growth
                share = where(step >= passed, (step - passed) / float(period), share)
                passed += period
        return _blend(self.learning_rate, self.minimum, _cosine(share))

    @property
    def span(self) -> int:
        return self.period * (1 + self.growth + self.growth**2)


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Linear rises from `minimum` to `learning_rate` and falls back, in turn.

    Smith (2017), "Cyclical learning rates for training neural networks".

    up_steps, down_steps : the number of steps of each rise and of each fall; down_steps is up_steps
        by default.
    shape : "triangular"; "triangular2", where each cycle is half as high as the one before; or
        "exp_range", where the height is multiplied by `factor` at each step.
    factor : used only by "exp_range".

    Equivalent to `torch.optim.lr_scheduler.CyclicLR` with base_lr = minimum, max_lr =
    learning_rate, step_size_up = up_steps, step_size_down = down_steps, mode = shape and gamma =
    factor.

    >>> [round(Cyclic(0.1, 10, minimum=0.02)(step), 6) for step in (0, 5, 10, 20)]
    [0.02, 0.06, 0.1, 0.02]
    """

    learning_rate: float
    up_steps: int
    _: KW_ONLY
    minimum: float
    down_steps: int | None = None
    shape: str = "triangular"
    factor: float = 1.0

    shapes = ("triangular", "triangular2", "exp_range")

    def rate(self, step: int) -> float:
        up, down = self.up_steps, self.down_steps or self.up_steps
        cycle, t = step // (up + down), step % (up + down)
        height = where(t <= up, t / up, (up + down - t) / down)
        if self.shape == "triangular2":
            height *= power(0.5, cycle)
        elif self.shape == "exp_range":
            height *= power(self.factor, step)
        return _blend(self.learning_rate, self.minimum, height)

    @property
    def span(self) -> int:
        return 3 * (self.up_steps + (self.down_steps or self.up_steps))


# ---- combinations of schedules ------------------------------------------------------------------


@dataclass(frozen=True)
class Warmup(Schedule):
    """A linear rise to the first rate of another schedule, which then begins.

    schedule : the schedule after the warmup, whose step 0 is at step `warmup_steps`; or a number.
    start_factor : the rate at step 0, as a fraction of that first rate, from 0 to 1.

    Equivalent to `torch.optim.lr_scheduler.SequentialLR` of LinearLR(start_factor,
    total_iters=warmup_steps) and another schedule. To multiply a schedule by a warmup from its
    first step on, see `Product`.

    >>> schedule = Warmup(Exponential(0.1, 0.5), 10)
    >>> [schedule(step) for step in (0, 5, 10, 11)]
    [0.0, 0.05, 0.1, 0.05]
    """

    schedule: Schedule
    warmup_steps: int
    _: KW_ONLY
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schedule", _inner(self.schedule, "schedule"))

    def rate(self, step: int) -> float:
        def risen() -> float:
            return self.schedule(maximum(step - self.warmup_steps, 0))

        def rising() -> float:
            left = 1.0 - step / self.warmup_steps
            return self.schedule(0) * _blend(self.start_factor, 1.0, left)

        return either(step < self.warmup_steps, rising, risen) if self.warmup_steps else risen()

    @property
    def traceable(self) -> bool:
        return self.schedule.traceable

    @property
    def span(self) -> int:
        return self.warmup_steps + self.schedule.span


@dataclass(frozen=True)
class Sequence(Schedule):
    """Schedules one after another, each of which begins with its step 0 at its boundary.

    schedules : schedules or numbers.
    boundaries : the steps at which the second, the third, ... begin; one fewer than there are
        schedules.

    Equivalent to `torch.optim.lr_scheduler.SequentialLR(milestones=boundaries)` and to
    `optax.join_schedules`.

    >>> schedule = Sequence((Linear(0.0, 0.1, 10), 0.1, Exponential(0.1, 0.5)), (10, 20))
    >>> [schedule(step) for step in (5, 15, 20, 21)]
    [0.05, 0.1, 0.1, 0.05]
    """

    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schedules", _inner_ones(self.schedules))
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"boundaries is {self.boundaries!r}; wanted one fewer than the "
                f"{len(self.schedules)} schedules"
            )

    def rate(self, step: int) -> float:
        def of(k: int) -> float:
            return self.schedules[k](maximum(step - self.boundaries[k - 1], 0) if k else step)

        def from_on(k: int) -> float:
            if k == len(self.boundaries):
                return of(k)
            return either(step < self.boundaries[k], lambda: of(k), lambda: from_on(k + 1))

        return from_on(0)

    @property
    def traceable(self) -> bool:
        return all(schedule.traceable for schedule in self.schedules)

    @property
    def span(self) -> int:
        return sum(self.boundaries[-1:]) + self.schedules[-1].span


@dataclass(frozen=True)
class Product(Schedule):
    """The product of the rates of several schedules: one gives the rate, the others are factors.

    schedules : schedules or numbers.

    Equivalent to `torch.optim.lr_scheduler.ChainedScheduler` of schedulers that multiply the rate.

    >>> Product((Exponential(0.1, 0.5), Linear(0.5, 1.0, 10)))(10) == 0.1 * 0.5**10
    True
    """

    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", _inner_ones(self.schedules))

    def rate(self, step: int) -> float:
        return math.prod(schedule(step) for schedule in self.schedules)

    @property
    def traceable(self) -> bool:
        return all(schedule.traceable for schedule in self.schedules)

    @property
    def span(self) -> int:
        return max(schedule.span for schedule in self.schedules)


# ---- a schedule that depends on values ----------------------------------------------------------


class PlateauState(NamedTuple):
    """The state of `ReduceOnPlateau` after some values.

    learning_rate : the rate to use now.
    best : the best value so far.
    bad : how many values in a row have been no better.
    cooldown : how many more values do not count as bad.
    """

    learning_rate: float
    best: float
    bad: int
    cooldown: int


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """A rate that is multiplied by `factor` once the values have not improved for a while.

    It depends on values, not on steps, so it is not called: `init` returns the first state and
    `update` the next one, and `state.learning_rate` is the rate.

    patience : how many values in a row may be no better; the next one reduces the rate.
    threshold, threshold_mode : by how much a value must be better than the best one to count,
        relative to it ("rel") or as a difference ("abs").
    cooldown : how many values after a reduction do not count as bad.
    mode : "min" if lower values are better, "max" if higher ones are. NaN is never better.
    eps : reductions by at most this amount are omitted.

    Equivalent to `torch.optim.lr_scheduler.ReduceLROnPlateau(min_lr=minimum)`.

    >>> schedule = ReduceOnPlateau(0.1, factor=0.5, patience=1)
    >>> state = schedule.init()
    >>> for loss in (3.0, 2.0, 2.0, 2.0):
    ...     state = schedule.update(state, loss)
    >>> state
    PlateauState(learning_rate=0.05, best=2.0, bad=0, cooldown=0)
    """

    learning_rate: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    minimum: float = 0.0
    mode: str = "min"
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "threshold_mode", ("rel", "abs"))
        _one_of(self, "mode", ("min", "max"))
        if self.factor >= 1.0:
            raise ValueError(f"factor is {self.factor!r}; wanted less than 1")

    def __call__(self, step: int) -> NoReturn:
        raise TypeError(
            "ReduceOnPlateau depends on values, not on the step: begin with state = "
            "schedule.init(), continue with state = schedule.update(state, value), and use "
            "state.learning_rate"
        )

    def init(self) -> PlateauState:
        """The state before any value."""
        return PlateauState(
            self.learning_rate, math.inf if self.mode == "min" else -math.inf, 0, 0
        )

    def update(self, state: PlateauState, value: float) -> PlateauState:
        """The state after one more value.

        In a function that JAX compiles, both may be traced.

        Raises TypeError if `state` is not such a state or `value` is not a number.
        """
        if not isinstance(state, PlateauState):
            raise TypeError(f"state is {state!r}; wanted what init() or update(...) returned")
        found = real(value)
        if found is None:
            if not is_traced(value, "real floating"):
                raise TypeError(f"value is {value!r}; wanted a number")
            found = value

        rate, best, bad, cooldown = state
        better = self._better(found, best)
        best, bad = where(better, found, best), where(better, 0, bad + 1)
        waits = cooldown > 0
        cooldown, bad = where(waits, cooldown - 1, cooldown), where(waits, 0, bad)
        reduced = maximum(self.factor * rate, self.minimum)
        stays = bad <= self.patience
        rate = where(stays, rate, where(rate - reduced > self.eps, reduced, rate))
        return PlateauState(
            rate, best, where(stays, bad, 0), where(stays, cooldown, self.cooldown)
        )

    def follow(self, state: PlateauState, step: int, value: Any) -> tuple[float, PlateauState]:
        state = state if value is None else self.update(state, value)
        return state.learning_rate, state

    def _better(self, value: float, best: float) -> bool:
        margin = -self.threshold if self.mode == "min" else self.threshold
        bar = best * (1.0 + margin) if self.threshold_mode == "rel" else best + margin
        return value < bar if self.mode == "min" else value > bar


# ---- the settings -------------------------------------------------------------------------------


def _rate(value: Any) -> float | None:
    """A finite number of at least 0, as a float; None for anything else."""
    found = real(value)
    return found if found is not None and 0.0 <= found < math.inf else None


def _each(name: str, value: Any, check: Callable[..., Any], wanted: str) -> tuple:
    """A sequence whose items all pass the check, as a tuple."""
    try:
        return tuple(check(name, item, least=0) for item in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; wanted a sequence of {wanted}") from None


def _boundaries(name: str, value: Any) -> tuple[int, ...]:
    wanted = "increasing integers of at least 0"
    items = _each(name, value, count, wanted)
    if list(items) != sorted(set(items)):
        raise ValueError(f"{name} is {value!r}; wanted a sequence of {wanted}")
    return items


# Name of a field -> its check, and the limits for it.
_CHECKS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **dict.fromkeys(
        ("learning_rate", "initial", "final", "minimum", "threshold", "eps"),
        (number, {"least": 0.0}),
    ),
    **dict.fromkeys(("factor", "power"), (number, {"above": 0.0})),
    **dict.fromkeys(("start_factor", "warmup_fraction"), (number, {"least": 0.0, "most": 1.0})),
    **dict.fromkeys(
        ("steps", "every", "period", "growth", "up_steps", "down_steps", "decay_steps"),
        (count, {"least": 1}),
    ),
    **dict.fromkeys(
        ("warmup_steps", "stable_steps", "delay", "patience", "cooldown"), (count, {"least": 0})
    ),
    **dict.fromkeys(("staircase", "three_phase"), (flag, {})),
    "factors": (_each, {"check": number, "wanted": "finite numbers of at least 0"}),
    "boundaries": (_boundaries, {}),
}


def _of_optax(name: str, value: Any) -> str:
    """What an error adds about a setting that optax takes as "no schedule at all"."""
    found = real(value)
    if (name in ("steps", "every") and found is not None and found <= 0.0) or (
        name == "factor" and found == 0.0
    ):
        return f" (optax takes {name} = {value!r} for a constant rate, which is Constant here)"
    return ""


def _one_factor_each(schedule: PiecewiseConstant | PiecewiseInterpolate) -> None:
    if len(schedule.factors) != len(schedule.boundaries):
        raise ValueError(
            f"factors is {schedule.factors!r}; wanted one factor for each of the boundaries "
            f"{schedule.boundaries!r}"
        )


def _checked_shape(schedule: Schedule, value: Any) -> None:
    if schedule.shapes:
        _one_of(schedule, "shape", schedule.shapes)
    elif not isinstance(value, str):
        raise TypeError(f"shape is {value!r}; wanted a string")


def _one_of(schedule: Schedule, name: str, choices: Iterable[str]) -> None:
    value = getattr(schedule, name)
    if value not in tuple(choices):
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}")


def _inner(value: Any, name: str) -> Schedule:
    """A schedule inside another one."""
    if isinstance(value, ReduceOnPlateau):
        raise TypeError(f"{name} is {value!r}; wanted a schedule that depends only on the step")
    return as_schedule(value, name)


def _inner_ones(values: Any) -> tuple[Schedule, ...]:
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"schedules is {values!r}; wanted a sequence of schedules")
    found = tuple(_inner(value, f"schedules[{i}]") for i, value in enumerate(values))
    if not found:
        raise ValueError(f"schedules is {values!r}; wanted at least one")
    return found


# ---- arithmetic ---------------------------------------------------------------------------------


def _blend(start: float, end: float, left: float) -> float:
    """`start` if `left` is 1, `end` if it is 0, exactly, and linear in between."""
    return left * start + (1.0 - left) * end


def _share(passed: int, steps: int) -> float:
    """The fraction of the steps that has passed, from 0 to 1."""
    # A program may multiply by the reciprocal, which is rounded.
    return minimum(minimum(maximum(passed, 0), steps) / steps, 1.0)


def _cosine(share: float) -> float:
    return 0.5 * (1.0 + cos(math.pi * share))


# Shape -> the fraction of the change that is left after a fraction of the steps.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": _cosine,
    "1-sqrt": lambda share: 1.0 - sqrt(share),
}


def _between(bends: list[Any], shape: str, step: int) -> float:
    """The rate along a curve through (step, rate), and the last one afterwards."""
    rate = bends[-1][1]
    for (start, before), (stop, after) in reversed([*zip(bends, bends[1:], strict=False)]):
        if start < stop:
            left = _SHAPES[shape]((minimum(step, stop) - start) / (stop - start))
            rate = where(step <= stop, _blend(before, after, left), rate)
    return rate


def _after_warmup(schedule: Cosine | WarmupStableDecay, step: int, rate: float) -> float:
    """`rate`, unless the step is in the warmup of the schedule."""
    if not schedule.warmup_steps:
        return rate
    left = 1.0 - _share(step, schedule.warmup_steps)
    rising = _blend(schedule.initial, schedule.learning_rate, left)
    return where(step < schedule.warmup_steps, rising, rate)


def _passed(boundaries: tuple[int, ...], step: int) -> int:
    """The number of boundaries at or before the step."""
    return sum(boundary <= step for boundary in boundaries)


def _hundredfold(factor: float, every: int) -> int:
    """The number of steps after which the factors have changed the rate a hundredfold."""
    return every * math.ceil(math.log(100.0) / abs(math.log(factor))) if factor != 1.0 else 100


def _beyond(boundaries: tuple[int, ...]) -> int:
    """A number of steps that ends a quarter past the last boundary."""
    return 1 + sum(boundaries[-1:]) * 5 // 4
