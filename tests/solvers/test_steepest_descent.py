"""Steepest descent with a line search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status, problems
from lbfgs_xp.line_search import NAMES as RULES
from lbfgs_xp.solvers.steepest_descent import SteepestDescent
from tests.backends import Backend

# Finds the minimum along each line.
EXACT = SteepestDescent(lx.MoreThuente(c1=1e-7, c2=1e-6))


def make(name: str, backend: Backend, dtype: str = "float64", **more: Any) -> problems.Problem:
    return problems.ALL[name](
        xp=backend.xp, device=backend.device, dtype=backend.dtype(dtype), **more
    )


def bowl(scales: Any) -> Any:
    """(..., n) -> value and gradient of sum(scales x^2) / 2."""

    def fun(x: Any) -> tuple[Any, Any]:
        t = x * scales
        # The sum over two variables, without a reduction.
        return 0.5 * (x[..., 0] * t[..., 0] + x[..., 1] * t[..., 1]), t

    return fun


# --- the classical method ----------------------------------------------------------------------


@pytest.mark.parametrize("condition", [3.0, 20.0])
def test_iterations_of_the_worst_start(backend: Backend, condition: float) -> None:
    """From (k, 1) each exact step shrinks the gradient (k, k) by exactly (k - 1) / (k + 1)."""
    res = lx.minimize(
        bowl(backend.asarray([1.0, condition])), backend.asarray([condition, 1.0]), jac=True,
        method=EXACT, gtol=1e-3 * condition,
    )
    rate = (condition - 1.0) / (condition + 1.0)
    assert res.status is Status.GRADIENT
    assert res.nit == math.ceil(math.log(1e-3) / math.log(rate))


def test_kantorovich_bounds_every_iteration() -> None:
    """Nocedal & Wright, eq. 3.29."""
    p = problems.quadratic(6, spectrum=[1.0, 2.0, 5.0, 6.0, 9.0, 12.0])
    assert p.minimum is not None
    errors = [float(p.fun(p.x0)) - p.minimum]
    lx.minimize(
        p.value_and_gradient, p.x0, jac=True, method=EXACT, maxiter=40, gtol=1e-4,
        callback=lambda record: errors.append(record.fun - p.minimum),
    )
    bound = (11.0 / 13.0) ** 2
    assert len(errors) > 10
    for before, after in zip(errors, errors[1:], strict=False):
        assert after <= bound * before * (1.0 + 1e-6)


def test_the_first_trial_is_the_step_of_barzilai_and_borwein() -> None:
    p = problems.rosenbrock(4)
    space, method = lx.Space(p.x0), SteepestDescent()
    state = method.init(space, p.x0, *p.value_and_gradient(p.x0))
    checked = 0
    for _ in range(60):
        old, state = state, method.step(space, state, *p.value_and_gradient(state.trial))
        s, y = state.x - old.x, state.gradient - old.gradient
        if state.accepted and s @ y > 0.0:
            assert state.search.alpha == pytest.approx((s @ s) / (s @ y), rel=1e-9)
            assert np.array_equal(state.direction, -state.gradient)
            checked += 1
    assert checked > 20


def test_a_fixed_step_is_taken_as_it_is(backend: Backend) -> None:
    p = make("rosenbrock", backend)
    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, maxiter=5, method=SteepestDescent(lx.Fixed(1e-3))
    )
    x = problems.rosenbrock(2).x0
    for _ in range(5):
        x = x - 1e-3 * problems.rosenbrock(2).value_and_gradient(x)[1]
    np.testing.assert_allclose(backend.to_numpy(res.x), x, rtol=1e-13)


# --- with every rule ---------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_reaches_the_minimum(backend: Backend, rule: str) -> None:
    p = make("himmelblau", backend)
    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, gtol=1e-3, method=SteepestDescent(rule)
    )
    assert res.status is Status.GRADIENT and res.fun < 1e-6
    assert res.nhev == 0 and res.hess_inv is None


@pytest.mark.parametrize("rule", [name for name in RULES if name != "fixed"])
def test_values_only_fall(rule: str) -> None:
    p = problems.rosenbrock(2)
    values = [float(p.fun(p.x0))]
    res = lx.minimize(
        p.value_and_gradient, p.x0, jac=True, maxiter=500, method=SteepestDescent(rule),
        callback=lambda record: values.append(record.fun),
    )
    assert all(b < a for a, b in zip(values, values[1:], strict=False))
    # The method is known to be slow here.
    assert res.status is Status.ITERATIONS and res.fun < 0.05


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes(backend: Backend, dtype: str) -> None:
    p = make("himmelblau", backend, dtype)
    res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=SteepestDescent())
    assert res.success and res.x.dtype == backend.dtype(dtype)


def test_automatic_differentiation(backend: Backend) -> None:
    if not backend.has_autodiff:
        pytest.skip("no automatic differentiation")
    p = make("himmelblau", backend)
    res = lx.minimize(p.fun, p.x0, method=SteepestDescent())
    assert res.status is Status.GRADIENT


# --- a batch -----------------------------------------------------------------------------------

COUNTS = ("nit", "nfev", "status", "gradient_norm")


@pytest.mark.sampled
@pytest.mark.parametrize("rule", RULES)
def test_rows_are_bitwise_single_runs(backend: Backend, rule: str) -> None:
    p = make("rosenbrock", backend, reproducible=True)
    starts = p.starts(3, scale=1.0)
    maxiter = 4 if backend.is_jax else 15 if backend.is_strict else 60
    settings: dict[str, Any] = {
        "jac": True, "reproducible": True, "maxiter": maxiter, "gtol": 0.0,
        "method": SteepestDescent(lx.Fixed(1e-3) if rule == "fixed" else rule),
    }
    batch = lx.minimize(p.value_and_gradient, starts, batched=True, **settings)
    for i in range(3):
        alone = lx.minimize(p.value_and_gradient, starts[i, ...], **settings)
        assert backend.to_numpy(batch.x)[i].tobytes() == backend.to_numpy(alone.x).tobytes()
        for name in COUNTS:
            assert backend.to_numpy(getattr(batch, name))[i] == getattr(alone, name), name


def test_the_same_bits_on_every_library(backend: Backend) -> None:
    ends = []
    for b in (Backend.NUMPY, backend):
        p = make("rosenbrock", b, reproducible=True)
        res = lx.minimize(
            p.value_and_gradient, p.x0, jac=True, reproducible=True, maxiter=20,
            method=SteepestDescent(lx.MoreThuente()),
        )
        ends.append((b.to_numpy(res.x).tobytes(), res.fun, res.nfev))
    assert ends[0] == ends[1]


def test_a_batch_in_default_mode(backend: Backend) -> None:
    """On JAX it is compiled as a whole."""
    p = make("himmelblau", backend)
    starts = p.starts(4, scale=0.5)
    res = lx.minimize(
        p.value_and_gradient, starts, jac=True, batched=True, gtol=1e-6, method=SteepestDescent()
    )
    assert np.all(backend.to_numpy(res.success))
    for i in range(4):
        alone = lx.minimize(
            p.value_and_gradient, starts[i, ...], jac=True, gtol=1e-6, method=SteepestDescent()
        )
        np.testing.assert_allclose(
            backend.to_numpy(res.x)[i], backend.to_numpy(alone.x), atol=1e-6
        )
        assert backend.to_numpy(res.status)[i] == alone.status
        assert abs(int(backend.to_numpy(res.nfev)[i]) - alone.nfev) <= 2


# --- difficult functions -----------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_regions_without_a_value(rule: str, batched: bool) -> None:
    def fun(x: np.ndarray) -> Any:  # nan where x < 0
        return np.sum(x - np.log(x), -1), 1.0 - 1.0 / x

    x0 = np.asarray([[0.01, 3.0], [2.0, 1e-3]])
    with np.errstate(invalid="ignore"):
        for start in [x0] if batched else x0:
            res = lx.minimize(
                fun, start, jac=True, batched=batched, method=SteepestDescent(rule), gtol=1e-6
            )
            if rule != "fixed":
                assert np.all(res.success) and np.allclose(res.x, 1.0, atol=1e-5)
            assert np.all(np.isfinite(res.fun)) and np.all(res.fun <= fun(start)[0])


@pytest.mark.parametrize("rule", ["bisection", "strong_wolfe", "more_thuente", "hager_zhang"])
def test_no_bound(backend: Backend, rule: str) -> None:
    def fun(x: Any) -> Any:
        return -(x[..., 0] + 2.0 * x[..., 1]), slope + 0.0 * x

    slope = backend.asarray([-1.0, -2.0])
    method = SteepestDescent(rule)
    res = lx.minimize(fun, backend.asarray([0.0, 1.0]), jac=True, method=method)
    assert res.status is Status.UNBOUNDED
    if not backend.is_jax:  # JAX would compile for each rule
        x0 = backend.asarray([[0.0, 1.0], [1.0, 2.0]])
        res = lx.minimize(fun, x0, jac=True, method=method, batched=True)
        assert np.all(backend.to_numpy(res.status) == Status.UNBOUNDED)


def test_no_bound_by_short_steps_spends_the_budget() -> None:
    res = lx.minimize(
        lambda x: (-x[0], -np.ones(1)), np.ones(1), jac=True, maxiter=100,
        method=SteepestDescent("armijo"),
    )
    assert res.status in (Status.ITERATIONS, Status.UNBOUNDED) and res.fun < -100.0


@pytest.mark.parametrize("rule", RULES)
def test_kinks_end(rule: str) -> None:
    def fun(x: np.ndarray) -> Any:
        return np.sum(scales * np.abs(x)), scales * np.sign(x)

    scales = np.asarray([1.0, 10.0])
    method = SteepestDescent(lx.Fixed(0.01) if rule == "fixed" else rule)
    res = lx.minimize(fun, np.asarray([1.0, 0.3]), jac=True, method=method)
    assert res.nfev < 1000 and res.fun <= 4.0
    # A kink away from the minimum is not a success.
    assert res.success == (res.gradient_norm == 0.0)


def test_ends_at_once() -> None:
    p, method = problems.rosenbrock(2), SteepestDescent()
    res = lx.minimize(p.value_and_gradient, np.ones(2), jac=True, method=method)
    assert res.status is Status.GRADIENT and res.nit == 0
    res = lx.minimize(lambda x: (math.nan, x), np.ones(2), jac=True, method=method)
    assert res.status is Status.NOT_FINITE


def test_a_wrong_sign_is_told() -> None:
    p = problems.rosenbrock(2)
    res = lx.minimize(
        p.fun, p.x0, jac=lambda x: -p.value_and_gradient(x)[1], method=SteepestDescent()
    )
    assert res.status is Status.LINE_SEARCH and np.array_equal(res.x, p.x0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="line_search is 'wolf'; "):
        SteepestDescent("wolf")
    with pytest.raises(TypeError, match="line_search is 0.1; wanted a name or a LineSearch object"):
        SteepestDescent(0.1)  # type: ignore[arg-type]
    p = problems.rosenbrock(2)
    with pytest.raises(ValueError, match="SteepestDescent needs none; wanted hess=None"):
        lx.minimize(
            p.value_and_gradient, p.x0, jac=True, method=SteepestDescent(), hess=lambda x: x
        )
    first = lx.minimize(p.value_and_gradient, p.x0, jac=True, method="bfgs", maxiter=3)
    with pytest.raises(ValueError, match="method; wanted the state of SteepestDescent"):
        lx.minimize(
            p.value_and_gradient, p.x0, jac=True, method=SteepestDescent(), state=first.state
        )
