"""Functions with noise: it is measured, and a run ends where it hides what could be gained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.line_search import STUCK, Armijo, Bisection, MoreThuente, StrongWolfe
from lbfgs_xp.run.differences import Differences

METHODS = ["lbfgs", "bfgs"]
CENTRE = np.asarray([1.0, -2.0, 0.5])
START = np.asarray([3.0, 1.0, -1.0])


def bowl(x: np.ndarray) -> Any:
    """A function that is at least 1, with its gradient; 1 is its value at CENTRE."""
    a, b, c = (x[..., i] - CENTRE[i] for i in range(3))
    u, v, w = 2.0 * a + 0.5 * b, b + 0.3 * c, 0.4 * c
    p, q, r = (2.0 * t + 0.4 * t * t * t for t in (u, v, w))
    value = sum(t * t + 0.1 * t * t * t * t for t in (u, v, w))
    return 1.0 + value, np.stack([2.0 * p, 0.5 * p + q, 0.3 * q + 0.4 * r], axis=-1)


def height(x: np.ndarray) -> float:
    return float(bowl(x)[0]) - 1.0


def random(size: float) -> Callable[[np.ndarray, Any], Any]:
    rng = np.random.default_rng(1)
    return lambda x, value: value + size * rng.normal()


def repeatable(size: float) -> Callable[[np.ndarray, Any], Any]:
    far, near = 1e9 * np.random.default_rng(2).normal(size=(2, 3))

    def along(x: np.ndarray, way: np.ndarray) -> Any:
        return x[..., 0] * way[0] + x[..., 1] * way[1] + x[..., 2] * way[2]

    def noisy(x: np.ndarray, value: Any) -> Any:
        return value + 1.4 * size * np.sin(along(x, far) + 3.0 * np.sin(0.1 * along(x, near)))

    return noisy


def relative(size: float) -> Callable[[np.ndarray, Any], Any]:
    rng = np.random.default_rng(3)
    return lambda x, value: value * (1.0 + size * rng.normal())


def stepped(size: float) -> Callable[[np.ndarray, Any], Any]:
    return lambda x, value: np.round(value / size) * size


def single(size: float) -> Callable[[np.ndarray, Any], Any]:
    return lambda x, value: np.asarray(value, dtype=np.float32).astype(np.float64)


KINDS = {"random": random, "repeatable": repeatable, "relative": relative, "stepped": stepped}
CASES = [(kind, size) for kind in KINDS for size in (1e-3, 1e-6)] + [("single", 6e-8)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind, size", CASES)
def test_right_gradients_lead_on_where_values_do_not(
    kind: str, size: float, method: str
) -> None:
    noise = {**KINDS, "single": single}[kind](size)
    res = lx.minimize(
        lambda x: noise(x, bowl(x)[0]), START, jac=lambda x: bowl(x)[1], method=method
    )
    assert res.success and res.nfev < 250
    assert height(res.x) <= size


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("kind, size", CASES)
def test_differences_among_noise(kind: str, size: float, jac: Any, method: str) -> None:
    noise = {**KINDS, "single": single}[kind](size)
    res = lx.minimize(lambda x: float(noise(x, bowl(x)[0])), START, jac=jac, method=method)
    assert res.success and res.nfev < 1500
    assert height(res.x) <= 30.0 * size


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("seed", range(10))
def test_no_success_that_is_none(seed: int, jac: Any) -> None:
    """Noise of a thousandth, in value and in variables of different units."""
    rng = np.random.default_rng(seed)
    unit = 10.0 ** rng.integers(-4, 5, size=3)
    res = lx.minimize(
        lambda x: float(bowl(x / unit)[0] * (1.0 + 1e-3 * rng.normal())), START * unit, jac=jac
    )
    assert not res.success or height(res.x / unit) <= 0.05
    assert res.nfev < 3000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-6, 1e-3])
@pytest.mark.parametrize("values", [False, True], ids=["gradients", "both"])
def test_errors_of_the_gradient(size: float, values: bool, method: str) -> None:
    """A gradient that is lost among its errors shows no way down."""
    for seed in range(5):
        rng = np.random.default_rng(seed)

        def fun(x: np.ndarray, rng: Any = rng) -> Any:
            value, gradient = bowl(x)
            value = value + size * rng.normal() if values else value
            return value, gradient + size * rng.normal(size=3)

        res = lx.minimize(fun, START, jac=True, method=method)
        assert res.success and res.nfev < 1500
        assert height(res.x) <= 30.0 * (size if values else size * size)


def integrated(rate: float, start: float, tolerance: float) -> float:
    """y(2) of y' = -rate y (1 - 0.1 y), by steps of Heun that adapt to the tolerance."""
    t, y, h = 0.0, start, 0.1
    while t < 2.0:
        h = min(h, 2.0 - t)
        a = -rate * y * (1.0 - 0.1 * y)
        z = y + h * a
        b = -rate * z * (1.0 - 0.1 * z)
        error = abs(0.5 * h * (b - a)) / (tolerance * max(abs(y), 1e-3))
        if error <= 1.0:
            t, y = t + h, y + 0.5 * h * (a + b)
        h *= min(3.0, max(0.2, 0.9 * (1.0 / max(error, 1e-6)) ** 0.5))
    return y


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_an_integrator_of_low_accuracy(jac: Any) -> None:
    data = [integrated(0.7, start, 1e-10) for start in (1.0, 2.0, 4.0)]

    def fun(p: np.ndarray) -> float:
        found = [p[1] * integrated(p[0], start, 1e-3) for start in (1.0, 2.0, 4.0)]
        return float(sum((a - b) ** 2 for a, b in zip(found, data, strict=True))) + 0.1

    res = lx.minimize(fun, np.asarray([0.3, 0.8]), jac=jac)
    assert res.nfev < 3000
    assert res.fun < 0.1 + 1e-4
    assert res.success


def test_a_step_of_ones_own() -> None:
    """With the step stated, the noise still decides how the run ends."""
    rng = np.random.default_rng(0)
    res = lx.minimize(
        lambda x: float(bowl(x)[0] * (1.0 + 1e-3 * rng.normal())), START, jac="3-point",
        diff_step=0.1,
    )
    assert res.success and res.nfev < 1000 and height(res.x) < 0.03


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", [True, "3-point"])
def test_rows_among_noise_are_single_runs(jac: Any, method: str) -> None:
    """Some rows have noise, some have none. By differences a row is as good as a single run, but
    not the same: once some rows have units, all take first steps in units."""
    noise, sizes = repeatable(1.0), np.asarray([0.0, 1e-3, 1e-5, 0.0, 1e-7])
    starts = START + np.random.default_rng(0).normal(size=(5, 3))

    def fun(x: np.ndarray, size: Any) -> Any:
        value, gradient = bowl(x)
        value = value + size * noise(x, 0.0 * value)
        return (value, gradient) if jac is True else value

    how: dict[str, Any] = {"jac": jac, "method": method, "reproducible": True}
    batch = lx.minimize(fun, starts, (sizes,), batched=True, **how)
    assert np.all(batch.success)
    for i, start in enumerate(starts):
        one = lx.minimize(fun, start, (sizes[i],), **how)
        assert one.success and height(batch.x[i]) <= 10.0 * sizes[i] + 1e-9
        if jac is True:
            assert (batch.status[i], batch.nit[i]) == (one.status, one.nit)
            np.testing.assert_array_equal(batch.x[i], one.x)


@pytest.mark.parametrize("jac", [True, "2-point", "3-point"])
def test_a_run_among_noise_goes_on_as_if_it_had_not_stopped(jac: Any) -> None:
    noise = repeatable(1e-4)

    def fun(x: np.ndarray) -> Any:
        value, gradient = bowl(x)
        return (noise(x, value), gradient) if jac is True else float(noise(x, value))

    whole = lx.minimize(fun, START, jac=jac)
    for stop in range(1, whole.nit):
        part = lx.minimize(fun, START, jac=jac, maxiter=stop)
        rest = lx.minimize(fun, part.x, jac=jac, state=part.state)
        assert rest.status is whole.status
        np.testing.assert_array_equal(rest.x, whole.x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constant", [0.0, 1e5])
def test_a_small_gradient_with_more_to_gain(method: str, constant: float) -> None:
    """The default tolerance is 1.5e-8 of a gradient that is 1e10 times steeper in one direction."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    matrix = (q * np.logspace(-10.0, 0.0, 6)) @ q.T
    for _ in range(10):
        centre, start = rng.normal(size=(2, 6))

        def fun(x: np.ndarray, centre: np.ndarray = centre) -> Any:
            product = matrix @ (x - centre)
            return 0.5 * (x - centre) @ product + constant, product

        res = lx.minimize(fun, start, jac=True, method=method)
        fallen = fun(start)[0] - constant
        assert res.success
        assert fun(res.x)[0] - constant <= 1e-8 * fallen + 2e-13 * constant


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_steep_walls_far_away_are_no_noise(jac: Any, method: str) -> None:
    """The likelihood of a Gaussian process is smooth where it is lowest, and huge at the bounds."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        t = np.sort(rng.uniform(0.0, 10.0, 30))
        y = np.sin(t) + 0.1 * rng.normal(size=30)
        squares = (t[:, None] - t) ** 2
        seen = []

        def fun(p: np.ndarray, squares: Any = squares, y: Any = y, seen: Any = seen) -> float:
            size, length, noise = p
            kernel = size**2 * np.exp(-0.5 * squares / length**2) + noise**2 * np.eye(30)
            values, vectors = np.linalg.eigh(kernel)
            values = np.maximum(values, 1e-14)
            found = 0.5 * np.sum((vectors.T @ y) ** 2 / values) + 0.5 * np.sum(np.log(values))
            seen.append(float(found))
            return seen[-1]

        res = lx.minimize(
            fun, np.array([1.0, 1.0, 0.5]), jac=jac, method=method, bounds=(1e-6, None)
        )
        assert res.fun <= min(seen) + 1e-6 and np.max(np.abs(res.jac)) < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_kinks_are_no_noise(jac: Any, method: str) -> None:
    """Far from x a valley of kinks looks like noise; close by, the function is smooth and falls."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 5))
        turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
        steep, weight = 10.0 ** rng.uniform(-1.0, 1.0, n), 10.0 ** rng.uniform(-1.0, 2.0, n)
        centre, corner = rng.normal(size=(2, n))
        gap = np.abs(centre - corner)
        free = weight < steep * gap
        lowest = np.where(free, weight * gap - 0.5 * weight**2 / steep, 0.5 * steep * gap**2)

        def fun(x: np.ndarray, a: Any = (turn, steep, weight, centre, corner)) -> float:
            u = a[0] @ x
            return float(np.sum(0.5 * a[1] * (u - a[3]) ** 2 + a[2] * np.abs(u - a[4])))

        start = 2.0 * rng.normal(size=n)
        res = lx.minimize(fun, start, jac=jac, method=method, maxfun=5000)
        fallen = fun(start) - np.sum(lowest)
        assert not res.success or res.fun - np.sum(lowest) < 1e-4 * fallen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-7])
def test_a_start_on_a_step_of_the_function(size: float, jac: Any, method: str) -> None:
    """All differences are 0 there."""
    res = lx.minimize(
        lambda x: float(stepped(size)(x, bowl(x)[0])), START, jac=jac, method=method
    )
    assert not res.success or height(res.x) <= 30.0 * size
    flat = lx.minimize(lambda x: 3.0 + 0.0 * float(x[0]), START, jac=jac, method=method)
    assert flat.success and flat.nfev < 150


def test_a_large_constant_beside_a_curve_is_no_noise() -> None:
    """Rounding hides it nearby, and farther away its bends look like noise."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 6))

    def fun(x: np.ndarray, constant: float = 1e7) -> float:
        return float(np.mean(np.logaddexp(0.0, -(rows @ x) + 1.0)) + 5e-3 * (x @ x) - constant)

    wanted = lx.minimize(lambda x: fun(x, 0.0), np.ones(6), jac="3-point").fun
    res = lx.minimize(fun, np.ones(6), jac="2-point")
    assert res.success and fun(res.x, 0.0) - wanted < 1e-7


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_steps_follow_the_bend(size: float) -> None:
    """Over a step, the second difference is about a hundred times the noise, in any units."""
    rng, curvature = np.random.default_rng(0), np.asarray([1e8, 1.0, 1e-4])
    x = np.asarray([1e-4, 1.0, 100.0])
    differences = Differences(
        Backend.of(x),
        lambda p: 0.5 * np.sum(curvature * p * p) + size * rng.normal(), least=1.0,
    )
    value = differences.function(x)
    differences(x, value, None, True)
    differences.expect_noise(x, value, size, None, lambda calls: True)
    step = differences.known.bends.following
    np.testing.assert_array_less(10.0 * size, curvature * step**2)
    np.testing.assert_array_less(curvature * step**2, 1000.0 * size)
    slopes = np.asarray(differences(x, value, None, True))
    np.testing.assert_allclose(slopes * step, curvature * x * step, atol=5.0 * size)


@pytest.mark.parametrize(
    "rule", [MoreThuente(), StrongWolfe(), Bisection(), Armijo()], ids=repr
)
def test_a_search_ends_when_its_trials_no_longer_move(rule: Any) -> None:
    """The first trial is higher, all shorter steps change nothing."""
    search = rule.begin(5.0, -1.0, 1.0, 1e-12)
    search = rule.advance(search, 9.0, 30.0)
    trials = 1
    while search.status == 0:
        search, trials = rule.advance(search, 5.0, -1.0), trials + 1
    assert search.status == STUCK and trials <= 3


def test_a_wrong_gradient_is_no_noise() -> None:
    for power in (2, 4, 10):
        res = lx.minimize(
            lambda x, power=power: (np.sum((x - 1.0) ** power), -np.ones_like(x)),
            np.asarray([3.0, 4.0]), jac=True,
        )
        assert res.status is Status.LINE_SEARCH


@pytest.mark.parametrize("seed", [3, 7, 39])
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_small_waves_have_minima_everywhere(seed: int, jac: Any) -> None:
    """Over the steps of differences they are smooth, and no noise."""
    rng = np.random.default_rng(seed)
    wave, size = 10.0 ** rng.uniform(5.0, 9.0), 10.0 ** rng.uniform(-7.0, -3.0)
    start = 3.0 * rng.normal(size=1 + seed % 3)

    def fun(x: np.ndarray) -> Any:
        return np.sum((x - 1.0) ** 2) + size * np.sin(wave * np.sum(x))

    for method in METHODS:
        res = lx.minimize(fun, start, jac=jac, method=method)
        assert not res.success or res.fun <= 10.0 * size * start.size, (method, res.x)
