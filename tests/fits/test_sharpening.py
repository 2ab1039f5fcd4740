"""Fits by finite differences whose columns are nearly dependent, or whose models have noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits import levenberg_marquardt, linear_model
from lbfgs_xp.fits.linear_algebra import svd

T = np.linspace(0.0, 1.0, 40)
X = np.linspace(0.0, 5.0, 40)


def decay(x: Any, a: Any, k: Any, o: Any) -> Any:
    return a * np.exp(-k * x) + o


# --- nearly dependent columns --------------------------------------------------------------------


def powers(nearness: float) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.stack([T, T + nearness * T**2, np.ones(40)], axis=-1)
    return matrix, matrix @ np.asarray([1.0, 2.0, 3.0]) + 0.1 * np.sin(9.0 * T) + T**2


def shifted(nearness: float) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.stack([np.ones(40), T, T**2, (T + nearness) ** 2, T**3], axis=-1)
    return matrix[:, :4], np.sin(3.0 * T) + 0.1 * np.cos(40.0 * T)


def random(nearness: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(30, 4))
    matrix[:, 3] = matrix[:, 0] + matrix[:, 1] + nearness * matrix[:, 3]
    return matrix, 6.0 * rng.normal(size=30)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(
    ("case", "nearness"),
    [(powers, 1e-6), (powers, 1e-7), (powers, 1e-8), (shifted, 1e-5), (random, 1e-7)],
)
def test_nearly_dependent_columns_of_a_linear_problem(
    case: Callable, nearness: float, jac: Any
) -> None:
    matrix, y = case(nearness)
    best, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    lowest = 0.5 * np.sum((matrix @ best - y) ** 2)
    res = lx.least_squares(lambda x: matrix @ x - y, np.zeros(matrix.shape[1]), jac=jac)
    assert res.success and res.cost == pytest.approx(lowest, rel=1e-5)
    assert res.nfev < 1500


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_nearly_dependent_columns_of_a_curved_problem(jac: Any) -> None:
    def residuals(x: Any) -> Any:
        return np.sin(x[0] * T) + x[1] * T + x[2] * (T + 1e-6 * T**3) - y

    def slopes(x: Any) -> Any:
        return np.stack([T * np.cos(x[0] * T), T, T + 1e-6 * T**3], axis=-1)

    y = np.sin(2.0 * T) + 0.3 * T**3 + 0.1 * np.cos(30.0 * T)
    start = np.asarray([1.5, 0.0, 0.0])
    exact = lx.least_squares(residuals, start, jac=slopes)
    res = lx.least_squares(residuals, start, jac=jac)
    assert res.success and res.cost == pytest.approx(exact.cost, rel=1e-5)


@pytest.mark.parametrize("compact", [False, True])
def test_nearly_dependent_columns_in_a_batch(compact: bool) -> None:
    """Also in the rows that have left."""
    cases = [powers(1e-7), powers(1e-1), powers(1e-3)]
    matrix, y = (np.stack(parts) for parts in zip(*cases, strict=True))
    res = lx.least_squares(
        lambda x, matrix, y: (matrix @ x[..., None])[..., 0] - y, np.zeros((3, 3)), (matrix, y),
        jac="2-point", batched=True, compact=compact,
    )
    assert res.success.all()
    for i in range(3):
        best, *_ = np.linalg.lstsq(matrix[i], y[i], rcond=None)
        lowest = 0.5 * np.sum((matrix[i] @ best - y[i]) ** 2)
        assert res.cost[i] == pytest.approx(lowest, rel=1e-5)


def test_only_doubtful_rows_take_central_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, count, rows = np.random.default_rng(0), 40, []
    truth = rng.uniform([1.0, 0.5, 0.0], [3.0, 2.0, 0.5], size=(count, 3))
    y = decay(X, *truth.T[..., None]) + 0.05 * rng.normal(size=(count, 40))

    def model(x: Any, a: Any, k: Any, o: Any) -> Any:
        rows.append(a.shape[0])
        return decay(x, a, k, o)

    def fitted() -> tuple[Any, int]:
        rows.clear()
        fit = lx.curve_fit(model, X, y, [2.0, 1.0, 0.2], jac="2-point", batched=True)
        return fit, sum(rows)

    plain, calls = fitted()
    asked = []

    def doubtful(space: Any, state: Any, errors: Any) -> tuple[Any, Any]:
        asked.append(len(asked))
        row = np.arange(count) == 7
        return row & (len(asked) == 1), row & False

    monkeypatch.setattr(levenberg_marquardt, "doubtful", doubtful)
    looked, more = fitted()
    assert plain.derivatives == "2-point" and looked.derivatives == "3-point"
    # Six calls of one row for its central differences, and a few steps from there.
    assert calls + 6 <= more <= calls + count
    others = np.arange(count) != 7
    np.testing.assert_array_equal(looked.x[others], plain.x[others])
    np.testing.assert_allclose(looked.x[7], plain.x[7], rtol=1e-6)


def test_a_singular_row_does_not_end_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_equal_columns(space: Any, matrix: np.ndarray) -> tuple[np.ndarray, ...]:
        """As it may come from LAPACK: where the first two columns are equal but for rounding."""
        left, values, rows = svd(space, matrix)
        rows[..., 1] = np.where(values[..., -1:] < 1e-12, rows[..., 0], rows[..., 1])
        return left, values, rows

    monkeypatch.setattr(linear_model, "svd", with_equal_columns)
    matrix = np.stack([np.stack([T, T, np.ones(40)], axis=-1), powers(1.0)[0]])
    y = np.sin(9.0 * T)
    res = lx.least_squares(
        lambda x: (matrix @ x[..., None])[..., 0] - y, np.full((2, 3), 1e3), jac=lambda x: matrix,
        batched=True, factor=1e-3,
    )
    for i in range(2):
        best, *_ = np.linalg.lstsq(matrix[i], y, rcond=None)
        lowest = 0.5 * np.sum((matrix[i] @ best - y) ** 2)
        assert res.success[i] and res.cost[i] == pytest.approx(lowest, rel=1e-9)


# --- the first steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("jac", ["exact", "2-point", "3-point"])
@pytest.mark.parametrize("size", [1e6, 1e7, 1e8])
def test_data_in_float32_far_from_the_start(size: float, jac: Any) -> None:
    """Steps as small as the start change nothing that float32 shows beside such data."""

    def slopes(x: Any, a: Any, k: Any, o: Any) -> Any:
        e = np.exp(-k * x)
        return np.stack([e, -a * x * e, np.ones_like(e)], axis=-1)

    x = np.linspace(0.0, 4.0, 25, dtype=np.float32)
    noise = 0.02 * np.random.default_rng(0).normal(size=25)
    y = (size * (decay(x, 2.0, 0.7, 0.5) + noise)).astype(np.float32)
    start = np.asarray([1.0, 1.0, 0.0], dtype=np.float32)
    with np.errstate(all="ignore"):
        res = lx.curve_fit(decay, x, y, start, jac=slopes if jac == "exact" else jac)
    # In float64, too, a fit from here ends on a straight line: at 0.9329 for k towards 0.
    assert res.success and res.chi2 < 1.05 * size**2


# --- noise ---------------------------------------------------------------------------------------


def rounded(x: Any, a: Any, k: Any, o: Any) -> Any:
    return np.round(decay(x, a, k, o), 3)


class Sampled:
    """A model with new noise in each call."""

    def __init__(self, size: float):
        self.size, self.rng = size, np.random.default_rng(1)

    def __call__(self, x: Any, *params: Any) -> Any:
        return decay(x, *params) + self.size * self.rng.normal(size=x.shape)


def single(x: Any, *params: Any) -> Any:
    """A model that computes in float32."""
    return decay(x.astype("f4"), *map(np.float32, params)).astype("f8")


def wavy(x: Any, a: Any, k: Any, o: Any) -> Any:
    phases = np.arange(40.0) ** 2
    return decay(x, a, k, o) * (1.0 + 1e-3 * np.sin(1e9 * a + 3e8 * k + phases))


def nodes(x: Any, a: Any, k: Any, o: Any) -> Any:
    """The mean of a decay by a rule whose number of nodes jumps."""
    count = 20 + int(1e6 * abs(k)) % 7
    u = (np.arange(count) + 0.5) / count
    return a * np.exp(-k * x[:, None] * u).mean(axis=-1) + o


TABLE = np.exp(-0.5 * np.linspace(-5.0, 9.0, 28001) ** 2)


def looked_up(x: Any, a: Any, c: Any, o: Any) -> Any:
    """A peak from the nearest entry of a table."""
    place = np.round((x - c + 2.0) * 2000.0).astype(int)
    return a * TABLE[np.clip(place, 0, 28000)] + o


def truth(model: Any) -> Any:
    """The model without noise."""
    if model is looked_up:
        return lambda x, a, c, o: a * np.exp(-0.5 * (x - c - 3.0) ** 2) + o
    if model is nodes:
        return lambda x, a, k, o: a * -np.expm1(-k * x) / np.where(x == 0, 1, k * x) + np.where(
            x == 0, a, 0.0
        ) + o
    return decay


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize(
    "model", [rounded, Sampled(1e-3), Sampled(1e-5), single, wavy, nodes, looked_up],
    ids=["rounded", "sampled", "sampled little", "float32", "wavy", "nodes", "looked up"],
)
def test_a_model_with_noise_ends_at_its_floor(model: Any, jac: Any) -> None:
    """Within a small part of the standard errors, which are right, after some hundred calls."""
    exact, true = truth(model), (2.0, -0.5 if model is looked_up else 0.7, 0.5)
    start = [1.0, 0.0 if model is looked_up else 1.0, 0.0]
    y = exact(X, *true) + 0.05 * np.random.default_rng(0).normal(size=40)
    wanted = lx.curve_fit(exact, X, y, start, jac="3-point")
    res = lx.curve_fit(model, X, y, start, jac=jac)
    assert res.success and res.status is lx.Status.PRECISION
    assert res.nfev < 500
    excess = np.sum((exact(X, *res.x) - y) ** 2) - wanted.chi2
    assert excess < 0.1 * wanted.reduced_chi2
    np.testing.assert_allclose(res.stderr, wanted.stderr, rtol=0.1)


def test_noise_in_a_batch_does_not_spoil_the_other_fits() -> None:
    digits = np.asarray([[1e3], [1e15], [1e4]])

    def model(x: Any, a: Any, k: Any, o: Any) -> Any:
        return np.round(decay(x, a, k, o) * digits) / digits

    y = decay(X, 2.0, 0.7, 0.5) + 0.05 * np.random.default_rng(0).normal(size=(3, 40))
    res = lx.curve_fit(
        model, X, y, [1.0, 1.0, 0.0], jac="2-point", batched=True, compact=False
    )
    wanted = lx.curve_fit(decay, X, y, [1.0, 1.0, 0.0], jac="3-point", batched=True)
    assert res.success.all()
    np.testing.assert_allclose(res.chi2, wanted.chi2, rtol=1e-2)
    np.testing.assert_allclose(res.x, wanted.x, atol=5e-3)
    np.testing.assert_allclose(res.stderr, wanted.stderr, rtol=0.05)


def test_noise_beside_an_exact_jacobian() -> None:
    def slopes(x: Any, a: Any, k: Any, o: Any) -> Any:
        e = np.exp(-k * x)
        return np.stack([e, -a * x * e, np.ones_like(x)], axis=-1)

    y = decay(X, 2.0, 0.7, 0.5) + 0.05 * np.random.default_rng(0).normal(size=40)
    wanted = lx.curve_fit(decay, X, y, [1.0, 1.0, 0.0], jac=slopes)
    res = lx.curve_fit(rounded, X, y, [1.0, 1.0, 0.0], jac=slopes)
    assert res.success and res.chi2 == pytest.approx(wanted.chi2, rel=1e-2)
    np.testing.assert_allclose(res.x, wanted.x, atol=0.3 * np.min(wanted.stderr))
    # A Jacobian of another function is no noise.
    wrong = lx.curve_fit(decay, X, y, [1.0, 1.0, 0.0], jac=lambda *a: -slopes(*a))
    assert wrong.status is lx.Status.LINE_SEARCH


def test_a_model_of_integers_is_fitted() -> None:
    x = np.arange(5.0)
    res = lx.curve_fit(lambda x, a: np.round(a * x), x, 3.0 * x, [1.0], jac="3-point")
    assert res.success and res.chi2 == 0.0


@pytest.mark.parametrize(("jac", "step"), [("3-point", 1e-6), ("2-point", 1e-4)])
def test_a_fit_that_crawls_ends(jac: Any, step: float) -> None:
    """With a wrong step, each step gains 1e-14 to 1e-12 of the cost, for ever."""
    y = nodes(X, 2.0, 0.7, 0.5) + 0.05 * np.random.default_rng(0).normal(size=40)
    with np.errstate(all="ignore"):
        res = lx.curve_fit(nodes, X, y, [1.0, 1.0, 0.0], jac=jac, diff_step=step)
    assert res.nit < 300 and res.status is not lx.Status.ITERATIONS


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("seed", [2, 4, 10])
def test_a_narrow_peak_below_the_noise_of_the_data_is_no_noise_of_the_model(
    seed: int, jac: Any
) -> None:
    """Slow steps, because the residuals are large, are looked at for noise of the model."""
    x = np.linspace(0.0, 4.0, 60)

    def peak(x: Any, h: Any, c: Any, w: Any, b: Any) -> Any:
        return h * np.exp(-0.5 * ((x - c) / w) ** 2) + b

    def slopes(x: Any, h: Any, c: Any, w: Any, b: Any) -> Any:
        u = (x - c) / w
        e = np.exp(-0.5 * u * u)
        return np.stack([e, h * e * u / w, h * e * u * u / w, np.ones_like(x)], axis=-1)

    rng = np.random.default_rng(seed)
    y = peak(x, 3.0, 2.0, 0.4, 0.5) + 3.0 * rng.normal(size=60)
    start = [3.0, 2.0, 0.4, 0.5] * np.exp(0.7 * rng.normal(size=4))
    wanted = lx.curve_fit(peak, x, y, start, jac=slopes)
    res = lx.curve_fit(peak, x, y, start, jac=jac)
    assert res.chi2 == pytest.approx(wanted.chi2, rel=1e-9)
    np.testing.assert_allclose(res.stderr, wanted.stderr, rtol=1e-2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_a_parameter_that_only_moves_the_noise_is_named(seed: int, jac: Any) -> None:
    rng, t = np.random.default_rng(seed), np.linspace(0.0, 3.0, 40)
    y = 2.0 * np.exp(-1.3 * t) + 0.5 + 0.03 * rng.normal(size=40)
    size, waves = 10.0 ** rng.uniform(-8.0, -4.0), 1e7 * rng.normal(size=(40, 4))

    def noisy(x: Any, a: Any, k: Any, b: Any, dead: Any) -> Any:
        return a * np.exp(-k * x) + b + size * np.sin(waves @ np.asarray([a, k, b, dead]))

    def clean(x: Any, a: Any, k: Any, b: Any) -> Any:
        return a * np.exp(-k * x) + b

    fit = lx.curve_fit(noisy, t, y, [1.0, 1.0, 0.0, 7.0], jac=jac)
    want = lx.curve_fit(clean, t, y, [1.0, 1.0, 0.0], jac=jac)
    assert fit.success
    assert fit.message.endswith("do not respond to dead")
    np.testing.assert_allclose(fit.stderr[:3], want.stderr, rtol=0.02)
    assert np.isinf(fit.stderr[3])


def test_the_last_short_step_takes_no_other_differences() -> None:
    rng = np.random.default_rng(0)
    y = decay(X, 2.0, 1.2, 0.3) + 0.05 * rng.normal(size=(30, X.size))
    fits = [lx.curve_fit(decay, X, row, [1.5, 1.0, 0.1]) for row in y]
    spared = [fit.nit + 1 - fit.njev for fit in fits]
    assert set(spared) == {0, 1}
    many = lx.curve_fit(decay, X, y, [1.5, 1.0, 0.1], batched=True)
    for i, (fit, none) in enumerate(zip(fits, spared, strict=True)):
        assert fit.success and fit.nfev <= 1 + fit.nit + 3 * fit.njev
        exact = lx.curve_fit(decay, X, y[i], fit.x, jac="3-point")
        assert np.max(np.abs(fit.x - exact.x) / exact.stderr) < 1e-6, none
        np.testing.assert_allclose(fit.stderr, exact.stderr, rtol=1e-6)
        assert np.max(np.abs(fit.x - many.x[i]) / exact.stderr) < 1e-6


@pytest.mark.parametrize("curvature", [0.2, 0.5, 0.8])
def test_the_last_of_slow_steps_takes_other_differences(curvature: float) -> None:
    """Each step of Dennis & Schnabel 1983, example 10.2.4, lowers the share by this factor."""
    def residuals(x: Any) -> Any:
        return np.stack([x[0] + 1.0, curvature * x[0] ** 2 + x[0] - 1.0])

    for start in (0.3, 0.7, 1.0):
        res = lx.least_squares(residuals, np.asarray([start]), jac="2-point")
        slopes = np.asarray([1.0, 2.0 * curvature * res.x[0] + 1.0])
        share = abs(slopes @ res.fun) / (np.linalg.norm(slopes) * np.linalg.norm(res.fun))
        assert res.success and share < 3e-8


def test_what_falls_slowly_may_be_small() -> None:
    """Parameters are as close to the minimum as after steps with all differences: 4e-8 of the
    residuals, where gtol is 1.5e-8 and the errors of the differences are as large."""
    rng, x = np.random.default_rng(5), np.linspace(0.0, 5.0, 60)
    y = decay(x, 2.0, 1.0, 0.3) + 0.02 * rng.standard_t(4, size=(600, 60))
    start = np.asarray([2.0, 1.0, 0.3]) * np.exp(0.2 * rng.normal(size=(600, 3)))
    fit = lx.curve_fit(decay, x, y, start, batched=True)
    exact = lx.curve_fit(decay, x, y, fit.x, batched=True, jac="3-point", gtol=1e-11)
    assert fit.success.all() and fit.derivatives == "2-point"
    shares = np.abs(fit.x - exact.x) / exact.stderr / math.sqrt(60.0)
    assert np.max(shares) < 4e-8
