"""Fits from ones to data of any size: linear parameters go to their best values first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.1, 5.0, 60)


def decay(xp: Any, x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * xp.exp(-k * x) + c


def peak(xp: Any, x: Any, a: Any, m: Any, s: Any, c: Any) -> Any:
    return a * xp.exp(-0.5 * ((x - m) / s) ** 2) + c


def growth(xp: Any, x: Any, a: Any, k: Any, m: Any) -> Any:
    return a / (1.0 + xp.exp(-k * (x - m)))


def power(xp: Any, x: Any, a: Any, b: Any, c: Any) -> Any:
    return a * x**b + c


def saturation(xp: Any, x: Any, a: Any, k: Any) -> Any:
    return a * x / (k + x)


KINDS = {
    "decay": (decay, [1.0, 0.4, -0.9]),
    "fast decay": (decay, [1.0, 8.0, -0.7]),
    "peak": (peak, [1.0, 1.8, 0.6, 0.3]),
    "growth": (growth, [1.0, 3.0, 2.5]),
    "power": (power, [1.0, 2.6, 0.5]),
    "saturation": (saturation, [1.0, 9.0]),
}
# Which parameters are in units of the data.
LINEAR = {decay: (0, 2), peak: (0, 3), growth: (0,), power: (0, 2), saturation: (0,)}


def sized(kind: str, size: float) -> tuple[Callable, np.ndarray, np.ndarray]:
    """The model of a kind, its parameters for data of this size, and the data with noise of 1%."""
    model, parameters = KINDS[kind]
    p = np.asarray(parameters)
    p[list(LINEAR[model])] *= size
    noise = np.random.default_rng(1).normal(size=X.size)
    return model, p, model(np, X, *p) + 0.01 * size * noise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-3, 1e2, 1e6])
def test_from_ones(backend: Backend, kind: str, size: float) -> None:
    model, truth, y = sized(kind, size)
    jac = None if backend.has_autodiff else "2-point"

    def fit(start: Any) -> Any:
        return lx.curve_fit(
            partial(model, backend.xp), backend.asarray(X), backend.asarray(y),
            backend.asarray(start), jac=jac,
        )

    near, far = fit(truth), fit(np.ones_like(truth))
    assert far.success and far.nfev < 200
    assert float(far.chi2) <= float(near.chi2) * (1.0 + 1e-6)
    p, right = backend.to_numpy(far.x), backend.to_numpy(near.x)
    np.testing.assert_allclose(p, right, rtol=1e-3)


def test_rows_of_different_sizes_are_fitted_as_if_alone() -> None:
    curves = [sized("decay", size) for size in (1.0, 1e-3, 1e5)]
    y = np.stack([each[2] for each in curves])
    rows = lx.curve_fit(partial(decay, np), X, y, np.ones(3), batched=True)
    for row, data in zip(rows.x, y, strict=True):
        alone = lx.curve_fit(partial(decay, np), X, data, np.ones(3))
        np.testing.assert_allclose(row, alone.x, rtol=1e-4)


def test_no_call_outside_the_bounds_and_no_amplitude_on_its_bound() -> None:
    """Where the centre is wrong, the best amplitude is negative; at 0, the centre counts for
    nothing."""
    y = 400.0 * np.exp(-0.5 * ((X - 3.5) / 0.4) ** 2) + 1.0
    low, high = np.asarray([0.0, 0.1, 0.05, -10.0]), np.asarray([1e4, 5.0, 3.0, 10.0])
    outside = 0

    def model(x: Any, *p: Any) -> Any:
        nonlocal outside
        outside += int(np.any((np.asarray(p) < low) | (np.asarray(p) > high)))
        return peak(np, x, *p)

    model.__signature__ = inspect.signature(partial(peak, np))    # type: ignore[attr-defined]
    fit = lx.curve_fit(model, X, y, np.asarray([1.0, 1.5, 0.5, 0.0]), bounds=(low, high))
    assert outside == 0 and fit.success
    np.testing.assert_allclose(fit.x, [400.0, 3.5, 0.4, 1.0], rtol=1e-5)


def test_residuals_without_data() -> None:
    model, truth, y = sized("decay", 1e5)
    fit = lx.least_squares(lambda p: model(np, X, *p) - y, np.ones(3))
    assert fit.success and fit.nfev < 100
    near = lx.least_squares(lambda p: model(np, X, *p) - y, truth)
    np.testing.assert_allclose(fit.x, near.x, rtol=1e-4)
