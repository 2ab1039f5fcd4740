"""Minima at which the Jacobian vanishes but the residuals do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

FLAT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], float, float]] = {
    "a power of 4": (lambda v: v**4 + 1.0, lambda v: np.diag(4.0 * v**3), 0.0, 1e-3),
    "a power of 6": (
        lambda v: (v - 3.0) ** 6 + 2.0, lambda v: np.diag(6.0 * (v - 3.0) ** 5), 3.0, 2e-2
    ),
    "a power of 3/2": (
        lambda v: np.abs(v) ** 1.5 + 1.0, lambda v: np.diag(1.5 * np.sign(v) * np.abs(v) ** 0.5),
        0.0, 1e-6,
    ),
    "beside a constant": (lambda v: v * v + 1e6, lambda v: np.diag(2.0 * v), 0.0, 1e-3),
    "cosh": (np.cosh, lambda v: np.diag(np.sinh(v)), 0.0, 1e-6),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("start", [[2.0], [1.5, 0.3]])
def test_a_flat_minimum_is_a_success(name: str, start: list[float]) -> None:
    fun, jac, middle, near = FLAT[name]
    for how in (jac, "2-point", "3-point"):
        with np.errstate(over="ignore"):
            res = lx.least_squares(fun, np.asarray(start), jac=how)
        assert res.success, (how, res.message)
        assert "respond" not in res.message
        np.testing.assert_allclose(res.x, middle, atol=near)
        np.testing.assert_allclose(res.fun, fun(np.full(1, middle))[0], rtol=1e-13)


def test_rows_with_and_without_a_flat_minimum() -> None:
    lift = np.asarray([[1.0], [0.0], [1e6]])
    for jac in (None, "3-point"):
        res = lx.least_squares(
            lambda x: np.concatenate([x**4 + lift, 0.0 * x], axis=-1), np.full((3, 1), 1.5),
            jac=jac, batched=True,
        )
        assert res.success.all(), res.message
        np.testing.assert_allclose(res.fun[:, :1], lift, atol=1e-8)


@pytest.mark.parametrize("power", [2, 4, 6])
@pytest.mark.parametrize("lacking", [1e-3, 1.0])
def test_a_jacobian_that_lacks_a_term_is_refuted_all_the_same(power: int, lacking: float) -> None:
    res = lx.least_squares(
        lambda x: x**power + lacking * x + 5.0, np.asarray([1.0]),
        jac=lambda x: np.diag(power * x ** (power - 1)),
    )
    assert not res.success


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_a_flat_minimum_at_a_bound(jac: str) -> None:
    """Where the bounds leave one way, the cost has to rise on that one; where they leave none,
    nothing is asked of the differences."""
    for fun, high, success in (
        (lambda x: x**4 + 1.0, np.inf, True), (lambda x: 2.0 - x**4, 1.0, False),
        (lambda x: 2.0 + 0.0 * x, 1.0, False), (lambda x: 2.0 + x, 0.0, True),
    ):
        res = lx.least_squares(fun, np.zeros(1), jac=jac, bounds=(0.0, high))
        assert res.success is success, res.message
    res = lx.least_squares(lambda x: x**4 + 1.0, np.asarray([2.0]), jac=jac, bounds=(0.0, None))
    assert res.success and res.x[0] < 1e-3, res.message
    res = lx.least_squares(
        lambda x: 2.0 + 0.0 * x, np.asarray([1.0, 0.5]), jac=jac, bounds=([1.0, 0.0], [1.0, 1.0])
    )
    assert not res.success and "do not respond to x0[1]" in res.message


def test_residuals_that_do_not_respond_at_all() -> None:
    res = lx.least_squares(lambda x: np.sign(x) + np.arange(3.0), np.ones(1), jac="2-point")
    assert not res.success
    assert "do not respond to x0[0]" in res.message


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("model", [
    lambda x, a, b: a * np.sin(b * x),
    lambda x, a, b: a * b * x,
    lambda x, a, b, c, d: (a - c) * (b + d) * x,
])
def test_a_product_of_parameters_at_zero_is_no_success(model: Any, batched: bool) -> None:
    """Whether the cost falls shows along the diagonals only."""
    x = np.linspace(0.0, 5.0, 60)
    count = model.__code__.co_argcount - 1
    for sign in (1.0, -1.0):
        y = sign * 2.0 * np.sin(1.3 * x)
        p0 = np.zeros((2, count) if batched else count)
        fit = lx.curve_fit(model, x, np.stack([y, y]) if batched else y, p0, batched=batched)
        assert not np.any(fit.success), fit.message
