"""A gradient of exactly 0 is no minimum by itself: looks across find what it does not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status

START = np.asarray([1.5, 0.0])


def stopped(x: np.ndarray) -> Any:
    return np.sum((x - 1.0) ** 2), 0.0 * x


def rounded(x: np.ndarray) -> Any:
    return np.sum(np.round(10.0 * x) ** 2), 0.0 * x


def saddle(x: np.ndarray) -> Any:
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4, np.stack([2 * x[0], 4 * x[1] ** 3 - 2 * x[1]])


def steep_saddle(x: np.ndarray) -> Any:
    value, gradient = saddle(x * np.asarray([100.0, 1.0]))
    return value, gradient * np.asarray([100.0, 1.0])


def turned_saddle(x: np.ndarray) -> Any:
    turn = np.asarray([[0.6, 0.8], [-0.8, 0.6]])
    value, gradient = saddle(turn @ (x - START))
    return value, turn.T @ gradient


def ridge(x: np.ndarray) -> Any:
    t, s = x[0] - 0.3, 3.0 * x[1]
    return t**4 + t**2 + np.cos(s), np.stack([4 * t**3 + 2 * t, -3.0 * np.sin(s)])


def plateau(x: np.ndarray) -> Any:
    """Exactly 0 for |x| > 1, with a minimum in between."""
    inside = np.maximum(1.0 - x @ x, 0.0)
    return -(inside**2), 4.0 * inside * x


@pytest.mark.parametrize("fun", [stopped, rounded])
def test_a_gradient_that_vanishes_wrongly(fun: Any) -> None:
    res = lx.minimize(fun, START, jac=True)
    assert res.status is Status.LINE_SEARCH and res.nit == 0


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "newton-cg", "gradient_descent"])
@pytest.mark.parametrize("fun", [saddle, steep_saddle, turned_saddle, ridge, plateau])
def test_a_stationary_point_that_is_no_minimum(fun: Any, method: str) -> None:
    lowest = {ridge: -1.0, plateau: -1.0}.get(fun, -0.25)
    start = np.asarray([1.2, 0.1]) if fun is plateau else START
    more = {} if method != "newton-cg" else {
        "hessp": lambda x, p: (fun(x + 1e-6 * p)[1] - fun(x - 1e-6 * p)[1]) / 2e-6
    }
    res = lx.minimize(fun, start, jac=True, method=method, **more)
    assert res.success and res.fun == pytest.approx(lowest, abs=1e-7)
    rows = np.stack([start, start + 0.1])
    if more:
        return
    both = lx.minimize(
        lambda x: tuple(map(np.stack, zip(*map(fun, x), strict=True))), rows, jac=True,
        method=method, batched=True,
    )
    assert both.success.all() and both.fun == pytest.approx(lowest, abs=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_a_saddle_in_many_variables(seed: int) -> None:
    """The run restarts far enough from the saddle for an ordinary number of evaluations."""
    rng, down = np.random.default_rng(seed), np.arange(10) < 3
    bends, centre = 10.0 ** rng.uniform(-1.0, 1.0, 10), rng.normal(size=10)

    def fun(x: np.ndarray) -> Any:
        up = np.where(down, 0.0, x - centre)
        out = np.where(down, x, 0.0)
        value = np.sum(bends * (up**2 - out**2) + out**4)
        return value, 2.0 * bends * (up - out) + 4.0 * out**3

    res = lx.minimize(fun, np.where(down, 0.0, rng.normal(size=10)), jac=True)
    assert res.success and res.nfev < 1000
    assert res.fun == pytest.approx(-np.sum(bends[down] ** 2) / 4.0, abs=1e-7)


def test_a_given_tolerance_is_taken_at_its_word() -> None:
    res = lx.minimize(saddle, np.zeros(2), jac=True, gtol=1e-6)
    assert res.status is Status.GRADIENT and (res.fun, res.nfev) == (0.0, 1)


def test_a_budget_that_allows_no_look() -> None:
    res = lx.minimize(saddle, np.zeros(2), jac=True, maxfun=1)
    assert res.status is Status.GRADIENT and res.nfev == 1


def test_float32() -> None:
    torch = pytest.importorskip("torch")
    x0 = torch.asarray(START, dtype=torch.float32)
    res = lx.minimize(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, x0)
    assert res.success and float(res.fun) == pytest.approx(-0.25)


@pytest.mark.parametrize("inside", [False, True])
def test_jax(inside: bool) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def total(x: Any, which: Any) -> Any:
        wrong = jax.lax.stop_gradient(jnp.sum((x - 1.0) ** 2))
        right = x[0] ** 2 - x[1] ** 2 + x[1] ** 4
        return jnp.where(which, right, wrong)

    def solve(which: Any) -> Any:
        return lx.minimize(jax.jit(total), jnp.asarray(START), (which,))

    run = jax.jit(solve) if inside else solve
    assert int(run(jnp.asarray(False)).status) == Status.LINE_SEARCH
    res = run(jnp.asarray(True))
    assert bool(res.success) and float(res.fun) == pytest.approx(-0.25)
