"""Fitted parameters as differentiable functions of the data, against differences of fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(3)
POINTS = np.linspace(0.0, 3.0, 8)
VALUES = 2.0 * np.exp(-0.7 * POINTS) + 0.3 * RNG.normal(size=8)
TIGHT: dict[str, Any] = {"gtol": 1e-12, "differentiable": True}


def tensor(numbers: Any) -> Any:
    return torch.tensor(np.asarray(numbers), dtype=torch.float64, requires_grad=True)


def decay(x: Any, a: Any, k: Any) -> Any:
    return a * torch.exp(-k * x)


def fit(x: Any, y: Any, sigma: Any = None, **settings: Any) -> Any:
    settings = {"p0": [1.0, 1.0], **TIGHT, **settings}
    return lx.curve_fit(decay, x, y, sigma=sigma, **settings)


def check(function: Any, *inputs: Any, twice: bool = False) -> None:
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert not twice or torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("settings", [
    {},
    {"loss": "soft_l1", "f_scale": 0.3},
    {"bounds": ([0.0, 0.9], [9.0, 9.0])},
    {"method": "lbfgs", "gtol": 1e-9},
], ids=["linear", "robust", "bounds", "lbfgs"])
def test_by_points_values_and_deviations(settings: dict[str, Any]) -> None:
    sigma = tensor(0.2 + 0.1 * POINTS)
    check(lambda *data: fit(*data, **settings).x, tensor(POINTS), tensor(VALUES), sigma)


def test_twice_by_the_values() -> None:
    check(lambda y: fit(torch.tensor(POINTS), y).x, tensor(VALUES), twice=True)


def test_a_covariance_of_the_data_and_points_left_out() -> None:
    near = np.eye(8) + 0.3 * np.exp(-np.abs(POINTS[:, None] - POINTS))
    check(
        lambda c, y: fit(torch.tensor(POINTS), y, 0.5 * (c + c.T)).x, tensor(near), tensor(VALUES)
    )
    sigma, values = np.ones(8), VALUES.copy()
    sigma[2], values[2] = np.inf, np.nan
    y = tensor(values)
    (slope,) = torch.autograd.grad(fit(torch.tensor(POINTS), y, torch.tensor(sigma)).x.sum(), y)
    assert slope[2] == 0.0 and torch.isfinite(slope).all() and slope[0] != 0.0


def test_chi2_and_named_parameters() -> None:
    def both(y: Any) -> Any:
        found = fit(torch.tensor(POINTS), y, p0={"k": 1.0, "a": 1.0})
        return found.x["k"], found.chi2

    check(both, tensor(VALUES))


def test_rows_of_a_batch() -> None:
    rows = np.stack([VALUES, 2.0 * VALUES, VALUES[::-1] + 3.0])
    check(lambda y: fit(torch.tensor(POINTS), y, batched=True).x, tensor(rows))


def test_least_squares_by_args_and_by_what_residuals_hold() -> None:
    points, start = torch.tensor(POINTS), torch.ones(2, dtype=torch.float64)

    def residuals(p: Any, y: Any) -> Any:
        return decay(points, p[0], p[1]) - y

    def solve(y: Any) -> Any:
        return lx.least_squares(residuals, start, (y,), **TIGHT).x

    check(solve, tensor(VALUES), twice=True)
    check(
        lambda y: lx.least_squares(lambda p: residuals(p, y), start, **TIGHT).x, tensor(VALUES)
    )


def test_what_has_no_derivative_is_said() -> None:
    y = tensor(VALUES)
    found = lx.curve_fit(
        lambda x, a, b: (a + b) * x, torch.tensor(POINTS), y, [1.0, 1.0], differentiable=True
    )
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        found.x.sum().backward()
    with pytest.raises(ValueError, match="no automatic differentiation"):
        lx.curve_fit(decay, POINTS, VALUES, [1.0, 1.0], jac="3-point", differentiable=True)
    with pytest.raises(TypeError, match="masked array"):
        fit(np.ma.masked_less(POINTS, 0.1), y)
    assert not fit(torch.tensor(POINTS), y, differentiable=False).x.requires_grad


def test_in_jax() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def line(x: Any, a: Any, b: Any) -> Any:
        return a + b * x

    def slope(y: Any, sigma: Any) -> Any:
        return lx.curve_fit(line, jnp.asarray(POINTS), y, [1.0, 1.0], sigma=sigma).x[1]

    def exact(y: Any, sigma: Any) -> Any:
        design = jnp.stack([jnp.ones(8), POINTS], axis=1) / sigma[:, None]
        return jnp.linalg.lstsq(design, y / sigma)[0][1]

    data = jnp.asarray(VALUES), jnp.asarray(0.2 + 0.1 * POINTS)
    for found, wanted in zip(
        jax.grad(slope, (0, 1))(*data), jax.grad(exact, (0, 1))(*data), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_fields_without_derivatives_are_no_constants(compiled: bool) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    t = jnp.linspace(0.0, 2.0, 15)
    y = 2.0 * jnp.exp(-1.1 * t) + 0.05 * jnp.sin(7.0 * t)

    def fit(y: Any) -> Any:
        return lx.curve_fit(lambda t, a, k: a * jnp.exp(-k * t), t, y, [1.0, 1.0], sigma=0.1)

    run = jax.jit(fit) if compiled else fit
    assert jnp.isnan(jax.grad(lambda y: run(y).stderr.sum())(y)).all()
    assert jnp.isnan(jax.jacfwd(lambda y: run(y).covariance)(y)).all()
    # Where they are computed and not used, they do no harm.
    slope = jax.grad(lambda y: run(y).x.sum())(y)
    assert jnp.isfinite(slope).all() and (slope != 0.0).any()
    both = jax.lax.map(lambda y: (run(y).x, run(y).stderr), jnp.stack([y, y]))
    assert both[0].shape == (2, 2)

    def through_a_loop(y: Any) -> Any:
        return jax.lax.map(lambda y: (run(y).x, run(y).stderr), y[None, :])[0].sum()

    assert jnp.allclose(jax.grad(through_a_loop)(y), slope, rtol=1e-6)
