"""`lx.curve_fit` and `lx.least_squares` inside functions that JAX compiles.

The programs are few, because each takes seconds to compile: one with many cases, for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status

jax = pytest.importorskip("jax")
jnp = jax.numpy

RNG = np.random.default_rng(0)
T = jnp.linspace(0.0, 4.0, 30)
NOISE = jnp.asarray(0.01 * RNG.normal(size=30))
SIGMA = jnp.full(30, 0.01).at[7].set(jnp.inf)
EXACT = 2.0 * jnp.exp(-1.5 * T) + 0.5
CASES = {
    "noisy": EXACT + NOISE,
    "exact": EXACT,
    "steep": 400.0 * jnp.exp(-3.0 * T) - 3.0 + NOISE,
    "constant": 1.0 + 0.0 * T,    # nothing determines the rate
    "left out": (EXACT + NOISE).at[7].set(jnp.nan),
    "not finite": EXACT.at[3].set(jnp.nan),
}


def model(t: Any, a: Any, k: Any, c: Any) -> Any:
    return a * jnp.exp(-k * t) + c


def fit(y: Any, sigma: Any = SIGMA, **how: Any) -> Any:
    return lx.curve_fit(model, T, y, [1.0, 1.0, 0.0], sigma=sigma, absolute_sigma=True, **how)


# Deviations that are refused outside.
WRONG = [-SIGMA, SIGMA.at[2].set(0.0), SIGMA.at[2].set(jnp.nan), jnp.full(30, jnp.inf)]


@pytest.fixture(scope="module")
def inside() -> Any:
    curves = [*CASES.values(), *(EXACT for _ in WRONG)]
    sigmas = [SIGMA for _ in CASES] + WRONG
    return jax.jit(jax.vmap(fit))(jnp.stack(curves), jnp.stack(sigmas))


def test_wrong_deviations_are_no_success(inside: Any) -> None:
    assert (inside.status[len(CASES) :] == int(Status.NOT_FINITE)).all()
    for sigma in WRONG:
        with pytest.raises(ValueError, match="sigma"):
            fit(EXACT, sigma)


@pytest.mark.parametrize("case", CASES)
def test_as_outside(inside: Any, case: str) -> None:
    one = jax.tree.map(lambda a: a[list(CASES).index(case)], inside)
    assert isinstance(one, lx.CurveFit) and one.names == ("a", "k", "c")
    outside = fit(CASES[case])
    if case not in ("exact", "constant"):    # where rounding decides how a fit ends
        assert int(one.status) == int(outside.status)
    assert bool(one.success) == outside.success == (case != "not finite")
    if case == "not finite":
        assert outside.status is Status.NOT_FINITE
        return
    shown = ["x", "chi2", "r2", "n_data", "n_free", "covariance", "stderr", "log_likelihood"]
    if case == "constant":
        assert float(one.chi2) < 1e-12 and float(one.stderr[1]) > 1e9
        return
    for name in [*shown, "reduced_chi2", "residuals"]:
        np.testing.assert_allclose(
            getattr(one, name), getattr(outside, name), rtol=1e-6, atol=1e-9, err_msg=name
        )
    assert abs(int(one.nit) - outside.nit) <= 2    # the damping is refined once, not eight times
    with pytest.raises(ValueError, match="comes from a pickle or a compiled function"):
        one.intervals()


def test_a_batch_of_residuals_within_bounds() -> None:
    """With a robust loss, in one program; also a budget, and errors computed inside."""

    def residuals(p: Any, y: Any) -> Any:
        return p["a"][:, None] * jnp.exp(-p["k"][:, None] * T) + 0.5 - y

    def solve(y: Any, **how: Any) -> Any:
        start = {"a": jnp.ones(2), "k": jnp.asarray([1.0, 1.0])}
        return lx.least_squares(
            residuals, start, (y,), bounds=({"k": 1.6}, {"a": np.asarray([9.0, 1.8])}),
            loss="soft_l1", batched=True, **how,
        )

    y = jnp.stack([CASES["noisy"], CASES["noisy"].at[3].add(5.0)])

    @jax.jit
    def program(y: Any) -> Any:
        res = solve(y, gtol=1e-10)
        return res, res.stderr, solve(y, maxfun=3)

    res, stderr, short = program(y)
    outside = solve(y, gtol=1e-10)
    assert isinstance(res, lx.BatchLeastSquaresResult)
    np.testing.assert_allclose(res.x["a"], outside.x["a"], rtol=1e-6)
    np.testing.assert_allclose(res.x["k"], outside.x["k"], rtol=1e-6)
    assert float(res.x["k"][0]) == 1.6 and float(res.x["a"][1]) == 1.8
    np.testing.assert_allclose(res.cost, outside.cost, rtol=1e-9)
    np.testing.assert_allclose(stderr["a"], res.stderr["a"], rtol=1e-6)
    assert res.success.all() and int(short.status[0]) == int(Status.EVALUATIONS)
    assert int(short.nfev) == 3


def test_derivatives_inside_and_outside() -> None:
    """With respect to data and deviations, as by differences of the fitted parameters."""
    y, sigma = CASES["noisy"], jnp.linspace(0.01, 0.03, 30)

    def rate(y: Any, sigma: Any) -> Any:
        found = lx.curve_fit(
            model, T, y, [2.0, 1.5, 0.5], sigma=sigma, absolute_sigma=True, gtol=1e-12
        )
        return found.x[1], found

    (of_y, of_sigma), found = jax.jit(jax.grad(rate, argnums=(0, 1), has_aux=True))(y, sigma)
    assert bool(found.success)
    step = 1e-5
    there = [float(rate(y.at[11].add(s * step), sigma)[0]) for s in (1.0, -1.0)]
    assert float(of_y[11]) == pytest.approx((there[0] - there[1]) / (2 * step), rel=1e-5)
    there = [float(rate(y, sigma.at[11].add(s * step))[0]) for s in (1.0, -1.0)]
    assert float(of_sigma[11]) == pytest.approx((there[0] - there[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("how", [
    {"fixed": (0,)}, {"likelihood": "poisson"}, {"jac": "2-point"}, {"maxtime": 3.0},
    {"callback": print}, {"starts": np.ones((3, 3))}, {"method": "lbfgs"}, {"threads": 2},
    {"chunk_size": 10}, {"priors": {"a": (1.0, 1.0)}}, {"ties": {"a": lambda p: p[1]}},
], ids=lambda how: next(iter(how)))
def test_what_is_refused(how: dict[str, Any]) -> None:
    (name,) = how
    match = f"^{name} is .* inside a function that JAX compiles; wanted it unset there"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda y: fit(y, SIGMA, **how).x, T)
    if name in ("jac", "maxtime", "callback"):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(lambda y: lx.least_squares(lambda p: p - y, T, **how).x, T)


def test_a_sigma_of_the_wrong_shape_and_a_solver_of_the_host() -> None:
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\); wanted a shape that broadcasts"):
        jax.eval_shape(lambda y: fit(y, jnp.ones(3)).x, T)
    with pytest.raises(ValueError, match="^solver is 'dual' inside a function that JAX compiles"):
        jax.eval_shape(lambda y: lx.least_squares(lambda p: p - y, T, solver="dual").x, T)
