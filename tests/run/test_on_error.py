"""Trials that fail: exceptions that count as nan, jax_debug_nans, functions that change."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X0 = np.asarray([1e-3, 50.0])


class TooFarError(ArithmeticError):
    pass


def value(x: Any) -> Any:
    """The sum of x - log x, which is at its minimum at 1 and defined for x > 0 only."""
    if np.any(x <= 0.0):
        raise TooFarError("x is not positive")
    return np.sum(x - np.log(x))


def gradient(x: Any) -> Any:
    return 1.0 - 1.0 / x


def both(x: Any) -> Any:
    return value(x), gradient(x)


def residuals(x: Any) -> Any:
    if np.any(x <= 0.0):
        raise TooFarError("x is not positive")
    return np.log(x) - 1.0


METHODS = ["lbfgs", "bfgs", "newton", "projected_gradient", "gradient_descent"]
PHASES = [lx.Adam(0.1).until(maxiter=20), lx.LBFGS()]


@pytest.mark.parametrize("method", [*METHODS, PHASES], ids=str)
def test_an_exception_counts_as_nan(method: Any) -> None:
    how: dict[str, Any] = {"method": method, "jac": True}
    if method == "newton":
        how["hess"] = lambda x: np.diag(x**-2.0)

    def nan(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return (np.sum(x - np.log(x)), gradient(x)) if np.all(x > 0.0) else (np.nan, x * np.nan)

    res = lx.minimize(both, X0, on_error=ArithmeticError, **how)
    same = lx.minimize(nan, X0, **how)
    assert res.success and np.allclose(res.x, 1.0, atol=1e-5)
    assert res.x.tobytes() == same.x.tobytes() and res.nfev == same.nfev


@pytest.mark.parametrize("jac", ["2-point", "3-point", gradient])
def test_with_separate_gradients(jac: Any) -> None:
    with pytest.raises(TooFarError) as caught:
        lx.minimize(value, X0, jac=gradient)
    assert caught.value.result.fun < value(X0)
    res = lx.minimize(value, X0, jac=jac, on_error=(KeyError, TooFarError))
    assert res.success and np.allclose(res.x, 1.0, atol=1e-5)


def test_automatic_differentiation() -> None:
    import torch

    def of_tensors(x: Any) -> Any:
        if (x <= 0.0).any():
            raise TooFarError
        return (x - torch.log(x)).sum()

    res = lx.minimize(of_tensors, torch.as_tensor(X0), on_error=TooFarError)
    assert res.success and np.allclose(res.x, 1.0, atol=1e-5)


def test_at_the_start_and_other_exceptions_are_raised() -> None:
    for errors in ((), TooFarError):
        with pytest.raises(TooFarError):
            lx.minimize(both, -X0, jac=True, on_error=errors)
        with pytest.raises(TooFarError):
            lx.least_squares(residuals, -X0, jac="3-point", on_error=errors)
    with pytest.raises(TooFarError):
        lx.minimize(both, X0, jac=True, on_error=KeyError)


@pytest.mark.parametrize("jac", ["2-point", "3-point", lambda x: np.diag(1.0 / x)])
def test_fits(jac: Any) -> None:
    start = np.asarray([200.0, 1.0])
    with pytest.raises(TooFarError):
        lx.least_squares(residuals, start, jac=jac)
    res = lx.least_squares(residuals, start, jac=jac, on_error=TooFarError)
    assert res.success and np.allclose(res.x, np.e)


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_curve_fit(method: Any) -> None:
    def model(t: Any, a: Any, b: Any) -> Any:
        if b <= 0.0:
            raise TooFarError
        return a * np.log(b * t)

    t = np.linspace(1.0, 3.0, 20)
    how: dict[str, Any] = {"method": method, "jac": "3-point"}
    fit = lx.curve_fit(model, t, model(t, 2.0, 3.0), [1.0, 60.0], on_error=TooFarError, **how)
    assert fit.success and np.allclose(fit.x, [2.0, 3.0], rtol=1e-5)


@pytest.mark.parametrize("bad", [3, "ValueError", ValueError(), [ValueError], KeyboardInterrupt])
def test_what_is_no_exception(bad: Any) -> None:
    for call in (
        lambda: lx.minimize(both, X0, jac=True, on_error=bad),
        lambda: lx.least_squares(residuals, X0, jac="3-point", on_error=bad),
    ):
        with pytest.raises(TypeError, match="^on_error is .*; wanted a class of exceptions"):
            call()


def test_a_batch_returns_nan_itself() -> None:
    with pytest.raises(ValueError, match="on_error was passed with batched=True; wanted"):
        lx.minimize(both, np.ones((2, 2)), jac=True, batched=True, on_error=TooFarError)


@pytest.mark.parametrize("compiled", [False, True])
def test_jax_debug_nans_does_not_end_a_run(compiled: bool) -> None:
    import jax
    import jax.numpy as jnp

    def of_arrays(x: Any) -> Any:
        return jnp.sum(x - jnp.log(x))

    x0 = Backend.JAX.asarray(X0)
    jax.config.update("jax_debug_nans", True)
    try:
        res = lx.minimize(jax.jit(of_arrays) if compiled else of_arrays, x0)
        fit = lx.least_squares(lambda x: jnp.log(x) - 1.0, Backend.JAX.asarray([200.0, 1.0]))
        assert jax.config.jax_debug_nans
        jax.clear_caches()    # JAX does not look at what was compiled before
        with pytest.raises(FloatingPointError):    # at the start, it does what it is for
            lx.minimize(of_arrays, -x0)
        assert jax.config.jax_debug_nans
    finally:
        jax.config.update("jax_debug_nans", False)
    assert res.success and np.allclose(res.x, 1.0, atol=1e-5)
    assert fit.success and np.allclose(fit.x, np.e)


def test_a_function_that_changes_is_recognised() -> None:
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(30, 4))]

    def of_points(p: Any) -> Any:
        t = np.tanh(points[0] @ p)
        r = t - 0.3
        return r @ r / 30.0, points[0].T @ (2.0 * r * (1.0 - t * t)) / 30.0

    def redraw(record: Any) -> None:
        points[0] = rng.normal(size=(30, 4))

    res = lx.minimize(of_points, np.full(4, 0.2), jac=True, callback=redraw)
    assert res.status is lx.Status.LINE_SEARCH
    assert res.message.startswith("fun changes between calls: at the best point it was ")
    assert f"{res.fun:.9g}" in res.message and f"{of_points(res.x)[0]:.9g}" in res.message
    still = lx.minimize(lambda x: (np.sum(np.abs(x)), -np.sign(x)), np.ones(2), jac=True)
    assert still.status is lx.Status.LINE_SEARCH and still.message == lx.Status.LINE_SEARCH.message
    few = lx.minimize(of_points, np.full(4, 0.2), jac=True, callback=redraw, maxfun=res.nfev - 1)
    assert few.nfev <= res.nfev - 1


def test_arrays_of_another_library_in_args() -> None:
    import torch

    def distance(x: Any, d: Any) -> Any:
        return ((x - torch.as_tensor(d)) ** 2).sum()

    zeros = torch.zeros(3, dtype=torch.float64)
    message = "args has an array of numpy, and x0 is of torch: converting it in every call"
    with pytest.warns(UserWarning, match=message) as seen:
        lx.minimize(distance, zeros, (np.ones(3),))
    assert len(seen) == 1 and seen[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as seen:
        lx.least_squares(lambda x, d: x - torch.as_tensor(d["a"][0]), zeros, ({"a": [np.ones(3)]},))
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for args in ((torch.ones(3),), (2.0,), (np.float64(2.0),), (np.asarray(2.0),), ("a",)):
            lx.minimize(lambda x, d: (x**2).sum(), zeros, args)
