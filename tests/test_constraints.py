"""Penalties and multipliers against closed forms, and every way in which a run can end."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import ConstrainedStatus
from tests.backends import Backend

ROOT3 = math.sqrt(3.0)
BOTH = [lx.augmented_lagrangian, lx.quadratic_penalty]


@dataclasses.dataclass
class Case:
    """A problem of Hock & Schittkowski (1981), or a smaller one, with its closed form.

    Written with entries of x and the four operations, so that it runs on every library; `c` holds
    constraints of only one kind.
    """

    fun: Callable
    grad: Callable  # x -> list of n
    kind: str
    c: Callable  # x -> list of m
    c_jac: Callable  # x -> m lists of n
    x0: list[float]
    x: list[float]
    value: float
    multipliers: list[float]


CASES = {
    "HS6": Case(
        lambda x: (1.0 - x[0]) ** 2,
        lambda x: [-2.0 * (1.0 - x[0]), 0.0 * x[0]],
        "equality",
        lambda x: [10.0 * (x[1] - x[0] ** 2)],
        lambda x: [[-20.0 * x[0], 10.0 + 0.0 * x[0]]],
        [-1.2, 1.0], [1.0, 1.0], 0.0, [0.0],
    ),
    # HS7 with 1 + x^2 instead of its logarithm, which changes neither solution nor multiplier
    "HS7": Case(
        lambda x: 1.0 + x[0] ** 2 - x[1],
        lambda x: [2.0 * x[0], -1.0 + 0.0 * x[0]],
        "equality",
        lambda x: [(1.0 + x[0] ** 2) ** 2 + x[1] ** 2 - 4.0],
        lambda x: [[4.0 * x[0] * (1.0 + x[0] ** 2), 2.0 * x[1]]],
        [2.0, 2.0], [0.0, ROOT3], 1.0 - ROOT3, [0.5 / ROOT3],
    ),
    "HS28": Case(
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        lambda x: [
            2.0 * (x[0] + x[1]), 2.0 * (x[0] + 2.0 * x[1] + x[2]), 2.0 * (x[1] + x[2])
        ],
        "equality",
        lambda x: [x[0] + 2.0 * x[1] + 3.0 * x[2] - 1.0],
        lambda x: [[1.0 + 0.0 * x[0], 2.0 + 0.0 * x[0], 3.0 + 0.0 * x[0]]],
        [-4.0, 1.0, 1.0], [0.5, -0.5, 0.5], 0.0, [0.0],
    ),
    "HS43": Case(
        lambda x: x[0] ** 2 + x[1] ** 2 + 2.0 * x[2] ** 2 + x[3] ** 2
        - 5.0 * x[0] - 5.0 * x[1] - 21.0 * x[2] + 7.0 * x[3],
        lambda x: [2.0 * x[0] - 5.0, 2.0 * x[1] - 5.0, 4.0 * x[2] - 21.0, 2.0 * x[3] + 7.0],
        "inequality",
        lambda x: [
            x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + x[3] ** 2 + x[0] - x[1] + x[2] - x[3] - 8.0,
            x[0] ** 2 + 2.0 * x[1] ** 2 + x[2] ** 2 + 2.0 * x[3] ** 2 - x[0] - x[3] - 10.0,
            2.0 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2.0 * x[0] - x[1] - x[3] - 5.0,
        ],
        lambda x: [
            [2.0 * x[0] + 1.0, 2.0 * x[1] - 1.0, 2.0 * x[2] + 1.0, 2.0 * x[3] - 1.0],
            [2.0 * x[0] - 1.0, 4.0 * x[1], 2.0 * x[2], 4.0 * x[3] - 1.0],
            [4.0 * x[0] + 2.0, 2.0 * x[1] - 1.0, 2.0 * x[2], -1.0 + 0.0 * x[3]],
        ],
        [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, -1.0], -44.0, [1.0, 0.0, 2.0],
    ),
    # the second constraint, x0 <= 5, is inactive
    "disc": Case(
        lambda x: x[0] + x[1],
        lambda x: [1.0 + 0.0 * x[0], 1.0 + 0.0 * x[0]],
        "inequality",
        lambda x: [x[0] ** 2 + x[1] ** 2 - 2.0, x[0] - 5.0],
        lambda x: [[2.0 * x[0], 2.0 * x[1]], [1.0 + 0.0 * x[0], 0.0 * x[0]]],
        [2.0, 0.0], [-1.0, -1.0], -2.0, [0.5, 0.0],
    ),
    "circle": Case(
        lambda x: x[0] + x[1],
        lambda x: [1.0 + 0.0 * x[0], 1.0 + 0.0 * x[0]],
        "equality",
        lambda x: [x[0] ** 2 + x[1] ** 2 - 2.0],
        lambda x: [[2.0 * x[0], 2.0 * x[1]]],
        [2.0, 0.0], [-1.0, -1.0], -2.0, [0.5],
    ),
}


def run(
    method: Callable, case: Case, backend: Backend = Backend.NUMPY, dtype: str = "float64",
    **kwargs: Any,
) -> Any:
    """Solve with automatic differentiation if the library has it, otherwise with Jacobians."""
    xp = backend.xp

    def stack(function: Callable) -> Callable:
        return lambda x: xp.stack(
            [xp.stack(c) if isinstance(c, list) else c for c in function(x)]
        )

    fun, functions = case.fun, {case.kind: stack(case.c)}
    if backend.is_jax:
        jit = importlib.import_module("jax").jit
        fun, functions = jit(fun), {name: jit(f) for name, f in functions.items()}
    if not backend.has_autodiff and "jac" not in kwargs:
        functions |= {"jac": stack(case.grad), f"{case.kind}_jac": stack(case.c_jac)}
    return method(fun, backend.asarray(case.x0, dtype), **functions, **kwargs)


@pytest.mark.sampled
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", CASES)
def test_closed_forms(backend: Backend, method: Callable, name: str) -> None:
    case = CASES[name]
    res = run(method, case, backend)
    exact = method is lx.augmented_lagrangian
    assert res.success and res.status is ConstrainedStatus.CONVERGED, res
    assert res.violation <= (1.5e-8 if exact else 6.1e-6)
    assert type(res.x) is type(backend.asarray(case.x0))
    tolerance = 1e-6 if exact else 1e-4
    assert np.allclose(backend.to_numpy(res.x), case.x, rtol=0.0, atol=tolerance)
    assert res.fun == pytest.approx(case.value, abs=tolerance)
    found, other = res.multipliers
    if case.kind == "equality":
        found, other = other, found
    assert other is None
    assert np.allclose(backend.to_numpy(found), case.multipliers, rtol=0.0, atol=10 * tolerance)


@pytest.mark.parametrize("method", BOTH)
def test_float32(backend: Backend, method: Callable) -> None:
    case = CASES["disc"]
    res = run(method, case, backend, "float32")
    assert res.success and res.x.dtype == backend.dtype("float32")
    assert np.allclose(backend.to_numpy(res.x), case.x, atol=1e-2)


@pytest.mark.parametrize("name", ["HS7", "HS43"])
def test_against_slsqp(name: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    case = CASES[name]
    sign = 1.0 if case.kind == "equality" else -1.0
    wanted = optimize.minimize(
        case.fun, case.x0, method="SLSQP", options={"ftol": 1e-14},
        constraints={
            "type": "eq" if case.kind == "equality" else "ineq",
            "fun": lambda x: sign * np.asarray(case.c(x)),
        },
    )
    res = run(lx.augmented_lagrangian, case)
    assert res.fun == pytest.approx(wanted.fun, rel=1e-7)
    assert np.allclose(res.x, wanted.x, atol=1e-5)


def test_kkt_conditions_with_the_documented_signs() -> None:
    """grad f + J^T mu = 0, mu >= 0 and mu c = 0."""
    case = CASES["HS43"]
    res = run(lx.augmented_lagrangian, case)
    mu = res.multipliers.inequality
    stationary = np.asarray(case.grad(res.x)) + mu @ np.asarray(case.c_jac(res.x))
    assert np.allclose(stationary, 0.0, atol=1e-7)
    assert np.all(mu >= 0.0) and mu[1] == 0.0
    assert np.allclose(mu * np.asarray(case.c(res.x)), 0.0, atol=1e-7)


@pytest.mark.parametrize("penalty", [1e1, 1e2, 1e3, 1e4])
def test_bias_of_the_quadratic_penalty(penalty: float) -> None:
    """A single penalty leaves c = multiplier / rho (Nocedal & Wright, Theorem 17.2)."""
    case = CASES["circle"]
    res = run(lx.quadratic_penalty, case, penalty=penalty, maxiter=1, ctol=0.0)
    assert res.status is ConstrainedStatus.ITERATIONS and res.penalty == penalty
    assert penalty * case.c(res.x)[0] == pytest.approx(0.5, rel=1.0 / penalty)


def test_multipliers_need_no_large_penalty() -> None:
    case = CASES["circle"]
    res = run(lx.augmented_lagrangian, case, ctol=1e-10)
    assert res.violation <= 1e-10 and res.penalty <= 100.0  # c = 0.5 / rho would need 5e9


def test_both_kinds_and_the_parameters_of_a_user(backend: Backend) -> None:
    """min |x - t|^2 with x0 + x1 = 1 and x0 <= 0.25; t from args; the constraints are scalars."""

    def fun(x: Any, t: float) -> Any:
        return backend.xp.sum((x - t) ** 2)

    res = lx.augmented_lagrangian(
        fun, backend.asarray([0.0, 0.0]), 3.0, jac=None if backend.has_autodiff else "3-point",
        equality=lambda x, t: x[0] + x[1] - t / 3.0, inequality=lambda x, t: x[0] - t / 12.0,
        gtol=1e-6, ctol=1e-6,
    )
    assert res.success
    assert np.allclose(backend.to_numpy(res.x), [0.25, 0.75], atol=1e-5)
    # 2 (x1 - 3) + lambda = 0 and 2 (x0 - 3) + lambda + mu = 0
    assert float(res.multipliers.equality[0]) == pytest.approx(4.5, abs=1e-4)
    assert float(res.multipliers.inequality[0]) == pytest.approx(1.0, abs=1e-4)


def test_nested_parameters_and_jac_true() -> None:
    def fun(p: Any) -> Any:
        g = {"a": 2.0 * (p["a"] - 1.0), "b": 2.0 * p["b"]}
        return float(np.sum((p["a"] - 1.0) ** 2) + np.sum(p["b"] ** 2)), g

    def total(p: Any) -> Any:
        return [np.sum(p["a"]) + np.sum(p["b"]) - 6.0]

    res = lx.augmented_lagrangian(
        fun, {"a": np.zeros((2, 1)), "b": np.zeros(2)}, jac=True, equality=total,
        equality_jac=lambda p: np.ones((1, 4)),
    )
    assert res.success and np.allclose(res.x["a"], 2.0) and np.allclose(res.x["b"], 1.0)
    assert np.allclose(res.multipliers.equality, -2.0)


def test_with_bounds_and_another_method() -> None:
    """Bounds are passed to the inner method: min x0 + 2 x1 with x0 x1 = 1 and x <= 1.2."""
    res = lx.augmented_lagrangian(
        lambda x: x[0] + 2.0 * x[1], np.asarray([1.0, 1.0]), jac=lambda x: np.asarray([1.0, 2.0]),
        equality=lambda x: x[0] * x[1] - 1.0, equality_jac=lambda x: x[::-1].copy(),
        bounds=(0.1, 1.2), method="projected_gradient",
    )
    assert res.success and np.allclose(res.x, [1.2, 1.0 / 1.2], atol=1e-6)


def test_same_bits_on_every_library() -> None:
    bits = {
        (backend.to_numpy(res.x).tobytes(), res.nfev)
        for backend in Backend
        if not backend.missing
        for res in [
            lx.augmented_lagrangian(
                lambda x: lx.fixed_sum(x), backend.asarray([2.0, 0.0, 1.0]),
                jac=lambda x: 0.0 * x + 1.0, equality=lambda x: lx.fixed_sum(x * x) - 3.0,
                equality_jac=lambda x: 2.0 * x, reproducible=True,
            )
        ]
    }
    assert len(bits) == 1


# --- how a run ends ----------------------------------------------------------------------------


def circle(method: Callable = lx.augmented_lagrangian, **kwargs: Any) -> Any:
    return run(method, CASES["circle"], **kwargs)


@pytest.mark.parametrize("method", BOTH)
def test_an_infeasible_problem_says_so(method: Callable) -> None:
    """x = 1 and x = 3: the violation is smallest at 2."""
    res = method(
        lambda x: float(x @ x), np.asarray([5.0]), jac=lambda x: 2.0 * x,
        equality=lambda x: np.asarray([x[0] - 1.0, x[0] - 3.0]),
        equality_jac=lambda x: np.ones((2, 1)),
    )
    assert res.status is ConstrainedStatus.INFEASIBLE and not res.success
    assert "violation does not fall" in res.message and res.message == res.status.message
    assert res.x[0] == pytest.approx(2.0, abs=1e-5) and res.violation == pytest.approx(1.0)


def test_budgets() -> None:
    res = circle(maxiter=2, ctol=0.0)
    assert res.status is ConstrainedStatus.ITERATIONS and res.nit == 2
    calls = []

    def fun(x: Any) -> Any:
        calls.append(x)
        return x[0] + x[1]

    kwargs: Any = {
        "jac": lambda x: np.ones(2), "equality": lambda x: x @ x - 2.0,
        "equality_jac": lambda x: 2.0 * x,
    }
    for maxfun in (1, 5, 17, 25):
        calls.clear()
        res = lx.augmented_lagrangian(fun, np.asarray([2.0, 0.0]), maxfun=maxfun, **kwargs)
        assert res.status is ConstrainedStatus.EVALUATIONS
        assert res.nfev == len(calls) == maxfun
    res = circle(maxtime=0.0)
    assert res.status is ConstrainedStatus.TIME and res.nfev == 1
    assert np.array_equal(res.x, [2.0, 0.0]) and res.violation == 2.0
    res = circle(maxiter_inner=3, maxiter=1000)
    assert res.success and res.nit > 5 and np.allclose(res.x, -1.0)


def test_a_callback_stops_and_sees_every_outer_iteration() -> None:
    seen = []
    full = circle(callback=lambda r: seen.append(r) and None)
    assert full.success and [r.nit for r in seen] == list(range(1, full.nit + 1))
    assert all(r.status is ConstrainedStatus.RUNNING for r in seen)
    assert all(b.violation <= a.violation for a, b in zip(seen, seen[1:], strict=False))
    res = circle(callback=lambda r: r.nit == 2)
    assert res.status is ConstrainedStatus.CALLBACK and res.nit == 2
    assert res.fun == seen[1].fun and res.nfev == seen[1].nfev
    last = circle(callback=lambda r: r.nit == full.nit)
    assert last.status is ConstrainedStatus.CONVERGED and last.nit == full.nit
    for budget in ({"maxiter": 2}, {"maxfun": 20}, {"maxtime": 0.0}):
        counts: list[int] = []
        res = circle(callback=lambda r, counts=counts: counts.append(r.nit), **budget)
        assert not res.success and counts == list(range(1, res.nit + 1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interruptions_keep_the_best_point(error: type[BaseException]) -> None:
    calls = []

    def fun(x: Any) -> Any:
        calls.append(x)
        if len(calls) == 40:
            raise error
        return x[0] + x[1]

    case = dataclasses.replace(CASES["circle"], fun=fun)
    if error is KeyboardInterrupt:
        res = run(lx.augmented_lagrangian, case)
        assert res.status is ConstrainedStatus.INTERRUPTED
    else:
        with pytest.raises(error) as caught:
            run(lx.augmented_lagrangian, case)
        res = caught.value.result  # type: ignore[attr-defined]
        assert isinstance(res, lx.ConstrainedResult)
        assert res.status is ConstrainedStatus.RUNNING
    assert np.allclose(res.x, -1.0, atol=0.1) and res.violation < 0.1
    assert res.fun == res.x.sum() and res.nit >= 2


def test_a_value_without_bound() -> None:
    res = lx.augmented_lagrangian(
        lambda x: x[0], np.asarray([1.0, 2.0]), jac=lambda x: np.asarray([1.0, 0.0]),
        equality=lambda x: x[1], equality_jac=lambda x: np.asarray([0.0, 1.0]),
    )
    assert res.status is ConstrainedStatus.UNBOUNDED


def test_unbounded_only_while_the_penalty_is_small() -> None:
    """-x^2 / 2 with x = 1 has no minimum for rho <= 1."""
    for method in BOTH:
        res = method(
            lambda x: float(-0.5 * x @ x), np.asarray([2.0]), jac=lambda x: -x,
            equality=lambda x: x - 1.0, equality_jac=lambda x: np.ones((1, 1)), penalty=0.01,
        )
        assert res.success and res.x[0] == pytest.approx(1.0, abs=1e-5)
        assert res.multipliers.equality[0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("where", ["fun", "equality"])
def test_a_start_that_is_not_finite(where: str) -> None:
    one, nan = (lambda x: x[0]), (lambda x: x[0] * math.nan)
    res = lx.augmented_lagrangian(
        nan if where == "fun" else one, np.ones(1), jac=lambda x: np.ones(1),
        equality=nan if where == "equality" else one, equality_jac=lambda x: np.ones(1),
    )
    assert res.status is ConstrainedStatus.NOT_FINITE
    assert math.isnan(res.fun if where == "fun" else res.violation)


def test_a_wrong_jacobian_of_fun_is_an_inner_failure() -> None:
    res = lx.augmented_lagrangian(
        lambda x: float(x @ x), np.zeros(2), jac=lambda x: np.asarray([1.0, 1.0]),
        inequality=lambda x: x[0] - 1.0, inequality_jac=lambda x: np.asarray([1.0, 0.0]),
    )
    assert res.status is ConstrainedStatus.INNER
    assert res.inner.status is lx.Status.LINE_SEARCH


# --- bad input ---------------------------------------------------------------------------------


def bad(**kwargs: Any) -> Any:
    kwargs = {
        "jac": lambda x: x, "equality": lambda x: x[0], "equality_jac": lambda x: np.eye(1, 2)
    } | kwargs
    return lx.augmented_lagrangian(kwargs.pop("fun", lambda x: 0.5 * x @ x), np.ones(2), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"equality": None, "equality_jac": None}, "no constraints were passed"),
        ({"equality": 3}, "equality is a int; wanted a function"),
        ({"fun": None}, "fun is a NoneType; wanted a function"),
        ({"equality_jac": None}, "equality_jac is missing; wanted the Jacobian"),
        ({"jac": "2-point"}, "equality_jac was passed, but jac is neither True nor a function"),
        ({"inequality_jac": lambda x: x}, "inequality_jac was passed, but inequality was not"),
        ({"jac": None, "equality_jac": None}, "numpy has no automatic differentiation"),
        ({"equality": lambda x: np.eye(2)}, r"equality returned an array of shape \(2, 2\)"),
        ({"equality": lambda x: np.zeros(0)}, r"equality returned an array of shape \(0,\)"),
        ({"equality": lambda x: "a"}, "equality is 'a'; wanted real numbers"),
        ({"equality_jac": lambda x: np.eye(2)}, r"shape \(2, 2\); wanted \(1, 2\)"),
        ({"fun": lambda x: None}, "fun returned a NoneType; wanted a real number"),
        ({"fun": lambda x: 1.0, "jac": True}, "fun returned a float; wanted, with jac=True"),
        ({"penalty": 0.0}, "penalty is 0.0; wanted a finite number above 0"),
        ({"growth": 1.0}, "growth is 1.0; wanted a finite number above 1"),
        ({"ctol": -1.0}, "ctol is -1.0"),
        ({"maxiter": 0}, "maxiter is 0; wanted an integer of at least 1, or None"),
        ({"maxiter": 1.5}, "maxiter is 1.5; wanted an integer of at least 1, or None"),
        ({"maxiter_inner": "3"}, "maxiter_inner is '3'; wanted an integer of at least 1, or None"),
        ({"maxfun": 0}, "maxfun is 0"),
        ({"maxfun": 9.5}, "maxfun is 9.5; wanted an integer of at least 1, or None"),
        ({"maxtime": -1.0}, "maxtime is -1.0"),
        ({"callback": 3}, "callback is a int"),
        ({"method": "newton-raphson"}, "method is 'newton-raphson'"),
        ({"batched": True}, "batched"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        bad(**kwargs)


@pytest.mark.parametrize("unlimited", [None, math.inf])
@pytest.mark.parametrize("method", BOTH)
def test_no_limit(method: Callable, unlimited: Any) -> None:
    names = "maxiter", "maxiter_inner", "maxfun", "maxtime"
    free, usual = circle(method, **dict.fromkeys(names, unlimited)), circle(method)
    assert free.status is ConstrainedStatus.CONVERGED
    assert (free.nit, free.nfev, *free.x) == (usual.nit, usual.nfev, *usual.x)


def test_a_result_prints_line_by_line() -> None:
    lines = repr(circle()).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "x", "fun", "violation", "multipliers", "penalty", "nit", "nfev", "success", "status",
        "message",
    ]
    assert "status: CONVERGED" in lines[8]


def test_a_failure_of_the_inner_solve_says_nothing_of_the_constraints() -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        res = lx.augmented_lagrangian(
            lambda x: (x**4).sum(), 3.0 * np.ones(2), jac=lambda x: 4.0 * x**3,
            equality=lambda x: x[0] - 1.0, equality_jac=lambda x: np.array([[1.0, 0.0]]),
            method=lx.SGD(1.0), maxiter_inner=50,
        )
    assert res.status.name == "INNER" and res.inner.status is lx.Status.DIVERGED


def test_differences_end_where_they_can() -> None:
    """Hock & Schittkowski, problem 71, by 2-point differences."""
    res = lx.augmented_lagrangian(
        lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], np.array([1.0, 5.0, 5.0, 1.0]),
        jac="2-point", bounds=(1.0, 5.0), method="projected_gradient",
        inequality=lambda x: 25.0 - np.prod(x), equality=lambda x: x @ x - 40.0,
    )
    assert res.success
    np.testing.assert_allclose(res.x, [1.0, 4.7429994, 3.8211503, 1.3794082], atol=1e-4)
    np.testing.assert_allclose(res.fun, 17.0140173, atol=1e-5)
