"""Bounds in L-BFGS and BFGS: oracles, feasible trials, free runs bitwise, every library."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

METHODS = ["lbfgs", "bfgs"]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


class Watched:
    """A function that refuses to be evaluated outside the bounds."""

    def __init__(self, fun: Any, lower: Any, upper: Any):
        self.fun, self.lower, self.upper, self.calls = fun, lower, upper, 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        assert np.all(x >= self.lower) and np.all(x <= self.upper)
        return self.fun(x)


def rosenbrock(x: Any) -> Any:
    """Chains of pairs for rows (..., n), with the gradient."""
    t, u = x[..., 1::2] - x[..., ::2] ** 2, 1.0 - x[..., ::2]
    g = np.stack([-400.0 * x[..., ::2] * t - 2.0 * u, 200.0 * t], axis=-1)
    return lx.fixed_sum(100.0 * t * t + u * u), g.reshape(x.shape)


class Quadratic:
    """x . A x / 2 - b . x with a random positive definite A."""

    def __init__(self, n: int, seed: int):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(n, n))
        self.a = root @ root.T + 0.1 * np.eye(n)
        self.b = self.a @ rng.normal(size=n)
        self.lower, self.upper = -rng.uniform(0.0, 1.0, n), rng.uniform(0.0, 1.0, n)

    def __call__(self, x: np.ndarray) -> Any:
        product = self.a @ x
        return float(0.5 * x @ product - self.b @ x), product - self.b

    def solution(self) -> np.ndarray:
        """By trying every set of active bounds: the one whose multipliers have the right signs."""
        n = len(self.b)
        for active in itertools.product((-1, 0, 1), repeat=n):
            where = np.asarray(active)
            x = np.where(where < 0, self.lower, np.where(where > 0, self.upper, 0.0))
            free = where == 0
            if free.any():
                right = (self.b - self.a @ x)[free]
                x[free] = np.linalg.solve(self.a[np.ix_(free, free)], right)
            gradient = self.a @ x - self.b
            inside = np.all((x >= self.lower - 1e-12) & (x <= self.upper + 1e-12))
            if inside and np.all(gradient[where < 0] >= 0) and np.all(gradient[where > 0] <= 0):
                return x
        raise AssertionError("no set of active bounds satisfies the conditions")


@pytest.mark.parametrize("seed", range(8))
def test_quadratics_against_all_active_sets(method: str, seed: int) -> None:
    problem = Quadratic(5, seed)
    fun = Watched(problem, problem.lower, problem.upper)
    res = lx.minimize(
        fun, np.full(5, 3.0), jac=True, method=method, bounds=(problem.lower, problem.upper)
    )
    x = problem.solution()
    assert res.success
    np.testing.assert_allclose(res.x, x, atol=1e-6)
    wanted = np.where(x == problem.lower, -1, np.where(x == problem.upper, 1, 0))
    assert np.array_equal(res.active, wanted) and res.active.dtype == np.int8
    assert np.all(res.jac * res.active <= 0.0)
    assert res.gradient_norm == np.max(np.abs(res.jac * (res.active == 0)))


@pytest.mark.parametrize("n", [2, 30])
def test_conditions_of_first_order(method: str, n: int) -> None:
    for seed in range(3):
        problem = Quadratic(n, 100 + seed)
        fun = Watched(problem, problem.lower, problem.upper)
        res = lx.minimize(
            fun, np.zeros(n), jac=True, method=method, bounds=(problem.lower, problem.upper),
            gtol=1e-8,
        )
        projected = np.clip(res.x - res.jac, problem.lower, problem.upper) - res.x
        assert res.success and np.max(np.abs(projected)) <= 1e-8


def bits(res: Any) -> tuple:
    return res.x.tobytes(), res.fun, res.nit, res.nfev, res.status


def test_where_no_bound_is_active_the_run_is_the_free_one(method: str) -> None:
    for start in ([-1.2, 1.0, -1.2, 1.0], [3.0, -2.0, 0.5, 0.0]):
        free = lx.minimize(rosenbrock, np.asarray(start), jac=True, method=method)
        for bounds in ((-1e3, 1e3), (None, 50.0), (np.full(4, -40.0), np.inf)):
            res = lx.minimize(rosenbrock, np.asarray(start), jac=True, method=method, bounds=bounds)
            assert bits(res) == bits(free)
            assert not res.active.any()


def test_a_batch_is_its_rows_each_with_its_own_bounds(method: str) -> None:
    rng = np.random.default_rng(2)
    starts = 2.0 * rng.normal(size=(6, 4))
    lower, upper = -1.5 + rng.uniform(size=(6, 4)), 0.2 + 2.0 * rng.uniform(size=(6, 4))
    batch = lx.minimize(
        rosenbrock, starts, jac=True, method=method, bounds=(lower, upper), batched=True,
        reproducible=True,
    )
    assert batch.success.all() and batch.active.any()
    for i in range(6):
        one = lx.minimize(
            rosenbrock, starts[i], jac=True, method=method, bounds=(lower[i], upper[i]),
            reproducible=True,
        )
        assert batch.x[i].tobytes() == one.x.tobytes()
        assert (batch.nit[i], batch.nfev[i], batch.status[i]) == (one.nit, one.nfev, one.status)
        assert np.array_equal(batch.active[i], one.active)


def test_an_infinite_gradient_at_the_bound_that_is_the_minimum(method: str) -> None:
    def root(x: np.ndarray) -> Any:
        with np.errstate(divide="ignore"):
            return np.sum(x + np.sqrt(x)), 1.0 + 0.5 / np.sqrt(x)

    res = lx.minimize(root, np.full(3, 2.0), jac=True, method=method, bounds=(0.0, None))
    assert res.status is lx.Status.GRADIENT and not res.x.any() and np.all(res.active == -1)


@pytest.mark.parametrize("l1", [None, 0.3])
def test_a_batch_is_its_rows_after_its_pairs_were_dropped(l1: float | None) -> None:
    rng = np.random.default_rng(2)
    a, c = rng.normal(size=(5, 5)), 3.0 * rng.normal(size=5)
    starts = 2.0 * rng.normal(size=(4, 5))
    lower = np.where(rng.uniform(size=(4, 5)) < 0.5, -rng.uniform(size=(4, 5)), -np.inf)
    upper = np.where(rng.uniform(size=(4, 5)) < 0.5, rng.uniform(size=(4, 5)), np.inf)

    def kinks(x: np.ndarray) -> Any:
        y = lx.fixed_sum(x[..., None, :] * a) - c
        g = lx.fixed_sum(np.sign(y)[..., None, :] * a.T) + 0.01 * x
        return lx.fixed_sum(np.abs(y)) + 0.005 * lx.fixed_sum(x * x), g

    settings: Any = dict(
        jac=True, method=lx.LBFGS(memory_size=3), reproducible=True, maxiter=60, l1=l1
    )
    batch = lx.minimize(kinks, starts, bounds=(lower, upper), batched=True, **settings)
    for i in (0, 1):
        one = lx.minimize(kinks, starts[i], bounds=(lower[i], upper[i]), **settings)
        assert batch.x[i].tobytes() == one.x.tobytes() and batch.nfev[i] == one.nfev


@pytest.mark.parametrize("rows", [0, 2])
def test_a_function_that_falls_for_ever_within_bounds(method: str, rows: int) -> None:
    def falling(x: np.ndarray) -> Any:    # only the first variable has a curvature
        g = np.ones_like(x)
        with np.errstate(over="ignore", invalid="ignore"):
            g[..., 0], g[..., 1] = 4.0 * x[..., 0] ** 3, -1.0
            return x[..., 0] ** 4 - x[..., 1] + x[..., 2], g

    start = np.asarray([2.0, 1.0, 0.0])
    for bounds in (([-1.0, -3.0, -1.0], None), ([0.5, -9.0, -1.0], [1.0, np.inf, 2.0])):
        res = lx.minimize(
            falling, np.stack([start] * rows) if rows else start, jac=True, method=method,
            bounds=bounds, batched=rows > 0,
        )
        assert np.all(np.asarray(res.status) == lx.Status.UNBOUNDED)
        assert np.all(np.asarray(res.nfev) < 1000)


def bowl_in_a_box(backend: Backend, rows: int = 0) -> Any:
    """A quadratic with coupled variables, for one problem or rows; (fun, x0, bounds, solution)."""
    a = np.diag([1.0, 4.0, 2.0, 8.0]) + 0.5
    center = np.asarray([2.0, -3.0, 0.5, 0.25])
    lower, upper = np.asarray([-np.inf, -1.0, -1.0, 0.5]), np.asarray([1.0, 1.0, 1.0, np.inf])
    matrix, middle = backend.asarray(a), backend.asarray(center)

    def fun(x: Any) -> Any:
        d = x - middle
        g = lx.fixed_sum(d[..., None, :] * matrix)
        return 0.5 * lx.fixed_sum(d * g), g

    x = np.asarray([1.0, -1.0, 0.0, 0.5])
    for _ in range(200):    # coordinate descent
        for i in range(4):
            x[i] = np.clip(x[i] - (a @ (x - center))[i] / a[i, i], lower[i], upper[i])
    x0 = np.asarray([5.0, 5.0, 5.0, 5.0])
    x0 = np.stack([x0 + k for k in range(rows)]) if rows else x0
    return fun, backend.asarray(x0), (backend.asarray(lower), backend.asarray(upper)), x


@pytest.mark.sampled
@pytest.mark.parametrize("rows", [0, 3])
def test_every_library(backend: Backend, method: str, rows: int) -> None:
    fun, x0, bounds, wanted = bowl_in_a_box(backend, rows)
    seen = []

    def watched(x: Any) -> Any:
        seen.append(backend.to_numpy(x))
        return fun(x)

    res = lx.minimize(watched, x0, jac=True, method=method, bounds=bounds, batched=rows > 0)
    assert np.all(backend.to_numpy(res.success) if rows else res.success)
    assert type(res.x) is type(x0)
    found = backend.to_numpy(res.x)
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1e-6)
    lower, upper = map(backend.to_numpy, bounds)
    assert all(np.all((x >= lower) & (x <= upper)) for x in seen)
    active = backend.to_numpy(res.active)
    assert np.array_equal(active, np.broadcast_to([1, -1, 0, -1], active.shape))


def test_the_same_bits_on_every_library(method: str) -> None:
    found = set()
    for backend in (b for b in Backend if not b.missing):
        fun, x0, bounds, _ = bowl_in_a_box(backend)
        res = lx.minimize(
            fun, x0, jac=True, method=method, bounds=bounds, reproducible=True, maxiter=6
        )
        found.add(backend.to_numpy(res.x).tobytes())
    assert len(found) == 1


def test_going_on_equals_not_stopping(method: str) -> None:
    how: dict[str, Any] = {
        "jac": True, "method": method, "bounds": (None, [0.5, 2.0, 0.8, 2.0]), "gtol": 0.0,
    }
    start = np.asarray([-1.2, 1.0, -1.2, 1.0])
    whole = lx.minimize(rosenbrock, start, maxiter=20, **how)
    first = lx.minimize(rosenbrock, start, maxiter=10, **how)
    state = pickle.loads(pickle.dumps(first.state))
    second = lx.minimize(rosenbrock, first.x, maxiter=10, state=state, **how)
    assert np.array_equal(second.x, whole.x) and second.fun == whole.fun
    # From there with other bounds, and with none.
    for bounds in ((0.9, 1.0), None, (None, [2.0, 2.0, 0.6, 2.0])):
        how["bounds"] = bounds
        other = lx.minimize(rosenbrock, first.x, state=state, jac=True, method=method,
                            bounds=bounds)
        fresh = lx.minimize(rosenbrock, first.x, jac=True, method=method, bounds=bounds)
        assert other.success
        np.testing.assert_allclose(other.x, fresh.x, atol=1e-5)


def test_the_inverse_hessian_of_the_free_variables(method: str) -> None:
    problem = Quadratic(5, 3)
    problem.lower[:3], problem.upper[:3] = -9.0, 9.0
    solver = lx.LBFGS(memory_size=30) if method == "lbfgs" else lx.BFGS()
    res = lx.minimize(
        problem, np.zeros(5), jac=True, method=solver, bounds=(problem.lower, problem.upper),
        gtol=1e-10,
    )
    free = res.active == 0
    assert 1 < np.count_nonzero(free) < 5
    matrix = res.hess_inv.todense()
    assert not matrix[~free].any() and not matrix[:, ~free].any()
    wanted = np.linalg.inv(problem.a[np.ix_(free, free)])
    np.testing.assert_allclose(matrix[np.ix_(free, free)], wanted, rtol=0.2, atol=0.02)
    vector = np.arange(5.0)
    np.testing.assert_allclose(res.hess_inv @ vector, matrix @ vector, atol=1e-12)
    np.testing.assert_allclose(res.hess_inv.diagonal(), np.diag(matrix), atol=1e-12)


def test_equal_bounds_fix_a_variable(method: str) -> None:
    lower, upper = [0.5, -np.inf, 0.7, -3.0], [0.5, np.inf, 0.7, 0.4]
    res = lx.minimize(rosenbrock, np.zeros(4), jac=True, method=method, bounds=(lower, upper))
    assert res.success
    np.testing.assert_allclose(res.x, [0.5, 0.25, 0.7, 0.4], atol=1e-7)
    assert np.array_equal(res.active, [1, 0, -1, 1])
    fixed = lx.minimize(rosenbrock, np.zeros(4), jac=True, method=method, bounds=(0.3, 0.3))
    assert fixed.success and np.array_equal(fixed.x, np.full(4, 0.3)) and fixed.nfev == 1


def test_nan_beyond_a_point_counts_as_too_far(method: str) -> None:
    """-log(x) + x, whose value is infinite at the bound 0; and one that is nan there."""
    for at_zero in (np.inf, np.nan):

        def fun(x: np.ndarray, at_zero: float = at_zero) -> Any:
            assert np.all(x >= 0.0)
            if np.any(x == 0.0):
                return at_zero, np.full_like(x, np.nan)
            return float(np.sum(x - np.log(x))), 1.0 - 1.0 / x

        res = lx.minimize(
            fun, np.asarray([30.0, 0.01]), jac=True, method=method, bounds=(0.0, None)
        )
        assert res.success
        np.testing.assert_allclose(res.x, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    "rule", ["armijo", "bisection", "strong_wolfe", "more_thuente", "hager_zhang"]
)
def test_no_line_search_leaves_the_box(method: str, rule: Any) -> None:
    upper = np.asarray([0.5, 2.0, 0.8, 0.3])
    solver = (lx.LBFGS if method == "lbfgs" else lx.BFGS)(line_search=rule)
    fun = Watched(rosenbrock, -2.0, upper)
    res = lx.minimize(
        fun, np.asarray([-1.2, 1.0, -1.2, 1.0]), jac=True, method=solver, bounds=(-2.0, upper)
    )
    assert res.success
    np.testing.assert_allclose(res.x[:2], [0.5, 0.25], atol=1e-6)


def test_no_difference_leaves_the_box(method: str) -> None:
    upper = np.asarray([0.5, 2.0])
    for jac in ("2-point", "3-point"):
        fun = Watched(lambda x: rosenbrock(x)[0], -2.0, upper)
        res = lx.minimize(
            fun, np.asarray([-1.2, 1.0]), jac=jac, method=method, bounds=(-2.0, upper)
        )
        np.testing.assert_allclose(res.x, [0.5, 0.25], atol=1e-4)


def test_scaled_variables(method: str) -> None:
    res = lx.minimize(
        rosenbrock, np.asarray([-1.2, 1.0]), jac=True, method=method, bounds=(None, [0.8, 2.0]),
        x_scale=[1.0, 100.0],
    )
    assert res.success and res.active.dtype == np.int8 and np.array_equal(res.active, [1, 0])
    np.testing.assert_allclose(res.x, [0.8, 0.64], atol=1e-7)


def test_degenerate_bounds(method: str) -> None:
    """The minimum lies exactly on its bounds, where the multipliers are 0."""
    res = lx.minimize(
        rosenbrock, np.asarray([-1.2, 1.0, 0.0, 0.0]), jac=True, method=method,
        bounds=(None, [1.0, np.inf, 1.0, 1.0]),
    )
    assert res.success
    np.testing.assert_allclose(res.x, 1.0, atol=1e-5)


def test_no_search_jams_at_a_bound() -> None:
    """In each of many small problems the steps do not shorten where a bound is near."""
    rng, n = np.random.default_rng(0), 6
    count = 2000
    roots = rng.normal(size=(count, n, n))
    a = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n)
    center = 2.0 * rng.normal(size=(count, n))
    bounds = -rng.uniform(size=(count, n)), rng.uniform(size=(count, n))

    def fun(x: Any, a: Any, center: Any) -> Any:
        d = x - center
        g = (a @ d[..., None])[..., 0]
        return 0.5 * np.sum(d * g, -1) + 0.25 * np.sum(x**4, -1), g + x**3

    for method in METHODS:
        res = lx.minimize(
            fun, np.zeros((count, n)), (a, center), jac=True, method=method, batched=True,
            bounds=bounds, gtol=1e-6,
        )
        projected = np.clip(res.x - res.jac, *bounds) - res.x
        assert res.success.all() and np.max(np.abs(projected)) <= 1e-6
        assert np.max(res.nfev) <= 60 and np.mean(res.nfev) < 8.0


def test_a_bent_valley_between_bounds_takes_few_evaluations(method: str) -> None:
    for upper in (0.5, 0.75, 0.9):
        res = lx.minimize(
            rosenbrock, np.tile([-1.2, 1.0], 3), jac=True, method=method, bounds=(-2.0, upper)
        )
        assert res.success and np.allclose(res.x, np.tile([upper, upper * upper], 3))
        assert res.nfev <= 60


def test_a_wrong_gradient_is_no_success(method: str) -> None:
    def fun(x: np.ndarray) -> Any:
        value, gradient = rosenbrock(x)
        return value, -gradient

    res = lx.minimize(fun, np.zeros(2), jac=True, method=method, bounds=(-1.0, 0.5))
    assert not res.success


def test_weights_and_functions_as_initial_inverse_hessian() -> None:
    bounds, wanted = (None, [0.5, 2.0, 0.8, 2.0]), [0.5, 0.25, 0.8, 0.64]
    start = np.asarray([-1.2, 1.0, -1.2, 1.0])
    for initial in (0.1, np.asarray([0.1, 1.0, 0.1, 1.0]), lambda v: 0.1 * v):
        solver = lx.LBFGS(initial_inverse_hessian=initial)
        fun = Watched(rosenbrock, -np.inf, bounds[1])
        res = lx.minimize(fun, start, jac=True, method=solver, bounds=bounds)
        assert res.success
        np.testing.assert_allclose(res.x, wanted, atol=1e-6)


def test_many_variables_as_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    n = 20_000    # masks in pieces
    upper = np.where(np.arange(n) % 3 == 0, 0.5, np.inf)
    start = np.minimum(np.tile([-1.2, 1.0], n // 2), upper)
    res = lx.minimize(rosenbrock, start, jac=True, bounds=(None, upper), maxiter=200)
    other = optimize.minimize(
        rosenbrock, start, jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-7},
        bounds=optimize.Bounds(-np.inf, upper),
    )
    assert res.success and res.fun == pytest.approx(other.fun, rel=1e-9)
    assert np.array_equal(res.x == upper, other.x == upper)


def test_bad_bounds() -> None:
    with pytest.raises(ValueError, match=r"lower is 2.0 and upper is 1.0 at index 1; wanted lower"):
        lx.minimize(rosenbrock, np.zeros(2), jac=True, bounds=([0.0, 2.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="entries that are nan"):
        lx.minimize(rosenbrock, np.zeros(2), jac=True, bounds=([0.0, np.nan], None))
    with pytest.raises(TypeError, match="x0 is complex"):
        lx.minimize(rosenbrock, np.zeros(2, dtype=complex), jac=True, bounds=(0.0, None))


def test_a_printed_result_counts_the_variables_at_bounds() -> None:
    def fun(x):
        return ((x - 3.0) ** 2).sum(), 2.0 * (x - 3.0)

    res = lx.minimize(fun, np.zeros(3), jac=True, bounds=(np.asarray([4.0, 0.0, 0.0]), [5, 2, 9]))
    assert "active: 1 at lower bounds, 1 at upper ones, 1 free" in repr(res)
    assert "active" not in repr(lx.minimize(fun, np.zeros(3), jac=True))


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_state_goes_on_within_other_bounds(method: str, batched: bool) -> None:
    problem = lx.problems.chained_rosenbrock(8)
    x0 = np.stack([problem.x0, problem.x0 + 0.3]) if batched else problem.x0
    settings = dict(jac=True, method=method, batched=batched)
    before = lx.minimize(
        problem.value_and_gradient, x0, bounds=(-2.0, 0.7), maxiter=8, **settings
    )
    seen = []

    def watched(x):
        seen.append(x)
        return problem.value_and_gradient(x)

    res = lx.minimize(
        watched, before.x, bounds=(-0.4, 0.9), state=before.state, gtol=1e-8, **settings
    )
    fresh = lx.minimize(problem.value_and_gradient, x0, bounds=(-0.4, 0.9), gtol=1e-8, **settings)
    assert np.all(res.success) and all((x >= -0.4).all() and (x <= 0.9).all() for x in seen)
    np.testing.assert_allclose(res.x, fresh.x, atol=1e-6)
    assert (res.active == fresh.active).all()
