"""`x_scale` of minimize: a run in scaled variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.projections import L2Ball
from tests.backends import Backend

UNITS = np.asarray([1e-6, 1e5])


def valley(x: Any) -> Any:
    """Rosenbrock's function in variables of these sizes, with its gradient."""
    z = x / UNITS
    t, u = z[..., 1] - z[..., 0] ** 2, 1.0 - z[..., 0]
    slopes = np.stack([-400.0 * z[..., 0] * t - 2.0 * u, 200.0 * t], axis=-1)
    return 100.0 * t * t + u * u, slopes / UNITS


def plain(z: Any) -> Any:
    value, slopes = valley(z * UNITS)
    return value, slopes * UNITS


START = np.asarray([-1.2, 1.0])
POWERS = 2.0 ** np.asarray([-20.0, 17.0])


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "gradient_descent", "adam"])
def test_the_run_is_that_of_the_scaled_problem(method: Any) -> None:
    """Bit by bit for powers of 2, which scale without rounding."""

    def scaled(x: Any) -> Any:
        value, slopes = plain(x / POWERS)
        return value, slopes / POWERS

    settings: dict[str, Any] = dict(jac=True, method=method, maxiter=50)
    wanted = lx.minimize(plain, START, **settings)
    res = lx.minimize(scaled, START * POWERS, x_scale=POWERS, **settings)
    np.testing.assert_array_equal(res.x, wanted.x * POWERS)
    np.testing.assert_array_equal(res.jac, wanted.jac / POWERS)
    assert (res.fun, res.nfev, res.status) == (wanted.fun, wanted.nfev, wanted.status)
    assert res.gradient_norm == wanted.gradient_norm
    # What is not a power of 2 is rounded to one.
    other = lx.minimize(scaled, START * POWERS, x_scale=1.3 * POWERS, **settings)
    np.testing.assert_array_equal(other.x, res.x)
    if wanted.hess_inv is not None:
        units = POWERS[:, None] * POWERS
        dense = wanted.hess_inv.todense() * units
        np.testing.assert_array_equal(res.hess_inv.todense(), dense)
        np.testing.assert_array_equal(res.hess_inv.diagonal(), np.diagonal(dense))
        np.testing.assert_allclose(res.hess_inv @ np.ones(2), dense.sum(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(res.hess_inv.unravel(UNITS), UNITS)


def test_sizes_help() -> None:
    without = lx.minimize(valley, START * UNITS, jac=True)
    res = lx.minimize(valley, START * UNITS, jac=True, x_scale=UNITS)
    assert res.success and res.nfev < without.nfev
    np.testing.assert_allclose(res.x, UNITS, rtol=1e-6)
    differences = lx.minimize(
        lambda x: valley(x)[0], START * UNITS, jac="2-point", x_scale=UNITS
    )
    assert differences.success
    np.testing.assert_allclose(differences.x, UNITS, rtol=1e-4)


def test_a_resumed_run_is_the_same() -> None:
    settings: dict[str, Any] = dict(jac=True, x_scale=UNITS)
    whole = lx.minimize(valley, START * UNITS, **settings)
    for method in ("lbfgs", "bfgs"):
        whole = lx.minimize(valley, START * UNITS, method=method, **settings)
        part = lx.minimize(valley, START * UNITS, method=method, maxiter=9, **settings)
        rest = lx.minimize(valley, part.x, method=method, state=part.state, **settings)
        np.testing.assert_array_equal(rest.x, whole.x)
        assert rest.nit + part.nit == whole.nit
    with pytest.raises(ValueError, match="state comes from a run with another x_scale"):
        lx.minimize(valley, part.x, jac=True, method="bfgs", state=part.state)


def test_bounds_stay_in_the_units_of_x() -> None:
    bounds = (None, np.asarray([0.3e-6, 1e9]))
    res = lx.minimize(valley, START * UNITS, jac=True, bounds=bounds, x_scale=UNITS)
    assert res.success and res.x[0] == 0.3e-6
    np.testing.assert_allclose(res.x[1], 0.09 * UNITS[1], rtol=1e-6)
    projected = lx.ProjectedGradient(projection=L2Ball(1.0))
    with pytest.raises(ValueError, match="x_scale was passed with the projection"):
        lx.minimize(valley, START * UNITS, jac=True, method=projected, x_scale=UNITS)


def test_every_library_and_a_scale_for_each_row(backend: Backend) -> None:
    xp, units = backend.xp, np.asarray([[1e-3, 10.0], [1.0, 1.0], [1e4, 1e-2]])
    sizes = backend.asarray(units)

    def fun(x: Any, sizes: Any) -> Any:
        z = x / sizes
        t, u = z[:, 1] - z[:, 0] ** 2, 1.0 - z[:, 0]
        slopes = xp.stack([-400.0 * z[:, 0] * t - 2.0 * u, 200.0 * t], axis=-1) / sizes
        return 100.0 * t * t + u * u, slopes

    start = backend.asarray(START * units)
    res = lx.minimize(fun, start, (sizes,), jac=True, batched=True, x_scale=units)
    assert backend.to_numpy(res.success).all()
    np.testing.assert_allclose(backend.to_numpy(res.x), units, rtol=1e-5)


def test_automatic_gradients_of_nested_parameters_by_name() -> None:
    torch = pytest.importorskip("torch")
    start = {"rate": torch.tensor([2e-6]), "level": torch.tensor([[1.0, 3e4]])}

    def fun(p: Any) -> Any:
        a, (b, c) = p["rate"][0] / 1e-6, p["level"][0]
        return (a - 1.0) ** 2 + (b - a) ** 4 + (b - a) ** 2 + (c / 1e4 - b) ** 2

    scale = {"rate": 1e-6, "level": np.asarray([1.0, 1e4])}
    res = lx.minimize(fun, start, x_scale=scale)
    assert res.success and res.nit < 30
    np.testing.assert_allclose(res.x["rate"].numpy(), [1e-6], rtol=1e-4)
    np.testing.assert_allclose(res.x["level"].numpy(), [[1.0, 1e4]], rtol=1e-4)
    some = lx.minimize(fun, start, x_scale={"rate": 1e-6})
    np.testing.assert_allclose(some.x["rate"].numpy(), [1e-6], rtol=1e-3)


def test_complex_variables() -> None:
    target = np.asarray([3e5 - 1e5j, 2.0 + 1.0j])

    def fun(x: Any) -> Any:
        d = (x - target) / np.asarray([1e5, 1.0])
        return np.sum(np.abs(d) ** 2), 2.0 * d / np.asarray([1e5, 1.0])

    res = lx.minimize(fun, np.zeros(2, dtype=complex), jac=True, x_scale=[1e5, 1.0])
    assert res.success and res.nit <= 8
    np.testing.assert_allclose(res.x, target, rtol=1e-6)


def test_newton_and_phases() -> None:
    a, b = np.asarray([[2.0, 1.0], [1.0, 3.0]]), np.asarray([1.0, -2.0])
    matrix = a / UNITS[:, None] / UNITS

    def fun(x: Any) -> Any:
        return 0.5 * x @ matrix @ x - b @ (x / UNITS), matrix @ x - b / UNITS

    best = np.linalg.solve(a, b) * UNITS
    res = lx.minimize(
        fun, START * UNITS, jac=True, hess=lambda x: matrix, method="newton", x_scale=UNITS
    )
    assert res.success and res.nit <= 2
    np.testing.assert_allclose(res.x, best, rtol=1e-8)
    phases = [lx.Adam(0.1).until(maxiter=30), lx.LBFGS()]
    res = lx.minimize(fun, START * UNITS, jac=True, method=phases, x_scale=UNITS)
    assert res.success
    np.testing.assert_allclose(res.x, best, rtol=1e-6)
    assert np.all(np.abs(res.phases[0].x - best) < 3.0 * UNITS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (-1.0, "x_scale contains -1.0; wanted finite numbers above 0"),
        (1e-310, "x_scale contains 1e-310"), (1e308, "wanted .* to 2.2e.307 in float64"),
        ([1.0, 0.0], "x_scale contains 0.0"), (np.nan, "x_scale contains nan"),
        ([1.0, np.inf], "x_scale contains inf"), ("jac", "x_scale is 'jac'; wanted finite numbers"),
        ([1.0, 2.0, 3.0], r"x_scale has shape \(3,\); wanted one that broadcasts to \(2,\)"),
        ({"a": 1.0}, "x_scale has the structure"),
    ],
)
def test_what_is_no_scale(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lx.minimize(valley, START * UNITS, jac=True, x_scale=wrong)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="x_scale names 'c'; wanted names of x0: 'a', 'b'"):
        lx.minimize(
            lambda p: 0.0, {"a": np.ones(2), "b": np.ones(1)}, jac="3-point", x_scale={"c": 1.0}
        )


def test_a_compiled_gradient() -> None:
    jax = pytest.importorskip("jax")
    bowl = jax.jit(lambda x: ((x / UNITS - 3.0) ** 2).sum())
    slope = jax.jit(lambda x: 2.0 * (x / UNITS - 3.0) / UNITS)
    one, two = (
        lx.minimize(fun, jax.numpy.asarray(UNITS), jac=jac, x_scale=UNITS)
        for fun, jac in ((bowl, slope), (lambda x: bowl(x), lambda x: slope(x)))
    )
    assert one.status is two.status is lx.Status.GRADIENT and one.nit == two.nit
