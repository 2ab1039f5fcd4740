"""First-order optimizers in `lx.minimize`: steps, statuses, batches, continued runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import schedules
from tests.backends import Backend
from tests.first_order.test_first_order import ALL, MATRIX, START, N


def quadratic(backend: Backend) -> Any:
    """(x - 1) A (x - 1) / 2 with its gradient, for one problem and for batches."""
    a = backend.asarray(MATRIX)

    def fun(x: Any) -> tuple[Any, Any]:
        away = x - 1.0
        g = lx.fixed_sum(a * away[..., None, :])
        return 0.5 * lx.fixed_sum(away * g), g

    return fun


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
def test_the_steps_of_update(backend: Backend, name: str) -> None:
    opt = getattr(lx, name)(schedules.Exponential(0.05, 0.99), weight_decay=0.01, clip_norm=2.0)
    fun = quadratic(backend)
    seen = []
    lx.minimize(
        fun, backend.asarray(START), jac=True, method=opt, maxiter=20, gtol=0.0, reproducible=True,
        callback=lambda record: seen.append(backend.to_numpy(record.x)),
    )
    x = backend.asarray(START)
    state = opt.init(x)
    for found in seen:
        x, state = opt.update(x, fun(x)[1], state, reproducible=True)
        assert np.array_equal(backend.to_numpy(x), found)
    assert len(seen) == 20


def test_to_the_minimum(backend: Backend) -> None:
    res = lx.minimize(
        quadratic(backend), backend.asarray(START), jac=True, method=lx.Adam(0.1), gtol=1e-6
    )
    assert res.status is lx.Status.GRADIENT
    assert res.nfev == res.nit + 1
    np.testing.assert_allclose(backend.to_numpy(res.x), np.ones(N), atol=1e-5)


def test_values_that_rise_are_no_failure() -> None:
    """The best point is kept, and no precision floor is reported if there is none."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(x @ x), 2.0 * x

    res = lx.minimize(fun, np.full(2, 1e-3), jac=True, method=lx.SGD(1.0), maxiter=50, gtol=0.0)
    assert res.status is lx.Status.ITERATIONS and res.nit == 50
    values = []
    res = lx.minimize(
        fun, np.full(2, 1.0), jac=True, method=lx.Adam(0.9), maxiter=50, gtol=0.0,
        callback=lambda record: values.append(record.fun),
    )
    assert res.fun == min(values) and values[-1] > res.fun


@pytest.mark.parametrize("batched", [False, True])
def test_divergence_tells_and_keeps_the_best(backend: Backend, batched: bool) -> None:
    shape = (3, N) if batched else (N,)
    x0 = backend.asarray(np.broadcast_to(START, shape))

    def fun(x: Any) -> tuple[Any, Any]:
        xp = backend.xp
        return xp.sum(x * x * x * x, axis=-1), 4.0 * x * x * x

    with np.errstate(over="ignore", invalid="ignore"):
        res = lx.minimize(fun, x0, jac=True, method=lx.SGD(1e3), batched=batched)
    statuses = backend.to_numpy(res.status) if batched else [res.status]
    assert all(status == lx.Status.DIVERGED for status in statuses)
    assert np.array_equal(backend.to_numpy(res.x), backend.to_numpy(x0))
    assert not np.any(backend.to_numpy(res.success) if batched else res.success)


def test_a_function_with_noise_may_be_asked_again() -> None:
    calls = []

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(x.copy())
        bad = len(calls) in (3, 4)
        return float(x @ x), 2.0 * x if not bad else np.full(2, np.nan)

    res = lx.minimize(
        fun, np.ones(2), jac=True, method=lx.SGD(0.1, on_nonfinite="skip"), maxiter=10, gtol=0.0
    )
    assert res.nit == 10 and res.nfev == 13
    assert np.array_equal(calls[2], calls[3]) and np.array_equal(calls[3], calls[4])


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reproducible", [False, True])
def test_rows_of_a_batch_equal_single_solves(
    backend: Backend, name: str, reproducible: bool
) -> None:
    fun = quadratic(backend)
    opt = getattr(lx, name)(0.05, clip_norm=3.0)
    starts = START * np.asarray([[1.0], [0.1], [-3.0]])
    how: dict = {"jac": True, "method": opt, "gtol": 0.3, "maxiter": 25}
    together = lx.minimize(
        fun, backend.asarray(starts), batched=True, reproducible=reproducible, **how
    )
    for row, start in enumerate(starts):
        alone = lx.minimize(fun, backend.asarray(start), reproducible=reproducible, **how)
        found = backend.to_numpy(together.x)[row]
        if reproducible:
            assert np.array_equal(found, backend.to_numpy(alone.x))
        else:
            np.testing.assert_allclose(found, backend.to_numpy(alone.x), rtol=1e-9, atol=1e-9)
        for count in ("nit", "nfev", "status"):
            assert int(backend.to_numpy(getattr(together, count))[row]) == getattr(alone, count)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Rprop", "Lion"])
def test_the_same_bits_on_every_library(backend: Backend, name: str) -> None:
    def path(of: Backend) -> np.ndarray:
        found: list[np.ndarray] = []
        lx.minimize(
            lx.problems.rosenbrock(
                10, xp=of.xp, device=of.device, reproducible=True
            ).value_and_gradient,
            of.asarray(np.linspace(-1.0, 1.0, 10)), jac=True, reproducible=True,
            method=getattr(lx, name)(1e-3, clip_norm=5.0), maxiter=100,
            callback=lambda record: found.append(of.to_numpy(record.x)),
        )
        return np.stack(found)

    assert np.array_equal(path(backend), path(Backend.NUMPY))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batched", [False, True])
def test_going_on(backend: Backend, name: str, batched: bool) -> None:
    """15 iterations and then 15 equal 30, and a state can be used more than once."""
    fun, opt = quadratic(backend), getattr(lx, name)(schedules.Cosine(0.1, steps=40))
    x0 = backend.asarray(np.stack([START, 2.0 * START]) if batched else START)
    how: dict = {"jac": True, "method": opt, "gtol": 0.0, "batched": batched}
    whole = lx.minimize(fun, x0, maxiter=30, **how)
    half = lx.minimize(fun, x0, maxiter=15, **how)
    for _ in range(2):
        rest = lx.minimize(fun, half.x, maxiter=15, state=half.state, **how)
        assert np.array_equal(backend.to_numpy(rest.x), backend.to_numpy(whole.x))


def test_groups_follow_the_leaves(backend: Backend) -> None:
    xp = backend.xp

    def fun(p: Any) -> tuple[Any, Any]:
        value = xp.sum(p["a"] * p["a"]) + xp.sum(p["b"] * p["b"])
        return value, {"a": 2.0 * p["a"], "b": 2.0 * p["b"]}

    x0 = {"a": backend.asarray([1.0, 2.0]), "b": backend.asarray([[3.0]])}
    opt = lx.SGD(0.25, labels=lambda path: path, groups={"b": {"learning_rate": 0.5}})
    res = lx.minimize(fun, x0, jac=True, method=opt, maxiter=1)
    assert np.array_equal(backend.to_numpy(res.x["a"]), [0.5, 1.0])
    assert np.array_equal(backend.to_numpy(res.x["b"]), [[0.0]])


def test_plateau_sees_the_values() -> None:
    rates = []

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return 1.0, np.ones(1)

    opt = lx.SGD(schedules.ReduceOnPlateau(1.0, factor=0.5, patience=1))
    lx.minimize(
        fun, np.zeros(1), jac=True, method=opt, maxiter=6,
        callback=lambda record: rates.append(record.step),
    )
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="ReduceOnPlateau was passed with batched=True"):
        lx.minimize(
            lambda x: (x[:, 0], np.ones((2, 1))), np.zeros((2, 1)), jac=True, method=opt,
            batched=True,
        )


def test_complex_variables(backend: Backend) -> None:
    xp = backend.xp
    target = backend.asarray([1.0 + 2.0j, -0.5j], "complex128")

    def fun(z: Any) -> tuple[Any, Any]:
        away = z - target
        return xp.sum(xp.real(away) ** 2 + xp.imag(away) ** 2), 2.0 * away

    z0 = backend.asarray([0.0, 0.0], "complex128")
    res = lx.minimize(fun, z0, jac=True, method=lx.Adam(0.1), gtol=1e-7)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), backend.to_numpy(target), atol=1e-6)


def test_autodiff() -> None:
    torch = pytest.importorskip("torch")
    x0 = torch.zeros(3, dtype=torch.float32)
    res = lx.minimize(lambda x: ((x - 2.0) ** 2).sum(), x0, method=lx.Adam(0.1), gtol=1e-3)
    assert res.success and res.x.dtype == torch.float32


def test_errors() -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(x @ x), 2.0 * x

    with pytest.raises(ValueError, match="maximize=True"):
        lx.minimize(fun, np.ones(2), jac=True, method=lx.Adam(maximize=True))
    with pytest.raises(TypeError, match="wanted a name, an optimizer"):
        lx.minimize(fun, np.ones(2), jac=True, method=lx.Adam)
    res = lx.minimize(fun, np.ones(2), jac=True, method=lx.Adam(), maxiter=2)
    with pytest.raises(ValueError, match="state belongs to Adam; wanted a state of Lion"):
        lx.minimize(fun, res.x, jac=True, method=lx.Lion(), state=res.state)
    with pytest.raises(ValueError, match="LBFGS"):
        lx.minimize(fun, res.x, jac=True, state=res.state)


@pytest.mark.parametrize("batched", [False, True])
def test_bounds_project_each_step(batched: bool) -> None:
    seen: list[np.ndarray] = []

    def fun(x: np.ndarray) -> Any:
        seen.append(x)
        return np.sum((x - 3.0) ** 2, axis=-1), 2.0 * (x - 3.0)

    upper = np.asarray([1.0, 5.0])
    for method in (lx.Adam(0.1), lx.SGD(0.1, momentum=0.5)):
        x0 = np.full((2, 2), 7.0) if batched else np.full(2, 7.0)
        res = lx.minimize(
            fun, x0, jac=True, method=method, bounds=(-1.0, upper), batched=batched, gtol=1e-3,
            maxiter=2000,
        )
        assert np.all(res.success) and np.all(res.active == [1, 0])
        np.testing.assert_allclose(res.x, np.broadcast_to([1.0, 3.0], x0.shape), atol=1e-3)
    assert all(np.all((x >= -1.0) & (x <= upper)) for x in seen)


# --- GradientDescent, with a rate or with a line search ----------------------------------------


def test_gradient_descent_with_a_rate_is_sgd(backend: Backend) -> None:
    fun, x0 = quadratic(backend), backend.asarray(START)
    how: dict = {"jac": True, "maxiter": 30, "gtol": 0.0}
    schedule = schedules.Exponential(0.1, 0.99)
    one = lx.minimize(fun, x0, method=lx.GradientDescent(schedule), **how)
    other = lx.minimize(fun, x0, method=lx.SGD(schedule), **how)
    assert np.array_equal(backend.to_numpy(one.x), backend.to_numpy(other.x))


@pytest.mark.parametrize("rule", [lx.Bisection(), lx.Armijo(), "more_thuente", None])
def test_gradient_descent_with_a_line_search(backend: Backend, rule: Any) -> None:
    from lbfgs_xp.solvers.steepest_descent import SteepestDescent

    fun, x0 = quadratic(backend), backend.asarray(START)
    opt = lx.GradientDescent(line_search=rule)
    res = lx.minimize(fun, x0, jac=True, method=opt)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), np.ones(N), atol=1e-6)
    same = lx.minimize(fun, x0, jac=True, method=SteepestDescent(rule or lx.Bisection()))
    assert np.array_equal(backend.to_numpy(res.x), backend.to_numpy(same.x))


def test_gradient_descent_takes_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="wanted only one of the two"):
        lx.GradientDescent(0.1, line_search=lx.Bisection())
    with pytest.raises(ValueError, match="weight_decay is 1.0; it needs a learning rate"):
        lx.GradientDescent(weight_decay=1.0)
    with pytest.raises(TypeError, match="evaluates the function"):
        lx.GradientDescent().init(np.zeros(2))
    with pytest.raises(ValueError, match="bisecton"):
        lx.GradientDescent(line_search="bisecton")


# --- hostile usage -----------------------------------------------------------------------------


def test_skip_ends_where_nothing_changes() -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        if x[0] > 0.5:
            return float(x @ x), 2.0 * x
        return np.nan, np.full(2, np.nan)

    opt = lx.SGD(0.1, on_nonfinite="skip")
    res = lx.minimize(fun, np.ones(2), jac=True, method=opt, maxiter=100)
    assert res.status is lx.Status.DIVERGED and res.nfev < 30
    with pytest.raises(FloatingPointError, match="not finite") as caught:
        lx.minimize(fun, np.ones(2), jac=True, method=lx.SGD(0.1, on_nonfinite="raise"))
    assert caught.value.result.x[0] > 0.5
    with pytest.raises(ValueError, match="on_nonfinite is 'skip' with batched=True"):
        lx.minimize(
            lambda x: ((x * x).sum(-1), 2.0 * x), np.ones((2, 2)), jac=True, method=opt,
            batched=True,
        )


def test_a_value_that_is_not_finite_is_never_a_success() -> None:
    seen = iter([(1e30, 1e20), (5.0, 1e3), (np.nan, 1e3)])

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = next(seen)
        return value, np.full(1, slope)

    res = lx.minimize(fun, np.ones(1), jac=True, method=lx.SGD(1e-3))
    assert res.status is lx.Status.DIVERGED and res.fun == 5.0


def test_a_record_tells_the_rate_that_led_there() -> None:
    steps, points = [], []
    lx.minimize(
        lambda x: (float(x[0]), np.ones(1)), np.zeros(1), jac=True, gtol=0.0, maxiter=4,
        method=lx.SGD(lambda step: float(step + 1)),
        callback=lambda record: steps.append(record.step) or points.append(float(record.x[0])),
    )
    assert steps == [1.0, 2.0, 3.0, 4.0]
    assert points == [-1.0, -3.0, -6.0, -10.0]


@pytest.mark.parametrize(
    "other",
    [
        lx.Adadelta(),
        lx.Rprop(),
        lx.RAdam(),
        lx.NAdam(),
        lx.Adam(0.1, amsgrad=True),
        lx.Adam(0.1, labels=lambda path: "a", groups={"a": {}}),
        lx.Adam(schedules.ReduceOnPlateau(0.1)),
    ],
    ids=["Adadelta", "Rprop", "RAdam", "NAdam", "amsgrad", "groups", "plateau"],
)
def test_states_of_other_rules_are_refused(other: Any) -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(x @ x), 2.0 * x

    res = lx.minimize(fun, np.ones(2), jac=True, method=lx.Adam(0.1), maxiter=5)
    with pytest.raises(ValueError, match="state belongs to Adam; wanted a state of"):
        lx.minimize(fun, res.x, jac=True, method=other, state=res.state)


def test_groups_do_not_climb() -> None:
    opt = lx.SGD(0.1, labels=lambda path: "w", groups={"w": {"maximize": True}})
    with pytest.raises(ValueError, match="maximize=True"):
        lx.minimize(lambda x: (float(x @ x), 2.0 * x), np.ones(2), jac=True, method=opt)
