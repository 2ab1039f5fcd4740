"""Projected gradients: known minima, feasible trials, one implementation for one and many."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import projections
from tests.backends import Backend

RNG = np.random.default_rng(0)
A = RNG.normal(size=(30, 8))
B = RNG.normal(size=30)
SET = {
    "box": projections.Box(-0.1, 0.2),
    "non-negative": projections.NonNegative(),
    "simplex": projections.Simplex(),
    "l1": projections.L1Ball(0.3),
    "l2": projections.L2Ball(0.2, center=0.1),
    "halfspace": projections.Halfspace(np.ones(8), -1.0),
}


def nested_quadratic(x: dict) -> tuple[float, dict]:
    """Its minimum is at -1 everywhere."""
    if not isinstance(x, dict):
        return float(np.sum((x + 1.0) ** 2)), 2.0 * (x + 1.0)
    parts = {name: nested_quadratic(part) for name, part in x.items()}
    value = sum(part[0] for part in parts.values())
    return value, {name: part[1] for name, part in parts.items()}


NESTED = {"a": np.zeros(2), "b": {"c": np.ones(1), "d": np.ones((1, 2))}}


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [
        (({"a": 0.5}, None), (0.5, -1.0, -1.0)),
        (({"b": {"d": 0.0}}, {"a": -2.0}), (-2.0, -1.0, 0.0)),
        (({"b": None, "a": np.asarray([0.0, 0.0])}, None), (0.0, -1.0, -1.0)),
        (({}, {"b": {"c": -3.0}}), (-1.0, -3.0, -1.0)),
    ],
)
def test_bounds_for_some_names_only(bounds: Any, wanted: tuple) -> None:
    res = lx.minimize(nested_quadratic, NESTED, jac=True, bounds=bounds)
    assert res.success
    for found, value in zip((res.x["a"], res.x["b"]["c"], res.x["b"]["d"]), wanted, strict=True):
        np.testing.assert_allclose(found, np.full_like(found, value), atol=1e-6)


def test_bounds_for_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"lower bound names 'c'; wanted names of x0: 'a', 'b'"):
        lx.minimize(nested_quadratic, NESTED, jac=True, bounds=({"c": 0.0}, None))
    with pytest.raises(ValueError, match=r"upper bound\.b names 'a'; wanted names of x0: 'c', 'd"):
        lx.minimize(nested_quadratic, NESTED, jac=True, bounds=(None, {"b": {"a": 0.0}}))


def test_bounds_of_a_fit_for_some_names_only() -> None:
    x = np.linspace(-1.0, 1.0, 20)
    for bounds, a in ((({"b": 0.0}, None), 1.0), (({"a": 1.5}, {"b": 9.0}), 1.5)):
        for method in ("lm", "lbfgs"):
            fit = lx.curve_fit(
                lambda x, a, b: a + b * x, x, 1.0 + 2.0 * x, {"a": 2.0, "b": 0.0}, jac="3-point",
                bounds=bounds, method=method,
            )
            np.testing.assert_allclose([fit.x["a"], fit.x["b"]], [a, 2.0], atol=1e-6)


@pytest.mark.parametrize("method", [None, "auto", [None]])
@pytest.mark.parametrize("x0", [np.zeros(2), np.zeros((3, 2))])
def test_bounds_choose_the_method(method: Any, x0: np.ndarray) -> None:
    def fun(x: np.ndarray) -> Any:
        return np.sum((x + 1.0) ** 2, axis=-1), 2.0 * (x + 1.0)

    res = lx.minimize(
        fun, x0, jac=True, bounds=(0.5, None), method=method, batched=x0.ndim == 2
    )
    np.testing.assert_allclose(res.x, np.full_like(x0, 0.5))


class Watched:
    """A function that records where it was evaluated."""

    def __init__(self, fun: Any):
        self.fun, self.seen = fun, []

    def __call__(self, x: Any) -> Any:
        self.seen.append(x)
        return self.fun(x)


def least_squares(backend: Backend, dtype: str = "float64") -> Any:
    """|A x - b|^2 / 2 for rows x (..., 8), with its gradient."""
    a, b = backend.asarray(A, dtype), backend.asarray(B, dtype)

    def fun(x: Any) -> Any:
        r = x @ a.T - b
        return 0.5 * backend.xp.sum(r * r, axis=-1), r @ a

    return fun


def quadratic(x: np.ndarray) -> Any:
    d = np.asarray([1.0, 10.0, 100.0]) * (x - np.asarray([2.0, -3.0, 0.5]))
    return 0.5 * float(d @ (x - np.asarray([2.0, -3.0, 0.5]))), d


def test_separable_quadratic_in_a_box(backend: Backend) -> None:
    """Each variable is at its own minimum, clipped to its bounds."""
    weights = backend.asarray([1.0, 10.0, 100.0, 1000.0])
    center = backend.asarray([2.0, -3.0, 0.5, 0.0])

    def fun(x: Any) -> Any:
        d = x - center
        return 0.5 * backend.xp.sum(weights * d * d), weights * d

    watched = Watched(fun)
    bounds = backend.asarray([-math.inf, -1.0, -1.0, 0.25]), 1.0
    res = lx.minimize(
        watched, backend.asarray([5.0, 5.0, 5.0, 5.0]), jac=True, bounds=bounds,
        method="projected_gradient",
    )
    assert res.success and type(res.x) is type(weights)
    assert np.allclose(backend.to_numpy(res.x), [1.0, -1.0, 0.5, 0.25], rtol=0.0, atol=1e-8)
    for x in map(backend.to_numpy, watched.seen):
        assert np.all((x >= [-np.inf, -1.0, -1.0, 0.25]) & (x <= 1.0))  # exactly, without rounding


@pytest.mark.sampled
@pytest.mark.parametrize("name", SET)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_conditions_of_first_order(backend: Backend, name: str, dtype: str) -> None:
    """At x = P(x - g) no direction into the set goes down; no point outside it is evaluated."""
    project = SET[name]
    watched = Watched(least_squares(backend, dtype))
    res = lx.minimize(
        watched, backend.asarray(np.full(8, 3.0), dtype), jac=True,
        method=lx.ProjectedGradient(project),
    )
    assert res.success
    x, g = (backend.to_numpy(v).astype(float) for v in (res.x, res.jac))
    tolerance = 1e-6 if dtype == "float64" else 1e-2
    assert np.allclose(g, A.T @ (A @ x - B), atol=tolerance)
    assert np.max(np.abs(project(x - g) - x)) <= tolerance
    assert res.gradient_norm == pytest.approx(np.max(np.abs(project(x - g) - x)), abs=tolerance)
    rounding = 1e-14 if dtype == "float64" else 1e-5
    for seen in (backend.to_numpy(v).astype(float) for v in watched.seen):
        assert np.allclose(project(seen), seen, rtol=0.0, atol=rounding)


def test_simplex_against_multipliers() -> None:
    """On the simplex, g_i is the least of all components wherever x_i > 0."""
    res = lx.minimize(
        least_squares(Backend.NUMPY), np.zeros(8), jac=True, gtol=1e-10, ftol=0.0,
        method=lx.ProjectedGradient(projections.Simplex()),
    )
    assert res.success and abs(res.x.sum() - 1.0) < 1e-14
    active = res.x == 0.0
    assert 0 < active.sum() < 7
    assert np.ptp(res.jac[~active]) < 1e-6 and np.all(res.jac[active] > res.jac[~active].max())


@pytest.mark.parametrize("bounds", [(-1.5, 0.8), (1.1, None), (None, [0.5, 2.0, 0.5, 2.0])])
def test_rosenbrock_against_lbfgsb(bounds: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    problem = lx.problems.rosenbrock(4)
    lower, upper = (np.broadcast_to(np.inf if b is None else b, 4) for b in bounds)
    pairs = [
        (None if low == np.inf else low, None if high == np.inf else high)
        for low, high in zip(lower, upper, strict=True)
    ]
    wanted = optimize.minimize(
        lambda x: problem.value_and_gradient(x), problem.x0, jac=True, bounds=pairs,
        method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10},
    )
    res = lx.minimize(
        problem.value_and_gradient, problem.x0, jac=True, bounds=bounds,
        method="projected_gradient",
    )
    assert res.success and res.fun == pytest.approx(wanted.fun, rel=1e-9)
    assert np.allclose(res.x, wanted.x, atol=1e-5)


def test_without_constraints() -> None:
    """The spectral gradient method, which then measures the gradient itself."""
    problem = lx.problems.rosenbrock(4)
    res = lx.minimize(
        problem.value_and_gradient, problem.x0, jac=True, method=lx.ProjectedGradient()
    )
    assert res.success and np.allclose(res.x, 1.0)
    assert res.gradient_norm == np.max(np.abs(res.jac))


@pytest.mark.parametrize("name", ["simplex", "halfspace"])
def test_rows_of_a_batch_are_single_runs(backend: Backend, name: str) -> None:
    starts = np.random.default_rng(1).normal(size=(3, 8))
    a = backend.asarray(A)

    def fun(x: Any) -> Any:
        r = lx.fixed_sum(x[..., None, :] * a) - backend.asarray(B)
        return 0.5 * lx.fixed_sum(r * r), lx.fixed_sum(r[..., :, None] * a, axis=-2)

    def solve(x0: Any, batched: bool) -> Any:
        return lx.minimize(
            fun, backend.asarray(x0), jac=True, batched=batched, reproducible=True, maxiter=5,
            method=lx.ProjectedGradient(SET[name]),
        )

    together = solve(starts, True)
    for i, start in enumerate(starts):
        alone = solve(start, False)
        assert backend.to_numpy(together.x)[i].tobytes() == backend.to_numpy(alone.x).tobytes()
        assert backend.to_numpy(together.nfev)[i] == alone.nfev
        assert backend.to_numpy(together.status)[i] == alone.status


def test_same_bits_on_every_library() -> None:
    bits = set()
    problem = lx.problems.rosenbrock(6, reproducible=True)
    for backend in (b for b in Backend if not b.missing):
        problem = lx.problems.rosenbrock(
            6, xp=backend.xp, device=backend.device, reproducible=True
        )
        res = lx.minimize(
            problem.value_and_gradient, problem.x0, jac=True, reproducible=True, maxiter=30,
            method=lx.ProjectedGradient(projections.L2Ball(1.5)),
        )
        bits.add(backend.to_numpy(res.x).tobytes())
    assert len(bits) == 1


def test_batch_converges(backend: Backend) -> None:
    starts = np.random.default_rng(1).normal(size=(3, 8))
    res = lx.minimize(
        least_squares(backend), backend.asarray(starts), jac=True, batched=True,
        bounds=(backend.asarray(np.full(8, -0.1)), 0.2), method="projected_gradient",
    )
    assert np.all(backend.to_numpy(res.success))
    x = backend.to_numpy(res.x)
    assert np.allclose(x, x[0], atol=1e-6) and np.all((x >= -0.1) & (x <= 0.2))
    projected = np.clip(x - (x @ A.T - B) @ A, -0.1, 0.2) - x
    assert np.allclose(projected, 0.0, atol=1e-6)


@pytest.mark.parametrize("memory_size", [1, 10])
def test_values_fall_as_the_memory_tells(memory_size: int) -> None:
    problem = lx.problems.rosenbrock(2)
    values = [float(problem.fun(problem.x0))]
    res = lx.minimize(
        problem.value_and_gradient, problem.x0, jac=True, bounds=(-2.0, 0.9),
        method=lx.ProjectedGradient(memory_size=memory_size),
        callback=lambda record: values.append(record.fun) and None,
    )
    assert res.success
    for i in range(1, len(values)):
        assert values[i] <= max(values[max(0, i - memory_size) : i])
    rises = any(b > a for a, b in zip(values, values[1:], strict=False))
    assert rises == (memory_size > 1)


def test_constant_step_is_the_projected_gradient_method() -> None:
    """x <- P(x - step g), with a step that needs no search."""
    project = projections.Simplex()
    fun, step = least_squares(Backend.NUMPY), 1.0 / np.linalg.norm(A, 2) ** 2
    x = np.full(8, 1.0 / 8)
    for _ in range(20):
        x = project(x - step * fun(x)[1])
    res = lx.minimize(
        fun, np.full(8, 1.0 / 8), jac=True, maxiter=20, gtol=0.0,
        method=lx.ProjectedGradient(project, step_size=step, memory_size=1),
    )
    assert res.nit == 20 and res.nfev == 21
    assert np.allclose(res.x, x, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("step", [0.2, 1.9])
def test_a_fixed_step_is_taken_whatever_it_leads_to(step: float) -> None:
    """The projected gradient method of textbooks: no search, also if the value rises."""
    project, project_all = projections.Simplex(), projections.Box(-9.0, 9.0)
    fun, length = least_squares(Backend.NUMPY), step / np.linalg.norm(A, 2) ** 2
    for projection, x in ((project, np.full(8, 1.0 / 8)), (project_all, np.full(8, 1.0))):
        seen: list[np.ndarray] = []
        lx.minimize(
            fun, x, jac=True, maxiter=20, gtol=0.0,
            callback=lambda record, seen=seen: seen.append(record.x.copy()),
            method=lx.ProjectedGradient(projection, step_size=length, line_search=lx.Fixed()),
        )
        assert len(seen) > 10
        for found in seen:
            x = projection(x - length * fun(x)[1])
            np.testing.assert_allclose(found, x, rtol=0.0, atol=1e-13)


def test_a_fixed_step_that_is_too_long_is_no_success() -> None:
    fun, length = least_squares(Backend.NUMPY), 2.5 / np.linalg.norm(A, 2) ** 2
    values: list[float] = []
    res = lx.minimize(
        fun, np.full(8, 1.0), jac=True, callback=lambda record: values.append(record.fun),
        method=lx.ProjectedGradient(step_size=length, line_search=lx.Fixed()),
    )
    assert values[-1] > 1e3 * values[0] and not res.success
    assert res.status in (lx.Status.HIGHER, lx.Status.DIVERGED)


def test_a_function_as_projection(backend: Backend) -> None:
    xp = backend.xp

    def project(x: Any) -> Any:
        return xp.maximum(x, xp.zeros_like(x))

    x0 = backend.asarray(np.full((2, 8), -1.0))
    for start, batched in ((x0, True), (x0[0, :], False)):
        res, wanted = (
            lx.minimize(
                least_squares(backend), start, jac=True, batched=batched,
                method=lx.ProjectedGradient(projection),
            )
            for projection in (project, projections.NonNegative())
        )
        assert np.array_equal(backend.to_numpy(res.x), backend.to_numpy(wanted.x))


def test_nested_parameters() -> None:
    """Bounds have the structure of x0; a projection sees the parameters end to end."""

    def fun(p: Any) -> Any:
        g = {"a": p["a"] - 2.0, "b": p["b"] + 3.0}
        return 0.5 * (np.sum(g["a"] ** 2) + np.sum(g["b"] ** 2)), g

    x0 = {"a": np.zeros((2, 2)), "b": np.zeros(3)}
    bounds = {"a": None, "b": np.asarray([-1.0, -5.0, 0.0])}, {"a": [[1.0], [5.0]], "b": 9.0}
    bounds[1]["a"] = np.asarray(bounds[1]["a"])
    res = lx.minimize(fun, x0, jac=True, bounds=bounds, method="projected_gradient")
    assert np.allclose(res.x["a"], [[1.0, 1.0], [2.0, 2.0]])
    assert np.allclose(res.x["b"], [-1.0, -3.0, 0.0])
    res = lx.minimize(
        fun, x0, jac=True, method=lx.ProjectedGradient(projections.Simplex())
    )
    assert np.allclose(res.x["a"], 0.25) and np.allclose(res.x["b"], 0.0)


def test_going_on_equals_not_stopping() -> None:
    problem = lx.problems.rosenbrock(6)
    kwargs: Any = {"jac": True, "bounds": (-1.0, [0.5, 2.0] * 3), "method": "projected_gradient"}
    first = lx.minimize(problem.value_and_gradient, problem.x0, maxiter=10, **kwargs)
    state = pickle.loads(pickle.dumps(first.state))
    second = lx.minimize(problem.value_and_gradient, first.x, maxiter=10, state=state, **kwargs)
    whole = lx.minimize(problem.value_and_gradient, problem.x0, maxiter=20, **kwargs)
    # The run resumes from its last iterate, which may not be its best point.
    assert np.array_equal(second.state.solver_state.x, whole.state.solver_state.x)
    assert np.array_equal(second.x, whole.x)
    # With other bounds it starts at the nearest feasible point.
    kwargs["bounds"] = (0.9, 1.0)
    watched = Watched(problem.value_and_gradient)
    other = lx.minimize(watched, first.x, state=state, **kwargs)
    assert other.success and np.allclose(other.x, 1.0)
    assert all(np.all((x >= 0.9) & (x <= 1.0)) for x in watched.seen)
    with pytest.raises(ValueError, match="state holds a LBFGSState; wanted the state of Projected"):
        state = lx.minimize(problem.value_and_gradient, problem.x0, jac=True, maxiter=1).state
        lx.minimize(problem.value_and_gradient, problem.x0, state=state, **kwargs)


def test_a_value_without_bound() -> None:
    res = lx.minimize(
        lambda x: (float(x.sum()), np.ones(3)), np.ones(3), jac=True, bounds=(None, 1.0),
        method="projected_gradient",
    )
    assert res.status is lx.Status.UNBOUNDED


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    res = lx.minimize(
        lambda x: (0.0, np.full(2, np.inf)), np.zeros(2), jac=True, bounds=(0.0, 1.0),
        method="projected_gradient",
    )
    assert res.status is lx.Status.NOT_FINITE


def test_contradicting_gradient_is_found() -> None:
    res = lx.minimize(
        lambda x: (quadratic(x)[0], -quadratic(x)[1]), np.zeros(3), jac=True, bounds=(-1.0, 1.0),
        method="projected_gradient",
    )
    assert res.status is lx.Status.LINE_SEARCH and np.array_equal(res.x, np.zeros(3))


def solve(bounds: Any = None, x0: Any = None, **settings: Any) -> Any:
    return lx.minimize(
        lambda x: (0.0, x), np.zeros(3) if x0 is None else x0, jac=True, bounds=bounds,
        method=lx.ProjectedGradient(**settings),
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: solve((1.0, 0.0)), "lower is 1.0 and upper is 0.0; wanted lower <= upper"),
        (lambda: solve((math.nan, 0.0)), "lower has entries that are nan"),
        (lambda: solve(([0.0, 1.0], None)), r"the lower bound has shape \(2,\); wanted .* \(3,\)"),
        (lambda: solve((None, "a")), "the upper bound"),
        (lambda: solve((None, [1.0, [2.0]])), "the upper bound is a ragged list"),
        (lambda: solve([(0, 1)] * 3), r"wanted the pair \(lower, upper\)"),
        (lambda: solve(3.0), "bounds is 3.0; wanted the pair"),
        (lambda: solve([(0, 1)] * 2, np.zeros(2)), r"of two variables; wanted the tuple \(lower"),
        (lambda: solve([[0, 1], [2, 3]], np.zeros(2)), r"of two variables; wanted the tuple"),
        (lambda: solve((0.0, 1.0), np.zeros(3, dtype=complex)), "x0 is complex"),
        (lambda: solve((0.0, 1.0), projection=projections.Simplex()), "wanted only one of them"),
        (lambda: solve((None, {"a": 1.0})), "the upper bound has the structure"),
        (lambda: solve(projection=3), "projection is 3; wanted"),
        (lambda: solve(projection=projections.Simplex), "is the class Simplex; wanted an object"),
        (lambda: solve(projection=lambda x: x[:1]), r"projection returned float64 \(1,\); wanted"),
        (lambda: solve(projection=projections.Box([0.0, 1.0])), r"lower has shape \(2,\)"),
        (lambda: solve(step_size=0.0), "step_size is 0.0"),
        (lambda: solve(memory_size=0), "memory_size is 0"),
        (lambda: solve(line_search=lx.MoreThuente()), "line_search is MoreThuente"),
        (lambda: solve(line_search=lx.Fixed(1.5)), "wanted an alpha of at most 1"),
    ],
)
def test_bad_arguments(call: Any, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        call()
