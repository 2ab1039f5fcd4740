"""The L1 penalty in L-BFGS: oracles, conditions of first order, exact zeros, every library."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend


class Lasso:
    """|A x - b|^2 / 2 for one vector or rows (..., n), with the gradient; few of n coefficients
    are not 0."""

    def __init__(self, m: int, n: int, seed: int):
        rng = np.random.default_rng(seed)
        self.a = rng.normal(size=(m, n))
        truth = np.where(rng.uniform(size=n) < 0.3, rng.normal(size=n), 0.0)
        self.b = self.a @ truth + 0.1 * rng.normal(size=m)
        self.calls = 0

    def __call__(self, x: np.ndarray) -> Any:
        self.calls += 1
        r = x @ self.a.T - self.b
        return 0.5 * np.sum(r * r, axis=-1), r @ self.a

    def solution(self, weight: Any, lower: Any = -np.inf, upper: Any = np.inf) -> np.ndarray:
        """By coordinate descent, to rounding."""
        (_, n), a = self.a.shape, self.a
        weight, lower, upper = (np.broadcast_to(v, n) for v in (weight, lower, upper))
        x = np.clip(np.zeros(n), lower, upper)
        r, size = self.b - a @ x, np.sum(a * a, axis=0)
        for _ in range(5000):
            before = x.copy()
            for j in range(n):
                c = a[:, j] @ r + size[j] * x[j]
                new = np.sign(c) * max(abs(c) - weight[j], 0.0) / size[j]
                new = min(max(new, lower[j]), upper[j])
                r -= a[:, j] * (new - x[j])
                x[j] = new
            if np.max(np.abs(x - before)) < 1e-14:
                return x
        raise AssertionError("coordinate descent has not converged")


def rosenbrock(x: Any) -> Any:
    """Chains of pairs for rows (..., n), with the gradient."""
    t, u = x[..., 1::2] - x[..., ::2] ** 2, 1.0 - x[..., ::2]
    g = np.stack([-400.0 * x[..., ::2] * t - 2.0 * u, 200.0 * t], axis=-1)
    return lx.fixed_sum(100.0 * t * t + u * u), g.reshape(x.shape)


def pseudo_gradient(x: np.ndarray, gradient: np.ndarray, weight: Any) -> np.ndarray:
    """The subgradient of least norm of fun + sum(weight |x|)."""
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - weight, 0.0)
    return np.where(x == 0.0, at_zero, gradient + weight * np.sign(x))


def total(fun: Any, x: np.ndarray, weight: Any) -> Any:
    return fun(x)[0] + np.sum(weight * np.abs(x), axis=-1)


@pytest.mark.parametrize("seed", range(6))
def test_lasso_against_coordinate_descent(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    fun = Lasso(30, 12, seed)
    weight = 10.0 ** rng.uniform(-1.0, 1.0) * (rng.uniform(size=12) < 0.8)
    start = 3.0 * rng.normal(size=12) if seed % 2 else np.zeros(12)
    for bounds in (None, (-0.2, 0.3), (np.where(np.arange(12) % 2 == 0, 0.0, -0.1), None)):
        res = lx.minimize(fun, start, jac=True, l1=weight, bounds=bounds, gtol=1e-9)
        lower, upper = bounds or (None, None)
        lower = -np.inf if lower is None else lower
        x = fun.solution(weight, lower, np.inf if upper is None else upper)
        assert res.success
        np.testing.assert_allclose(res.x, x, atol=1e-8)
        assert np.array_equal(res.x == 0.0, x == 0.0)
        assert res.fun == pytest.approx(total(fun, res.x, weight), rel=1e-13)
        np.testing.assert_allclose(res.jac, fun(res.x)[1], atol=1e-10)    # of the smooth part
        assert np.all(res.x >= lower)


@pytest.mark.parametrize("seed", range(4))
def test_conditions_of_first_order(seed: int) -> None:
    """Of functions that are not quadratic: the logistic loss with an intercept, and Rosenbrock's
    valleys."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(80, 20))
    signs = np.where(features @ (rng.normal(size=20) * (np.arange(20) < 4)) + 0.5 > 0.0, 1.0, -1.0)

    def loss(p: Any) -> Any:
        margins = signs * (features @ p["w"] + p["b"])
        s = -signs * np.exp(-np.logaddexp(0.0, margins))
        value = np.sum(np.logaddexp(0.0, -margins))
        return value, {"w": features.T @ s, "b": np.sum(s)}

    start = {"w": rng.normal(size=20) * (seed % 2), "b": np.zeros(())}
    res = lx.minimize(loss, start, jac=True, l1={"w": 2.0}, gtol=1e-8)
    assert res.success and 0 < np.count_nonzero(res.x["w"]) < 20
    assert np.max(np.abs(pseudo_gradient(res.x["w"], res.jac["w"], 2.0))) <= 1e-8
    assert abs(res.jac["b"]) <= 1e-8 and res.x["b"] != 0.0
    for weight in (0.1, 2.0, 50.0):
        res = lx.minimize(rosenbrock, 2.0 * rng.normal(size=6), jac=True, l1=weight, gtol=1e-8)
        slopes = pseudo_gradient(res.x, res.jac, weight)
        assert res.success and np.max(np.abs(slopes)) == res.gradient_norm <= 1e-8


def test_a_path_of_weights_in_one_call() -> None:
    fun, weights = Lasso(40, 15, 7), np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 24)])
    res = lx.minimize(fun, np.zeros((25, 15)), jac=True, l1=weights, batched=True, gtol=1e-9)
    assert res.success.all()
    counts = np.count_nonzero(res.x, axis=1)
    assert counts[0] == 15 and counts[-1] == 0 and np.all(np.diff(counts) <= 1)
    np.testing.assert_allclose(res.fun, total(fun, res.x, weights[:, None]), rtol=1e-12)
    for i in (3, 12, 18):
        np.testing.assert_allclose(res.x[i], fun.solution(weights[i]), atol=1e-8)
    # Weights of each variable, too, and in nested parameters.
    each = weights[:, None] * (np.arange(15) > 0)
    two = lx.minimize(fun, np.zeros((25, 15)), jac=True, l1=each, batched=True, gtol=1e-9)

    def nested(p: Any) -> Any:
        value, g = fun(np.concatenate([p["b"][:, None], p["w"]], axis=1))
        return value, {"b": g[:, 0], "w": g[:, 1:]}

    three = lx.minimize(
        nested, {"b": np.zeros(25), "w": np.zeros((25, 14))}, jac=True, l1={"w": weights},
        batched=True, gtol=1e-9,
    )
    assert two.success.all() and three.success.all() and np.all(two.x[:, 0] != 0.0)
    np.testing.assert_allclose(three.x["w"], two.x[:, 1:], atol=1e-8)
    assert np.array_equal(three.x["w"] == 0.0, two.x[:, 1:] == 0.0)


@pytest.mark.parametrize("bounds", [None, (-0.5, 0.3)])
def test_a_batch_is_its_rows(bounds: Any) -> None:
    starts = 2.0 * np.random.default_rng(2).normal(size=(8, 4))
    weights = np.concatenate([[0.0], np.geomspace(1e-2, 1e2, 7)])
    how: dict[str, Any] = {"jac": True, "bounds": bounds, "reproducible": True}
    batch = lx.minimize(rosenbrock, starts, l1=weights, batched=True, **how)
    assert batch.success.all()
    for i in range(8):
        one = lx.minimize(rosenbrock, starts[i], l1=weights[i], method="lbfgs", **how)
        assert batch.x[i].tobytes() == one.x.tobytes() and batch.fun[i] == one.fun
        assert (batch.nit[i], batch.nfev[i], batch.status[i]) == (one.nit, one.nfev, one.status)


def penalised_bowl(backend: Backend, rows: int = 0) -> Any:
    """(fun, x0, weights, solution)."""
    a = np.diag([1.0, 4.0, 2.0, 8.0]) + 0.5
    center, weight = np.asarray([2.0, -3.0, 0.5, 0.25]), np.asarray([0.0, 1.0, 1.0, 4.0])
    matrix, middle = backend.asarray(a), backend.asarray(center)

    def fun(x: Any) -> Any:
        d = x - middle
        g = lx.fixed_sum(d[..., None, :] * matrix)
        return 0.5 * lx.fixed_sum(d * g), g

    def solved(weight: np.ndarray) -> np.ndarray:
        x = np.zeros(4)
        for _ in range(300):    # coordinate descent
            for i in range(4):
                c = a[i, i] * x[i] - (a @ (x - center))[i]
                x[i] = np.sign(c) * max(abs(c) - weight[i], 0.0) / a[i, i]
        return x

    if not rows:
        x0 = backend.asarray(np.full(4, 5.0))
        return fun, x0, backend.asarray(weight), solved(weight)
    weights = weight * np.arange(rows)[:, None]
    x0 = backend.asarray(np.stack([np.full(4, 5.0 - k) for k in range(rows)]))
    return fun, x0, backend.asarray(weights), np.stack([solved(each) for each in weights])


@pytest.mark.parametrize("rows", [0, 3])
def test_every_library(backend: Backend, rows: int) -> None:
    fun, x0, weights, wanted = penalised_bowl(backend, rows)
    res = lx.minimize(fun, x0, jac=True, l1=weights, batched=rows > 0, gtol=1e-9)
    assert np.all(backend.to_numpy(res.success) if rows else res.success)
    assert type(res.x) is type(x0)
    found = backend.to_numpy(res.x)
    np.testing.assert_allclose(found, wanted, atol=1e-8)
    assert np.array_equal(found == 0.0, wanted == 0.0) and np.any(wanted == 0.0)


def test_the_same_bits_on_every_library() -> None:
    found = set()
    for backend in (b for b in Backend if not b.missing):
        fun, x0, weights, _ = penalised_bowl(backend)
        res = lx.minimize(fun, x0, jac=True, l1=weights, reproducible=True, maxiter=6)
        found.add(backend.to_numpy(res.x).tobytes())
    assert len(found) == 1


def bits(res: Any) -> tuple:
    return res.x.tobytes(), res.fun, res.nit, res.nfev, res.status


def test_weights_of_zero_change_nothing() -> None:
    start = np.asarray([-1.2, 1.0, 3.0, -2.0])
    free = lx.minimize(rosenbrock, start, jac=True)
    for weight in (0, 0.0, np.zeros(4), [0.0], -0.0):
        assert bits(lx.minimize(rosenbrock, start, jac=True, l1=weight)) == bits(free)
    # Any method takes them, and so does a complex start.
    assert lx.minimize(rosenbrock, start, jac=True, l1=0.0, method="bfgs").success


def test_large_weights_make_all_zero_at_once() -> None:
    for weight in (1e4, 1e8, 1e100):
        res = lx.minimize(rosenbrock, np.asarray([-1.2, 1.0, 3.0, -2.0]), jac=True, l1=weight)
        assert res.success and not res.x.any() and res.gradient_norm == 0.0 and res.nfev <= 5
        assert lx.minimize(rosenbrock, np.zeros(4), jac=True, l1=weight).nfev == 1


@pytest.mark.parametrize(
    "rule", ["armijo", "bisection", "strong_wolfe", "more_thuente", "hager_zhang"]
)
def test_line_searches(rule: Any) -> None:
    fun = Lasso(30, 12, 3)
    for initial in (None, 0.01, np.full(12, 0.01), lambda v: 0.01 * v):
        solver = lx.LBFGS(line_search=rule, initial_inverse_hessian=initial)
        res = lx.minimize(fun, np.zeros(12), jac=True, l1=3.0, method=solver, gtol=1e-8)
        assert res.success
        np.testing.assert_allclose(res.x, fun.solution(3.0), atol=1e-7)


@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_zeros_are_exact_with_any_learning_rate(rate: float) -> None:
    fun, solver = Lasso(60, 8, 4), lx.LBFGS(line_search=lx.Fixed(), learning_rate=rate)
    wanted = fun.solution(5.0)
    for batched in (False, True):
        start = np.zeros((2, 8)) + 1.0 if batched else np.ones(8)
        res = lx.minimize(
            fun, start, jac=True, l1=5.0, method=solver, batched=batched, maxiter=300
        )
        assert np.all(res.success)
        np.testing.assert_allclose(res.x, np.broadcast_to(wanted, start.shape), atol=1e-6)
        assert np.array_equal(res.x == 0.0, np.broadcast_to(wanted == 0.0, start.shape))


def test_records_hold_the_whole_objective_and_budgets_hold() -> None:
    fun, seen = Lasso(30, 12, 3), []

    def watch(record: Any) -> None:
        assert record.fun == pytest.approx(total(fun, record.x, 3.0), rel=1e-13)
        slopes = pseudo_gradient(record.x, fun(record.x)[1], 3.0)
        assert record.gradient_norm == pytest.approx(np.max(np.abs(slopes)), rel=1e-9, abs=1e-12)
        seen.append(record.fun)

    res = lx.minimize(fun, np.ones(12), jac=True, l1=3.0, callback=watch)
    assert len(seen) == res.nit and all(a >= b for a, b in zip(seen, seen[1:], strict=False))
    for most in range(1, res.nfev):
        fun.calls = 0
        cut = lx.minimize(fun, np.ones(12), jac=True, l1=3.0, maxfun=most)
        assert fun.calls == cut.nfev <= most and not cut.success
        assert cut.fun == pytest.approx(total(fun, cut.x, 3.0), rel=1e-13)


def test_going_on_equals_not_stopping() -> None:
    how: dict[str, Any] = {"jac": True, "l1": [0.1, 0.1, 2.0, 0.0], "gtol": 0.0}
    start = np.asarray([-1.2, 1.0, -1.2, 1.0])
    whole = lx.minimize(rosenbrock, start, maxiter=16, **how)
    first = lx.minimize(rosenbrock, start, maxiter=8, **how)
    state = pickle.loads(pickle.dumps(first.state))
    second = lx.minimize(rosenbrock, first.x, maxiter=8, state=state, **how)
    assert np.array_equal(second.x, whole.x) and second.fun == whole.fun
    # From there with other weights, with none, and with bounds as well.
    for l1, bounds in ((0.3, None), (None, None), (0.2, (None, 0.5)), (None, (0.1, None))):
        other = lx.minimize(
            rosenbrock, first.x, state=state, jac=True, l1=l1, bounds=bounds, gtol=1e-8
        )
        fresh = lx.minimize(rosenbrock, first.x, jac=True, l1=l1, bounds=bounds, gtol=1e-8)
        assert other.success
        np.testing.assert_allclose(other.x, fresh.x, atol=1e-6)


def test_a_saved_state_knows_its_weights(tmp_path: Any) -> None:
    def bowl(x: Any) -> Any:
        return np.sum((x - 2.0) ** 2), 2.0 * (x - 2.0)

    first = lx.minimize(bowl, np.zeros(3), jac=True, l1=4.5)
    lx.save(tmp_path / "state.npz", first.state)
    state = lx.load(tmp_path / "state.npz", like=first.x)
    for l1 in (4.5, 1.0, [0.0, 1.0, 9.0]):    # at 0, where all weights give the same value
        for known in (first.state, state):
            res = lx.minimize(bowl, first.x, jac=True, l1=l1, state=known)
            assert res.success
            wanted = np.maximum(2.0 - 0.5 * np.asarray(l1), 0.0)
            np.testing.assert_allclose(res.x, np.broadcast_to(wanted, 3), atol=1e-7)
    checkpoint = lx.Checkpoint(tmp_path / "run.npz", seconds=0.0)
    lx.minimize(bowl, np.ones(3), jac=True, l1=1.0, maxiter=1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="l1"):
        lx.minimize(bowl, np.ones(3), jac=True, l1=2.0, maxiter=1, checkpoint=checkpoint)


def test_the_inverse_hessian_is_that_of_the_nonzero_variables() -> None:
    fun = Lasso(30, 8, 5)
    res = lx.minimize(
        fun, np.zeros(8), jac=True, l1=2.0, method=lx.LBFGS(memory_size=30), gtol=1e-10
    )
    free = res.x != 0.0
    assert 1 < np.count_nonzero(free) < 8
    matrix = res.hess_inv.todense()
    assert not matrix[~free].any() and not matrix[:, ~free].any()
    wanted = np.linalg.inv((fun.a.T @ fun.a)[np.ix_(free, free)])
    np.testing.assert_allclose(matrix[np.ix_(free, free)], wanted, atol=2e-3)


def test_at_a_gradient_of_0_the_inverse_hessian_is_kept() -> None:
    def bowl(x: Any) -> Any:
        return 2.0 * np.sum((x - 1.0) ** 2, axis=-1), 4.0 * (x - 1.0)

    for batched in (False, True):
        for l1 in (None, 2.0):
            start = np.full((2, 1) if batched else 1, 4.0)
            res = lx.minimize(bowl, start, jac=True, l1=l1, batched=batched, method="lbfgs")
            assert np.all(res.success) and np.all(res.gradient_norm == 0.0)
            np.testing.assert_allclose(res.hess_inv.todense(), 0.25)


def test_differences_are_those_of_the_smooth_part() -> None:
    fun = Lasso(30, 6, 5)
    for jac in ("2-point", "3-point"):
        res = lx.minimize(lambda x: fun(x)[0], np.zeros(6), jac=jac, l1=5.0)
        assert res.success
        np.testing.assert_allclose(res.x, fun.solution(5.0), atol=1e-6)
        assert np.array_equal(res.x == 0.0, fun.solution(5.0) == 0.0)


def test_scaled_variables_and_phases() -> None:
    fun, units = Lasso(30, 12, 3), np.geomspace(1e-2, 1e2, 12)
    phases = [lx.LBFGS(memory_size=3).until(maxiter=4), lx.LBFGS(line_search=lx.HagerZhang())]
    for how in ({"x_scale": units}, {"method": phases}):
        res = lx.minimize(fun, np.ones(12), jac=True, l1=3.0, gtol=1e-9, **how)
        assert res.success
        np.testing.assert_allclose(res.x, fun.solution(3.0), atol=1e-7)


def test_wrong_gradients_and_kinks_are_no_success() -> None:
    fun = Lasso(30, 12, 3)
    for wrong in (
        lambda v, g, x: (v, -g),
        lambda v, g, x: (v, 1.5 * g + 1.0),
        lambda v, g, x: (v + 5.0 * np.sum(np.abs(x - 0.01)), g + 5.0 * np.sign(x - 0.01)),
    ):
        res = lx.minimize(
            lambda x, f=wrong: f(*fun(x), x), np.zeros(12), jac=True, l1=3.0, maxiter=300
        )
        assert not res.success


def test_odd_starts_and_domains() -> None:
    def bowl(x: Any) -> Any:
        return np.sum((x - 2.0) ** 2), 2.0 * (x - 2.0)

    assert lx.minimize(bowl, np.asarray(5.0), jac=True, l1=1.0).x == pytest.approx(1.5)
    single = lx.minimize(bowl, np.full(1, 5.0, dtype=np.float32), jac=True, l1=1.0)
    assert single.success and single.x.dtype == np.float32 and single.x[0] == 1.5
    strided = lx.minimize(bowl, np.zeros(8)[::2], jac=True, l1=np.arange(8.0)[::2])
    np.testing.assert_allclose(strided.x, [2.0, 1.0, 0.0, 0.0], atol=1e-7)
    fixed = lx.minimize(bowl, np.zeros(3), jac=True, l1=1.0, bounds=(0.25, 0.25))
    assert fixed.success and np.array_equal(fixed.x, np.full(3, 0.25)) and fixed.nfev == 1
    # Without a lower bound, and with one because of the penalty.
    for weight, status in ((0.5, "UNBOUNDED"), (1.5, "GRADIENT")):
        res = lx.minimize(lambda x: (-x.sum(), -np.ones(3)), np.ones(3), jac=True, l1=weight)
        assert res.status.name == status

    def logarithm(x: Any) -> Any:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sum(3.0 * x - np.log(x)), 3.0 - 1.0 / x    # nan for x < 0

    res = lx.minimize(logarithm, np.asarray([5.0, 0.01]), jac=True, l1=1.0)
    assert res.success
    np.testing.assert_allclose(res.x, 0.25, atol=1e-7)


def test_bad_weights() -> None:
    def refused(error: type, match: str, x0: Any = None, **how: Any) -> None:
        x0 = np.zeros(4) if x0 is None else x0
        with pytest.raises(error, match=match):
            lx.minimize(rosenbrock, x0, jac=True, **how)

    wanted = "wanted finite numbers of at least 0"
    refused(ValueError, f"l1 is -1.0; {wanted}", l1=-1)
    refused(ValueError, f"l1 is nan; {wanted}", l1=np.nan)
    refused(ValueError, f"l1 at index 2 is -3.0; {wanted}", l1=[0.0, 1.0, -3.0, np.nan])
    refused(ValueError, f"l1 at index 1 is inf; {wanted}", l1=[0.0, np.inf, 1.0, 1.0])
    refused(ValueError, r"l1 has shape \(3,\); wanted one that broadcasts to \(4,\)", l1=[1.0] * 3)
    refused(TypeError, "l1 is 'strong'; wanted finite", l1="strong")
    refused(TypeError, "x0 is complex; wanted real x0", np.zeros(4, dtype=complex), l1=1.0)
    nested = {"w": np.zeros(3), "b": np.zeros(())}
    refused(ValueError, f"l1.w at index 1 is -1.0; {wanted}", nested,
            l1={"w": np.asarray([0.0, -1.0, 1.0])})
    refused(ValueError, f"l1.b is -1.0; {wanted}", nested, l1={"b": -1.0})
    refused(ValueError, "l1 names 'c'; wanted names of x0", nested, l1={"c": 1.0})
    rows = np.zeros((3, 4))
    refused(ValueError, r"l1 has shape \(4,\); wanted \(3,\), a number for each problem", rows,
            l1=np.ones(4), batched=True)
    refused(ValueError, f"l1 at index 1 is -2.0; {wanted}", rows, l1=[1.0, -2.0, 1.0],
            batched=True)
    for method in ("bfgs", "adam", "projected_gradient", "gradient_descent", "newton"):
        refused(ValueError, 'takes no penalty; wanted l1=None, or method="lbfgs"', l1=1.0,
                method=method)
    refused(ValueError, "Adam takes no penalty", l1=1.0, method=[lx.LBFGS(), lx.Adam()])
