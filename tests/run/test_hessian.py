"""`hessian()` of a result: given, automatic, or by differences of gradients or values."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

A = np.asarray([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 4.0]])
UNITS = np.asarray([1e-4, 1.0, 1e5])
DATA = np.random.default_rng(0).normal(6562.8, 0.05, size=200)


def value(x: Any) -> Any:
    z = x / UNITS - 1.0
    return 0.5 * z @ A @ z + 0.1 * np.sum(z**4) + 2.0


def gradient(x: Any) -> Any:
    z = x / UNITS - 1.0
    return (A @ z + 0.4 * z**3) / UNITS


WANTED = A / UNITS[:, None] / UNITS
START = np.asarray([2.0, 0.5, -1.0]) * UNITS


def relative(matrix: Any, units: Any = UNITS) -> np.ndarray:
    return np.asarray(matrix) * units[:, None] * units


@pytest.mark.parametrize("x_scale", [None, UNITS])
@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize(
    ("jac", "digits"), [(gradient, 1e-8), ("3-point", 1e-5), ("2-point", 1e-5)]
)
def test_the_hessian_whatever_the_units(
    jac: Any, digits: float, method: Any, x_scale: Any
) -> None:
    res = lx.minimize(value, START, jac=jac, method=method, x_scale=x_scale)
    found = res.hessian()
    assert res.success and (found == found.T).all()
    np.testing.assert_allclose(relative(found), A, atol=digits)


def test_also_from_a_start_at_the_minimum() -> None:
    for jac, digits in ((gradient, 1e-8), ("3-point", 1e-5)):
        res = lx.minimize(value, UNITS, jac=jac)
        np.testing.assert_allclose(relative(res.hessian()), A, atol=digits)


def test_the_given_hessian() -> None:
    calls = []

    def hess(x: Any) -> Any:
        calls.append(1)
        z = x / UNITS - 1.0
        return (A + np.diag(1.2 * z**2)) / UNITS[:, None] / UNITS

    res = lx.minimize(
        value, START, jac=gradient, hess=hess, method="newton", x_scale=UNITS
    )
    before = len(calls)
    np.testing.assert_allclose(relative(res.hessian()), A, rtol=1e-12, atol=1e-9)
    assert len(calls) == before + 1


@pytest.mark.parametrize(
    ("library", "batched"),
    [(Backend.TORCH, False), (Backend.TORCH, True), (Backend.JAX, True)],
)
def test_automatic_differentiation(library: Backend, batched: bool) -> None:
    if library.missing:
        pytest.skip(library.missing)
    a, rates = library.asarray(A), library.asarray([1.0, 2.0, 5.0, 3.0])

    def fun(x: Any, rates: Any) -> Any:
        return 0.5 * (x * (x @ a)).sum(-1) * rates + 0.1 * ((x - 1.0) ** 4).sum(-1)

    start = library.asarray(np.ones((4, 3)))
    if batched:
        res = lx.minimize(fun, start, (rates,), batched=True)
    else:
        res = lx.minimize(fun, start[0], (rates[1],))
    x, found = library.to_numpy(res.x), library.to_numpy(res.hessian())
    factor = np.asarray([1.0, 2.0, 5.0, 3.0])[:, None, None] if batched else 2.0
    bends = 1.2 * (x - 1.0) ** 2
    wanted = factor * A + bends[..., None] * np.eye(3)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_batch_by_differences_with_data_of_the_rows() -> None:
    rates = np.asarray([[1.0], [20.0], [3.0], [0.2]])

    def fun(x: Any, rates: Any) -> Any:
        z = x - 1.0
        g = rates * (z @ A) + 0.4 * z**3
        return 0.5 * rates[:, 0] * np.sum(z * (z @ A), -1) + 0.1 * np.sum(z**4, -1), g

    wanted = rates[:, :, None] * A
    res = lx.minimize(fun, np.zeros((4, 3)), (rates,), jac=True, batched=True)
    np.testing.assert_allclose(res.hessian(), wanted, atol=1e-6)
    of_values = lx.minimize(
        lambda x, r: fun(x, r)[0], np.zeros((4, 3)), (rates,), jac="3-point", batched=True
    )
    np.testing.assert_allclose(of_values.hessian(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("jac", [None, "3-point"])
def test_standard_errors_of_a_likelihood(jac: Any) -> None:
    """A narrow peak far from 0: its centre, its width and their errors are known."""
    n, mean, width = DATA.size, DATA.mean(), DATA.std()

    def fun(x: Any) -> Any:
        z = (DATA - x[0]) / x[1]
        return 0.5 * np.sum(z * z) + n * np.log(x[1])

    def slopes(x: Any) -> Any:
        z = (DATA - x[0]) / x[1]
        return np.asarray([-np.sum(z), n - np.sum(z * z)]) / x[1]

    res = lx.minimize(
        fun, np.asarray([6562.7, 0.1]), jac=jac or slopes, x_scale=[0.1, 0.1],
        bounds=(np.asarray([-np.inf, 1e-3]), None),
    )
    errors = np.sqrt(np.diagonal(np.linalg.inv(res.hessian())))
    np.testing.assert_allclose(res.x, [mean, width], rtol=1e-4)
    np.testing.assert_allclose(errors, [width / n**0.5, width / (2 * n) ** 0.5], rtol=1e-2)


def test_no_call_leaves_the_bounds() -> None:
    low, high = np.asarray([0.0, -1.0, 2.0]), np.asarray([1.0, 1.0, 2.0])

    def inside(x: Any) -> Any:
        assert ((x >= low) & (x <= high)).all()
        return np.sum((x + 1.0) ** 2) + x[0] * x[1]

    def slopes(x: Any) -> Any:
        assert ((x >= low) & (x <= high)).all()
        return 2.0 * (x + 1.0) + np.asarray([x[1], x[0], 0.0])

    for jac, digits in (("3-point", 1e-4), (slopes, 1e-6)):
        res = lx.minimize(inside, np.asarray([0.5, 0.5, 2.0]), jac=jac, bounds=(low, high))
        found = res.hessian()
        np.testing.assert_allclose(found[:2, :2], [[2.0, 1.0], [1.0, 2.0]], atol=digits)
        assert (found[2] == 0.0).all()    # fixed


def test_nested_and_complex_variables() -> None:
    def fun(p: Any) -> Any:
        d = p["z"] - (1.0 + 2.0j)
        value = np.sum(np.abs(d) ** 2) + 3.0 * p["a"] ** 2 + p["a"] * np.real(d[0])
        return value, {"a": 6.0 * p["a"] + np.real(d[0]), "z": 2.0 * d + np.asarray([p["a"], 0.0])}

    start = {"z": np.zeros(2, dtype=complex), "a": np.asarray(1.0)}
    found = lx.minimize(fun, start, jac=True).hessian()
    wanted = np.diag([6.0, 2.0, 2.0, 2.0, 2.0])
    wanted[0, 1] = wanted[1, 0] = 1.0
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_copies_do_not_keep_the_function() -> None:
    res = lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True)
    np.testing.assert_allclose(res.hessian(), 2.0 * np.eye(2), atol=1e-8)
    for other in (pickle.loads(pickle.dumps(res)), copy.deepcopy(res), copy.copy(res)):
        np.testing.assert_array_equal(other.x, res.x)
        with pytest.raises(ValueError, match="is a copy or comes from a pickle"):
            other.hessian()
    phases = [lx.Adam(0.1).until(maxiter=3), lx.LBFGS()]
    res = lx.minimize(lambda x: (x @ x, 2.0 * x), np.ones(2), jac=True, method=phases)
    for part in (res, *res.phases):
        np.testing.assert_allclose(part.hessian(), 2.0 * np.eye(2), atol=1e-8)


@pytest.mark.parametrize("jac", [True, "2-point"])
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_a_start_far_off_and_a_large_value_say_nothing_of_the_step(
    jac: Any, offset: float
) -> None:
    def fun(x: Any) -> Any:
        found = offset + np.sum(np.exp(x) - x)
        return (found, np.exp(x) - 1.0) if jac is True else found

    res = lx.minimize(fun, np.asarray([60.0, 3.0]), jac=jac)
    off = res.hessian() - np.diag(np.exp(res.x))
    assert np.abs(off).max() < (1e-5 if jac is True else 1e-3)


def test_a_hessian_that_does_not_exist_is_not_silent() -> None:
    def fun(x: np.ndarray) -> Any:
        away = x - np.asarray([0.3, 0.7])
        return np.sum(np.abs(away) ** 1.5 + 0.5 * away**2)

    res = lx.minimize(fun, np.asarray([1.0, 2.0]), jac="3-point")
    with pytest.warns(RuntimeWarning, match="disagree for the variables"):
        res.hessian()
