"""Neither the units of the function nor those of the variables decide how a run ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.arrays.scalars import FLOATS
from lbfgs_xp.run.noise import deviation

METHODS = ["lbfgs", "bfgs"]


# --- the units of f ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["rosenbrock", "beale", "himmelblau", "mlp_regression"])
@pytest.mark.parametrize("power", [-20, 10, 30])
def test_the_same_run_in_any_units(name: str, method: str, dtype: str, power: int) -> None:
    p, unit = problems.ALL[name](dtype=dtype), 2.0**power

    def fun(x: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        return value * value.dtype.type(unit), gradient * value.dtype.type(unit)

    how: dict[str, Any] = {"jac": True, "method": method, "maxiter": 300}
    one, other = (lx.minimize(f, p.x0, **how) for f in (p.value_and_gradient, fun))
    np.testing.assert_array_equal(other.x, one.x)
    assert (other.status, other.nit, other.nfev) == (one.status, one.nit, one.nfev)


def test_a_given_tolerance_is_absolute() -> None:
    p = problems.rosenbrock(4)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, gtol=0.5)
    assert res.status is Status.GRADIENT and 1e-3 < res.gradient_norm <= 0.5


def line(seed: int, dtype: Any) -> tuple[Any, np.ndarray]:
    """A fit of curves in mixed units of f, with noise, and a start."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    a = rng.normal(size=(4 * n, n)) * 10.0 ** rng.uniform(-1, 1, size=n)
    b = rng.normal(size=(4 * n, n))
    truth, unit = rng.normal(size=n), 10.0 ** rng.uniform(-4, 4)
    y = a @ truth + 0.3 * np.sin(b @ truth) + 0.05 * rng.normal(size=4 * n)

    def fun(x: np.ndarray) -> Any:
        kind = x.dtype.type
        u, v = a.astype(x.dtype), b.astype(x.dtype)
        w = v @ x
        r = u @ x + kind(0.3) * np.sin(w) - y.astype(x.dtype)
        jacobian = u + kind(0.3) * np.cos(w)[:, None] * v
        return kind(unit) * (r @ r), kind(2.0 * unit) * (jacobian.T @ r)

    return fun, (truth + 0.5 * rng.normal(size=n)).astype(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_float32_reaches_what_it_can(method: str) -> None:
    close = []
    for seed in range(40):
        fun, start = line(seed, np.float32)
        exact = lx.minimize(fun, start.astype(np.float64), jac=True, method=method)
        res = lx.minimize(fun, start, jac=True, method=method)
        assert res.success and exact.success
        close.append(res.fun <= exact.fun * (1.0 + 1e-4))
    assert np.mean(close) >= 0.95


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_a_small_loss_is_no_reason_to_stop(unit: float) -> None:
    """Adam does the steps that it was given, and L-BFGS goes on from there."""
    p = problems.mlp_regression(dtype="float32")

    def fun(x: np.ndarray) -> Any:
        value, gradient = p.value_and_gradient(x)
        return value * np.float32(unit), gradient * np.float32(unit)

    res = lx.minimize(fun, p.x0, jac=True, method=[lx.Adam(1e-3).until(maxiter=200), lx.LBFGS()])
    first, second = res.phases
    assert first.status is Status.ITERATIONS and first.nit == 200
    assert second.nit > 10 and res.fun < 0.5 * first.fun and res.success


# --- the units of x ------------------------------------------------------------------------------

UNITS = [[1e-8, 1.0], [1e8, 1.0], [1e4, 1e-4], [1e-2, 1e8], [1.0, 1e4]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_variables_in_any_units(method: str, batched: bool) -> None:
    rng = np.random.default_rng(1)
    a, b, noise = rng.normal(size=(8, 2)), rng.normal(size=(8, 2)), 0.05 * rng.normal(size=8)
    y = a @ np.ones(2) + 0.3 * np.sin(b @ np.ones(2)) + noise

    def fun(x: np.ndarray, unit: np.ndarray) -> Any:
        z = x / unit
        w = z @ b.T
        r = z @ a.T + 0.3 * np.sin(w) - y
        slopes = (r @ a + 0.3 * (r * np.cos(w)) @ b) / unit
        return np.sum(r * r, axis=-1), 2.0 * slopes

    units = np.asarray(UNITS)
    start = np.asarray([1.5, 0.6])
    best = lx.minimize(fun, start, (np.ones(2),), jac=True, gtol=1e-10).fun
    for rows in [slice(None)] if batched else range(len(units)):
        how: dict[str, Any] = {"jac": True, "method": method, "batched": batched}
        res = lx.minimize(fun, start * units[rows], (units[rows],), **how)
        assert np.all(res.success)
        np.testing.assert_allclose(res.fun, best, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(("centre", "width"), [(0.0, 1e-9), (589.158, 2e-5), (100.0, 1e-6)])
def test_narrow_lines_by_differences(
    centre: float, width: float, jac: str, method: str
) -> None:
    """The size of the centre says nothing of how far it may move, nor does a background of 0."""
    for seed in range(5):
        x = width * np.linspace(-10.0, 10.0, 101)

        def line(p: np.ndarray, x: np.ndarray = centre + x) -> np.ndarray:
            return p[0] / (1.0 + ((x - p[1]) / p[2]) ** 2) + p[3]

        truth = np.array([1e4, centre + width, width, 200.0])
        y = line(truth) + 30.0 * np.random.default_rng(seed).normal(size=101)

        def chi2(p: np.ndarray, line: Any = line, y: np.ndarray = y) -> float:
            with np.errstate(all="ignore"):
                return 0.5 * float(np.sum((line(p) - y) ** 2)) / 900.0

        start = np.array([8e3, centre + 0.3 * width, 1.5 * width, 0.0])
        res = lx.minimize(chi2, start, jac=jac, method=method)
        assert res.success and res.fun <= chi2(truth)


X = np.asarray([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1,
                689.1, 760.0])
Y = np.asarray([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40,
                75.47, 81.78])
# Models of NIST, with derivatives; certified sums of squares (Misra1a, 1b, 1c, 1d).
MISRA: dict[str, tuple[Any, float]] = {
    "1a": (lambda a, b: (1.0 - np.exp(-b * X), a * X * np.exp(-b * X)), 0.12455138894),
    "1b": (lambda a, b: (1.0 - (1.0 + b * X / 2) ** -2.0, a * X * (1.0 + b * X / 2) ** -3.0),
           0.075464681533),
    "1c": (lambda a, b: (1.0 - (1.0 + 2 * b * X) ** -0.5, a * X * (1.0 + 2 * b * X) ** -1.5),
           0.040966836971),
    "1d": (lambda a, b: (b * X / (1.0 + b * X), a * X / (1.0 + b * X) ** 2), 0.056419295283),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [[500.0, 1e-4], [250.0, 5e-4]])
@pytest.mark.parametrize("name", MISRA)
def test_a_stiff_direction_hides_no_other(name: str, start: list[float], method: str) -> None:
    model, certified = MISRA[name]

    @np.errstate(over="ignore", invalid="ignore")    # of trials far away
    def fun(p: np.ndarray) -> Any:
        shape, slope = model(*p)
        r = p[0] * shape - Y
        return r @ r, np.asarray([2.0 * r @ shape, 2.0 * r @ slope])

    res = lx.minimize(fun, np.asarray(start), jac=True, method=method)
    assert res.success
    np.testing.assert_allclose(res.fun, certified, rtol=1e-7)


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e5])
def test_noise_is_measured(scale: float) -> None:
    rng = np.random.default_rng(0)
    found = [
        deviation(FLOATS, [1.0 + 1e-3 * scale * k + e for k, e in enumerate(errors)])
        for errors in scale * rng.normal(size=(200, 6))
    ]
    assert 0.3 * scale < np.median(found) < 1.5 * scale


def test_a_jump_is_no_noise() -> None:
    smooth = [1.0 + 1e-9 * k for k in range(6)]
    assert deviation(FLOATS, smooth) < 1e-15


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("start", [20.0, 50.0, 200.0])
def test_a_start_much_steeper_than_the_rest(start: float, jac: Any) -> None:
    res = lx.minimize(lambda x: float(np.exp(x[0]) - x[0]), np.asarray([start]), jac=jac)
    assert res.success and res.x[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("jac", [True, "2-point", "3-point"])
def test_a_run_goes_on_as_if_it_had_not_stopped(jac: Any, method: Any) -> None:
    """With the default tolerance, too, which depends on the first gradients."""
    weights, start = np.asarray([1.0, 1e4]), np.asarray([-1.2, 1.0, 6500.0, 6562.0])

    def fun(x: Any) -> Any:
        a, b = x[1] - x[0] ** 2, x[2:] - 6562.8
        value = float(100.0 * a * a + (1.0 - x[0]) ** 2 + 0.1 * np.sum(weights * b * b))
        first = [-400.0 * x[0] * a - 2.0 * (1.0 - x[0]), 200.0 * a]
        return (value, np.concatenate([first, 0.2 * weights * b])) if jac is True else value

    whole = lx.minimize(fun, start, jac=jac, method=method, maxiter=300)
    for stop in range(1, whole.nit, 4):
        part = lx.minimize(fun, start, jac=jac, method=method, maxiter=stop)
        rest = lx.minimize(
            fun, part.x, jac=jac, method=method, state=part.state, maxiter=300 - stop
        )
        assert rest.status is whole.status and rest.nit == whole.nit - stop
        np.testing.assert_array_equal(rest.x, whole.x)
