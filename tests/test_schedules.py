"""Schedules against torch.optim.lr_scheduler and optax, step by step; closed forms; bad input."""

from __future__ import annotations

import dataclasses
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import schedules as S  # noqa: N812
from lbfgs_xp.schedules import Schedule, as_schedule


def rates(schedule: Callable[[int], float], count: int) -> np.ndarray:
    return np.asarray([float(schedule(step)) for step in range(count)])


def names(cases: list[Any]) -> list[str]:
    return [type(schedule).__name__ for schedule, *_ in cases]


def equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0.0)


def fails(call: Callable[[], Any], error: type[Exception], *words: str) -> None:
    """The call raises exactly this error, without a cause, and its message has all the words."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- torch --------------------------------------------------------------------------------------

# (schedule, steps to compare, torch's equivalent made from its module L and an optimizer whose
# rate is 0.3)
TORCH: list[tuple[Schedule, int, Callable[[Any, Any], Any]]] = [
    (S.Constant(0.3), 9, lambda L, o: L.LambdaLR(o, lambda step: 1.0)),
    (S.Exponential(0.3, 0.9), 99, lambda L, o: L.ExponentialLR(o, 0.9)),
    (S.Exponential(0.3, 1.1), 99, lambda L, o: L.ExponentialLR(o, 1.1)),
    (S.Polynomial(0.3, 40), 60, lambda L, o: L.PolynomialLR(o, 40)),
    (S.Polynomial(0.3, 17, power=2.5), 30, lambda L, o: L.PolynomialLR(o, 17, 2.5)),
    (S.Linear(0.1, 0.3, 5), 12, lambda L, o: L.LinearLR(o)),
    (S.Linear(0.15, 0.06, 30), 50, lambda L, o: L.LinearLR(o, 0.5, 0.2, 30)),
    (S.StepDecay(0.3, 7), 40, lambda L, o: L.StepLR(o, 7)),
    (S.StepDecay(0.3, 1, 0.5), 40, lambda L, o: L.StepLR(o, 1, 0.5)),
    (S.Factor(0.3, 0.5, every=3), 40, lambda L, o: L.StepLR(o, 3, 0.5)),
    (S.MultiStep(0.3, (5, 6, 20)), 40, lambda L, o: L.MultiStepLR(o, [5, 6, 20])),
    (S.MultiStep(0.3, (0, 9), 0.7), 20, lambda L, o: L.MultiStepLR(o, [0, 9], 0.7)),
    (S.Cosine(0.3, 50), 51, lambda L, o: L.CosineAnnealingLR(o, 50)),
    (S.Cosine(0.3, 21, final=0.02), 22, lambda L, o: L.CosineAnnealingLR(o, 21, 0.02)),
    (S.CosineRestarts(0.3, 10), 45, lambda L, o: L.CosineAnnealingWarmRestarts(o, 10)),
    (
        S.CosineRestarts(0.3, 7, growth=2, minimum=0.01),
        150,
        lambda L, o: L.CosineAnnealingWarmRestarts(o, 7, 2, 0.01),
    ),
    (
        S.CosineRestarts(0.3, 1, growth=3),
        150,
        lambda L, o: L.CosineAnnealingWarmRestarts(o, 1, 3),
    ),
    (S.OneCycle(0.3, 50), 50, lambda L, o: L.OneCycleLR(o, 0.3, 50)),
    (
        S.OneCycle(0.3, 37, warmup_fraction=0.21, shape="linear", initial=0.03, final=0.001),
        37,
        lambda L, o: L.OneCycleLR(
            o, 0.3, 37, pct_start=0.21, anneal_strategy="linear", div_factor=10.0,
            final_div_factor=30.0,
        ),
    ),
    (
        S.OneCycle(0.3, 60, shape="linear", three_phase=True),
        60,
        lambda L, o: L.OneCycleLR(o, 0.3, 60, anneal_strategy="linear", three_phase=True),
    ),
    (
        S.OneCycle(0.3, 61, warmup_fraction=0.5, three_phase=True),
        61,
        lambda L, o: L.OneCycleLR(o, 0.3, 61, pct_start=0.5, three_phase=True),
    ),
    (
        S.OneCycle(0.3, 20, warmup_fraction=0.0),
        20,
        lambda L, o: L.OneCycleLR(o, 0.3, 20, pct_start=0.0),
    ),
    (
        S.OneCycle(0.3, 20, warmup_fraction=1.0),
        20,
        lambda L, o: L.OneCycleLR(o, 0.3, 20, pct_start=1.0),
    ),
    (
        S.Cyclic(0.3, 8, minimum=0.01),
        99,
        lambda L, o: L.CyclicLR(o, 0.01, 0.3, 8, cycle_momentum=False),
    ),
    (
        S.Cyclic(0.3, 3, minimum=0.01, down_steps=10, shape="triangular2"),
        99,
        lambda L, o: L.CyclicLR(
            o, 0.01, 0.3, 3, 10, mode="triangular2", cycle_momentum=False
        ),
    ),
    (
        S.Cyclic(0.3, 9, minimum=0.01, down_steps=4, shape="exp_range", factor=0.95),
        99,
        lambda L, o: L.CyclicLR(
            o, 0.01, 0.3, 9, 4, mode="exp_range", gamma=0.95, cycle_momentum=False
        ),
    ),
    (
        S.Warmup(S.Exponential(0.3, 0.9), 6, start_factor=0.25),
        30,
        lambda L, o: L.SequentialLR(
            o, [L.LinearLR(o, 0.25, 1.0, 6), L.ExponentialLR(o, 0.9)], [6]
        ),
    ),
    (
        S.Sequence((S.Linear(0.03, 0.3, 5), S.StepDecay(0.3, 4), S.Cosine(0.3, 9)), (5, 17)),
        27,
        lambda L, o: L.SequentialLR(
            o,
            [L.LinearLR(o, 0.1, 1.0, 5), L.StepLR(o, 4), L.CosineAnnealingLR(o, 9)],
            [5, 17],
        ),
    ),
    (
        S.Product((S.Exponential(0.3, 0.9), S.Linear(0.5, 1.0, 8), S.MultiStep(1.0, (4, 12)))),
        30,
        lambda L, o: L.ChainedScheduler(
            [L.LinearLR(o, 0.5, 1.0, 8), L.ExponentialLR(o, 0.9), L.MultiStepLR(o, [4, 12])]
        ),
    ),
]


@pytest.mark.parametrize(("schedule", "count", "make"), TORCH, ids=names(TORCH))
def test_torch(schedule: Schedule, count: int, make: Callable[[Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    theirs = [optimizer.param_groups[0]["lr"]]
    while len(theirs) < count:
        optimizer.step()
        scheduler.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    equal(rates(schedule, count), np.asarray(theirs))


PLATEAUS = [
    {},
    {"patience": 0},
    {"patience": 2, "cooldown": 3},
    {"mode": "max", "patience": 1, "threshold": 0.05},
    {"threshold_mode": "abs", "threshold": 0.3, "patience": 3, "factor": 0.5},
    {"mode": "max", "threshold_mode": "abs", "threshold": 0.1, "patience": 2, "cooldown": 1},
    {"patience": 1, "factor": 0.3, "minimum": 0.004},
    {"patience": 1, "factor": 0.9, "eps": 0.02},
]


@pytest.mark.parametrize("settings", PLATEAUS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_plateau_equals_torch(settings: dict[str, Any], seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    sign = -1.0 if settings.get("mode") == "max" else 1.0
    values = sign * np.cumsum(rng.normal(-0.05, 0.3, size=150))
    values[rng.random(150) < 0.1] = math.nan
    values[rng.random(150) < 0.02] = sign * math.inf  # never better

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = {**settings}
    theirs["min_lr"] = theirs.pop("minimum", 0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **theirs)
    schedule = S.ReduceOnPlateau(0.3, **settings)
    state = schedule.init()
    assert state.learning_rate == 0.3
    for value in values:
        scheduler.step(value)
        state = schedule.update(state, value)
        assert state == (
            optimizer.param_groups[0]["lr"],
            scheduler.best,
            scheduler.num_bad_epochs,
            scheduler.cooldown_counter,
        )
    assert state.learning_rate < 0.3  # something has happened


def test_plateau_by_hand() -> None:
    schedule = S.ReduceOnPlateau(1.0, 0.5, patience=1, cooldown=2, minimum=0.2)
    state = schedule.init()
    for value, rate, what in [
        (3.0, 1.0, "the first is the best"),
        (3.0, 1.0, "one bad value"),
        (3.0, 0.5, "two: reduced"),
        (3.0, 0.5, "does not count"),
        (3.0, 0.5, "does not count"),
        (3.0, 0.5, "one bad value"),
        (3.0, 0.25, "two: reduced"),
        (1.0, 0.25, "better, and does not count"),
        (math.nan, 0.25, "does not count"),
        (math.nan, 0.25, "one bad value"),
        (1.0, 0.2, "two: reduced to the minimum"),
    ]:
        state = schedule.update(state, value)
        assert state.learning_rate == rate, what
    assert state.best == 1.0


# --- optax --------------------------------------------------------------------------------------

# (schedule, steps to compare, its equivalent in optax)
OPTAX: list[tuple[Schedule, int, Callable[[Any], Any]]] = [
    (S.Constant(0.3), 9, lambda o: o.constant_schedule(0.3)),
    (S.Exponential(0.3, 0.9), 60, lambda o: o.exponential_decay(0.3, 1, 0.9)),
    (
        S.Exponential(0.3, 0.5, every=7, delay=5, final=0.02),
        60,
        lambda o: o.exponential_decay(0.3, 7, 0.5, 5, end_value=0.02),
    ),
    (
        S.Exponential(0.3, 0.5, every=7, delay=5, staircase=True),
        60,
        lambda o: o.exponential_decay(0.3, 7, 0.5, 5, staircase=True),
    ),
    (
        S.Exponential(0.3, 1.5, every=4, final=2.0),
        60,
        lambda o: o.exponential_decay(0.3, 4, 1.5, end_value=2.0),
    ),
    (S.Polynomial(0.3, 20), 30, lambda o: o.polynomial_schedule(0.3, 0.0, 1, 20)),
    (
        S.Polynomial(0.3, 20, power=3.0, final=0.01, delay=6),
        40,
        lambda o: o.polynomial_schedule(0.3, 0.01, 3.0, 20, 6),
    ),
    (
        S.Polynomial(0.1, 20, power=0.5, final=0.3),
        40,
        lambda o: o.polynomial_schedule(0.1, 0.3, 0.5, 20),
    ),
    (S.Linear(0.0, 0.3, 20, delay=3), 40, lambda o: o.linear_schedule(0.0, 0.3, 20, 3)),
    (S.Linear(0.3, 0.01, 20), 40, lambda o: o.linear_schedule(0.3, 0.01, 20)),
    (
        S.PiecewiseConstant(0.3, (5, 6, 20), (0.5, 2.0, 0.1)),
        30,
        lambda o: o.piecewise_constant_schedule(0.3, {5: 0.5, 6: 2.0, 20: 0.1}),
    ),
    (S.PiecewiseConstant(0.3, (), ()), 9, lambda o: o.piecewise_constant_schedule(0.3)),
    *[
        (
            S.PiecewiseInterpolate(0.3, (5, 6, 20), (0.5, 2.0, 0.1), shape=shape),
            30,
            lambda o, shape=shape: o.piecewise_interpolate_schedule(
                shape, 0.3, {5: 0.5, 6: 2.0, 20: 0.1}
            ),
        )
        for shape in ("linear", "cosine")
    ],
    *[
        (
            S.OneCycle(0.3, steps + 1, warmup_fraction=(int(share * steps) + 1) / (steps + 1)),
            steps + 5,
            lambda o, steps=steps, share=share: o.cosine_onecycle_schedule(steps, 0.3, share),
        )
        for steps, share in ((10, 0.3), (10, 0.25), (37, 0.25), (20, 0.5), (1000, 0.3))
    ],
    (S.Cosine(0.3, 30), 50, lambda o: o.cosine_decay_schedule(0.3, 30)),
    (
        S.Cosine(0.3, 30, final=0.03, power=1.7),
        50,
        lambda o: o.cosine_decay_schedule(0.3, 30, 0.1, 1.7),
    ),
    (
        S.Cosine(0.3, 40, warmup_steps=10),
        60,
        lambda o: o.warmup_cosine_decay_schedule(0.0, 0.3, 10, 40),
    ),
    (
        S.Cosine(0.3, 40, warmup_steps=11, initial=0.05, final=0.02, power=2.0),
        60,
        lambda o: o.warmup_cosine_decay_schedule(0.05, 0.3, 11, 40, 0.02, 2.0),
    ),
    (
        S.Warmup(S.Exponential(0.3, 0.8, every=3), 7),
        40,
        lambda o: o.warmup_exponential_decay_schedule(0.0, 0.3, 7, 3, 0.8),
    ),
    (S.Warmup(0.3, 7, start_factor=0.5), 20, lambda o: o.warmup_constant_schedule(0.15, 0.3, 7)),
    (S.OneCycle(0.3, 50), 70, lambda o: o.cosine_onecycle_schedule(49, 0.3)),
    (
        S.OneCycle(0.3, 20, warmup_fraction=0.4, initial=0.03, final=0.001),
        30,
        lambda o: o.cosine_onecycle_schedule(19, 0.3, 0.4, 10.0, 30.0),
    ),
    (
        S.OneCycle(0.3, 51, warmup_fraction=20 / 51, shape="linear", three_phase=True),
        70,
        lambda o: o.linear_onecycle_schedule(50, 0.3, 19.5 / 50, 38.5 / 50),
    ),
    (
        S.Sequence((0.1, S.Linear(0.3, 0.0, 10), S.Cosine(0.2, 20)), (5, 12)),
        40,
        lambda o: o.join_schedules(
            [
                o.constant_schedule(0.1),
                o.linear_schedule(0.3, 0.0, 10),
                o.cosine_decay_schedule(0.2, 20),
            ],
            [5, 12],
        ),
    ),
    (
        S.Sequence((S.Cosine(0.3, 20, warmup_steps=5), S.Cosine(0.2, 30)), (20,)),
        70,
        lambda o: o.sgdr_schedule(
            [
                {"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 5, "decay_steps": 20},
                {"init_value": 0.0, "peak_value": 0.2, "warmup_steps": 0, "decay_steps": 30},
            ]
        ),
    ),
    (
        S.WarmupStableDecay(0.3, 5, 10, 15, initial=0.02, final=0.01),
        50,
        lambda o: o.join_schedules(
            [
                o.linear_schedule(0.02, 0.3, 5),
                o.constant_schedule(0.3),
                o.linear_schedule(0.3, 0.01, 15),
            ],
            [5, 15],
        ),
    ),
    (
        S.WarmupStableDecay(0.3, 0, 10, 15, shape="cosine", final=0.03),
        50,
        lambda o: o.join_schedules(
            [o.constant_schedule(0.3), o.cosine_decay_schedule(0.3, 15, 0.1)], [10]
        ),
    ),
]


@pytest.mark.parametrize(("schedule", "count", "make"), OPTAX, ids=names(OPTAX))
def test_optax(schedule: Schedule, count: int, make: Callable[[Any], Any]) -> None:
    optax = pytest.importorskip("optax")
    theirs = make(optax)  # in float64, which conftest.py enables before any array is made
    equal(rates(schedule, count), rates(theirs, count))
    if count > schedule.span:  # far beyond the end
        equal(np.asarray([schedule(10**6)]), np.asarray([float(theirs(10**6))]))


def test_functions_of_optax() -> None:
    optax = pytest.importorskip("optax")
    theirs = optax.linear_schedule(0.3, 0.1, 10)
    schedule = as_schedule(theirs)
    equal(rates(schedule, 15), rates(S.Linear(0.3, 0.1, 10), 15))
    assert type(schedule(3)) is float


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_model", "warmup"), [(512, 4000), (64, 1), (128, 33)])
def test_inverse_square_root(d_model: int, warmup: int) -> None:
    """Vaswani et al. (2017), eq. 3, where steps are counted from 1."""
    schedule = S.InverseSquareRoot((d_model * warmup) ** -0.5, warmup)
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 10**7):
        if step >= 1:
            want = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
            assert schedule(step - 1) == pytest.approx(want, rel=1e-13)


def test_factor_stops_at_its_floor() -> None:
    rate, want = 0.5, []
    for step in range(40):
        if step and step % 3 == 0:
            rate = max(0.02, rate * 0.7)
        want.append(rate)
    equal(rates(S.Factor(0.5, 0.7, every=3, minimum=0.02), 40), np.asarray(want))


def test_one_minus_square_root() -> None:
    schedule = S.WarmupStableDecay(0.3, 4, 6, 100, shape="1-sqrt", final=0.1)
    want = [0.1 + 0.2 * (1.0 - math.sqrt(t / 100)) for t in range(101)]
    equal(rates(schedule, 111)[10:], np.asarray(want))
    assert schedule(200) == 0.1


# --- all of them --------------------------------------------------------------------------------


def leaf(rng: np.random.Generator) -> Schedule:
    """A schedule of any class, with random settings."""
    rate, low = rng.uniform(0.1, 1.0), rng.uniform(0.0, 0.1)
    steps, few, factor = int(rng.integers(5, 40)), int(rng.integers(0, 5)), rng.uniform(0.3, 1.2)
    bounds = np.cumsum(rng.integers(1, 9, size=3))
    shape = str(rng.choice(["linear", "cosine"]))
    return [
        S.Constant(rate),
        S.Exponential(rate, factor, every=steps, delay=few, staircase=bool(few % 2)),
        S.Exponential(rate, 0.5, final=low),
        S.Factor(rate, factor, every=steps, minimum=low),
        S.StepDecay(rate, steps, factor),
        S.MultiStep(rate, bounds, factor),
        S.PiecewiseConstant(rate, bounds, rng.uniform(size=3)),
        S.PiecewiseInterpolate(rate, bounds, rng.uniform(size=3), shape=shape),
        S.InverseSquareRoot(rate, steps),
        S.Linear(low, rate, steps, delay=few),
        S.Polynomial(rate, steps, power=3 * factor, final=low, delay=few),
        S.Cosine(rate, steps, final=low, power=factor, warmup_steps=few, initial=low / 2),
        S.WarmupStableDecay(rate, few, steps, few + 1, shape=shape, initial=low, final=low),
        S.WarmupStableDecay(rate, few, few, steps, shape="1-sqrt"),
        S.OneCycle(rate, steps, warmup_fraction=factor / 3, shape=shape, three_phase=few > 2),
        S.OneCycle(rate, steps, initial=low, final=low),
        S.CosineRestarts(rate, steps, growth=few + 1, minimum=low),
        S.Cyclic(rate, steps, minimum=low, down_steps=few + 1),
        S.Cyclic(rate, steps, minimum=low, shape="exp_range", factor=min(factor, 1.0)),
        S.Cyclic(rate, steps, minimum=low, shape="triangular2"),
        S.Function(math.exp2),
    ][rng.integers(21)]


def tree(rng: np.random.Generator, depth: int = 2) -> Schedule:
    """A schedule made of other schedules."""
    kind = rng.integers(4) if depth else 0
    few = int(rng.integers(0, 9))
    if kind == 1:
        return S.Warmup(tree(rng, depth - 1), few, start_factor=rng.uniform())
    if kind == 2:
        parts = [tree(rng, depth - 1) for _ in range(3)]
        return S.Sequence(parts, np.cumsum(rng.integers(1, 9, size=2)))
    if kind == 3:
        return S.Product([tree(rng, depth - 1), rng.uniform()])
    return leaf(rng)


TREES = [tree(np.random.default_rng(seed)) for seed in range(300)]


def test_every_class_is_among_them() -> None:
    def classes(schedule: Schedule) -> set[type]:
        inner = getattr(schedule, "schedules", ()) or (getattr(schedule, "schedule", None),)
        return {type(schedule)}.union(*(classes(s) for s in inner if s is not None))

    public = {getattr(S, name) for name in S.__all__}
    public = {c for c in public if isinstance(c, type) and issubclass(c, Schedule)}
    assert public - set().union(*map(classes, TREES)) == {Schedule, S.ReduceOnPlateau}
    defined = {c for c in vars(S).values() if isinstance(c, type) and issubclass(c, Schedule)}
    assert defined == public


def test_a_schedule_is_a_value() -> None:
    """It is frozen, hashable and equal to its copies, and nothing inside it can change."""
    for schedule in TREES:
        copy = pickle.loads(pickle.dumps(schedule))
        assert copy == schedule and hash(copy) == hash(schedule) and copy is not schedule
        assert repr(copy) == repr(schedule)
        for field in dataclasses.fields(schedule):  # type: ignore[arg-type]
            value = getattr(schedule, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            assert not any(isinstance(number, (list, np.generic)) for number in numbers)
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(schedule, field.name, value)
        if "Function" not in repr(schedule):
            assert eval(repr(schedule), vars(S).copy()) == schedule
    assert S.Factor(0.1, 0.5) != S.Exponential(0.1, 0.5)
    assert len({S.Constant(0.1), S.Constant(np.float64(0.1)), S.Constant(0.2)}) == 2


def test_steps_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for schedule in TREES:
        forward = rates(schedule, 80)
        assert np.all(np.isfinite(forward)) and np.all(forward >= 0.0)
        order = rng.permutation(80)
        assert [schedule(step) for step in order] == [forward[step] for step in order]
        assert type(schedule(np.int32(3))) is float


def test_identities() -> None:
    for schedule in TREES:
        plain = rates(schedule, 60)
        assert np.array_equal(rates(S.Sequence((schedule,), ()), 60), plain)
        assert np.array_equal(rates(S.Sequence((0.7, schedule), (5,)), 65)[5:], plain)
        assert np.array_equal(rates(S.Product((schedule, 1)), 60), plain)
        assert np.array_equal(rates(S.Product((schedule, 2.0)), 60), 2.0 * plain)
        assert np.array_equal(rates(S.Warmup(schedule, 0), 60), plain)


def test_warmup_has_no_jump() -> None:
    for schedule in TREES:
        warm = rates(S.Warmup(schedule, 10, start_factor=0.2), 40)
        assert np.array_equal(warm[10:], rates(schedule, 30))
        equal(warm[:11], schedule(0) * (0.2 + 0.8 * np.arange(11) / 10))
    both = S.Warmup(S.Cosine(0.3, 30, final=0.1), 10)
    assert np.array_equal(rates(both, 50), rates(S.Cosine(0.3, 40, final=0.1, warmup_steps=10), 50))


ENDING = [S.Linear, S.Polynomial, S.Cosine, S.WarmupStableDecay, S.OneCycle]


def test_the_last_value_stays() -> None:
    assert set(ENDING) <= set(map(type, TREES))
    for schedule in TREES:
        if type(schedule) in ENDING:
            last = schedule(schedule.span)
            if schedule.final is not None:  # type: ignore[attr-defined]
                assert last == schedule.final  # type: ignore[attr-defined]
            assert {schedule(schedule.span + k) for k in (1, 2, 1000, 10**300, 10**400)} == {last}


def test_one_cycle_of_few_steps() -> None:
    assert S.OneCycle(0.3, 1, initial=0.2, final=0.1)(0) == 0.1
    assert S.OneCycle(0.3, 1, warmup_fraction=1.0, initial=0.2, final=0.1)(5) == 0.1
    # the peak is already at the first step
    cycle = S.OneCycle(0.3, 10, warmup_fraction=0.1, initial=0.2, final=0.1)
    assert cycle(0) == 0.3 and cycle(9) == cycle(10) == 0.1


def test_growth_is_bounded_where_it_should_be() -> None:
    assert S.Exponential(0.1, 2.0, final=3.0)(10**6) == 3.0
    assert S.Exponential(0.1, 0.5)(10**6) == 0.0
    fails(lambda: S.Exponential(0.1, 2.0)(10**6), ValueError, "Exponential", "inf", "1000000")


def test_a_program_computes_the_same_rates() -> None:
    jax = pytest.importorskip("jax")
    settings = [S.Exponential(0.1, 0.9999), S.CosineRestarts(0.1, 1, growth=3), S.Warmup(0.1, 3)]
    known = [schedule for schedule in TREES if "Function" not in repr(schedule)][:80] + settings
    steps = np.concatenate([np.arange(40), [99, 1000]]).astype(np.int32)
    found = jax.jit(jax.vmap(lambda step: [schedule(step) for schedule in known]))(steps)
    for schedule, column in zip(known, found, strict=True):
        want = np.asarray([schedule(int(step)) for step in steps])
        np.testing.assert_allclose(column, want, rtol=1e-13, atol=1e-15, err_msg=repr(schedule))
    last = 2**31 - 2
    for schedule in settings:
        rate = float(jax.jit(schedule)(np.int32(last)))
        assert rate == pytest.approx(schedule(last), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("wide", [False, True])
def test_steps_at_the_end_of_the_integers_of_a_program(wide: bool) -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", wide)
    try:
        last, limit = 2**31 - 2, 2**63 - 2 if wide else 2**31 - 2
        schedules = (
            S.InverseSquareRoot(0.1, 4000), S.CosineRestarts(0.1, 1000, growth=3), S.Constant(0.1)
        )
        steps = [np.int32(last), np.int32(last + 1), np.uint32(last + 2), np.uint32(2**32 - 1)]
        for schedule in schedules:
            program = jax.jit(schedule)
            for step in steps:
                want = schedule(min(int(step), limit))
                assert float(program(step)) == pytest.approx(want, rel=1e-6), (schedule, step)
            if wide:
                step = np.int64(2**40 + 12345)
                assert float(program(step)) == pytest.approx(schedule(int(step)), rel=1e-9)
        long = S.Linear(0.1, 0.0, 2**32)
        if wide:
            assert float(jax.jit(long)(np.int64(2**31))) == 0.05
        else:
            fails(lambda: jax.jit(long)(np.int32(7)), ValueError, "int32 hold; wanted fewer")
        opt = lx.Adam(0.1)
        w = jax.numpy.ones(2)
        state = opt.init(w)._replace(step=np.int32(2**31 - 1))
        w, state = jax.jit(opt.update)(w, 2.0 * w, state)
        assert np.isfinite(w).all() and int(state.step) == 2**31 - 1
    finally:
        jax.config.update("jax_enable_x64", before)


def test_functions_in_a_program() -> None:
    jax = pytest.importorskip("jax")
    for given in (lambda k: 0.1 / (1 + k), Harmonic(0.1), S.Warmup(lambda k: 0.3 if k else 1.0, 2)):
        schedule = as_schedule(given)
        fails(lambda s=schedule: jax.jit(s)(3), TypeError, "computes with Python's numbers")
    by_jax = as_schedule(lambda k: 0.1 * jax.numpy.exp(-k / 8))
    assert float(jax.jit(by_jax)(3)) == pytest.approx(by_jax(3), rel=1e-14)
    fails(lambda: jax.jit(S.Constant(0.1))(3.0), TypeError, "wanted an integer")
    fails(lambda: jax.jit(S.Constant(0.1))(np.arange(3)), TypeError, "wanted an integer")


@dataclasses.dataclass(frozen=True)
class Harmonic(Schedule):
    learning_rate: float

    def rate(self, step: int) -> float:
        return self.learning_rate / (1 + step)


@pytest.mark.parametrize("settings", PLATEAUS, ids=str)
def test_a_plateau_in_a_program(settings: dict[str, Any]) -> None:
    jax = pytest.importorskip("jax")
    schedule = S.ReduceOnPlateau(0.3, **settings)
    values = np.cumsum(np.random.default_rng(0).normal(-0.05, 0.3, size=60))
    values[9] = math.nan
    state, update = schedule.init(), jax.jit(schedule.update)
    there = state
    for value in values:
        state, there = schedule.update(state, float(value)), update(there, value)
        assert state == pytest.approx(tuple(map(float, there)), rel=1e-14)
    assert state.learning_rate < 0.3


# --- as_schedule --------------------------------------------------------------------------------


def half(step: int) -> float:
    return 0.5


def test_as_schedule() -> None:
    cosine, plateau = S.Cosine(0.1, 10), S.ReduceOnPlateau(0.1)
    assert as_schedule(cosine) is cosine
    assert as_schedule(plateau) is plateau
    for number in (0, 1, 0.1, np.float32(0.5), np.int64(2), np.asarray(0.3)):
        schedule = as_schedule(number)
        assert schedule == S.Constant(float(number)) and type(schedule(0)) is float
    wrapped = as_schedule(half)
    assert wrapped == S.Function(half) and wrapped(3) == 0.5
    assert pickle.loads(pickle.dumps(wrapped)) == wrapped
    assert as_schedule(wrapped) is wrapped
    assert as_schedule(lambda step: np.float32(0.5))(0) == 0.5
    assert lx.schedules is S


@pytest.mark.parametrize("given", [math.nan, math.inf, -1.0, None, "1", True, 1j, [1.0]], ids=repr)
def test_functions_that_return_no_rate(given: Any) -> None:
    fails(lambda: as_schedule(lambda step: given)(7), ValueError, "Function", repr(given), "step 7")


def test_a_schedule_of_ones_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Harmonic(Schedule):
        learning_rate: float
        every: int = 1

        def rate(self, step: int) -> float:
            return self.learning_rate / (1 + step // self.every)

    assert S.Warmup(Harmonic(np.float64(0.4)), 2)(3) == 0.2
    fails(lambda: Harmonic(-1.0), ValueError, "learning_rate is -1.0", "at least 0")
    fails(lambda: Harmonic(1.0, every=0), ValueError, "every is 0", "at least 1")
    fails(lambda: Harmonic(1.0)(-1), ValueError, "step is -1")

    @dataclasses.dataclass(frozen=True)
    class Wave(Schedule):
        shape: str = "sine"

    assert Wave("square").shape == "square"
    fails(lambda: Wave(5), TypeError, "shape is 5", "wanted a string")  # type: ignore[arg-type]

    class Sine(Wave):
        shapes = ("sine", "cosine")

    assert Sine("cosine").shape == "cosine"
    fails(lambda: Sine("square"), ValueError, "shape is 'square'", "'sine', 'cosine'")

    @dataclasses.dataclass(frozen=True)
    class Empty(Schedule):
        pass

    fails(lambda: Empty()(0), NotImplementedError, "Empty", "rate")


def test_counts_may_be_whole_floats() -> None:
    whole = S.MultiStep(0.1, [3.0, np.float64(5.0)])
    assert whole == S.MultiStep(0.1, (3, 5)) and type(whole.boundaries[0]) is int
    assert repr(S.Cosine(0.1, 1e3)) == repr(S.Cosine(0.1, 1000))  # type: ignore[arg-type]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [S.Constant(0.1), S.Warmup(0.1, 9), S.Function(half)])
@pytest.mark.parametrize(
    ("step", "error"),
    [
        (-1, ValueError),
        (np.int64(-3), ValueError),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        ("1", TypeError),
        (np.asarray([1, 2]), TypeError),
    ],
    ids=repr,
)
def test_bad_steps(schedule: Schedule, step: Any, error: type[Exception]) -> None:
    fails(lambda: schedule(step), error, f"step is {step!r}", "wanted")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (-0.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (np.float32(-1), ValueError),
        (True, TypeError),
        (None, TypeError),
        ("0.1", TypeError),
        ([0.1], TypeError),
        (0.1 + 0j, TypeError),
        (np.asarray([0.1, 0.2]), TypeError),
        (np.asarray([0.1]), TypeError),
        (S.Cosine, TypeError),
    ],
    ids=repr,
)
def test_bad_learning_rates(value: Any, error: type[Exception]) -> None:
    wanted = ["a number of at least 0, a schedule", "a function"]
    fails(lambda: as_schedule(value), error, f"learning_rate is {value!r}", *wanted)
    fails(lambda: as_schedule(value, name="lr"), error, f"lr is {value!r}", *wanted)


BAD: list[tuple[str, type[Exception], str, str]] = [
    ("S.Constant(-0.1)", ValueError, "learning_rate is -0.1", "at least 0"),
    ("S.Constant(10**400)", ValueError, "learning_rate is 1000", "finite"),
    ("S.Linear(nan, 1, 2)", ValueError, "initial is nan", "finite"),
    ("S.Linear(1, inf, 2)", ValueError, "final is inf", "finite"),
    ("S.Linear(0.1, 0, 1.5)", ValueError, "steps is 1.5", "integer"),
    ("S.Cosine(S.Constant(0.1), 5)", ValueError, "learning_rate is Constant", "number"),
    ("S.Cosine(0.1, 5, final=None)", ValueError, "final is None", "number"),
    ("S.Cosine(0.1, 0)", ValueError, "steps is 0", "at least 1"),
    ("S.Cosine(0.1, 5, warmup_steps=5)", ValueError, "warmup_steps is 5", "less than steps, 5"),
    ("S.StepDecay(0.1, True)", ValueError, "every is True", "integer"),
    ("S.StepDecay(0.1, np.asarray([1, 2]))", ValueError, "every is array", "integer"),
    ("S.Exponential(0.1, 0.5, delay=-1)", ValueError, "delay is -1", "at least 0"),
    ("S.Exponential(0.1, 0.0)", ValueError, "factor is 0.0", "above 0"),
    ("S.Exponential(0.1, 0.5, staircase=1)", TypeError, "staircase is 1", "True or False"),
    ("S.Polynomial(0.1, 5, power=0)", ValueError, "power is 0", "above 0"),
    ("S.Factor(0.1, 0.5, minimum=0.2)", ValueError, "minimum is 0.2", "learning_rate, 0.1"),
    ("S.InverseSquareRoot(0.1, 0)", ValueError, "warmup_steps is 0", "at least 1"),
    ("S.MultiStep(0.1, (5, 3))", ValueError, "boundaries is (5, 3)", "increasing"),
    ("S.MultiStep(0.1, (3, 3))", ValueError, "boundaries is (3, 3)", "increasing"),
    ("S.MultiStep(0.1, 3)", ValueError, "boundaries is 3", "a sequence"),
    ("S.MultiStep(0.1, [0.5])", ValueError, "boundaries is [0.5]", "integers"),
    ("S.PiecewiseConstant(0.1, (1, 2), (0.5,))", ValueError, "factors is (0.5,)", "(1, 2)"),
    ("S.PiecewiseInterpolate(0.1, (1, 2), (0.5,))", ValueError, "factors is (0.5,)", "(1, 2)"),
    ("S.PiecewiseInterpolate(1, (1,), (1,), shape='x')", ValueError, "shape is 'x'", "'linear'"),
    ("S.Linear(0.1, 0.0, -1)", ValueError, "steps is -1", "(optax takes"),
    ("S.Polynomial(0.1, 0)", ValueError, "steps is 0", "(optax takes"),
    ("S.Exponential(0.1, 0.0)", ValueError, "factor is 0.0", "(optax takes"),
    ("S.Exponential(0.1, 0.5, every=-1)", ValueError, "every is -1", "(optax takes"),
    ("S.Cosine(0.1, T_max=9)", TypeError, "T_max was passed to Cosine", "steps"),
    ("S.Cosine(0.1, 9, eta_min=0)", TypeError, "eta_min was passed", "final"),
    ("S.Cosine(base_lr=0.1, steps=9)", TypeError, "base_lr was passed", "learning_rate"),
    ("S.Cyclic(0.1, 9, base_lr=0.01)", TypeError, "base_lr was passed", "minimum"),
    ("S.Cosine(lr=0.1, steps=9)", TypeError, "lr was passed", "learning_rate"),
    ("S.Linear(lr=0.1, final=0, steps=9)", TypeError, "lr was passed", "wanted initial"),
    ("S.CosineRestarts(0.1, T_0=9)", TypeError, "T_0 was passed", "wanted period"),
    ("S.CosineRestarts(0.1, 9, eta_min=0)", TypeError, "eta_min was passed", "wanted minimum"),
    ("S.StepDecay(0.1, step_size=9)", TypeError, "step_size was passed", "wanted every"),
    ("S.StepDecay(0.1, 9, gamma=0.1)", TypeError, "gamma was passed", "wanted factor"),
    ("S.MultiStep(0.1, milestones=(1,))", TypeError, "milestones was passed", "boundaries"),
    ("S.OneCycle(max_lr=0.1, steps=9)", TypeError, "max_lr was passed", "learning_rate"),
    ("S.OneCycle(0.1, 9, pct_start=0.1)", TypeError, "pct_start was passed", "warmup_fraction"),
    ("S.OneCycle(0.1, 9, div_factor=9)", TypeError, "div_factor was passed", "initial, which is a"),
    ("S.Linear(init_value=0.1, final=0, steps=9)", TypeError, "init_value was", "wanted initial"),
    ("S.Exponential(0.1, decay_rate=0.1)", TypeError, "decay_rate was passed", "wanted factor"),
    ("S.ReduceOnPlateau(0.1, min_lr=0.1)", TypeError, "min_lr was passed", "wanted minimum"),
    ("S.PiecewiseConstant(0.1, (1,), (-1,))", ValueError, "factors is (-1,)", "at least 0"),
    ("S.OneCycle(0.1, 9, shape='cos')", ValueError, "shape is 'cos'", "'cosine', 'linear'"),
    ("S.OneCycle(0.1, 9, shape='1-sqrt')", ValueError, "shape is '1-sqrt'", "'cosine', 'linear'"),
    ("S.OneCycle(0.1, 9, warmup_fraction=1.1)", ValueError, "warmup_fraction is 1.1", "0 to 1"),
    (
        "S.OneCycle(0.1, 9, warmup_fraction=0.6, three_phase=True)",
        ValueError,
        "warmup_fraction is 0.6",
        "at most 0.5",
    ),
    ("S.Cyclic(0.1, 9, minimum=0, shape=5)", ValueError, "shape is 5", "'triangular2'"),
    ("S.Cyclic(0.1, 9, minimum=0, shape='up')", ValueError, "shape is 'up'", "'triangular2'"),
    ("S.WarmupStableDecay(1, 1, 1, 1, shape='up')", ValueError, "shape is 'up'", "'1-sqrt'"),
    ("S.CosineRestarts(0.1, 5, growth=1.5)", ValueError, "growth is 1.5", "integer"),
    ("S.Warmup(0.1, 5, start_factor=2)", ValueError, "start_factor is 2", "from 0 to 1"),
    ("S.Warmup(None, 5)", TypeError, "schedule is None", "a schedule"),
    ("S.Warmup(S.ReduceOnPlateau(0.1), 5)", TypeError, "schedule is Reduce", "only on the step"),
    ("S.Product(())", ValueError, "schedules is ()", "at least one"),
    ("S.Product(S.Constant(1))", TypeError, "schedules is Constant", "a sequence"),
    ("S.Product((1.0, 'a'))", TypeError, "schedules[1] is 'a'", "a schedule"),
    ("S.Sequence((1.0, -1.0), (2,))", ValueError, "schedules[1] is -1.0", "at least 0"),
    ("S.Sequence((1.0, 2.0), (2, 3))", ValueError, "boundaries is (2, 3)", "2 schedules"),
    ("S.Function(0.1)", TypeError, "function is 0.1", "a function"),
    ("S.ReduceOnPlateau(0.1, 1.0)", ValueError, "factor is 1.0", "less than 1"),
    ("S.ReduceOnPlateau(0.1, mode='low')", ValueError, "mode is 'low'", "'min', 'max'"),
    ("S.ReduceOnPlateau(0.1, threshold_mode='x')", ValueError, "threshold_mode is 'x'", "'rel'"),
    ("S.ReduceOnPlateau(0.1, patience=-1)", ValueError, "patience is -1", "at least 0"),
    ("S.ReduceOnPlateau(0.1)(3)", TypeError, "schedule.init()", "schedule.update(state, value)"),
    ("S.ReduceOnPlateau(0.1).plot()", TypeError, "schedule.init()", "not on the step"),
    ("S.ReduceOnPlateau(0.1).update(None, 1.0)", TypeError, "state is None", "init()"),
    ("(p := S.ReduceOnPlateau(1)).update(p.init(), '1')", TypeError, "value is '1'", "a number"),
    ("S.Constant(1).plot(steps=0)", ValueError, "steps is 0", "at least 1"),
]


@pytest.mark.parametrize(("call", "error", "passed", "wanted"), BAD, ids=[b[0] for b in BAD])
def test_bad_settings(call: str, error: type[Exception], passed: str, wanted: str) -> None:
    known = {"S": S, "np": np, "nan": math.nan, "inf": math.inf}
    fails(lambda: eval(call, known), error, passed, wanted)


# --- pictures -----------------------------------------------------------------------------------


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    schedule = S.Cosine(0.3, 40, warmup_steps=10)
    ax = schedule.plot()
    (line,) = ax.get_lines()
    assert np.array_equal(line.get_xdata(), np.arange(41))
    assert np.array_equal(line.get_ydata(), rates(schedule, 41))
    assert ax.get_xlabel() == "step" and ax.get_ylabel() == "learning rate"

    figures = plt.get_fignums()
    assert S.Constant(0.1).plot(steps=7, ax=ax) is ax  # into the same axes
    assert len(ax.get_lines()) == 2 and plt.get_fignums() == figures
    assert len(ax.get_lines()[1].get_xdata()) == 8

    (line,) = S.Constant(0.1).plot(steps=10**6).get_lines()  # not a million points
    assert len(line.get_xdata()) <= 10_001 and line.get_xdata()[-1] > 0.99e6
    for schedule in TREES[:50]:
        schedule.plot(ax=ax)
    plt.close("all")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    fails(lambda: S.Constant(0.1).plot(), ImportError, "matplotlib", "lbfgs_xp[plot]")
