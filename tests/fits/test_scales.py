"""Fits in any units: parameters of any size, offsets, columns that count for nothing, bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

U = np.linspace(-4.0, 4.0, 80)
X = np.linspace(-1.0, 1.0, 20)
FINE = np.linspace(0.1, 5.0, 60)


def peak(x: Any, A: Any, m: Any, s: Any, b: Any) -> Any:
    return A * np.exp(-0.5 * ((x - m) / s) ** 2) + b


def line(x: Any, a: Any, b: Any) -> Any:
    return a + b * x


def parabola(x: Any, a: Any, b: Any) -> Any:
    return a + b * x**2


def decay(x: Any, a: Any, k: Any) -> Any:
    return a * np.exp(-k * x)


# --- the steps of differences ------------------------------------------------------------------


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(
    ("centre", "width"),
    [(6562.8, 0.05), (1000.5, 0.005), (2459000.5, 0.5), (0.0, 1e-9), (-5e5, 3.0), (1e-7, 1e-8)],
)
def test_a_narrow_line_far_from_0(centre: float, width: float, jac: Any) -> None:
    y = peak(U, 2.0, 0.3, 1.0, 0.5) + 0.02 * np.random.default_rng(0).normal(size=80)
    wanted = lx.curve_fit(peak, U, y, [1.0, 0.0, 1.5, 0.0], jac="3-point")
    res = lx.curve_fit(peak, centre + width * U, y, [1.0, centre, 1.5 * width, 0.0], jac=jac)
    assert res.success and res.chi2 == pytest.approx(wanted.chi2, rel=1e-6)
    assert (res.x[1] - centre) / width == pytest.approx(wanted.x[1], abs=1e-4)
    assert res.stderr[1] / width == pytest.approx(wanted.stderr[1], rel=1e-3)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(
    ("centre", "width"), [(1.7e9, 1e-3), (4.3e14, 1e3), (1.7e9, 0.05), (1e12, 1.0)]
)
def test_a_time_stamp_has_its_error(centre: float, width: float, jac: Any) -> None:
    """Where a parameter is so large that a step along it is hardly more than its rounding."""
    t = centre + width * U
    y = peak(t, 2.0, centre + 0.3 * width, width, 0.5)
    y = y + 0.02 * np.random.default_rng(0).normal(size=80)
    wanted = lx.curve_fit(peak, U, y, [1.0, 0.0, 1.5, 0.0], jac="3-point")
    res = lx.curve_fit(peak, t, y, [1.0, centre, 1.5 * width, 0.0], jac=jac)
    assert res.success and res.chi2 == pytest.approx(wanted.chi2, rel=1e-2)
    assert res.stderr[1] / width == pytest.approx(wanted.stderr[1], rel=2e-2)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_centre_between_two_numbers(seed: int, given: bool) -> None:
    """Where the numbers next to a parameter are about as far apart as its standard error."""
    centre, u = 4.3e14, np.linspace(-200.0, 200.0, 201)

    def line(x: Any, a: Any, c: Any, w: Any, b: Any) -> Any:
        return a / (1.0 + ((x - c) / w) ** 2) + b

    def jac(x: Any, a: Any, c: Any, w: Any, b: Any) -> Any:
        u = (x - c) / w
        d = 1.0 / (1.0 + u * u)
        return np.stack(
            [d, 2.0 * a * d * d * u / w, 2.0 * a * d * d * u * u / w, np.ones_like(u)], axis=-1
        )

    y = line(u, 1.0, 31.0, 20.0, 0.1) + 0.01 * np.random.default_rng(seed).normal(size=201)
    wanted = lx.curve_fit(line, u, y, [0.8, 0.0, 40.0, 0.0], jac=jac)
    res = lx.curve_fit(
        line, centre + u, y, [0.8, centre, 40.0, 0.0], jac=jac if given else None
    )
    assert res.success and abs(res.x[1] - centre - wanted.x[1]) <= 0.0625


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-3, 1e3])
def test_data_of_any_size_in_float32(size: float) -> None:
    x = np.linspace(0.0, 4.0, 25, dtype=np.float32)
    noise = 0.02 * np.random.default_rng(0).normal(size=25)
    y = (size * (decay(x, 2.0, 0.7) + 0.5 + noise)).astype(np.float32)

    def model(x: Any, a: Any, k: Any, o: Any) -> Any:
        return decay(x, a, k) + o

    def jac(x: Any, a: Any, k: Any, o: Any) -> Any:
        e = np.exp(-k * x)
        return np.stack([e, -a * x * e, np.ones_like(e)], axis=-1)

    res = lx.curve_fit(model, x, y, np.asarray([1.0, 1.0, 0.0], dtype=np.float32), jac=jac)
    assert res.success and res.x[1] == pytest.approx(0.7208, abs=2e-3)


def test_budgets_count_every_call_of_differences() -> None:
    y = decay(FINE, 3.0, 0.7) + 0.5
    for jac in ("2-point", "3-point"):
        for maxfun in range(8, 60):
            res = lx.curve_fit(
                lambda x, a, k, o: decay(x, a, k) + o, FINE, y, [1.0, 1.0, 0.0], jac=jac,
                maxfun=maxfun,
            )
            assert res.nfev <= maxfun


@pytest.mark.parametrize("start", [0.0, 1e-16, -1e-16, 1e-300, 1e-8])
def test_a_start_that_says_nothing_of_the_scale(start: float) -> None:
    y = 1.0 + 0.5 * X**2 + 0.01 * X**3
    res = lx.curve_fit(parabola, X, y, [1.0, start], jac="3-point")
    assert res.success
    np.testing.assert_allclose(res.x, [1.0, 0.5], rtol=1e-7)


def test_an_optimum_at_0_has_its_errors() -> None:
    y = 1.0 + 0.01 * X**3
    res = lx.curve_fit(parabola, X, y, [1.0, 1.0], jac="3-point")
    exact = lx.curve_fit(
        parabola, X, y, [1.0, 1.0],
        jac=lambda x, a, b: np.stack([np.ones_like(x), x**2], axis=-1),
    )
    np.testing.assert_allclose(res.stderr, exact.stderr, rtol=1e-6)


@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1e-3, 1e6])
def test_rates_of_any_size(rate: float) -> None:
    t = np.linspace(0.0, 4.0, 40) / rate
    res = lx.curve_fit(decay, t, decay(t, 3.0, 1.7 * rate), [2.0, rate], jac="3-point")
    np.testing.assert_allclose(res.x, [3.0, 1.7 * rate], rtol=1e-7)
    with np.errstate(all="ignore"):
        found = lx.minimize(
            lambda v: np.sum((decay(t, *v) - decay(t, 3.0, 1.7 * rate)) ** 2),
            np.asarray([2.0, rate]), jac="3-point", method="bfgs", gtol=0.0,
        )
    np.testing.assert_allclose(found.x, [3.0, 1.7 * rate], rtol=1e-3)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("size", [1.0, 1e8, 1e16, 1e100])
def test_the_model_is_differenced_without_the_data(size: float, jac: Any) -> None:
    y = size * np.asarray([0.5, 0.9, 1.0])
    res = lx.curve_fit(lambda x, c: c + 0.0 * x, np.arange(3.0), y, [1.0], jac=jac)
    np.testing.assert_allclose(res.x, [0.8 * size], rtol=1e-6)


class Watched:
    """A model that notes the parameters with which it is called."""

    def __init__(self, model: Callable):
        self.model, self.seen = model, []  # type: ignore[var-annotated]

    def __call__(self, x: Any, *parameters: float) -> Any:
        self.seen.append([float(p) for p in parameters])
        return self.model(x, *parameters)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(
    ("model", "start", "bounds", "wanted"),
    [
        (lambda x, a, d: a * x + np.sqrt(d), [1.0, 0.0], ([-9.0, 0.0], [9.0, 9.0]), 0.0),
        (lambda x, a, d: a * x + np.log(d), [1.0, 1e-3], ([-9.0, 1e-3], [9.0, 9.0]), None),
        (lambda x, a, d: a * x + np.arccos(d), [1.0, 1.0], ([-9.0, -1.0], [9.0, 1.0]), 1.0),
    ],
)
def test_differences_stay_within_the_bounds(
    model: Any, start: list[float], bounds: Any, wanted: float | None, jac: Any
) -> None:
    watched = Watched(model)
    res = lx.curve_fit(watched, FINE, 2.0 * FINE - 0.3, start, jac=jac, bounds=bounds)
    seen = np.asarray(watched.seen)
    assert (seen >= bounds[0]).all() and (seen <= bounds[1]).all()
    assert res.success and np.isfinite(res.chi2)
    if wanted is not None:
        assert res.x[1] == pytest.approx(wanted, abs=1e-9)


def test_differences_of_minimize_stay_within_the_bounds() -> None:
    seen = []

    def fun(v: Any) -> Any:
        seen.append(v.copy())
        return np.sum(v - np.asarray([1.0, 0.0]) * np.log(v))

    res = lx.minimize(
        fun, np.asarray([2.0, 1.0]), jac="3-point", method="projected_gradient",
        bounds=(1e-12, None),
    )
    assert np.min(seen) >= 1e-12
    np.testing.assert_allclose(res.x, [1.0, 0.0], atol=1e-6)


def test_at_the_end_of_the_domain_differences_go_the_other_way() -> None:
    with np.errstate(all="ignore"):
        res = lx.curve_fit(
            lambda x, a, d: a * x + d + d**1.5, FINE, 2.0 * FINE + 6.0, [1.0, 0.0], jac="3-point"
        )
    np.testing.assert_allclose(res.x, [2.0, 2.3643865], rtol=1e-6)


def test_the_end_of_the_domain_of_every_parameter() -> None:
    """Where all steps must go one way, the differences are still of second order."""
    with np.errstate(all="ignore"):
        res = lx.least_squares(
            lambda v: np.stack([v[0] ** 1.5 + np.exp(v[0]), np.exp(2.0 * v[1]) + v[1] ** 1.5]),
            np.zeros(2), jac="3-point", maxiter=0,
        )
    np.testing.assert_allclose(res.jac, [[1.0, 0.0], [0.0, 2.0]], atol=5e-3)


# --- columns that count for nothing --------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["zero", "double"])
def test_a_column_without_information_may_stand_anywhere(place: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(20, 3)), rng.normal(size=20)
    column = np.zeros((20, 1)) if kind == "zero" else 2.0 * A[:, [1]]
    F = np.hstack([A[:, :place], column, A[:, place:]])
    res = lx.least_squares(lambda v: F @ v - b, np.ones(4), jac=lambda v: F)
    assert res.status is lx.Status.GRADIENT and res.nit <= 3
    best = np.linalg.lstsq(A, b, rcond=None)[0]
    assert 2.0 * res.cost == pytest.approx(np.sum((A @ best - b) ** 2), rel=1e-12)


# --- when a fit stops ----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1e-3, 1.0, -7.0, 1e5])
def test_a_linear_problem_takes_two_steps(start: float) -> None:
    F = np.random.default_rng(1).normal(size=(50, 5))
    h = np.random.default_rng(2).normal(size=50)
    res = lx.least_squares(lambda v: F @ v - h, np.full(5, start), jac=lambda v: F)
    assert res.status is lx.Status.GRADIENT and res.nfev <= 3


def chebyquad(x: Any) -> Any:
    """Chebyquad (More, Garbow & Hillstrom 1981, problem 35)."""
    n, rows = len(x), []
    before, now = np.ones(n), 2.0 * x - 1.0
    for k in range(1, n + 1):
        rows.append(np.sum(now) / n - (0.0 if k % 2 else -1.0 / (k * k - 1.0)))
        before, now = now, 2.0 * (2.0 * x - 1.0) * now - before
    return np.stack(rows)


def freudenstein_roth(x: Any) -> Any:
    """Problem 2 of the same paper."""
    return np.stack([
        -13.0 + x[0] + ((5.0 - x[1]) * x[1] - 2.0) * x[1],
        -29.0 + x[0] + ((x[1] + 1.0) * x[1] - 14.0) * x[1],
    ])


def complex_step(function: Callable) -> Callable:
    def jacobian(x: Any) -> Any:
        steps = x + 1e-30j * np.eye(len(x))
        return np.stack([np.imag(function(row)) / 1e-30 for row in steps], axis=-1)

    return jacobian


@pytest.mark.parametrize(
    ("function", "start", "chi2", "most"),
    [
        (chebyquad, np.arange(1, 9) / 9.0, 3.51687e-3, 150),
        (chebyquad, np.arange(1, 11) / 11.0, 6.50395e-3, 150),
        (freudenstein_roth, [0.5, -2.0], 48.9842, 60),
        (lambda v: v * v + 5.0, [2.0], 25.0, 60),
        (lambda v: 1.0 + v**4 + v**2, [1.0], 1.0, 60),
    ],
)
def test_square_systems_without_a_root_end(
    function: Callable, start: Any, chi2: float, most: int
) -> None:
    """At such a minimum the Jacobian is singular, and the linearised residuals could vanish."""
    x0 = np.asarray(start, dtype=float)
    res = lx.least_squares(function, x0, jac=complex_step(function))
    assert res.success and res.nfev <= most
    assert 2.0 * res.cost == pytest.approx(chi2, rel=1e-5)


@pytest.mark.parametrize("offset", [1e6, 1e9, -3e10])
def test_a_small_signal_beside_an_offset(offset: float) -> None:
    w = np.linspace(-3.0, 3.0, 60)
    for seed in range(10):
        noise = 0.02 * np.random.default_rng(seed).normal(size=60)
        y = offset + (peak(w, 2.0, 0.3, 0.8, 0.5) + noise)
        res = lx.curve_fit(peak, w, y, [1.0, 0.0, 1.0, offset], jac="3-point")
        assert res.success and res.x[1] == pytest.approx(0.3, abs=0.05)


# --- bounds --------------------------------------------------------------------------------------


def three(x: Any, *p: Any) -> Any:
    return sum(
        p[i] * np.exp(-((x - p[i + 1]) ** 2) / (2.0 * p[i + 2] ** 2)) for i in (0, 3, 6)
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_peak_is_thrown_away(seed: int) -> None:
    """A first step onto the bound 0 of an amplitude leaves its position and width undetermined."""
    z, low, high = np.linspace(-8.0, 8.0, 89), [0.0, -5.0, 0.3] * 3, [200.0, 8.0, 6.0] * 3
    truth = [23.0, -2.0, 2.0, 40.0, 1.0, 1.2, 60.0, 3.5, 1.5]
    y = three(z, *truth) + np.random.default_rng(seed).normal(size=89)
    start = [23.0, -1.5, 3.5, 17.0, 1.0, 1.5, 80.0, 3.5, 3.0]
    res = lx.curve_fit(three, z, y, start, jac="3-point", bounds=(low, high))
    assert res.success and res.chi2 < 130.0


# --- the covariance of a dict --------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_the_covariance_has_the_order_of_x(batched: bool) -> None:
    names = ("b", "a", "m")
    model = lambda x, b, a, m: b + a * np.exp(-m * x)  # noqa: E731
    t = np.linspace(0.0, 4.0, 40)
    y = model(t, 0.5, 2.0, 1.3) + 0.02 * np.random.default_rng(0).normal(size=40)
    start = dict(zip(names, (0.0, 1.0, 1.0), strict=True))
    listed = lx.curve_fit(model, t, y, list(start.values()), jac="3-point")
    named = lx.curve_fit(
        model, t, np.stack([y, y]) if batched else y, start, jac="3-point", batched=batched
    )
    covariance = named.covariance[1] if batched else named.covariance
    assert tuple(named.x) == names
    np.testing.assert_allclose(covariance, listed.covariance, rtol=1e-4)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            part = named.covariance_of(one, other)
            np.testing.assert_array_equal(part[..., 0, 0], named.covariance[..., i, j])
        stderr = np.sqrt(named.covariance_of(one)[..., 0, 0])
        np.testing.assert_allclose(np.squeeze(named.stderr[one]), np.squeeze(stderr), rtol=1e-12)
    # A list has the names of the arguments of the model.
    assert listed.names == named.names == names
    np.testing.assert_array_equal(listed.covariance_of("a", "m"), listed.covariance[1:2, 2:])
    with pytest.raises(ValueError, match="'q'; wanted one of 'b', 'a', 'm'"):
        listed.covariance_of("q")


# --- starts that say nothing of the size of the data --------------------------------------------

T = np.linspace(0.0, 4.0, 30)
DECAYED = 2.0 * np.exp(-T) + 0.5 + 0.05 * np.random.default_rng(0).normal(size=30)
# chi2 of `faded` with the deviation 0.05.
LEAST = 18.8206466


def faded(t: Any, a: Any, k: Any, c: Any) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return a * np.exp(-k * t) + c


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("background", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e-60, 1e-30, 1.0, 1e8, 1e10, 1e12, 1e30, 1e60])
def test_a_background_whose_start_is_not_seen_in_the_data(
    size: float, background: float, jac: Any
) -> None:
    start, sigma = np.asarray([1.4 * size, 0.5, background]), 0.05 * size
    unit = np.asarray([size, 1.0, size])
    for upper in (np.inf, 10.0):
        bounds = (np.zeros(3), np.maximum(upper * unit, 2.0))
        for limits in (None, bounds):
            fit = lx.curve_fit(
                faded, T, size * DECAYED, start, sigma=sigma, absolute_sigma=True, jac=jac,
                bounds=limits,
            )
            assert fit.success and fit.chi2 == pytest.approx(LEAST, rel=1e-6)
            assert "respond" not in fit.message
            np.testing.assert_allclose(fit.stderr / unit, [0.03418, 0.043933, 0.021255], rtol=1e-3)
    res = lx.least_squares(lambda p: (faded(T, *p) - size * DECAYED) / sigma, start, jac=jac)
    assert res.success and 2.0 * res.cost == pytest.approx(LEAST, rel=1e-6)


def test_backgrounds_of_a_batch_whose_starts_are_not_seen_in_the_data() -> None:
    size = np.asarray([1e12, 1.0, 1e30, 1e-30])[:, None]
    start = size * np.asarray([1.4, 0.0, 0.0]) + np.asarray([0.0, 0.5, 0.0])
    fit = lx.curve_fit(
        faded, T, size * DECAYED, start, sigma=0.05 * size, absolute_sigma=True, batched=True
    )
    assert fit.success.all()
    np.testing.assert_allclose(fit.chi2, LEAST, rtol=1e-6)


def test_a_background_in_float32_whose_start_is_not_seen_in_the_data() -> None:
    size = np.float32(1e9)
    fit = lx.curve_fit(
        faded, T.astype(np.float32), size * DECAYED.astype(np.float32),
        np.asarray([1.4 * size, 0.5, 0.0], np.float32), sigma=float(0.05 * size),
    )
    assert fit.success and fit.chi2 == pytest.approx(LEAST, rel=1e-3)


@pytest.mark.parametrize("size", [1e-60, 1e-30, 1e30, 1e60])
def test_a_line_of_any_size_from_0(size: float) -> None:
    """Where a parameter has grown by orders, the length that was measured at 0 is too short."""
    y = 1.5 - 2.0 * X + 0.05 * np.random.default_rng(0).normal(size=20)
    wanted = lx.curve_fit(line, X, y, [1.0, -1.0], sigma=0.05)
    fit = lx.curve_fit(line, X, size * y, [0.0, 0.0], sigma=0.05 * size)
    assert fit.success and fit.chi2 == pytest.approx(wanted.chi2, rel=1e-9)
    np.testing.assert_allclose(fit.x / size, wanted.x, rtol=1e-9)


def test_data_far_below_the_start() -> None:
    fit = lx.curve_fit(faded, T, 1e-30 * DECAYED, [1.0, 1.0, 1.0], sigma=5e-32)
    assert fit.success and fit.chi2 == pytest.approx(LEAST, rel=1e-6)


def test_cancelling_parameters_that_drown_the_data_are_no_success() -> None:
    """From 1 on data of 1e-30, an amplitude may end at minus the background: their rounding is
    then all that is left."""
    def slopes(t: Any, A: Any, m: Any, s: Any, b: Any) -> Any:
        z, shape = (t - m) / s, np.exp(-0.5 * ((t - m) / s) ** 2)
        return np.stack([shape, A * shape * z / s, A * shape * z * z / s, np.ones_like(t)], -1)

    for size in (1e-30, 1e-45):
        y = size * peak(T, 3.0, 2.0, 0.5, 0.4)
        fit = lx.curve_fit(peak, T, y, [2e-30, 1.8, 0.7, 1.0], sigma=0.05 * size, jac=slopes)
        assert not fit.success or fit.chi2 < 1e-3


def test_a_cost_that_overflows_to_both_sides_is_no_minimum() -> None:
    fit = lx.curve_fit(faded, T, 1e30 * DECAYED, [1.0, 0.5, 1.0], sigma=5e28, absolute_sigma=True)
    assert not fit.success or fit.chi2 == pytest.approx(LEAST, rel=1e-6)


@pytest.mark.parametrize("top", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_bounds_narrower_than_a_step(top: float, at: float) -> None:
    fit = lx.curve_fit(
        lambda t, a, b: a + 4.0 * b / top * t, X, 3.0 + 2.0 * X, [1.0, at * top],
        bounds=([-9.0, 0.0], [9.0, top]),
    )
    assert fit.success and fit.chi2 < 1e-20
    assert fit.x[1] / top == pytest.approx(0.5, rel=1e-9)


# --- no response ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [
    lambda x, a, b: np.round(1e-4 * a * x) + 0.0 * b, lambda x, a, b: 0.0 * (x + a + b) + 7.0,
    lambda x, a, b: np.where(a + b < 1e5, x, 0.0),
])
def test_a_model_that_does_not_respond_is_no_success(model: Any) -> None:
    x = np.arange(5.0)
    for batched in (False, True):
        y = np.stack([3.0 * x, 4.0 * x]) if batched else 3.0 * x
        res = lx.curve_fit(model, x, y, [1.0, 1.0], jac="3-point", batched=batched)
        assert not np.any(res.success)
        message = res.message[0] if batched else res.message
        assert "do not respond to a, b" in message


def test_a_silent_parameter_is_named() -> None:
    start = {"a": 1.0, "b": np.ones(2), "unused": 5.0}
    res = lx.curve_fit(
        lambda x, a, b, unused: a + b[0] * x, X, 1.0 + 2.0 * X, start, jac="3-point"
    )
    assert res.success and "do not respond to b[1], unused" in res.message
    assert np.isinf(res.stderr["unused"]) and np.isfinite(res.stderr["a"])


@pytest.mark.parametrize("batched", [False, True])
def test_least_squares_has_the_errors_of_curve_fit(batched: bool) -> None:
    y = decay(FINE, 3.0, 0.7) + 0.05 * np.random.default_rng(0).normal(size=60)
    x0, data = np.asarray([2.0, 1.0]), y
    if batched:
        x0, data = np.stack([x0, x0]), np.stack([y, y])

    def residuals(v: Any) -> Any:
        return decay(FINE, v[..., :1], v[..., 1:]) - data

    res = lx.least_squares(residuals, x0, jac="3-point", batched=batched)
    fit = lx.curve_fit(decay, FINE, data, [2.0, 1.0], jac="3-point", batched=batched)
    np.testing.assert_allclose(res.covariance, fit.covariance, rtol=1e-5)
    np.testing.assert_allclose(res.stderr, fit.stderr, rtol=1e-5)
    square = lx.least_squares(lambda v: v - 1.0, np.zeros(2), jac=lambda v: np.eye(2))
    assert np.isinf(square.covariance).all() and np.isinf(square.stderr).all()


# --- noise ---------------------------------------------------------------------------------------


def rough(x: Any, a: Any, k: Any) -> Any:
    """A decay from a table with few digits."""
    return np.round(decay(x, a, k) * 1e5) / 1e5


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_a_step_given_for_noise(jac: Any) -> None:
    y = rough(FINE, 3.0, 0.7)
    res = lx.curve_fit(rough, FINE, y, [2.0, 1.0], jac=jac, diff_step=1e-2)
    np.testing.assert_allclose(res.x, [3.0, 0.7], rtol=1e-3)
    found = lx.minimize(
        lambda v: np.sum((rough(FINE, *v) - y) ** 2), np.asarray([2.0, 1.0]), jac="3-point",
        diff_step=1e-2,
    )
    np.testing.assert_allclose(found.x, [3.0, 0.7], rtol=1e-2)
    for function in (
        lambda **more: lx.curve_fit(rough, FINE, y, [2.0, 1.0], jac=jac, **more),
        lambda **more: lx.minimize(lambda v: v @ v, np.ones(2), jac=jac, **more),
        lambda **more: lx.least_squares(lambda v: v, np.ones(2), jac=jac, **more),
    ):
        with pytest.raises(ValueError, match="diff_step is -1.0; wanted a finite number above 0"):
            function(diff_step=-1.0)


# --- x_scale -------------------------------------------------------------------------------------


def valley(x: Any) -> Any:
    return np.stack([10.0 * (x[..., 1] - x[..., 0] ** 2), 1.0 - x[..., 0]], axis=-1)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_a_given_scale_is_that_of_the_trust_region(jac: Any) -> None:
    """As if the parameters had been divided by it."""
    units = 2.0 ** np.asarray([-20.0, 13.0])
    start = np.asarray([-1.2, 1.0])
    wanted = lx.least_squares(valley, start, jac=jac, x_scale=1.0)
    res = lx.least_squares(lambda x: valley(x / units), start * units, jac=jac, x_scale=units)
    assert res.success and abs(res.nfev - wanted.nfev) <= 10
    np.testing.assert_allclose(res.x / units, wanted.x, rtol=1e-9)
    by_columns = lx.least_squares(valley, start, jac=jac, x_scale="jac")
    assert by_columns.nfev == lx.least_squares(valley, start, jac=jac).nfev != wanted.nfev
    # The first step from 0 is as long as factor, in that scale.
    visited: list[Any] = []

    def watched(x: Any) -> Any:
        visited.append(x / units)
        return 100.0 * x / units - 3e4

    lx.least_squares(watched, np.zeros(2), jac=lambda x: np.diag(100.0 / units), x_scale=units)
    assert np.linalg.norm(visited[1]) == pytest.approx(0.3, rel=0.15)


def test_a_scale_for_each_row_and_by_name(backend: Backend) -> None:
    units = np.asarray([[1e-3, 10.0], [1.0, 1.0], [1e4, 1e-2]])
    sizes = backend.asarray(units)

    def residuals(x: Any) -> Any:
        z = x / sizes
        return backend.xp.stack([10.0 * (z[:, 1] - z[:, 0] ** 2), 1.0 - z[:, 0]], axis=-1)

    def jacobian(x: Any) -> Any:
        z, one = x / sizes, backend.xp.ones_like(x[:, 0])
        rows = [[-20.0 * z[:, 0], 10.0 * one], [-one, 0.0 * one]]
        stack = backend.xp.stack
        matrix = stack([stack(row, axis=-1) for row in rows], axis=-2)
        return matrix / sizes[:, None, :]

    start = backend.asarray(units * np.asarray([-1.2, 1.0]))
    res = lx.least_squares(residuals, start, jac=jacobian, x_scale=units, batched=True)
    assert backend.to_numpy(res.success).all()
    np.testing.assert_allclose(backend.to_numpy(res.x), units, rtol=1e-7)


def test_a_scale_of_curve_fit() -> None:
    y = decay(FINE, 3.0, 0.7) + 0.05 * np.random.default_rng(0).normal(size=60)
    rows, start = np.stack([y] * 600), {"a": 2.0, "k": 1.0}
    wanted = lx.curve_fit(decay, FINE, y, start, jac="3-point")
    for method in ("lm", "lbfgs"):
        res = lx.curve_fit(
            decay, FINE, y, start, jac="3-point", x_scale={"k": 0.1}, method=method
        )
        assert res.success and res.x["k"] == pytest.approx(wanted.x["k"], rel=1e-6)
    many = lx.curve_fit(
        decay, FINE, rows, start, jac="3-point", batched=True, x_scale={"k": 0.1}, threads=2
    )
    np.testing.assert_allclose(many.x["k"], wanted.x["k"], rtol=1e-6)
    with pytest.raises(ValueError, match="x_scale names 'c'; wanted names of p0: 'a', 'k'"):
        lx.curve_fit(decay, FINE, y, start, jac="3-point", x_scale={"c": 0.1})
    with pytest.raises(ValueError, match="x_scale contains -1.0; wanted finite numbers above 0"):
        lx.least_squares(valley, np.ones(2), jac="3-point", x_scale=[1.0, -1.0])
    with pytest.raises(ValueError, match="x_scale is 'columns'; wanted"):
        lx.least_squares(valley, np.ones(2), jac="3-point", x_scale="columns")


@pytest.mark.parametrize("start", [
    (0.5, 1e3, 0.5), (1.0, 1.0, 1.0), (1.0, 1e2, 1.0), (1.0, 1e-8, 1.0), (2.0, 0.1, 0.7),
])
def test_errors_do_not_depend_on_a_start_far_away(start: tuple[float, ...]) -> None:
    def stretched(t: Any, A: Any, tau: Any, beta: Any) -> Any:
        with np.errstate(all="ignore"):    # trials far off
            return A * np.exp(-((t / tau) ** beta))

    times, true = np.logspace(-8, -3, 60), (1.0, 1e-5, 0.6)
    y = stretched(times, *true) + 0.01 * np.random.default_rng(0).normal(size=60)
    near, far = (lx.curve_fit(stretched, times, y, p0, sigma=0.01) for p0 in (true, start))
    assert near.success and far.success
    np.testing.assert_allclose(far.x, near.x, rtol=1e-5)
    np.testing.assert_allclose(far.stderr, near.stderr, rtol=1e-4)


def test_noise_far_up_is_none_at_the_minimum() -> None:
    """A model that is rounded far away, where differences have to be long, in single fits and in
    rows of a batch."""
    def rounded(x: Any, a: Any, k: Any) -> Any:
        f = a * np.exp(-k * x)
        return np.where(k > 3.0, np.round(f, 3), f)

    x, starts = np.linspace(0.1, 4.0, 40), np.asarray([[1.0, 5.0], [2.0, 0.7], [2.0, 3.2]])
    y = 2.0 * np.exp(-0.7 * x) + 0.02 * np.random.default_rng(0).normal(size=40)
    near = lx.curve_fit(rounded, x, y, starts[1], sigma=0.02)
    many = lx.curve_fit(rounded, x, np.stack([y] * 3), starts, sigma=0.02, batched=True)
    for k in (0, 2):
        far = lx.curve_fit(rounded, x, y, starts[k], sigma=0.02)
        for res in (far, many.row(k)):
            assert res.success
            np.testing.assert_allclose(res.x, near.x, rtol=1e-6)
            np.testing.assert_allclose(res.stderr, near.stderr, rtol=1e-5)
